"""Several processes that train one job together, one per GPU: each takes its rows of every global batch.

There is no wrapper around the model: after its own backward passes every process adds up the gradients of all. The
optimisers then take the same step everywhere, so that any one of them holds the whole state.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from worker.training.interface import Decision
from worker.training.state import seed_all

if TYPE_CHECKING:
    from worker.shared.messages import Hardware, JobSpec

PATIENCE = timedelta(minutes=30)
"""The others wait while the first process evaluates."""

_DECISIONS = list(Decision)


def world_size(spec: JobSpec, hardware: Hardware) -> int:
    """Processes for this job on this machine: one per GPU as far as they divide the global batch; one on a CPU."""
    if hardware.device != "cuda" or spec.backend == "unsloth":
        return 1
    return max(n for n in range(1, hardware.count + 1) if spec.global_batch_size % n == 0)


class Group:
    """A process that trains alone: every sum is its own value."""

    rank = 0
    world = 1

    def begin_step(self, step: int) -> None:
        """Update `step` (0-based) begins."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        return [float(value) for value in values]

    def all(self, here: bool) -> bool:
        """Whether it is so in every process."""
        return here

    def gather(self, values: Sequence[int]) -> list[int]:
        """The values of all processes, in their order."""
        return list(values)

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Add up every process's gradients, in place."""

    def decided(self, decision: Decision) -> Decision:
        """The first process's decision."""
        return decision


class Team(Group):
    """One process of several; `address` is `host:port` of the first one."""

    def __init__(self, rank: int, world: int, address: str, seed: int, device: torch.device) -> None:
        self.rank, self.world, self._seed, self._device = rank, world, seed, device
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
        )
        # The processes only meet when they first add something up: now, while it has a limit of its own.
        if self.sum([1.0]) != [float(world)]:
            raise RuntimeError(f"the {world} processes of this session do not add up")

    def begin_step(self, step: int) -> None:
        """Seed anew, from the job's seed, the step and the rank.

        Generators of several processes drift apart, and a checkpoint carries those of one.
        """
        seed_all(zlib.crc32(f"{self._seed} {step} {self.rank}".encode()))

    def sum(self, values: Sequence[float]) -> list[float]:
        return self._reduced(values, dist.ReduceOp.SUM)

    def all(self, here: bool) -> bool:
        return self._reduced([float(here)], dist.ReduceOp.MIN)[0] > 0

    def gather(self, values: Sequence[int]) -> list[int]:
        # Integers below 2**53 stay what they are as fp64.
        held = [0.0] * (len(values) * self.world)
        held[self.rank * len(values) : (self.rank + 1) * len(values)] = map(float, values)
        return [int(value) for value in self.sum(held)]

    def leave(self) -> None:
        """Part from the others; nothing can be summed after that."""
        dist.destroy_process_group()

    def sum_gradients(self, model: torch.nn.Module) -> None:
        held = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in held])
        dist.all_reduce(flat)
        for gradient, part in zip(held, flat.split([g.numel() for g in held]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def decided(self, decision: Decision) -> Decision:
        code = torch.tensor([_DECISIONS.index(decision)], device=self._device)
        dist.broadcast(code, 0)
        return _DECISIONS[int(code)]

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        held = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(held, operation)
        return held.tolist()
