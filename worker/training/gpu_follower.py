"""`python -m worker.training.gpu_follower FOLDER RANK WORLD ADDRESS`: trains along with the process that started it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from worker.agent.hardware import probe
from worker.agent.limits import Part
from worker.shared.messages import Fidelity, Phase, Sample
from worker.shared.process import end_with_the_parent
from worker.training.distributed import job_of, team
from worker.training.interface import Decision, Snapshot
from worker.training.train import train


class Silent:
    """Hooks of a process whose leader does the talking; what it decides is overruled by the leader."""

    def phase(self, phase: Phase) -> None:
        pass

    def begins(self, part: Part) -> None:
        pass

    def lost(self, words: str) -> None:
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
    end_with_the_parent()
    job = job_of(json.loads((home / "job.json").read_text()), home)
    with team(rank, world, address, job.spec.seed, probe().device) as group:
        train(job, Silent(), group)


if __name__ == "__main__":
    main()
