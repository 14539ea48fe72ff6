"""`python -m tests.helpers.fork_server PROGRAM ADDRESS` starts processes by forking, with PROGRAM's libraries loaded.

Most of the processor time of a short process is the import of torch or of a web framework. A request is a message with
the descriptors of stdin, stdout and stderr. The answers are the process id, and the wait status when the process has
ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from tests.helpers import forked_process

MAX_REQUEST = 1 << 18
OURS = ("trainhop", "worker")
CHECK_S = 5.0


def load_server() -> None:
    """Everything that the command line and the server import."""
    for name in ("background.server", "http.app", "dashboard"):
        importlib.import_module(f"orchestrator.entrypoints.{name}")
    commands = Path(importlib.import_module("orchestrator.entrypoints.cli").__path__[0])
    for file in commands.glob("[a-z]*.py"):
        if file.stem != "main":  # it runs as `__main__`
            importlib.import_module(f"orchestrator.entrypoints.cli.{file.stem}")
    importlib.import_module("alembic.command")
    for driver in entry_points(group="trainhop.providers"):
        driver.load()


def load_training() -> None:
    """Everything that a session of training imports."""
    from worker.shared.imports import quick_imports
    from worker.training import unusable
    from worker.training.smoke import LIBRARIES

    unusable.hide()
    with quick_imports():
        for name in (*LIBRARIES, "worker.training.trainer", "worker.training.train", "worker.agent.run"):
            importlib.import_module(name)
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401


def load_checks() -> None:
    """What reads and checks members' files in a process with limits."""
    for name in ("data_reading", "check_process", "audit_reading"):
        importlib.import_module(f"orchestrator.services.{name}")
    importlib.import_module("worker.shared.tasks")
    importlib.import_module("rensa")
    importlib.import_module("py3langid").classify("the first call reads the model")


def load_tokenizers() -> None:
    """What encodes rows without torch."""
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  as the program itself does
    for name in ("token_preview", "token_counts", "piece_counts"):
        importlib.import_module(f"worker.training.{name}")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401


LOADERS: dict[str, Callable[[], None]] = {
    "orchestrator.entrypoints.cli.main": load_server,
    "worker": load_training,
    forked_process.LIBRARIES: load_training,
    "worker.shared.limited_call": load_checks,
    "worker.training.token_preview": load_tokenizers,
}


def serve(program: str, address: Path) -> str:
    """Answer requests until the tests have ended. Returns the module to run, in each forked process."""
    before = dict(os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LOADERS[program]()
    # scikit-learn for example sets variables when it is imported, and checkpoints record them.
    set_by_libraries = {name: value for name, value in os.environ.items() if before.get(name) != value}
    gc.collect()
    gc.freeze()
    listener = _listen(address)
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    callers: dict[int, socket.socket] = {}
    tied: dict[socket.socket, int] = {}
    owner = int((address.parent / "owner").read_text())
    while address.exists() and _runs(owner):
        readable = select.select([listener, woken, *tied], [], [], CHECK_S)[0]
        if woken in readable:
            woken.recv(4096)
        for caller in tied.keys() & readable:
            os.kill(tied.pop(caller), signal.SIGKILL)
        for pid, status in _ended():
            caller = callers.pop(pid)
            tied.pop(caller, None)
            _tell(caller, status)
            caller.close()
        if listener not in readable:
            continue
        caller = listener.accept()[0]
        message, streams, *_ = socket.recv_fds(caller, MAX_REQUEST, 3)
        if not message:  # whoever connected was killed before it asked
            caller.close()
            continue
        request = json.loads(message)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            request["set_by_libraries"] = set_by_libraries
            return _become(request, streams, address.parent)
        for descriptor in streams:
            os.close(descriptor)
        callers[pid] = caller
        if request["tied"]:
            tied[caller] = pid
        _tell(caller, pid)
    sys.exit()


def _listen(address: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    new = address.with_suffix(".new")
    listener.bind(str(new))
    listener.listen(64)
    new.rename(address)
    return listener


def _ended() -> Iterator[tuple[int, int]]:
    """The processes that have ended, with their wait status."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _tell(caller: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the caller may have been killed
        caller.send(str(number).encode())


def _become(request: dict[str, Any], streams: list[int], servers: Path) -> str:
    """Make this forked process like one that was started with the request's command. Returns the module to run."""
    if request["new_session"]:
        os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, 1 << 12)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(request["umask"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update({**request["set_by_libraries"], **request["variables"]})
    time.tzset()
    command = request["command"]
    _show(command, request["variables"])
    sys.orig_argv[:] = command
    module, rest = forked_process.module_of(command)
    sys.argv[:] = ["-m", *command[rest:]]
    if rest > 3:
        warnings.simplefilter("ignore")
    paths = [path for path in request["variables"].get("PYTHONPATH", "").split(os.pathsep) if path]
    if request["elsewhere"]:
        _forget_ourselves(command, paths)
    sys.path[:1] = [*([] if os.environ.get("PYTHONSAFEPATH") else [str(Path.cwd())]), *paths]
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream is sys.stderr or os.isatty(1), write_through=unbuffered)  # pyright: ignore[reportAttributeAccessIssue]
    importlib.invalidate_caches()
    forked_process.install(servers, elsewhere=request["elsewhere"])
    return module


def _forget_ourselves(command: list[str], paths: list[str]) -> None:
    """Let this process import the worker in `paths`, and read again what depends on the machine's own folders.

    Where `paths` have a library that this process has loaded, the command is started in the usual way.
    """
    loaded = {name.partition(".")[0] for name in sys.modules}
    found = {file.name.partition(".")[0] for path in paths if Path(path).is_dir() for file in Path(path).iterdir()}
    if found & loaded - {*OURS, "sitecustomize"}:
        os.execve(command[0], command, dict(os.environ))
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    importlib.reload(sys.modules["huggingface_hub.constants"])


def _show(command: list[str], variables: dict[str, str]) -> None:
    """Let /proc show the command and the variables of this process in the place of the fork server's."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    for first, last, strings in (
        (fields[45], fields[46], command),
        (fields[47], fields[48], [f"{name}={value}" for name, value in variables.items()]),
    ):
        room = int(last) - int(first)
        shown = b"".join(text.encode(errors="surrogateescape") + b"\0" for text in strings)
        if len(shown) > room:
            raise ValueError(f"{len(shown)} bytes do not fit in {room}")
        ctypes.memmove(int(first), shown.ljust(room, b"\0"), room)


if __name__ == "__main__":
    if os.fork() > 0:
        os._exit(0)  # whoever starts it need not wait for its end
    os.setsid()
    runpy._run_module_as_main(serve(sys.argv[1], Path(sys.argv[2])))  # pyright: ignore[reportAttributeAccessIssue] - what `python -m` does
