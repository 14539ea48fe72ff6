"""Convert between a job file and the form. Common keys are fields, all others are YAML below them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.domain.errors import InvalidError
from orchestrator.entrypoints.http.routes import MAX_DEPTH, MAX_VALUES
from worker.shared.job_spec import JobSpec
from worker.shared.spec_errors import explain
from worker.shared.wire import is_larger_than

MAX_SHOWN = 80
MAX_YAML = 65_536
"""Characters. Reading YAML takes about ten seconds for a million."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field: key in the job file, label, type of the value, and choices."""

    key: str
    words: str
    kind: type = str
    choices: tuple[str, ...] = ()
    hint: str = ""


FIELDS = (
    Field(key="name", words="Name"),
    Field(key="base_model", words="Base model", hint="Hugging Face id (org/name@revision) or an allowed folder"),
    Field(key="adapter", words="Adapter", choices=("lora", "qlora")),
    Field(key="num_epochs", words="Epochs", kind=float),
    Field(key="max_steps", words="Steps (instead of epochs)", kind=int),
    Field(key="global_batch_size", words="Global batch size", kind=int),
    Field(key="sequence_len", words="Maximum sequence length (tokens)", kind=int),
    Field(key="learning_rate", words="Learning rate", kind=float),
    Field(key="lora_r", words="LoRA rank", kind=int),
    Field(key="val_set_size", words="Validation split", kind=float, hint="0.05 = 5 %"),
)
FIXED = frozenset({"base_model", "adapter", "global_batch_size", "sequence_len", "lora_r", "val_set_size"})
"""Fields that are fixed for a clone from a checkpoint."""

PRESETS: dict[str, tuple[str, str, Row]] = {
    "try": (
        "Try it here",
        "small chat model, minutes on a CPU",
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
        "prompts and answers, small model",
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
        "plain text, one epoch",
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
    """Field values, the hash of the uploaded dataset, sample prompts by line, and the other keys as YAML.

    A value that does not fit its field unchanged stays in the YAML.
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
    # YAML writes rare Unicode line breaks unchanged and reads them back as "\n".
    return text if yaml.safe_load(text) == rest else yaml.safe_dump(rest, sort_keys=False)


def _text(value: Any) -> str:
    """Format a value. A float keeps all digits."""
    return "" if value is None else repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def from_form(form: Mapping[str, Any]) -> JobSpec:
    """Convert a submitted form to a job file. Raises `InvalidError` with each invalid field."""
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
        faults.append((field.key, f"{text!r} is not a number"))
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
    """Merge the options of the same dataset from a pasted job file."""
    below = spec.get("datasets")
    if below is None:
        spec["datasets"] = [{"path": path}]
    elif not (isinstance(below, list) and [d.get("path") for d in below if isinstance(d, dict)] == [path]):
        faults.append(("datasets", _twice(path, below)))


def _twice(above: object, below: object) -> str:
    """The error for a key that is set both in a field and in the YAML."""
    return f"is {_shown(above)} in the field and {_shown(below)} in the YAML. Remove one of them"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _words(pointer: str, words: str) -> str:
    if (pointer, words) == ("/datasets", "is missing"):
        return "choose a data file first"
    return words


def _yaml(text: str) -> Row:
    if len(text) > MAX_YAML:
        raise InvalidError(f"Other settings must have at most {MAX_YAML} characters.", [("more", "is too long")])
    try:
        found = yaml.safe_load(text) or {}
    except RecursionError:
        raise InvalidError("Other settings are nested too deeply.", [("more", "is nested too deeply")]) from None
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise InvalidError(f"Other settings: {words}", [("more", words)]) from error
    except ValueError as error:  # a 13th month, thousands of digits
        raise InvalidError("Other settings have a value that cannot be read.", [("more", "cannot be read")]) from error
    if is_larger_than(found, values=MAX_VALUES, depth=MAX_DEPTH):  # an alias can repeat a part without end
        raise InvalidError("Other settings have too many values. Remove some.", [("more", "has too many values")])
    if not isinstance(found, dict):
        raise InvalidError("Other settings must be keys with values, as YAML.", [("more", "must be keys with values")])
    return found
