"""A job file as a form and back: the keys that most people set are fields, all others are YAML below them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.domain.errors import InvalidError
from worker.shared.messages import JobSpec
from worker.shared.spec_errors import explain

MAX_SHOWN = 80
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field: its key in the job file, its words, the kind of its value, and what may be chosen."""

    key: str
    words: str
    kind: type = str
    choices: tuple[str, ...] = ()
    hint: str = ""


FIELDS = (
    Field(key="name", words="Name"),
    Field(key="base_model", words="Base model", hint="a hub id (org/name@revision) or an allowed folder"),
    Field(key="adapter", words="Adapter", choices=("lora", "qlora")),
    Field(key="num_epochs", words="Epochs", kind=float),
    Field(key="max_steps", words="or steps", kind=int),
    Field(key="global_batch_size", words="Global batch", kind=int),
    Field(key="sequence_len", words="Longest row in tokens", kind=int),
    Field(key="learning_rate", words="Learning rate", kind=float),
    Field(key="lora_r", words="LoRA rank", kind=int),
    Field(key="val_set_size", words="Held out for eval", kind=float, hint="a share, 0.05 for 5 %"),
)
FIXED = frozenset({"base_model", "adapter", "global_batch_size", "sequence_len", "lora_r", "val_set_size"})
"""Fields that a clone from a checkpoint keeps."""

PRESETS: dict[str, tuple[str, str, Row]] = {
    "try": (
        "Try it here",
        "a small chat model, minutes on a CPU",
        {
            "name": "first-try",
            "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "adapter": "lora",
            "max_steps": 40,
            "global_batch_size": 4,
            "sequence_len": 256,
            "learning_rate": 1e-3,
            "lora_r": 8,
        },
    ),
    "chat": (
        "Chat, QLoRA",
        "conversations, one 16 GB GPU",
        {
            "name": "chat",
            "base_model": "Qwen/Qwen2.5-7B-Instruct",
            "adapter": "qlora",
            "num_epochs": 2,
            "global_batch_size": 16,
            "sequence_len": 1024,
            "learning_rate": 2e-4,
            "lora_r": 16,
            "val_set_size": 0.02,
        },
    ),
    "instruct": (
        "Instruction, LoRA",
        "prompt and answer, a small model",
        {
            "name": "instruct",
            "base_model": "Qwen/Qwen2.5-0.5B-Instruct",
            "adapter": "lora",
            "num_epochs": 3,
            "global_batch_size": 8,
            "sequence_len": 512,
            "learning_rate": 2e-4,
            "lora_r": 16,
            "val_set_size": 0.05,
        },
    ),
    "domain": (
        "Domain text",
        "plain text, one pass",
        {
            "name": "domain",
            "base_model": "Qwen/Qwen2.5-0.5B",
            "adapter": "lora",
            "num_epochs": 1,
            "global_batch_size": 16,
            "sequence_len": 1024,
            "learning_rate": 1e-4,
            "lora_r": 32,
        },
    ),
}


def to_form(spec: Mapping[str, Any]) -> Row:
    """Field values, the dataset's hash if there is one uploaded dataset, sample prompts by line, and the rest as YAML.

    What a field cannot hold without changing it is left in the YAML.
    """
    values: Row = {field.key: _text(spec.get(field.key)) for field in FIELDS}
    values |= {key: "" for key, text in values.items() if len(text.splitlines()) > 1}
    rest = {k: v for k, v in spec.items() if v is not None and not values.get(k)}
    datasets = rest.get("datasets") or []
    values["data"] = ""
    if len(datasets) == 1 and set(datasets[0]) <= {"path", "type"} and datasets[0]["path"].startswith("sha256:"):
        values["data"] = datasets[0]["path"].removeprefix("sha256:")
        del rest["datasets"]
    prompts = list(rest.get("sample_prompts", ()))
    values["prompts"] = "\n".join(prompts)
    if _lines(values["prompts"]) == prompts:
        rest.pop("sample_prompts", None)
    else:
        values["prompts"] = ""
    values["more"] = _dumped(rest) if rest else ""
    return values


def _dumped(rest: Row) -> str:
    text = yaml.safe_dump(rest, sort_keys=False, allow_unicode=True)
    # Rare line breaks of Unicode are written as they are and read back as "\n".
    return text if yaml.safe_load(text) == rest else yaml.safe_dump(rest, sort_keys=False)


def _text(value: Any) -> str:
    """Of a float every digit counts."""
    return "" if value is None else repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def from_form(form: Mapping[str, Any]) -> JobSpec:
    """The job file that a filled-in form stands for; raises `InvalidError` naming each field that is wrong."""
    spec = _yaml(str(form.get("more") or ""))
    faults: list[tuple[str, str]] = []
    for field in FIELDS:
        if text := str(form.get(field.key) or "").strip():
            _put(spec, faults, field, text)
    if data := str(form.get("data") or "").strip():
        _put_data(spec, faults, f"sha256:{data}")
    if prompts := _lines(str(form.get("prompts") or "")):
        if list(spec.get("sample_prompts") or prompts) != prompts:
            faults.append(("sample_prompts", _twice(prompts, spec["sample_prompts"])))
        spec["sample_prompts"] = prompts
    if faults:
        words = {field.key: field.words for field in FIELDS}
        raise InvalidError("; ".join(f"{words.get(k, k)}: {w}" for k, w in faults[:3]), faults)
    try:
        return JobSpec.model_validate(spec)
    except ValidationError as error:
        faults = [(pointer.strip("/"), _words(pointer, words)) for pointer, words in explain(error)]
        raise InvalidError("; ".join(f"{p}: {w}" if p else w for p, w in faults[:3]), faults) from error


def _put(spec: Row, faults: list[tuple[str, str]], field: Field, text: str) -> None:
    try:
        value = field.kind(text)
    except ValueError:
        faults.append((field.key, f"{text!r} is no number"))
        return
    below = spec.get(field.key)
    if below is not None and not _same(field, below, value):
        faults.append((field.key, _twice(text, below)))
    spec[field.key] = value


def _same(field: Field, below: Any, value: object) -> bool:
    if field.kind is str:
        return str(below).strip() == value
    try:
        return float(below) == value  # YAML reads 1e-4 as text
    except (TypeError, ValueError):
        return False


def _put_data(spec: Row, faults: list[tuple[str, str]], path: str) -> None:
    """A pasted job file may say more about the same file."""
    below = spec.get("datasets")
    if below is None:
        spec["datasets"] = [{"path": path}]
    elif not (isinstance(below, list) and [d.get("path") for d in below if isinstance(d, dict)] == [path]):
        faults.append(("datasets", _twice(path, below)))


def _twice(above: object, below: object) -> str:
    """Neither is taken silently: somebody meant both."""
    return f"the field says {_shown(above)}, the YAML below the fields {_shown(below)}; leave one of them out"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _words(pointer: str, words: str) -> str:
    if pointer == "/datasets" and "required" in words:
        return "bring a data file first"
    return words


def _yaml(text: str) -> Row:
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise InvalidError(f"the YAML below the fields: {words}", [("more", words)]) from error
    if not isinstance(found, dict):
        raise InvalidError("the YAML below the fields must be keys with values", [("more", "must be keys with values")])
    return found
