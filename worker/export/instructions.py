"""How to use an export: the `Modelfile`, the command lines, and what differs there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.export.json_files import read_optional
from worker.export.modelfile import modelfile, stops_of, turns_of
from worker.export.sources import Sources
from worker.export.vocabulary import chat_template, special_texts
from worker.shared.files import write_atomically

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 512)
MODELFILE = "Modelfile"
_REMEDY = "download the tokenizer again"


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """`commands` by the program. `notes` are sentences."""

    commands: Mapping[str, str]
    notes: Sequence[str]


def instructions(
    form: str, folder: Path, out: Path, sources: Sources, kind: str, adapter_name: str | None = None
) -> Instructions:
    """Write the `Modelfile` into `folder`, which will be called `out`. Returns how to use what is there.

    `adapter_name` is where the adapter will be, if that is another place than now.
    """
    special = special_texts(read_optional(sources.tokenizer / "tokenizer_config.json", _REMEDY))
    template = chat_template(sources.tokenizer)
    turns = turns_of(template, special) if template else None
    stops = stops_of(turns, _control_tokens(sources.tokenizer), special.get("eos_token"))
    if form == "gguf-adapter":
        text = modelfile("./base.gguf", turns, stops, adapter="./adapter.gguf")
    else:
        models = [path.name for path in sorted(folder.glob("*.gguf"))]
        text = modelfile(f"./{models[0]}" if models else ".", turns, stops)
    write_atomically(folder / MODELFILE, text)
    notes = list(_notes(form, sources, kind))
    if template and turns is None:
        notes.append(
            "the chat template is not a plain sequence of turns, so the Modelfile has no TEMPLATE; Ollama then uses "
            "the chat template of the GGUF file if it knows it"
        )
    if not template:
        notes.append("the tokenizer has no chat template, so the Modelfile has no TEMPLATE")
    return Instructions(commands=_commands(form, out, sources, kind, adapter_name), notes=notes)


def _commands(form: str, out: Path, sources: Sources, kind: str, adapter_name: str | None) -> dict[str, str]:
    name, place = sources.name.lower(), shlex.quote(str(out))
    found = {"ollama": f"ollama create {name} -f {shlex.quote(str(out / MODELFILE))}"}
    if form == "gguf":
        file = out / f"model-{'f16' if kind == 'fp16' else kind}.gguf"
        found["llama.cpp"] = f"llama-cli -m {shlex.quote(str(file))}"
    elif form == "gguf-adapter":
        found["llama.cpp"] = f"llama-cli -m base.gguf --lora {shlex.quote(str(out / 'adapter.gguf'))}"
    else:
        found["vllm"] = f"vllm serve {place}"
    if form != "merged" and not any(pair.magnitude is not None for pair in sources.adapter.pairs.values()):
        rank = max(pair.a.shape[0] for pair in sources.adapter.pairs.values())
        allowed = next((size for size in _VLLM_RANKS if size >= rank), rank)
        folder = shlex.quote(adapter_name or str(sources.adapter.folder))
        base = shlex.quote(sources.base_name.partition("@")[0])
        found["vllm"] = f"vllm serve {base} --enable-lora --lora-modules {name}={folder} --max-lora-rank {allowed}"
    return found


def _notes(form: str, sources: Sources, kind: str) -> list[str]:
    notes = []
    window = getattr(sources.config, "sliding_window", None)
    if form != "merged" and sources.raw_config.get("model_type") == "mistral" and window:
        notes.append(f"llama.cpp does not compute Mistral's sliding window; texts of more than {window} tokens differ")
    if form == "merged" and kind == "bf16" and sources.architecture.overflows:
        notes.append(f"activations of {sources.architecture.name} do not fit in fp16, so the model is in bf16")
    if sources.adapter.is_qlora and form != "merged":
        notes.append("the adapter was trained on the NF4 form of the base model, and other forms of it differ a little")
    return notes


def _control_tokens(tokenizer: Path) -> list[str]:
    added = read_optional(tokenizer / "tokenizer.json", _REMEDY).get("added_tokens") or []
    return [str(entry["content"]) for entry in added if entry.get("special")]
