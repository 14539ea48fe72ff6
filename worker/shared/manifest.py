"""The recipe of a run and the manifest of a checkpoint."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from worker.shared.adapter_settings import MAX_LAYERS, MAX_PARAMETERS, MAX_TOKENS
from worker.shared.dataset_spec import TaughtTurns
from worker.shared.job_spec import BETAS, EPSILON, LORAPLUS_EMBEDDING, JobSpec
from worker.shared.long_texts import TRUNCATE
from worker.shared.methods import SFT
from worker.shared.new_tokens import MAX_NEW
from worker.shared.own_template import template_sha256
from worker.shared.schedules import ScheduleSettings
from worker.shared.wire import (
    MAX_ENTRIES,
    MAX_WRITTEN,
    PROTOCOL_VERSION,
    Bytes,
    Count,
    Line,
    Seconds,
    Sha256,
    Size,
    State,
    Text,
    Versions,
    Wire,
)

Word = Annotated[str, Field(max_length=64)]
Setting = Annotated[str, Field(max_length=MAX_WRITTEN)]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]

NO_STEPS = -1
"""In the place of `warmup_steps` where the warm-up is a share of the job, and of a patience that has no end."""


class Recipe(Wire):
    """All settings of a run that must be equal in all its sessions.

    The server sets the values of the job file. The worker adds those of the loaded model (`None` on the server).
    """

    base_model: Setting
    adapter: Word
    lora_r: Number
    lora_alpha: float
    lora_dropout: float
    lora_target_modules: Annotated[tuple[Setting, ...], Field(max_length=MAX_ENTRIES)] | Setting
    sequence_len: Number
    global_batch_size: Number
    max_steps: Number
    learning_rate: float
    lr_scheduler: Word
    warmup_ratio: float
    optimizer: Word
    max_grad_norm: float
    weight_decay: float
    seed: Number
    train_on_inputs: bool
    val_set_size: float
    dataset_sha256: Annotated[tuple[Word, ...], Field(max_length=16)]
    train_rows: Number
    # What an older checkpoint does not name had these values.
    rl: Word = SFT
    method_settings: Annotated[dict[Word, float], Field(max_length=64)] = Field(default={})
    """The keys that the method reads, defaults included."""
    lora_layers_to_transform: Annotated[tuple[Number, ...], Field(max_length=MAX_LAYERS)] = ()
    lora_target_parameters: Annotated[tuple[Setting, ...], Field(max_length=MAX_PARAMETERS)] = ()
    peft_use_rslora: bool = False
    peft_use_dora: bool = False
    peft_trainable_token_indices: Annotated[tuple[Number, ...], Field(max_length=MAX_TOKENS)] = ()
    tokens: Annotated[tuple[Setting, ...], Field(max_length=MAX_NEW)] = ()
    added_tokens_overrides: Annotated[dict[Word, Setting], Field(max_length=MAX_NEW)] = Field(default={})
    neftune_noise_alpha: float = 0.0
    lr_scheduler_kwargs: ScheduleSettings = ScheduleSettings()
    warmup_steps: Number = NO_STEPS
    adam_beta1: float = BETAS[0]
    adam_beta2: float = BETAS[1]
    adam_epsilon: float = EPSILON
    loraplus_lr_ratio: float = 1.0
    loraplus_lr_embedding: float = LORAPLUS_EMBEDDING
    early_stopping_patience: Number = NO_STEPS
    load_best_model_at_end: bool = False
    roles_to_train: Annotated[tuple[Setting, ...], Field(max_length=16)] = ()
    mask_history: Annotated[tuple[bool, ...], Field(max_length=16)] = ()
    train_on_eos: Annotated[tuple[Word, ...], Field(max_length=16)] = ()
    """Of each dataset. Empty if all datasets have the usual value."""
    encoding: Number | None = None
    numerics: Number | None = None
    val_split: Number | None = None
    dataset_repeats: Annotated[tuple[float, ...], Field(max_length=16)] = ()
    excess_length_strategy: Word = TRUNCATE
    chat_template_sha256: Word = ""
    """Hash of the job's own chat template. Empty without one."""
    lora_model_sha256: Word = ""
    """Hash of the weights of the adapter that the run began with. Empty for a new adapter."""

    base_sha256: Word | None = None
    tokenizer_sha256: Word | None = None
    untrained_rows: Number | None = None
    """Training rows that are left out, because none of their trained tokens is within `sequence_len`.

    With `dataset_repeats`, or where texts are split, by how many rows an epoch is shorter than `train_rows`. It may be
    longer.
    """
    parameters_sha256: Word | None = None
    trainable_dtype: Word | None = None
    rows_sha256: Sha256 | None = None
    """Hash of all rows as rendered, in order. `None` in older checkpoints, and where a template asks for the time of a
    job that has none.
    """

    @classmethod
    def of(cls, spec: JobSpec) -> Recipe:
        """The recipe that the resolved job file determines."""
        facts: dict[str, Any] = {name: getattr(spec, name) for name in cls.model_fields if name in JobSpec.model_fields}
        facts["rl"], facts["method_settings"] = spec.rl or SFT, spec.method_settings
        facts["max_steps"] = spec.total_steps
        facts["warmup_steps"] = NO_STEPS if spec.warmup_steps is None else spec.warmup_steps
        facts["early_stopping_patience"] = spec.early_stopping_patience or NO_STEPS
        facts["train_rows"] = spec.train_rows
        facts["dataset_repeats"] = spec.dataset_repeats
        facts["excess_length_strategy"] = spec.excess_length_strategy or TRUNCATE
        facts["lora_model_sha256"] = spec.lora_model.weights_sha256 if spec.lora_model is not None else ""
        facts["chat_template_sha256"] = template_sha256(spec.own_template)
        facts["dataset_sha256"] = tuple(d.sha256 or "" for d in spec.datasets)
        taught = [d.taught for d in spec.datasets]
        if any(each != TaughtTurns() for each in taught):
            facts["roles_to_train"] = tuple(" ".join(each.roles_to_train) for each in taught)
            facts["mask_history"] = tuple(each.mask_history for each in taught)
            facts["train_on_eos"] = tuple(each.train_on_eos for each in taught)
        return cls(**facts)

    @property
    def epoch_rows(self) -> int:
        """Rows of one epoch: the training rows that are not left out, as often as it has them."""
        return max(1, self.train_rows - (self.untrained_rows or 0))

    def differences(self, other: Recipe) -> list[tuple[str, Any, Any]]:
        """`(field, mine, theirs)` for each field that is set on both sides and differs."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        return [(n, a, b) for n, a, b in pairs if a is not None and b is not None and a != b]


class Hardware(Wire):
    """The hardware of a worker's machine, as probed."""

    device: Literal["cpu", "cuda"] = "cpu"
    name: Line = ""
    count: Size = 1
    memory_bytes: Size = 0
    compute_capability: tuple[Size, Size] | None = None
    cpu_count: Size = 1
    ram_bytes: Size = 0
    hostname: Line = ""
    trouble: Text = ""
    """Why the machine's GPU cannot be used. Empty if there is none or it works."""


class Fidelity(StrEnum):
    """How close a resumed run is to an unbroken one. A run with less fidelity is refused."""

    EXACT = "exact"
    STATE_EXACT = "state-exact"


class Probe(Wire):
    """Loss of a small fixed batch at the saved step. It is computed again after each restore.

    `values_sha256` is a hash of the trainable parameters. `gradients_sha256` is one of the gradients of another batch,
    in training mode. Earlier versions had neither.
    """

    tokens_sha256: Sha256
    loss: float
    values_sha256: Sha256 | None = None
    gradients_sha256: Sha256 | None = None


class Manifest(Wire):
    """The metadata of a checkpoint, as JSON in the `.safetensors` header."""

    protocol: Count = PROTOCOL_VERSION
    job: Line
    fence: Count
    step: Count
    parent: Sha256 | None = None
    recipe: Recipe
    epoch: Bytes
    index: Bytes
    samples_seen: Bytes
    wall_seconds: Seconds
    backend: Line
    precision: Line
    micro_batch_size: Count
    world_size: Count = 1
    hardware: Hardware
    versions: Versions
    probe: Probe | None = None
    next_tokens_sha256: Sha256 | None = None
    """Hash of the tokens and labels of the first rows of the next update. `None` in older checkpoints."""
    state: State
