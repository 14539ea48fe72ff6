"""What a machine has and how busy it is, without torch: its GPUs as `nvidia-smi` sees them, memory, load and disk."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from worker.agent.hardware import cpu_count
from worker.shared.joined_messages import MAX_SLOTS, Gpu, MachineOffer, MachineReadings

NVIDIA_SMI_S = 10.0
_FIELDS = "index,name,memory.total,memory.used,utilization.gpu"


def gpus(torch: str) -> list[tuple[str, Gpu]]:
    """The GPUs that workers with this version of torch can use, each with its number for `CUDA_VISIBLE_DEVICES`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.endswith("+cpu") or visible in ("", "-1"):
        return []
    command = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = [_gpu(line) for line in said.splitlines() if line.count(",") >= 4]
    chosen = None if visible is None else visible.split(",")
    return [(number, gpu) for number, gpu in found if chosen is None or number in chosen]


def _gpu(line: str) -> tuple[str, Gpu]:
    number, name, total, used, busy = (part.strip() for part in line.split(",")[:5])
    return number, Gpu(
        name=name,
        total_bytes=_number(total) << 20,
        used_bytes=_number(used) << 20,
        percent=float(_number(busy)) if busy.isdigit() else None,
    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def readings(found: Sequence[tuple[str, Gpu]], folder: Path) -> MachineReadings:
    """What the machine measures now. `folder` is on the disk of the sessions."""
    ram, free = _memory()
    load = None
    with suppress(OSError):
        load = os.getloadavg()[0]
    return MachineReadings(
        gpus=tuple(gpu for _, gpu in found),
        processors=cpu_count(),
        load=load,
        ram_bytes=ram,
        ram_free_bytes=free,
        disk_free_bytes=shutil.disk_usage(folder).free,
    )


def _memory() -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return total, int(lines["MemAvailable"].split()[0]) << 10
    return total, 0


def offer(found: Sequence[tuple[str, Gpu]], shares: int, closed_reason: str = "") -> MachineOffer:
    """What the machine offers: a slot for each GPU, or one without a GPU, times `shares`."""
    slots = min(MAX_SLOTS, max(1, len(found)) * shares)
    memory = min(gpu.total_bytes for _, gpu in found) if found else _memory()[0]
    return MachineOffer(
        hostname=socket.gethostname(),
        python=platform.python_version(),
        slots=slots,
        memory_bytes=memory // shares,
        gpu=bool(found),
        closed_reason=closed_reason,
    )


def variables(found: Sequence[tuple[str, Gpu]], slot: int, shares: int) -> dict[str, str]:
    """The variables of a worker in this slot: the GPU that it sees, and how much of it it may use."""
    if not found:
        return {"CUDA_VISIBLE_DEVICES": ""}
    number, gpu = found[min(slot // shares, len(found) - 1)]
    limit = {"WORKER_GPU_MEMORY_BYTES": str(gpu.total_bytes // shares)} if shares > 1 else {}
    return {"CUDA_VISIBLE_DEVICES": number, **limit}
