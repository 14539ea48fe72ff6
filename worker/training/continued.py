"""The adapter that a job continues from: verified, loaded in place of new values, and kept as the reference."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from worker.shared.adapter_archive import ArchiveError, unpack, verify_weights
from worker.shared.start_adapter import WEIGHTS
from worker.training.interface import PermanentError, TrainingJob
from worker.training.state import trainable

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec

_NAMED = 3
"""Tensors that are named in an error."""


def weights_of(job: TrainingJob) -> tuple[tuple[Path, ...], Path | None]:
    """The job's data files, and the weights that it begins with, unpacked into its folder. None for a new adapter.

    Raises `PermanentError` if they are not those that the job names.
    """
    found = job.spec.lora_model
    if found is None:
        return job.datasets, None
    *datasets, archive = job.datasets
    folder = job.work_dir / "start-adapter"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        unpack(archive, folder)
        verify_weights(folder, found.weights_sha256)
    except ArchiveError as error:
        raise PermanentError(f"the adapter that this job continues from cannot be used: {error}") from error
    return tuple(datasets), folder / WEIGHTS


def fill(model: Any, weights: Path, base_model: str) -> None:
    """Put the values of the file into the adapter of `model`, in fp32 and in the model's own order.

    Its names and shapes must be those with which this adapter would be exported. Raises `PermanentError`.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    given = load_file(weights)
    # The values share the memory of the parameters.
    own: Mapping[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = sorted(name for name in own.keys() | given.keys() if _shape(own.get(name)) != _shape(given.get(name)))
    if wrong:
        faults = "; ".join(
            f"{name}: {_shape(given.get(name)) or 'absent'} in the adapter, {_shape(own.get(name)) or 'absent'} here"
            for name in wrong[:_NAMED]
        )
        raise PermanentError(
            f"the adapter in lora_model_dir does not fit {base_model} with the job's settings ({len(wrong)} of "
            f"{len(own)} tensors): {faults}; take the base model and the settings that it was trained with"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])


def _shape(tensor: torch.Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)


def frozen(model: Any, spec: JobSpec) -> dict[str, torch.nn.Parameter]:
    """Copies of the adapter's parameters by name, for the methods that compare with them. Otherwise empty."""
    if spec.lora_model is None or not spec.method.has_reference:
        return {}
    return {
        name: torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
        for name, parameter in trainable(model).items()
    }
