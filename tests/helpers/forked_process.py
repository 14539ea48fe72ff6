"""Lets `subprocess.Popen` fork some programs from a process that has their libraries loaded, see `fork_server`.

A process that needs other variables for its libraries, a `preexec_fn`, another interpreter or little memory is started
in the usual way.

An emulated machine has a worker of its own, unpacked from a wheel. Its Python finds `kernel_site`, which lets it fork
the processes of that worker too, from a process that has the third-party libraries alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.shared.limited_call import LITTLE_MEMORY, MAX_MEMORY_BYTES
from worker.shared.process import tied

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "orchestrator.entrypoints.cli.main": "orchestrator.entrypoints.cli.main",
    "worker": "worker",
    "worker.chat": "worker",
    "worker.export": "worker",
    "worker.agent.hardware": "worker",
    "worker.doctor.tiny": "worker",
    "worker.notebook.attended": "worker",
    "trainhop.place_process": "worker",
    "worker.training.gpu_follower": "worker",
    "worker.training.smoke": "worker",
    "worker.shared.limited_call": "worker.shared.limited_call",
    "worker.training.token_preview": "worker.training.token_preview",
    "worker.training.token_counts": "worker.training.token_preview",
    "worker.training.piece_counts": "worker.training.token_preview",
}
"""Which modules are started so, and the program whose fork server starts them."""
LIMITED = ("worker.shared.limited_call", "worker.training.token_preview")
"""Programs that limit themselves, and get only the variables that are named for them."""
WITH_FEW_VARIABLES = (
    *("worker.chat", "worker.export", "worker.agent.hardware", "worker.notebook.attended", "trainhop.place_process"),
)
"""Programs that get only the variables that are named for them, and record none of them; and those of notebooks."""
HEEDED = ("PYTHONPATH", "PYTHONSAFEPATH", "HF_HUB_DISABLE_PROGRESS_BARS")
"""Variables of theirs that a forked process follows, or that tell it nothing."""
LIBRARIES = "libraries"
"""The program that has the third-party libraries and none of our own modules."""
OF_A_MACHINE = ("worker", "worker.doctor.reduce", "worker.doctor.tiny")
"""The modules of a worker elsewhere that are started so."""
OF_A_PLACE = ("HF_ENDPOINT", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUSERBASE")
"""Variables that differ from machine to machine, which a process of a worker elsewhere takes over by itself."""
CALLED = ("orchestrator.", "worker.")
"""What the functions that `limited_call` calls so begin with. Those of tests are called in the usual way."""
SOME = ("HF_HUB_OFFLINE", "HF_TOKEN_PATH", "HOME", "OMP_NUM_THREADS")
"""Variables that libraries read when they are imported. There is a fork server for each of their values."""
READ_AT_IMPORT = (
    *("HF_", "XDG_", "TRANSFORMERS_", "TOKENIZERS_", "HUGGINGFACE_", "UNSLOTH_", "BNB_", "MPL"),
    *("OMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH", "CUDA", "CUBLAS", "PYTHON", "LANG", "LC_", "LD_"),
)
"""What other variables that libraries read begin with. A process with other values is started in the usual way."""
ANY = (
    *("PYTHONUNBUFFERED", "TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG", "OMP_WAIT_POLICY"),
    "HF_XET_HIGH_PERFORMANCE",
)
"""Variables that may have any value: the first is heeded, the libraries and the programs themselves set the others."""
SET_FOR_THEM = ("TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY", *LITTLE_MEMORY)
"""Variables that the product itself sets for the programs in `LIMITED`."""
QUIET = ("-W", "ignore")
"""Python's options that a forked process may have, and `HF_HUB_DISABLE_PROGRESS_BARS` with them."""
MARK = "TRAINHOP_TEST_TAB"
"""A variable by which a test knows its processes. A fork server serves others as well, so it has it not."""
ROOM = 1 << 16
"""The most bytes of a command, and of its variables."""
PATIENCE_S = 120.0
FOLDER = "TRAINHOP_TESTS_FORK_SERVERS"
"""The variable with the folder of the fork servers."""

_Popen = subprocess.Popen
_folder: Path | None = None
_elsewhere = False
_read_at_import: dict[str, str] = {}
forks: Counter[str] = Counter()
"""How many processes of each module this process has forked."""


def share_hub(endpoint: str) -> None:
    """Say that several processes use this emulated hub: there are fork servers for it, too."""
    assert _folder is not None
    _mark_of(endpoint).touch()


def _mark_of(endpoint: str) -> Path:
    assert _folder is not None
    return _folder / f"hub-{hashlib.sha256(endpoint.encode()).hexdigest()[:12]}"


def install(folder: Path, *, elsewhere: bool = False) -> None:
    """Let this process start its processes so.

    The fork servers are in `folder`. They end with the process whose id is in the file `owner` there. `elsewhere` is
    for a process whose worker is not this checkout's.
    """
    global _folder, _elsewhere
    _folder, _elsewhere = folder, elsewhere
    _read_at_import.update(_others(os.environ))
    subprocess.Popen = ForkedProcess


def machine_variables() -> dict[str, str]:
    """With these variables an emulated machine's Python, if it is this one, starts its worker's processes so."""
    return {} if _folder is None else {FOLDER: str(_folder), "PYTHONPATH": str(Path(__file__).with_name("kernel_site"))}


def lines(*, elsewhere: bool = False) -> str:
    """What a program of another process begins with, so that its processes are forked, too.

    `elsewhere` is for a program whose worker is not this checkout's.
    """
    return f"""\
import sys; sys.path.insert(0, {str(ROOT)!r})
from tests.helpers import forked_process
forked_process.install_apart({str(_folder)!r}, elsewhere={elsewhere}); del forked_process
"""


def install_apart(folder: str, *, elsewhere: bool = False) -> None:
    """`install` for another process: afterwards nothing of the project is imported, and it is not on the path."""
    install(Path(folder), elsewhere=elsewhere)
    sys.path.remove(str(ROOT))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "worker")]:
        del sys.modules[name]


class ForkedProcess(_Popen):  # pyright: ignore[reportMissingTypeArgument]
    """A `Popen` whose process may be a child of a fork server."""

    _answers: socket.socket | None = None

    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any
    ) -> None:
        """Called by `Popen.__init__`, which has made the pipes. A descriptor of -1 is inherited."""
        _, _, shell, *pipes = rest[:9]
        variables = dict(os.environ if env is None else env)
        folder = Path.cwd() if cwd is None else Path(os.fspath(cwd))
        command = _untied(args)
        plain = executable is None and preexec_fn is None and not pass_fds and not shell
        if not plain or (address := _fork_server(command, folder, variables)) is None:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)  # pyright: ignore[reportAttributeAccessIssue]
            return
        request = {
            "command": command,
            "folder": str(folder),
            "variables": variables,
            "new_session": bool(rest[-2]),
            "umask": _umask(),
            "tied": _elsewhere or command != args,  # all processes of an emulated machine end with it
            "elsewhere": _elsewhere,
        }
        streams = [own if given == -1 else given for own, given in enumerate((pipes[0], pipes[3], pipes[5]))]
        self._answers = _connect(address)
        forks[module_of(command)[0]] += 1
        socket.send_fds(self._answers, [json.dumps(request).encode()], streams)
        self.pid = int(self._answers.recv(64))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # pyright: ignore[reportAttributeAccessIssue]

    def _internal_poll(self, *args: Any, **more: Any) -> int | None:
        if self._answers is not None:
            more["_waitpid"] = self._waitpid
        return super()._internal_poll(*args, **more)  # pyright: ignore[reportAttributeAccessIssue]

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._answers is None:
            return super()._try_wait(flags)  # pyright: ignore[reportAttributeAccessIssue]
        return self._waitpid(self.pid, flags)

    def _waitpid(self, pid: int, flags: int) -> tuple[int, int]:
        """Like `os.waitpid`, of a process that is not this process's child."""
        assert self._answers is not None
        if flags & os.WNOHANG and not select.select([self._answers], [], [], 0)[0]:
            return 0, 0
        status = int(self._answers.recv(64) or signal.SIGKILL)
        self._answers.close()
        return pid, status


def module_of(command: Sequence[str]) -> tuple[str, int]:
    """The module of `python [-W ignore] -m MODULE ...`, and where its arguments begin. Empty for any other command."""
    at = 3 if tuple(command[1:3]) == QUIET else 1
    return (command[at + 1], at + 2) if command[at : at + 1] == ["-m"] and len(command) > at + 1 else ("", 0)


def _umask() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def _untied(command: Any) -> list[str]:
    """The command without what `tied` added. Empty if it is a line for a shell."""
    words = [] if isinstance(command, str) else [str(word) for word in command]
    start = len(tied([]))
    return words[start:] if words[: start - 1] == tied([])[:-1] else words


def _fork_server(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Path | None:
    """The address of the server that can start `command`, started if it does not run. None if there can be none."""
    module = module_of(command)[0] if command[:1] == [sys.executable] else ""
    program = PROGRAMS.get(module)
    if _elsewhere:
        program = LIBRARIES if module in OF_A_MACHINE else None
    if _folder is None or program is None or len(json.dumps([command, dict(variables)])) > ROOM:
        return None
    if _elsewhere:
        kind = {name: variables.get(name) for name in SOME if name != "HOME"}
        kind |= {name: value for name, value in _others(variables).items() if name not in OF_A_PLACE}
        return _running(program, kind, {n: v for n, v in variables.items() if n not in OF_A_PLACE})
    if program in LIMITED:
        return _limited_fork_server(program, command, folder, variables)
    if module in WITH_FEW_VARIABLES:
        few = {n: v for n, v in _others(variables).items() if n not in HEEDED}
        if _version(folder, variables) not in (None, ROOT) or not few.items() <= _read_at_import.items():
            return None
        kind = _kind(variables)
        return _running(program, kind, _with(kind))
    if _others(variables) != _read_at_import or _has_other_version(folder):
        return None
    return _running(program, _kind(variables), variables)


def _kind(variables: Mapping[str, str]) -> dict[str, str | None]:
    """What the fork server of a process with these variables has of them."""
    return {name: variables.get(name) for name in (*SOME, *_shared(variables))}


def _shared(variables: Mapping[str, str]) -> tuple[str, ...]:
    endpoint = variables.get("HF_ENDPOINT")
    return ("HF_ENDPOINT",) if endpoint and _mark_of(endpoint).exists() else ()


def _limited_fork_server(
    program: str, command: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> Path | None:
    """The same for a program of `LIMITED`. Its fork server has the variables of its processes and no others."""
    given = {name: value for name, value in _others(variables).items() if name not in ("PYTHONPATH", *SET_FOR_THEM)}
    if (
        _version(folder, variables) != ROOT
        or not _is_usual_call(command)
        or not given.items() <= _read_at_import.items()
    ):
        return None
    return _running(
        program, {**given, **_kind(variables), **{name: variables.get(name) for name in SET_FOR_THEM}}, variables
    )


def _version(folder: Path, variables: Mapping[str, str]) -> Path | None:
    """Where the process would import this project from."""
    paths = [Path(path) for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    return next((path for path in [folder, *paths] if (path / "worker").is_dir()), None)


def _with(some: Mapping[str, str | None]) -> dict[str, str]:
    """This process's variables with these values."""
    changed = {name: value for name, value in some.items() if value is not None}
    return {**{name: value for name, value in os.environ.items() if name not in some}, **changed}


def _is_usual_call(command: Sequence[str]) -> bool:
    """Not with less memory than usual, because a forked process has already what it needs for a small file."""
    if command[2] != "worker.shared.limited_call":
        return True
    return command[3].startswith(CALLED) and int(command[5]) >= MAX_MEMORY_BYTES


def _has_other_version(folder: Path) -> bool:
    return (folder / "worker").is_dir() and folder != ROOT


def _running(program: str, kind: Mapping[str, str | None], variables: Mapping[str, str]) -> Path:
    """The address of the fork server of this kind."""
    assert _folder is not None
    address = _folder / hashlib.sha256(json.dumps([program, kind]).encode()).hexdigest()[:12]
    if not address.exists():
        _start(program, address, variables)
    return address


def _others(variables: Mapping[str, str]) -> dict[str, str]:
    known = (*SOME, *ANY, *_shared(variables))
    return {k: v for k, v in variables.items() if k.startswith(READ_AT_IMPORT) and k not in known}


def _start(program: str, address: Path, variables: Mapping[str, str]) -> None:
    """Start a fork server, unless another process does, and wait until it answers."""
    with contextlib.suppress(FileExistsError):
        address.with_suffix(".started").touch(exist_ok=False)
        command = [sys.executable, "-m", "tests.helpers.fork_server", program, str(address), "-" * ROOM]
        # The kernel keeps a process's command and variables where they were at its start.
        own = {name: value for name, value in variables.items() if name != MARK}
        own |= {"SPACE": "-" * ROOM, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": ""}
        with address.with_suffix(".log").open("wb") as log:
            _Popen(
                command,
                cwd=ROOT,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an emulated machine that is killed takes its own processes along
            ).wait()
    until = time.monotonic() + PATIENCE_S
    while not address.exists():
        if time.monotonic() > until:
            raise TimeoutError(address.with_suffix(".log").read_text())
        time.sleep(0.02)


def _connect(address: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(str(address))
    return server
