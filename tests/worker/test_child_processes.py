"""No process that a worker starts outlives it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import worker
from tests.helpers.processes import assert_gone
from worker.shared import bounded_process

ROOT = Path(worker.__file__).parent
STARTERS = {"run", "Popen", "check_output", "check_call", "call"}
LIVE_ON = {
    "agent/boot.py: _run_worker": "a worker saves and says goodbye, also when its start script is gone",
    "joined/readings.py: gpus": "nvidia-smi ends at once, and it is started for each report",
    "joined/unit.py: _lingers": "loginctl ends at once",
    "joined/unit.py: _systemctl": "systemctl ends at once",
    "notebook/place_cell.py: run": "a worker saves and says goodbye when its notebook is gone",
    "notebook/session.py: _start": "a worker saves and says goodbye when its notebook is gone",
    "shared/session_process.py: start": "a session outlives the server or the agent that has started it",
    "shared/process.py: _birth_by_ps": "ps ends at once",
}
"""Functions whose child is not tied to its parent, and why."""


@pytest.mark.parametrize(
    "start",
    [
        "subprocess.Popen(tied(command)).wait()",
        "bounded_process.run(command, bounded_process.Limits())",
        "limits.bounded(command, os.environ, moved=lambda: 0, stall_s=600.0)",
    ],
)
def test_a_child_that_holds_its_interpreter_ends_with_its_parent(start: str, tmp_path: Path) -> None:
    """Guard: without the call of `prctl` it hung on alone."""
    note = tmp_path / "note"
    os.mkfifo(note)
    hangs = f"import ctypes, os; open({str(note)!r}, 'w').write(str(os.getpid())); ctypes.PyDLL(None).sleep(3600)"
    code = (
        "import os, subprocess, sys; from worker.agent import limits; from worker.shared import bounded_process\n"
        f"from worker.shared.process import tied; command = [sys.executable, '-c', {hangs!r}]\n{start}"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        pid = int(note.read_text())
        parent.kill()
    assert_gone(pid)


class _StoppedError(Exception):
    """What a signal handler raises."""


def test_a_stop_while_a_program_is_started_ends_it(tmp_path: Path) -> None:
    """Seen failing without `postponed`: the handler raised inside `Popen`, and the program went on unknown."""
    me = psutil.Process()
    before = {child.pid for child in me.children()}

    def stop(_: object, event: str, function: object) -> None:
        if event == "c_return" and getattr(function, "__name__", "") == "fork_exec":
            sys.setprofile(None)
            signal.raise_signal(signal.SIGTERM)

    def raise_stopped(*_: object) -> None:
        raise _StoppedError

    usual = signal.signal(signal.SIGTERM, raise_stopped)
    try:
        sys.setprofile(stop)
        with pytest.raises(_StoppedError):
            bounded_process.run([sys.executable, "-c", "input()"], bounded_process.Limits(), watched=tmp_path)
        assert signal.getsignal(signal.SIGTERM) is raise_stopped
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGTERM, usual)
    assert {child.pid for child in me.children()} <= before


def started() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the worker's code that starts a process, by the function that it is in."""
    for path in sorted(ROOT.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for call in ast.walk(function):
                    if isinstance(call, ast.Call) and _starts(call.func):
                        yield f"{path.relative_to(ROOT)}: {function.name}", call


def _starts(called: ast.expr) -> bool:
    return (
        isinstance(called, ast.Attribute)
        and isinstance(called.value, ast.Name)
        and called.value.id == "subprocess"
        and called.attr in STARTERS
    )


def test_every_process_is_tied_but_those_that_are_to_live_on() -> None:
    loose = {name for name, call in started() if not ast.unparse(call.args[0]).startswith("tied(")}
    assert loose == set(LIVE_ON)
