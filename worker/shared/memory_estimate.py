"""Estimates the memory that a job needs from the model's published shape. Needs neither torch nor a GPU.

The constants are measured (benchmarks/results/gpu.json: the items `peaks-*`, and `peak_reserved_gib` of
`orchestrated-*`). The estimate is the allocator's peak, comparable with `torch.cuda.max_memory_reserved`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.shared.experts import NO_EXPERTS, Experts

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight: a 4-bit code, an 8-bit scale per block of 64, and a 32-bit scale per 256 of those."""
_OPTIMISER_BYTES = {"adamw_torch": 8.0, "adamw_8bit": 2.0 + 2 * 4 / 256, "paged_adamw_8bit": 0.0}
"""Bytes on the GPU per trainable parameter. Paged state is in host memory."""
_SLICE_BYTES = 2**25 * (4 + 4 + 2)
"""A slice of logits, its exponentials and its 16-bit gradient (`training.loss`)."""

_DORA_TOKEN_BYTES, _DORA_WEIGHT_BYTES = 8.0, 12.0
"""Calculated, not measured: DoRA keeps two more outputs of each module, in 16 and 32 bits, and makes the update of a
weight whole, from an identity matrix in fp32, beside the weight and the sum of both."""

_STACK_BYTES = 4.0
"""Per parameter of the largest adapted tensor of experts: PEFT makes its sum with the update, which has a gradient.
Measured: 2.0 times its 16-bit size on an H200, at 128 experts and ranks 8 and 32.
"""


@dataclass(frozen=True, kw_only=True)
class _Activations:
    """Bytes per token while one layer is recomputed for its backward pass, by the dimension they scale with."""

    per_hidden: float
    per_intermediate: float
    kept_per_layer: float
    """Share of each layer's input on the GPU until the backward pass: 1, or 0 if it is kept in host memory."""

    fixed: float
    """Bytes of the backend's own buffers, independent of the micro-batch."""


_BACKENDS = {
    "hf": _Activations(per_hidden=40.0, per_intermediate=20.0, kept_per_layer=1.0, fixed=0.0),
    "unsloth": _Activations(per_hidden=21.0, per_intermediate=8.5, kept_per_layer=0.0, fixed=0.8 * 2**30),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder model's dimensions, from its config.json."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    experts: Experts = NO_EXPERTS

    @classmethod
    def read(cls, path: Path) -> Shape | None:
        """The shape in a config file. None if the file does not describe such a model."""
        return cls.of(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape | None:
        """The shape in a config. None if the config does not describe such a model."""
        config = config.get("text_config", config)
        try:
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            return cls(
                hidden=hidden,
                intermediate=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                vocabulary=int(config["vocab_size"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                tied=bool(config.get("tie_word_embeddings", True)),
                experts=Experts.of(config),
            )
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of every kind of linear module in a layer."""
        return [module for part in (self._attention, self._dense, self._shared) for module in part]

    @property
    def _attention(self) -> list[tuple[int, int]]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]

    @property
    def _dense(self) -> list[tuple[int, int]]:
        """Of a layer without experts."""
        return _gated(self.hidden, self.intermediate) if self.layers > self.experts.layers else []

    @property
    def _shared(self) -> list[tuple[int, int]]:
        """Of the experts that each token has."""
        return _gated(self.hidden, self.experts.shared) if self.experts.shared else []

    @property
    def _modules(self) -> list[tuple[int, int, int]]:
        """(in, out, layers that have it) of every linear module."""
        parts = (
            (self._attention, self.layers),
            (self._dense, self.layers - self.experts.layers),
            (self._shared, self.experts.layers),
        )
        return [(i, o, layers) for part, layers in parts for i, o in part]

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear modules in all layers."""
        return sum(layers * i * o for i, o, layers in self._modules)

    @property
    def expert_parameters(self) -> int:
        """Parameters of the experts that a model keeps in one tensor, and of what chooses among them."""
        return self.experts.layers * (sum(self.experts.stacks(self.hidden)) + self.experts.count * self.hidden)

    @property
    def width(self) -> int:
        """The intermediate size of a token in the widest layer."""
        dense = self.intermediate if self._dense else 0
        return max(dense, self.experts.chosen * self.experts.width + self.experts.shared)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding, and of the head if it is a separate matrix."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters, including norms."""
        matrices = self.linear_parameters + self.expert_parameters + self.embedding_parameters
        return matrices + self.hidden * (2 * self.layers + 1)

    def lora_parameters(self, rank: int) -> int:
        """Trainable parameters with an adapter on every linear module of every layer."""
        return sum(layers * rank * (i + o) for i, o, layers in self._modules)


def _gated(hidden: int, width: int) -> list[tuple[int, int]]:
    return [(hidden, width), (hidden, width), (width, hidden)]


def gpu_bytes(spec: JobSpec, shape: Shape, *, backend: str = "hf", micro_batch: int = 1) -> int:
    """Peak bytes of the allocator on one GPU: base model, adapter, optimiser and activations."""
    weights = _NF4_BYTES if spec.adapter == "qlora" else 2.0
    base = shape.linear_parameters * weights + (shape.expert_parameters + shape.embedding_parameters) * 2.0
    of_experts, stack = shape.experts.adapted(spec.lora_target_parameters, shape.hidden, spec.lora_r)
    adapter = (shape.lora_parameters(spec.lora_r) + of_experts) * (4.0 + 4.0 + _OPTIMISER_BYTES[spec.optimizer])
    base += _STACK_BYTES * stack
    if spec.lora_model_dir is not None and spec.method.has_reference:  # a frozen copy to compare with
        adapter += (shape.lora_parameters(spec.lora_r) + of_experts) * 4.0
    if spec.peft_trainable_token_indices or spec.new_tokens:  # a changed copy of the embedding, and its gradient
        base += shape.vocabulary * shape.hidden * (2.0 + 2.0)
    tokens, use = micro_batch * spec.sequence_len, _BACKENDS[backend]
    kept = tokens * shape.hidden * 2.0 * shape.layers * use.kept_per_layer
    layer = tokens * (use.per_hidden * shape.hidden + use.per_intermediate * shape.width)
    widest = 2.0 * max(i * o for i, o in shape.linears) if spec.adapter == "qlora" else 0.0
    if spec.peft_use_dora:
        adapter += shape.layers * sum(o for _, o in shape.linears) * (4.0 + 4.0 + _OPTIMISER_BYTES[spec.optimizer])
        layer += _DORA_TOKEN_BYTES * tokens * sum(o for _, o in shape.linears)
        widest = max(4.0 * i * i + _DORA_WEIGHT_BYTES * i * o for i, o in shape.linears)
    return int(base + adapter + use.fixed + kept + max(layer + widest, _SLICE_BYTES + 4.0 * tokens * shape.hidden))


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that one session of a job needs on a GPU and on a CPU (0: unknown)."""

    gpu_bytes: int = 0
    host_bytes: int = 0

    def on(self, *, gpu: bool) -> int:
        """Bytes needed on a GPU or on a CPU."""
        return self.gpu_bytes if gpu else self.host_bytes


def need(spec: JobSpec, shape: Shape | None, parameters: int | None) -> Need:
    """The minimum that a job needs: one row at a time, with the backend that the job names or else `hf`."""
    count = parameters or (shape.parameters if shape else None)
    if count is None:
        return Need()
    host = host_bytes(spec, count, shape.expert_parameters if shape else 0)
    host += _best_bytes(spec, shape) if shape else 0
    backend = "unsloth" if spec.backend == "unsloth" else "hf"
    return Need(gpu_bytes=gpu_bytes(spec, shape, backend=backend) if shape else host, host_bytes=host)


def _best_bytes(spec: JobSpec, shape: Shape) -> int:
    """The copy of the adapter of the best step, in host memory and 32 bits, where the job ends with it."""
    if not spec.load_best_model_at_end:
        return 0
    magnitudes = shape.layers * sum(o for _, o in shape.linears) if spec.peft_use_dora else 0
    tokens = len((*spec.peft_trainable_token_indices, *spec.new_tokens)) * shape.hidden
    of_experts, _ = shape.experts.adapted(spec.lora_target_parameters, shape.hidden, spec.lora_r)
    return 4 * (shape.lora_parameters(spec.lora_r) + of_experts + magnitudes + tokens)


def judge_need(shape: Shape | None, parameters: int | None, *, quantised: bool, tokens: int) -> Need:
    """The memory of a judge model that reads `tokens` at once, prompts and answers together, and is not trained.

    It has no gradients. What one layer keeps for them is a high estimate of what it needs without them.
    """
    count = parameters or (shape.parameters if shape else None)
    if count is None:
        return Need()
    fused = shape.expert_parameters if shape else 0
    host = int(_host_weights(count, fused, quantised=quantised) + 0.7 * 2**30)
    if shape is None:
        return Need(gpu_bytes=host, host_bytes=host)
    weights = shape.linear_parameters * (_NF4_BYTES if quantised else 2.0)
    weights += (shape.expert_parameters + shape.embedding_parameters) * 2.0
    cache = tokens * shape.layers * shape.kv_heads * shape.head_dim * 2 * 2.0
    use = _BACKENDS["hf"]
    layer = tokens * (use.per_hidden * shape.hidden + use.per_intermediate * shape.width)
    return Need(gpu_bytes=int(weights + cache + layer), host_bytes=host)


def host_bytes(spec: JobSpec, parameters: int, fused: int = 0) -> int:
    """Bytes that a worker needs to train on a CPU, libraries included.

    This is a rule of thumb (weights in fp32, or NF4 with its constants). It is meant to reject impossible jobs and is
    not exact. `fused` of the parameters are experts, which stay as they are.
    """
    weights = _host_weights(parameters, fused, quantised=spec.adapter == "qlora")
    activations = (spec.micro_batch_size or 1) * spec.sequence_len * parameters**0.5 * 40
    return int(weights + activations + 0.7 * 2**30)


def _host_weights(parameters: int, fused: int, *, quantised: bool) -> float:
    return 4.0 * fused + (parameters - min(fused, parameters)) * (0.7 if quantised else 4.0)


def micro_batch(
    spec: JobSpec, shape: Shape, free_bytes: int, *, backend: str, rows: int, most_tokens: int
) -> int | None:
    """The largest divisor of a process's `rows` per step that fits into `free_bytes`. None if no row fits."""
    fitting = [
        size
        for size in range(1, rows + 1)
        if rows % size == 0
        and (size == 1 or size * spec.sequence_len <= most_tokens)
        and gpu_bytes(spec, shape, backend=backend, micro_batch=size) <= free_bytes
    ]
    return max(fitting, default=None)
