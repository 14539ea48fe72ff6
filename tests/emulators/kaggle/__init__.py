"""Kaggle as its real client libraries see it: accounts, kernels that really run, datasets, quota, and faults by
rule."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.emulators.kaggle.datasets import Datasets
from tests.emulators.kaggle.faults import Rule, Rules
from tests.emulators.kaggle.kernels import Kernels
from tests.emulators.kaggle.sessions import Sessions
from tests.emulators.kaggle.state import Kernel, Person, RefusedError, World
from tests.emulators.kaggle.web import Desk, Seen, Server

__all__ = ["KaggleEmulator", "Kernel", "Person", "RefusedError", "Rule", "Seen"]


class KaggleEmulator:
    """A server in a thread of this process, and the handle by which a test rules it.

    `folder` holds what is uploaded and run; `people` are the accounts. See `Sessions` for `time_factor`,
    `outputs_after_kill`, `python` and `environment`, `Datasets` for `processing_polls`, `Rule` for faults.
    """

    def __init__(
        self,
        folder: Path,
        people: list[Person],
        *,
        port: int = 0,
        time_factor: float = 1.0,
        outputs_after_kill: bool = True,
        processing_polls: int = 1,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.world, self.rules = World(folder, people), Rules()
        self.sessions = Sessions(
            self.world,
            time_factor=time_factor,
            outputs_after_kill=outputs_after_kill,
            python=python,
            environment=environment,
        )
        self.datasets = Datasets(self.world, processing_polls=processing_polls)
        self._desk = Desk(self.world, Kernels(self.world, self.sessions), self.datasets, self.rules)
        self._server = Server(port, self._desk)
        self.endpoint = self._server.endpoint
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every kernel and stop listening."""
        self.rules.clear()
        self.sessions.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def seen(self, method: str) -> list[Seen]:
        """The requests of that remote call so far, such as `SaveKernel`."""
        return [s for s in self._desk.seen if s.request == method]

    def kernel(self, slug: str) -> Kernel:
        """The kernel of that name, whoever owns it."""
        return next(k for k in self.world.kernels.values() if k.slug == slug)

    def kill(self, slug: str, *, outputs: bool = True) -> None:
        """End a running kernel as its time limit would; without outputs nothing it wrote is served."""
        self.sessions.kill(self.kernel(slug), outputs=outputs)
