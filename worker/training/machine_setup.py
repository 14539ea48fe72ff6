"""Describes everything on a machine besides a run's state that may change the last bit of a result.

Two machines with the same processor name may use different vector instructions, and a variable of the environment may
choose other kernels. The description is stored in every checkpoint and compared at every restore.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import worker
from worker.agent.hardware import cpu_flags
from worker.shared import imports
from worker.shared.manifest import Hardware
from worker.shared.wheel import ADAPTERS, DISTRIBUTION, NO_SESSION_NEEDS, is_within

_VARIABLES = (
    "ATEN_",
    "BLIS_",
    "BNB_",
    "CUBLAS",
    "CUDNN",
    "DNNL_",
    "GOTO_",
    "KMP_",
    "MKL_",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "TORCH_ALLOW_TF32",
    "TORCH_BLAS_",
    "TORCH_CUDNN",
)
"""Beginnings of the names of variables that choose kernels, number formats or an order of summation."""
_HARMLESS = frozenset(
    {
        "KMP_BLOCKTIME",
        "OMP_DISPLAY_ENV",
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
    }
)
"""Variables with such a name that change no result. The number of threads is compared as torch uses it."""
_MAX_TEXT = 200
_CODE = ("training", "shared")


def machine_setup(cards: list[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The description, as names and texts. `cards` describes the device of each process of the session."""
    setup = {
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "cpu flags": cpu_flags(),
        "devices": ", ".join(cards),
        "interop threads": str(torch.get_num_interop_threads()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": f"tf32 {torch.backends.cudnn.allow_tf32}, benchmark {torch.backends.cudnn.benchmark}",
        "mkldnn": str(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled),
        "fp16 sums": str(torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction),
        "bf16 sums": str(torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction),
        "worker": f"{_version()} {worker_sha256()[:16]}",
        "model code": _model_code_sha256()[:16],
    }
    return setup | {name: value[:_MAX_TEXT] for name, value in sorted(environment.items()) if _counts(name)}


def card_of(hardware: Hardware) -> str:
    """The device of one process, in at most 96 bytes of ASCII."""
    capability = "" if hardware.compute_capability is None else " {}.{}".format(*hardware.compute_capability)
    return f"{hardware.name}{capability}".encode("ascii", "replace")[:96].decode()


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two descriptions, in words."""
    return [
        f"{name} was {saved.get(name, 'not set')} and is {now.get(name, 'not set')}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]


@cache
def worker_sha256() -> str:
    """Hash of the worker's own code that computes."""
    return code_sha256(Path(worker.__file__).parent)


def code_sha256(package: Path) -> str:
    """The same of the package in this folder. What training does not need does not count, wherever the package is."""
    left_out = (*NO_SESSION_NEEDS, *ADAPTERS)
    found = (path for part in _CODE for path in sorted((package / part).rglob("*.py")))
    return _sha256(path for path in found if not is_within(path, package.parent, left_out))


def _model_code_sha256() -> str:
    """Hash of the code that came with a trusted model, as imported. Empty without any."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("transformers_modules.")]
    files = [Path(module.__file__) for module in modules if module.__file__]
    return _sha256(sorted(files, key=lambda path: path.name)) if files else ""


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _version() -> str:
    for name in (DISTRIBUTION, "trainhop"):
        try:
            return imports.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _counts(name: str) -> bool:
    return name.startswith(_VARIABLES) and name not in _HARMLESS
