"""A notebook that is open in somebody's browser, as far as a test needs one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lab import Lab
from tests.helpers import forked_process
from tests.helpers.forked_process import MARK

PATIENCE_S = 180


class Tab:
    """A notebook in a kernel of its own, which runs from the moment it is opened.

    `variables` are set and `before` is run in front of our cell, `after` in a cell behind it; kernels are looked for in
    `jupyter` first. Without `forks`, and with another `jupyter`, every process imports everything anew. With
    `elsewhere` the processes are those of a worker that the cell brings.
    """

    def __init__(
        self,
        path: Path,
        made: dict[str, Any],
        *,
        before: str = "",
        after: str = "",
        jupyter: Path | None = None,
        variables: Mapping[str, str] | None = None,
        patience_s: float = PATIENCE_S,
        forks: bool = True,
        elsewhere: bool = False,
    ) -> None:
        self._patience_s = patience_s
        cell = made["notebook"]["cells"][1]
        lines = forked_process.lines(elsewhere=elsewhere) if forks and jupyter is None else ""
        lines += "".join(f"import os; os.environ[{k!r}] = {v!r}\n" for k, v in (variables or {}).items())
        cells = [cell | {"source": lines + before + cell["source"]}]
        if after:
            cells.append(cell | {"id": "after", "source": after})
        path.write_text(json.dumps(made["notebook"] | {"cells": cells}))
        self._path = path
        environment = os.environ | {MARK: str(path)} | ({"JUPYTER_PATH": str(jupyter)} if jupyter else {})
        self._client = subprocess.Popen([sys.executable, "-m", "tests.notebook.execute", str(path)], env=environment)

    def interrupt(self) -> None:
        """What the stop button does."""
        self.kernel.send_signal(signal.SIGINT)

    @property
    def kernel(self) -> psutil.Process:
        """The process that runs the cell."""
        Lab.wait_for(self._path.with_suffix(".kernel").exists, "a kernel")
        return psutil.Process(int(self._path.with_suffix(".kernel").read_text()))

    @property
    def workers(self) -> list[psutil.Process]:
        """What the kernel has started."""
        with suppress(psutil.NoSuchProcess):
            return [process for process in self._processes() if process.pid not in (self._client.pid, self.kernel.pid)]
        return []

    def _processes(self) -> list[psutil.Process]:
        """All of this tab. Those that a server has forked are nobody's children here."""
        return [process for process in psutil.process_iter() if _variables(process).get(MARK) == str(self._path)]

    def kill(self) -> None:
        """End the client, its kernel and whatever that has started."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._client.wait()

    @cached_property
    def _cells(self) -> list[dict[str, Any]]:
        assert self._client.wait(self._patience_s) == 0
        return json.loads(self._path.read_text())["cells"]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What lies under our cell when it has ended."""
        return self._cells[0]["outputs"]

    @property
    def said(self) -> str:
        """All of it as text, whether the cell failed or not."""
        return _text(self.outputs)

    @property
    def said_after(self) -> str:
        """The same of the cell behind ours."""
        return _text(self._cells[1]["outputs"])

    @property
    def refused(self) -> str:
        """The one sentence of a cell that failed."""
        assert [o["output_type"] for o in self.outputs] == ["error"], self.said
        assert "\n" not in self.said
        return self.said


def _variables(process: psutil.Process) -> dict[str, str]:
    with suppress(psutil.Error):
        return process.environ()
    return {}


def _text(outputs: list[dict[str, Any]]) -> str:
    found: list[Any] = []
    for output in outputs:
        found += [output.get("text", ""), output.get("data", {}).get("text/plain", ""), *output.get("traceback", [])]
    return "\n".join("".join(part) for part in found if part).strip()
