"""Helpers for the processes of one machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from worker.shared.files import write_atomically

UNDELIVERED = 4
"""Exit code of a worker whose last messages did not reach the server."""
INSTANCE = "TRAINHOP_INSTANCE"
"""The variable with the id of the server that started a worker."""
_PR_SET_PDEATHSIG = 1
_BECOME = f"""\
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before the call
        sys.exit(1)
os.execv(command[0], command)
"""


PLAIN_VARIABLES = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV", "TMPDIR")
NETWORK_VARIABLES = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
MODEL_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def variables(*more: str) -> dict[str, str]:
    """The variables that every program needs, and those called `more`: none of the secrets among the others."""
    return {name: os.environ[name] for name in (*PLAIN_VARIABLES, *more) if name in os.environ}


def leave(code: int | None = None) -> NoReturn:
    """End this process without clearing up the interpreter, where threads of native libraries can abort it.

    Only daemon threads may still run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process by a command. It keeps its id, output, folder and variables, and whoever waits for it waits.

    The new image has nothing else of this one: no memory, no thread, no open file, and nothing on the GPU.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    for entry in Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir():
        with suppress(OSError):
            if int(entry.name) > 2:
                os.set_inheritable(int(entry.name), False)
    os.execv(command[0], list(command))  # noqa: S606  the command is this program's own


def process_birth(pid: int) -> str | None:
    """The kernel's start time of a running process. None if it ended or is a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    return _birth_by_ps(pid)


def _birth_by_ps(pid: int) -> str | None:
    """The same from `ps`. MacOS and the BSDs have no /proc."""
    ps = shutil.which("ps")
    if ps is None:
        return None
    found = subprocess.run(
        [ps, "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    state, _, birth = found.partition(" ")
    return birth.strip() or None if state and not state.startswith("Z") else None


def process_instance(pid: int) -> tuple[str, Path | None]:
    """The id of the instance that started a process, empty if unknown, and its working folder, None if unknown."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        folder = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return "", None
    prefix = f"{INSTANCE}=".encode()
    return next((v[len(prefix) :].decode(errors="replace") for v in variables if v.startswith(prefix)), ""), folder


def note_process(folder: Path) -> None:
    """Write this process's id and start time to `pid.json`, completely or not at all."""
    note = {"pid": os.getpid(), "born": process_birth(os.getpid())}
    write_atomically(folder / "pid.json", json.dumps(note))


def last_line(printed: str) -> str:
    """The last line of a process's output, where Python prints the error."""
    return (printed.strip().splitlines() or ["no reason was given"])[-1]


def free_address() -> str:
    """HOST:PORT on this machine for processes to connect. No process uses the port now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return "{}:{}".format(*found.getsockname())


def tied(command: Sequence[str]) -> list[str]:
    """A command to start instead of `command`, so that Linux kills it when this process ends.

    The first word of `command` is a path. It works from the command's first moment, wherever the command hangs. The
    kernel acts when the thread that started the command ends, so only a thread that waits for the command may start it.
    On other systems the command continues to run.
    """
    return [sys.executable, "-IS", "-c", _BECOME, str(os.getpid()), *command]


@contextmanager
def postponed(number: signal.Signals) -> Iterator[None]:
    """Let the handler of a signal run after the block and not in it.

    A handler that raises while `Popen` starts a process leaves that process behind, because nobody knows it yet.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread only
        yield
        return
    came: list[int] = []
    handler = signal.signal(number, lambda *_: came.append(number))
    try:
        yield
    finally:
        signal.signal(number, handler)
        if came:
            signal.raise_signal(number)


def end_with_the_parent() -> None:
    """End this process when its parent, which holds the other end of standard input, ends in any way."""
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(0, 4096):  # reading sys.stdin would hold its lock at shutdown, which aborts the interpreter
        pass
    os._exit(1)
