"""Several processes that train one job together, one per GPU. Each takes its share of every global batch.

The model is not wrapped. After its own backward passes each process sums the gradients of all. The optimisers then take
the same step everywhere, so that each process has the whole state.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from worker.training.interface import Decision
from worker.training.state import seed_all, trainable

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec
    from worker.shared.manifest import Hardware

PATIENCE = timedelta(minutes=30)
"""Time limit of a collective operation. The other processes wait while the first one evaluates."""

MAX_TEXT = 96

_DECISIONS = list(Decision)


def world_size(spec: JobSpec, hardware: Hardware) -> int:
    """Number of processes for this job on this machine: 1 on a CPU.

    On GPUs it is the largest number of GPUs that divides the global batch.
    """
    if hardware.device != "cuda" or spec.backend == "unsloth":
        return 1
    return max(n for n in range(1, hardware.count + 1) if spec.global_batch_size % n == 0)


class Group:
    """A process that trains alone. Every sum is its own value."""

    rank = 0
    world = 1

    def begin_step(self, step: int) -> None:
        """Called at the start of update `step` (0-based)."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        return [float(value) for value in values]

    def all(self, here: bool) -> bool:
        """Whether `here` is true in every process."""
        return here

    def gather(self, values: Sequence[int]) -> list[int]:
        """The values of all processes, in order of rank."""
        return list(values)

    def values(self, values: Sequence[float]) -> list[float]:
        """The same for numbers that are no integers."""
        return [float(value) for value in values]

    def texts(self, text: str) -> list[str]:
        """The texts of all processes, in order of rank: ASCII, at most `MAX_TEXT` characters each."""
        return [text[:MAX_TEXT]]

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Sum the gradients of all processes, in place. A parameter without one in any process stays without."""

    def decided(self, decision: Decision) -> Decision:
        """The first process's decision."""
        return decision


class Team(Group):
    """One process of several. `address` is `host:port` of the first one."""

    def __init__(self, rank: int, world: int, address: str, seed: int, device: torch.device) -> None:
        self.rank, self.world, self._seed, self._device = rank, world, seed, device
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
        )
        # The processes connect at their first collective operation. Do it now, while it has its own time limit.
        if self.sum([1.0]) != [float(world)]:
            raise RuntimeError(f"the all-reduce of the {world} processes of this session is wrong")

    def begin_step(self, step: int) -> None:
        """Seed the random generators from the job's seed, the step and the rank.

        The generators of several processes diverge, and a checkpoint contains those of one.
        """
        seed_all(zlib.crc32(f"{self._seed} {step} {self.rank}".encode()))

    def sum(self, values: Sequence[float]) -> list[float]:
        return self._reduced(values, dist.ReduceOp.SUM)

    def all(self, here: bool) -> bool:
        return self._reduced([float(here)], dist.ReduceOp.MIN)[0] > 0

    def gather(self, values: Sequence[int]) -> list[int]:
        # Integers below 2**53 are exact in fp64.
        return [int(value) for value in self.values(values)]

    def values(self, values: Sequence[float]) -> list[float]:
        buffer = [0.0] * (len(values) * self.world)
        buffer[self.rank * len(values) : (self.rank + 1) * len(values)] = map(float, values)
        return self.sum(buffer)

    def texts(self, text: str) -> list[str]:
        codes = self.gather(text.encode("ascii", "replace")[:MAX_TEXT].ljust(MAX_TEXT))
        return [bytes(codes[at : at + MAX_TEXT]).decode().rstrip() for at in range(0, len(codes), MAX_TEXT)]

    def leave(self) -> None:
        """Leave the process group. No collective operation is possible afterwards."""
        dist.destroy_process_group()

    def sum_gradients(self, model: torch.nn.Module) -> None:
        # A process may lack a gradient that others have, because the model drops layers or experts at random.
        trained = list(trainable(model).values())
        have = self._reduced([float(parameter.grad is not None) for parameter in trained], dist.ReduceOp.MAX)
        for parameter, somewhere in zip(trained, have, strict=True):
            if somewhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def decided(self, decision: Decision) -> Decision:
        code = torch.tensor([_DECISIONS.index(decision)], device=self._device)
        dist.broadcast(code, 0)
        return _DECISIONS[int(code)]

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        buffer = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(buffer, operation)
        return buffer.tolist()
