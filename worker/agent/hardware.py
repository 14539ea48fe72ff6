"""What machine this is and how busy it is. Needs neither torch nor psutil; with torch it also probes the GPU."""

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

from worker.shared.messages import Hardware, Reading

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
"""Distributions whose version can change a training result."""
MAX_IMAGE = 64
"""Characters of an image's name."""


def probe() -> Hardware:
    """The machine at hand. A GPU counts only once a kernel has run on it: a driver may offer cards torch cannot use."""
    shared = {"cpu_count": cpu_count(), "ram_bytes": _meminfo().get("MemTotal", 0), "hostname": socket.gethostname()}
    try:
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
    """Bytes of GPU memory this process may use, where its owner set a limit (`WORKER_GPU_MEMORY_BYTES`) to share a card."""
    limit = os.environ.get("WORKER_GPU_MEMORY_BYTES", "")
    return int(limit) if limit.isdigit() and int(limit) else None


def _trouble(torch: Any, why: str) -> str:
    """Why the GPU did not run a kernel: mostly that this torch has none for a card of that age."""
    try:
        card = torch.cuda.get_device_properties(0)
        what = f"{card.name} (compute capability {card.major}.{card.minor})"
    except RuntimeError:
        what = "the GPU of this machine"
    first = (why.splitlines() or [""])[0]
    return (
        f"{what} ran no kernel of torch {torch.__version__}: {first}; use a T4 or a newer card, or hide the GPU "
        "(CUDA_VISIBLE_DEVICES=) to train on the CPU on purpose"
    )


def versions() -> dict[str, str]:
    """Installed version of each of `PACKAGES` that is there, and of Python; imports none of them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def image(commit: Path = Path("/etc/git_commit")) -> str:
    """Which image this machine runs, in at most 64 characters: Kaggle's commit, Colab's release, or else Python and torch."""
    said = _text(commit).strip() or os.environ.get("COLAB_RELEASE_TAG", "").strip()
    if not said:
        found = versions()
        said = f"python {found['python'].rpartition('.')[0]} torch {found.get('torch', 'none')}"
    return said[:MAX_IMAGE]


def cpu_count() -> int:
    """CPUs this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


@cache
def cpu_name() -> str:
    """The processor's marketing name, or its architecture where the system does not tell."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def available_ram() -> int | None:
    """Bytes a process may still take before swapping or being killed; `None` where the system does not tell."""
    free = _meminfo().get("MemAvailable")
    limit, used = (_text(Path("/sys/fs/cgroup", name)).strip() for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        room = max(0, int(limit) - int(used))
        return room if free is None else min(free, room)
    return free


_cpu_before: tuple[float, float] | None = None


def reading(directory: Path = Path()) -> Reading:
    """A look at CPU (percent of one core since the last call), memory, the disk of `directory`, and the GPU if in use."""
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

    # A process that has not loaded torch is not training; loading it for a reading would cost seconds.
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
            return None, None
    except AttributeError:  # another thread is still importing it
        return None, None
    free, total = torch.cuda.mem_get_info(0)
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
