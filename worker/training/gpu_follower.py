"""`python -m worker.training.gpu_follower FOLDER RANK WORLD ADDRESS`: trains with the process that started it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from worker.agent.hardware import probe
from worker.agent.limits import Part
from worker.shared.manifest import Fidelity
from worker.shared.messages import Phase, Sample
from worker.shared.process import leave
from worker.training import unusable
from worker.training.distributed import job_of, team
from worker.training.interface import Decision, Snapshot
from worker.training.train import train


class Silent:
    """Hooks of a follower. They report nothing, and the leader overrules their decisions."""

    def phase(self, phase: Phase) -> None:
        pass

    def begins(self, part: Part) -> None:
        pass

    def lost(self, words: str) -> None:
        pass

    def restored(self, step: int, fidelity: Fidelity, backend: str) -> None:
        pass

    def lowered(self, fidelity: Fidelity, why: str) -> None:
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
    """Train until the leader stops."""
    home, rank, world, address = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    job = job_of(json.loads((home / "job.json").read_text()), home)
    if not unusable.uses_bitsandbytes(job.spec):  # like the leader: several GPUs train with the hf backend
        unusable.hide_bitsandbytes()
    with team(rank, world, address, job.spec.seed, probe().device) as group:
        train(job, Silent(), group)


if __name__ == "__main__":
    main()
    leave()
