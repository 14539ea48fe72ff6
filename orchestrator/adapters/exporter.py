"""Exports adapters in a process of the worker's code, because the server never loads torch."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import worker
from orchestrator.ports.exports import ExportRequest, NotExported
from worker.shared.process import MODEL_VARIABLES, NETWORK_VARIABLES, last_line, tied, variables

NEEDS = ("torch", "transformers", "accelerate", "gguf")
COMMAND = (sys.executable, "-W", "ignore", "-m", "worker.export")
MAX_EXPORT_S = 4 * 3600.0
LOOK_EVERY_S = 0.2
MAX_STEP = 300
"""Characters of a line that says what is done now."""
_FIRST_TO_END = "500"
"""Where memory runs out, the system ends this process and not the server."""


class ProcessExporter:
    """Implements `ports.Exporter`. Models come from the hub's cache of the server, or from the hub without a token."""

    def __init__(
        self,
        *,
        offline: bool = False,
        endpoint: str | None = None,
        cache: Path | None = None,
        longest_s: float = MAX_EXPORT_S,
        command: Sequence[str] = COMMAND,
        needs: Sequence[str] = NEEDS,
    ) -> None:
        self._command, self._needs = command, needs
        self._variables = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN_PATH": os.devnull}
        self._variables |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        self._variables |= {"HF_ENDPOINT": endpoint} if endpoint else {}
        self._variables |= {"HF_HUB_CACHE": str(cache)} if cache else {}
        self._longest_s = longest_s

    def missing(self) -> str:
        """What has to be installed first, as one sentence. Empty if nothing."""
        absent = [name for name in self._needs if find_spec(name) is None]
        if not absent:
            return ""
        return (
            f"This server cannot export, because {', '.join(absent)} is not installed there. Export on your "
            "computer (`trainhop export --help`), or ask an admin to run: pip install torch 'trainhop[export]'"
        )

    def export(
        self, request: ExportRequest, say: Callable[[str], None], is_cancelled: Callable[[], bool]
    ) -> dict[str, Any]:
        """Make and check an export. Returns its report. Raises `NotExported`, also soon after it is cancelled."""
        answer: list[str] = []
        with subprocess.Popen(
            tied(self._command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
        ) as process:
            _let_end_first(process.pid)
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            readers = [
                threading.Thread(target=_read_steps, args=(process.stderr, say), daemon=True),
                threading.Thread(target=lambda out: answer.append(out.read()), args=(process.stdout,), daemon=True),
            ]
            for reader in readers:
                reader.start()
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                    pipe.write(json.dumps(_as_json(request)))
                self._wait(process, is_cancelled)
            finally:
                process.kill()
                for reader in readers:
                    reader.join()
        return _report(answer[0], process.returncode)

    def _wait(self, process: subprocess.Popen[str], is_cancelled: Callable[[], bool]) -> None:
        until = time.monotonic() + self._longest_s
        while process.poll() is None:
            if is_cancelled():
                raise NotExported("The export was cancelled.")
            if time.monotonic() > until:
                raise NotExported(f"The export took longer than {self._longest_s / 3600:.1f} hours and was ended.")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY_S)

    def _environment(self) -> dict[str, str]:
        passed_on = variables(*NETWORK_VARIABLES, *MODEL_VARIABLES)
        return passed_on | self._variables | {"PYTHONPATH": str(Path(worker.__file__).parent.parent)}


def _let_end_first(pid: int) -> None:
    with contextlib.suppress(OSError):  # not Linux, or it has ended already
        Path(f"/proc/{pid}/oom_score_adj").write_text(_FIRST_TO_END)


def _as_json(request: ExportRequest) -> dict[str, Any]:
    settings = request.settings
    return {
        "adapter": str(request.adapter),
        "base": request.base,
        "out": str(request.out),
        "form": settings.format.value,
        "kind": settings.type and settings.type.value,
        "onto": settings.onto.value,
        "out_name": request.out_name,
        "adapter_name": request.adapter_name,
        "spare_bytes": request.spare_bytes,
    }


def _read_steps(lines: IO[str], say: Callable[[str], None]) -> None:
    for line in lines:
        say(line.strip()[:MAX_STEP])


def _report(printed: str, code: int) -> dict[str, Any]:
    try:
        answer = json.loads(last_line(printed))
    except ValueError:
        raise NotExported(f"The export ended without a result (exit code {code}). Nothing was published.") from None
    if "error" in answer:
        text = str(answer["error"])
        raise NotExported(f"{text[:1].upper()}{text[1:]}.")
    return answer
