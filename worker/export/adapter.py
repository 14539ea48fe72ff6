"""Reads a PEFT folder with a LoRA adapter, and compares it with a base model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from worker.export.errors import ExportError
from worker.export.json_files import read_object
from worker.export.tensor_files import Weights, read_all

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PROVENANCE = "trainhop-provenance.json"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(.+)\.lora_(?:([AB])\.weight|(magnitude)_vector)")
_TOKENS = "trainable_token_indices"
_EXPERTS = "target_parameters"
_OF_EXPERTS = re.compile(r"\.(base_layer|experts|gate|router)\.lora_[AB]\.weight$")
_CHANGES = {
    "lora_bias": "biases of LoRA",
    "modules_to_save": "fully trained modules (modules_to_save)",
    _EXPERTS: "LoRA on bare parameters",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow",
}
"""Options of PEFT that make an adapter more than A and B."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations that also change the base model."""
MAX_CARD = 4 << 20
"""Characters of a model card that are read."""
_REMEDY = "name the folder of an adapter"
_ROWS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta")


class Rows(NamedTuple):
    """Trained rows of a table, which take the place of its own: their numbers, and values of [rows, width] in fp32."""

    numbers: tuple[int, ...]
    values: torch.Tensor


class Pair(NamedTuple):
    """One module's update of its weight: `scale * b @ a`, with a of [rank, in] and b of [out, rank], both fp32.

    With DoRA, each row of the sum of weight and update then gets the length in `magnitude`, of [out].
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """`pairs` and `rows` by the name of the module in the base model.

    `recipe` is what trained it, as far as it is known.
    """

    folder: Path
    pairs: Mapping[str, Pair]
    alpha: float
    base_name: str
    revision: str | None
    recipe: Mapping[str, str]
    rows: Mapping[str, Rows]

    @property
    def is_qlora(self) -> bool:
        """Whether it was trained on a base model in NF4."""
        return self.recipe.get("adapter") == "qlora"

    def pair(self, tensor: str) -> Pair | None:
        """The update of a tensor of the base model."""
        return self.pairs.get(tensor.removesuffix(".weight")) if tensor.endswith(".weight") else None


def read_adapter(folder: Path, *, for_chat: bool = False) -> Adapter:
    """The adapter of a PEFT folder. Raises `ExportError` if it is damaged, or more than LoRA on linear layers.

    `for_chat`: PEFT itself will load the folder, so adapters of experts are allowed, and left out here.
    """
    config = read_object(folder / CONFIG, _REMEDY)
    _refuse_other_kinds({key: value for key, value in config.items() if not (for_chat and key == _EXPERTS)})
    tensors = read_all(folder / WEIGHTS)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    rows: dict[str, Rows] = {}
    for name, tensor in tensors.items():
        if for_chat and _is_of_experts(name, config):
            continue
        if table := _ROWS.fullmatch(name):
            module = table[1].removeprefix(_PREFIX)
            rows[module] = _rows(module, tensor.float(), config.get(_TOKENS))
            continue
        found = _TENSOR.fullmatch(name)
        if found is None or not name.startswith(_PREFIX):
            raise ExportError(f"{WEIGHTS} has {name}, which is not LoRA on a linear layer; it cannot be exported")
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{name} in {WEIGHTS} has values that are not finite; the adapter is broken")
        halves.setdefault(found[1].removeprefix(_PREFIX), {})[found[2] or found[3]] = tensor.float()
    if not halves:
        raise ExportError(f"{WEIGHTS} has no tensors")
    return Adapter(
        folder=folder,
        pairs={module: _pair(module, half, config) for module, half in halves.items()},
        alpha=float(config["lora_alpha"]),
        base_name=str(config.get("base_model_name_or_path") or ""),
        revision=config.get("revision") if isinstance(config.get("revision"), str) else None,
        recipe=_recipe(folder),
        rows=rows,
    )


def _is_of_experts(name: str, config: Mapping[str, Any]) -> bool:
    return bool(config.get(_EXPERTS)) and _OF_EXPERTS.search(name) is not None


def check_fit(adapter: Adapter, base: Weights) -> None:
    """Raise `ExportError` if the adapter belongs to a base model with other modules or shapes."""
    names = set(base.names())
    for module, rows in adapter.rows.items():
        if f"{module}.weight" not in names or base.shape(f"{module}.weight")[1:] != rows.values.shape[1:]:
            raise ExportError(f"the adapter has trained tokens of {module}, which the base model has not like this")
    remedy = "name the model that it was trained on with --base"
    for module, pair in adapter.pairs.items():
        if f"{module}.weight" not in names:
            if module == "lm_head":
                raise ExportError(
                    "the adapter changes lm_head, which shares its weights with the embedding in this base model; "
                    "they cannot be changed apart"
                )
            raise ExportError(f"the adapter changes {module}, which the base model does not have; {remedy}")
        shape = base.shape(f"{module}.weight")
        wanted = (pair.b.shape[0], pair.a.shape[1])
        if shape != wanted:
            raise ExportError(
                f"the adapter belongs to another base model: {module} is {list(wanted)} in the adapter and "
                f"{list(shape)} in the base model; {remedy}"
            )


def _refuse_other_kinds(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ExportError(f"{CONFIG} is of the kind {config.get('peft_type')}; only LORA can be exported")
    for key, words in _CHANGES.items():
        if config.get(key):
            raise ExportError(f"the adapter has {words}, which cannot be exported")
    if config.get("bias", "none") != "none":
        raise ExportError(f"the adapter has trained biases (bias: {config['bias']}), which cannot be exported")
    kind = str(config.get("init_lora_weights", "")).lower()
    if kind.startswith(_CHANGED_BASE):
        raise ExportError(f"the adapter's initialisation {kind} changed its base model; it cannot be exported")
    if not isinstance(config.get("r"), int) or not isinstance(config.get("lora_alpha"), int | float):
        raise ExportError(f"{CONFIG} has no r and lora_alpha")


def _pair(module: str, half: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Pair:
    names = {"A", "B", "magnitude"} if config.get("use_dora") else {"A", "B"}
    if set(half) != names or half["A"].ndim != 2 or half["B"].ndim != 2:
        words = " as matrices, and DoRA's magnitudes" if config.get("use_dora") else " as matrices"
        raise ExportError(f"{WEIGHTS} does not have A and B of {module}{words}; the adapter is incomplete")
    a, b, magnitude = half["A"], half["B"], half.get("magnitude")
    if magnitude is not None and magnitude.shape != b.shape[:1]:
        raise ExportError(f"DoRA's magnitudes of {module} in {WEIGHTS} are {list(magnitude.shape)}, not {[len(b)]}")
    rank = _of_pattern(config.get("rank_pattern"), module, config["r"])
    if a.shape[0] != rank or b.shape[1] != rank:
        raise ExportError(
            f"the adapter has another rank than its config says: {module} has A {list(a.shape)} and B {list(b.shape)}, "
            f"and {CONFIG} says {rank}"
        )
    alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return Pair(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), magnitude)


def _rows(module: str, values: torch.Tensor, given: Any) -> Rows:
    numbers = given.get(module.rpartition(".")[2]) if isinstance(given, dict) else given
    listed: list[Any] = numbers if isinstance(numbers, list) else []
    is_sound = all(isinstance(number, int) and number >= 0 for number in listed) and bool(torch.isfinite(values).all())
    if not is_sound or values.ndim != 2 or len(listed) != len(values) or not listed:
        raise ExportError(f"{CONFIG} and {WEIGHTS} do not agree on the trained tokens of {module}; they are broken")
    return Rows(tuple(listed), values)


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """As PEFT reads `rank_pattern` and `alpha_pattern`: the first key that matches the end of the module's name."""
    try:
        return next(
            (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), otherwise
        )
    except re.error as error:
        raise ExportError(f"{CONFIG} has a pattern that cannot be read ({error})") from error


def _recipe(folder: Path) -> dict[str, str]:
    """The recipe from the provenance, or from the card of the worker."""
    if (folder / PROVENANCE).is_file():
        recipe = read_object(folder / PROVENANCE, _REMEDY).get("recipe")
        return {k: str(v) for k, v in recipe.items() if v is not None} if isinstance(recipe, dict) else {}
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    _, found, table = text[:MAX_CARD].partition("| recipe | |\n")
    return dict(re.findall(r"^\| (\w+) \| `(.*)` \|$", table, re.MULTILINE)) if found else {}
