"""The process that writes one run: it opens it, says how far it is, and writes what it is given. Started as a file.

It may run under another Python than the server, in whose environment the trackers' libraries are. Of this package it
imports modules that need only the standard library. On its standard input it reads two lines of JSON: the run, and its
new steps. It answers each with one line: `{"last": 7}`, then `{"url": "..."}`, or `{"error": "..."}` for either.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

MAX_MEMORY = 6 << 30
"""Of address space, of which the helper of W&B reserves much more than it uses."""
MAX_FILE = 2 << 30
MAX_WORDS = 300


def main() -> None:
    """Write one run."""
    answers, name = os.fdopen(os.dup(1), "w"), sys.argv[1]
    os.dup2(2, 1)  # what libraries print is not an answer
    request = json.loads(sys.stdin.readline())
    key = request["run"]["key"]
    try:
        _limit()
        tracker, modules = _module(name)
        if not request["anywhere"]:
            _stay_outside(modules)
        writer = tracker.open_run(modules["run"].Run(**request["run"]))
        _say(answers, {"last": writer.last_step})
        news = json.loads(sys.stdin.readline())
        writer.write([(step, at, values) for step, at, values in news["points"]])
        _say(answers, {"url": writer.close(news["state"])})
    except BaseException as error:  # noqa: BLE001  libraries also raise SystemExit
        _say(answers, {"error": _words(error, request["run"]["url"], key)})
    os._exit(0)  # threads of libraries may not hold it back


def _limit() -> None:
    import resource

    for what, most in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_FSIZE, MAX_FILE)):
        with suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))


def _module(name: str) -> tuple[Any, dict[str, Any]]:
    """The tracker's module. Our folder is on the path only for this, so that it hides no library."""
    root = str(Path(__file__).resolve().parents[3])
    sys.path[0] = root
    package = "orchestrator.adapters"
    found = import_module(f"{package}.trackers.{name}")
    modules = {"run": import_module(f"{package}.trackers.run"), "nets": import_module(f"{package}.private_networks")}
    del sys.path[0]
    return found, modules


def _stay_outside(modules: dict[str, Any]) -> None:
    """Refuse connections into the server's own network, for all threads of this process."""
    import socket

    nets = modules["nets"]

    def watch(event: str, args: tuple[Any, ...]) -> None:
        is_network = event == "socket.connect" and args[0].family in (socket.AF_INET, socket.AF_INET6)
        if is_network and any(map(nets.is_inside, nets.lookup(args[1][0]))):
            raise ConnectionRefusedError("this address is inside the server's own network; ask an admin")

    sys.addaudithook(watch)


def _words(error: BaseException, url: str, key: str) -> str:
    """One line without the key. Libraries wrap what the system has said in texts of their own."""
    root = error
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    if isinstance(root, OSError) and root.strerror:
        return f"{url or 'it'} cannot be reached ({root.strerror})"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    words = " ".join(lines[0].split())
    return (words.replace(key, "***") if key else words)[:MAX_WORDS]


def _say(answers: Any, found: dict[str, Any]) -> None:
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
