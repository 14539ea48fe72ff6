"""Checks whether two processes of this machine can connect to each other.

`python -m worker.doctor.reduce RANK ADDRESS DEVICE` is one of the processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

from worker.doctor.outcome import ProbeError
from worker.doctor.places import shared_memory_bytes
from worker.shared.process import free_address, last_line, leave, tied

TOTAL = "the sum is 3"


def all_reduce(device: str, limit_s: float, environment: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Two processes sum a number, over NCCL with a GPU each (`cuda`) or over gloo (`cpu`)."""
    how = "NCCL on two GPUs" if device == "cuda" else "gloo on the CPU"
    data: dict[str, Any] = {"how": how, "shm_bytes": shared_memory_bytes()}
    address = free_address()
    processes = [_start(rank, address, device, limit_s, environment) for rank in (0, 1)]
    until = time.monotonic() + limit_s
    try:
        said = [process.communicate(timeout=max(0.1, until - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        raise ProbeError(
            f"two processes did not complete an all-reduce over {how} within {limit_s:.0f} s", **data
        ) from None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (out, error) in zip(processes, said, strict=True):
        if process.returncode or TOTAL not in out:
            raise ProbeError(f"an all-reduce of two processes over {how} failed: {last_line(error)}", **data)
    return f"two processes completed an all-reduce over {how}, /dev/shm has {data['shm_bytes'] / 2**20:.0f} MiB", data


def _start(rank: int, address: str, device: str, limit_s: float, environment: dict[str, str]) -> subprocess.Popen[str]:
    visible = {"CUDA_VISIBLE_DEVICES": str(rank)} if device == "cuda" else {}
    return subprocess.Popen(
        tied([sys.executable, "-m", "worker.doctor.reduce", str(rank), address, device, str(limit_s)]),
        env=environment | visible,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main() -> None:
    """Join the other process and sum the ranks counted from 1. The sum is 3."""
    import torch
    import torch.distributed as dist

    rank, address, device, limit_s = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"tcp://{address}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=limit_s),
    )
    held = torch.tensor([rank + 1.0], device=device)
    dist.all_reduce(held)
    print(f"the sum is {held.item():.0f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
    leave()
