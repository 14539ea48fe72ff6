"""The adapter that a job continues from: a part of the job file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from worker.shared.wire import NonBlank, Sha256, Written

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_ADAPTER_BYTES = 4 << 30
"""Of the weights. An adapter of rank 256 on all linear layers of a model of 7B has 2.7 GB in fp32."""


class StartAdapter(Written):
    """What the server has found under `lora_model_dir`. Machines get it as one archive with this sha256.

    `weights_sha256` is that of its `adapter_model.safetensors`. `name` is that of the folder or of the `job`.
    """

    sha256: Sha256
    weights_sha256: Sha256
    name: Annotated[str, Field(max_length=255)] = ""
    job: Annotated[str, Field(max_length=100)] | None = Field(default=None, exclude_if=lambda job: job is None)


class StartAdapterKeys(Written):
    """Keys of the job file. Left out where they are not set, because older workers refuse them."""

    lora_model_dir: NonBlank | None = Field(default=None, exclude_if=lambda path: path is None)
    lora_model: StartAdapter | None = Field(default=None, exclude_if=lambda found: found is None)
