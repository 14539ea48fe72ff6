"""Describes this machine and its load. Needs neither torch nor psutil. With torch it also probes the GPU."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from worker.shared.imports import quick_imports, version
from worker.shared.manifest import Hardware
from worker.shared.messages import Reading
from worker.shared.places import image_release

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "numpy",
    "datasets",
    "unsloth",
)
"""Distributions that can change a training result by their version."""
_VECTORS = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "i8mm", "sve")
MAX_IMAGE = 64
"""Maximum length of an image's name, in characters."""


def probe() -> Hardware:
    """The hardware of this machine. A GPU counts only after it ran a kernel, since torch may not support every card."""
    shared = {"cpu_count": cpu_count(), "ram_bytes": _meminfo().get("MemTotal", 0), "hostname": socket.gethostname()}
    try:
        with quick_imports():
            import torch
    except ImportError:
        return Hardware(device="cpu", name=cpu_name(), **shared)
    if not torch.cuda.is_available():
        return Hardware(device="cpu", name=cpu_name(), **shared)
    try:
        card = torch.cuda.get_device_properties(0)
        (torch.ones(8, device="cuda") * 2).sum().item()
    except RuntimeError as error:
        return Hardware(device="cpu", name=cpu_name(), trouble=_trouble(torch, str(error)), **shared)
    return Hardware(
        device="cuda",
        name=card.name,
        count=torch.cuda.device_count(),
        memory_bytes=min(card.total_memory, memory_cap() or card.total_memory),
        compute_capability=(card.major, card.minor),
        **shared,
    )


def memory_cap() -> int | None:
    """Bytes of GPU memory that this process may use, from `WORKER_GPU_MEMORY_BYTES`. None without a limit."""
    limit = os.environ.get("WORKER_GPU_MEMORY_BYTES", "")
    return int(limit) if limit.isdigit() and int(limit) else None


def only_gpu(number: int) -> dict[str, str]:
    """Environment variables for a process that should see only this GPU of the visible ones, counted from 0."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": visible[number] if len(visible) > number else str(number)}


def _trouble(torch: Any, why: str) -> str:
    """Why the GPU ran no kernel. Usually torch has none for a card of that age."""
    try:
        card = torch.cuda.get_device_properties(0)
        what = f"{card.name} (compute capability {card.major}.{card.minor})"
    except RuntimeError:
        what = "the GPU of this machine"
    first = (why.splitlines() or [""])[0]
    return (
        f"{what} cannot run torch {torch.__version__}: {first}; use a T4 or a newer card, or hide the GPU "
        "(CUDA_VISIBLE_DEVICES=) to train on the CPU"
    )


def versions() -> dict[str, str]:
    """Versions of Python and of each installed package in `PACKAGES`. Imports none of them."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def image(commit: Path = Path("/etc/git_commit")) -> str:
    """Which image this machine runs, in at most 64 characters: its commit, its release, or else Python and torch."""
    name = _text(commit).strip() or image_release()
    if not name:
        installed = versions()
        name = f"python {installed['python'].rpartition('.')[0]} torch {installed.get('torch', 'none')}"
    return name[:MAX_IMAGE]


def cpu_count() -> int:
    """Number of CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


@cache
def cpu_name() -> str:
    """The processor's model name, or the architecture if the system does not provide a name."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's vector instructions, which choose the kernels of torch, oneDNN and MKL. Empty if unknown."""
    for line in _text(cpuinfo).splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return " ".join(sorted(flag for flag in flags.split() if flag.startswith(_VECTORS)))
    return ""


def available_ram() -> int | None:
    """Bytes that a process can still allocate without swapping or being killed. None if unknown."""
    free = _meminfo().get("MemAvailable")
    limit, used = (_text(Path("/sys/fs/cgroup", name)).strip() for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        free_in_cgroup = max(0, int(limit) - int(used))
        return free_in_cgroup if free is None else min(free, free_in_cgroup)
    return free


_cpu_before: tuple[float, float] | None = None


def reading(directory: Path = Path()) -> Reading:
    """Current use of CPU, memory, the disk of `directory`, and the GPU if it is in use.

    CPU use is in percent of one core since the last call. Sizes are in bytes.
    """
    memory = _meminfo()
    used = memory["MemTotal"] - memory["MemAvailable"] if {"MemTotal", "MemAvailable"} <= memory.keys() else None
    gpu_memory, gpu_percent = _gpu()
    try:
        disk = shutil.disk_usage(directory).free
    except OSError:
        disk = None
    return Reading(
        cpu_percent=_cpu_percent(),
        rss_bytes=_rss(),
        ram_used_bytes=used,
        disk_free_bytes=disk,
        gpu_memory_bytes=gpu_memory,
        gpu_percent=gpu_percent,
    )


def _cpu_percent() -> float | None:
    global _cpu_before
    now = time.monotonic(), time.process_time()
    before, _cpu_before = _cpu_before, now
    if before is None or now[0] <= before[0]:
        return None
    return 100.0 * (now[1] - before[1]) / (now[0] - before[0])


def _rss() -> int | None:
    fields = _text(Path("/proc/self/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None


def _gpu() -> tuple[int | None, float | None]:
    import sys

    # A process without torch is not training, and importing torch for a reading would take seconds.
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
            return None, None
    except AttributeError:  # another thread is still importing it
        return None, None
    try:
        free, total = torch.cuda.mem_get_info(0)
    except RuntimeError:  # a card that has failed ends training, not the report of it
        return None, None
    try:
        return total - free, float(torch.cuda.utilization(0))
    except (ImportError, RuntimeError):
        return total - free, None


def _meminfo() -> dict[str, int]:
    entries: dict[str, int] = {}
    for line in _text(Path("/proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        number = value.split()
        if number and number[0].isdigit():
            entries[name] = int(number[0]) * 1024
    return entries


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    print(probe().model_dump_json())
