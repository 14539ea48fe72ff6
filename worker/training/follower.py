"""`python -m worker.training.follower FOLDER RANK WORLD ADDRESS`: trains along with the process that started it."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from worker.hardware import probe
from worker.protocol import Fidelity, Phase, Sample
from worker.training.job import Decision, Snapshot
from worker.training.launch import job_of, team
from worker.training.sft import train


class Silent:
    """Hooks of a process whose leader does the talking; what it decides is overruled by the leader."""

    def phase(self, phase: Phase) -> None:
        pass

    def restored(self, step: int, fidelity: Fidelity, backend: str) -> None:
        pass

    def step_done(self, step: int, values: Mapping[str, float], seconds: float) -> Decision:
        return Decision.CONTINUE

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def sampled(self, samples: tuple[Sample, ...]) -> None:
        pass

    def save(self, snapshot: Snapshot) -> None:
        pass


def main() -> None:
    """Train until the leader says stop."""
    home, rank, world, address = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    job = job_of(json.loads((home / "job.json").read_text()), home)
    with team(rank, world, address, job.spec.seed, probe().device) as group:
        train(job, Silent(), group)


def _end_with_the_leader() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
