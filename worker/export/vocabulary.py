"""The vocabulary of a `tokenizer.json` in the form of a GGUF file.

Two kinds: byte-level BPE (Llama 3, Qwen, SmolLM2, Mistral Nemo, Phi-4-mini), which llama.cpp calls gpt2, and BPE on
characters with a fallback to bytes (Llama 2, Mistral, Gemma, Phi-3), which it calls llama. Others are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.export.errors import ExportError
from worker.export.json_files import read_object, read_optional

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Numbers of llama.cpp's types of tokens."""
_REMEDY = "a GGUF model needs the tokenizer as tokenizer.json"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CASED_SHORT = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_SHORT}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
    rf"{_CASED}|\p{{N}}|{_REST_SLASH}": "tekken",
    rf"{_CASED_SHORT}|\p{{N}}{{1,3}}|{_REST_SLASH}": "gpt-4o",
}
"""llama.cpp's names of how text is split before BPE, by the pattern in tokenizer.json."""
_WHOLE_WORDS_FIRST = ("llama-bpe", "tekken")
"""llama.cpp takes a whole word that is a token without merging. tokenizer.json says it with `ignore_merges`."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens by their number. `scores` order the merges of the kind llama, `merges` are those of the kind gpt2."""

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    adds_space: bool
    chat_template: str | None

    def add_to(self, writer: Any, *, rows: int) -> None:
        """Add it to a file whose embedding has `rows` rows. Raises `ExportError` if there are more tokens."""
        if len(self.tokens) > rows:
            raise ExportError(
                f"the tokenizer has {len(self.tokens)} tokens and the base model only {rows}; "
                "use the tokenizer that the model was made with"
            )
        unused = range(len(self.tokens), rows)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list([*self.tokens, *(f"[PAD{number}]" for number in unused)])
        writer.add_token_types([*self.types, *(UNUSED for _ in unused)])
        if self.model == "llama":
            writer.add_token_scores([*self.scores, *(-1000.0 for _ in unused)])
            writer.add_add_space_prefix(self.adds_space)
        elif self.merges:
            writer.add_token_merges(list(self.merges))
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a folder with `tokenizer.json`. Raises `ExportError` for kinds that llama.cpp does not have."""
    found = read_object(folder / "tokenizer.json", _REMEDY)
    settings = read_optional(folder / "tokenizer_config.json", _REMEDY)
    model = found.get("model") or {}
    if model.get("type") != "BPE":
        raise ExportError(f"a GGUF file has no place for a tokenizer of the kind {model.get('type')}; only for BPE")
    pre = _split(found)
    if pre is None and not model.get("byte_fallback"):
        raise ExportError(f"llama.cpp does not know this tokenizer's way to split text: {_shown(found)}")
    if pre in _WHOLE_WORDS_FIRST and not model.get("ignore_merges"):
        raise ExportError(f"llama.cpp takes whole words first with {pre}, and this tokenizer does not")
    tokens, types = _tokens(found, settings, has_bytes=pre is None)
    merges = [_merge(entry) for entry in model.get("merges") or ()]
    numbers = {text: number for number, text in enumerate(tokens)}
    begins, ends = _added(folder, numbers, settings)
    return Vocabulary(
        model="gpt2" if pre else "llama",
        pre=pre or "default",
        tokens=tokens,
        types=types,
        scores=() if pre else _scores(tokens, types, merges),
        merges=[" ".join(pair) for pair in merges] if pre else (),
        special=_special(numbers, settings),
        adds_bos=begins,
        adds_eos=ends,
        adds_space=pre is None and _adds_space(found),
        chat_template=chat_template(folder),
    )


def chat_template(folder: Path) -> str | None:
    """The chat template of a tokenizer's folder, in Jinja."""
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text(encoding="utf-8")
    found = read_optional(folder / "tokenizer_config.json", _REMEDY).get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found}.get("default")
    return found if isinstance(found, str) else None


def _split(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the split. None if the tokenizer is not byte-level, or its split is unknown."""
    outer = tokenizer.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers") or [outer]
    kinds = [step.get("type") for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if kinds == ["ByteLevel"]:
        return "gpt-2" if steps[0].get("use_regex", True) else None
    if kinds == ["Digits", "ByteLevel"]:
        is_smollm = steps[0].get("individual_digits") and steps[1].get("use_regex", True)
        return "smollm" if is_smollm else None
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        return _SPLITS.get((steps[0].get("pattern") or {}).get("Regex", ""))
    return None


def _shown(tokenizer: Mapping[str, Any]) -> str:
    return json.dumps(tokenizer.get("pre_tokenizer"), ensure_ascii=True)[:200]


def _tokens(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], *, has_bytes: bool
) -> tuple[list[str], list[int]]:
    vocabulary: Mapping[str, int] = tokenizer["model"]["vocab"]
    added = {int(entry["id"]): entry for entry in tokenizer.get("added_tokens") or ()}
    count = max([*vocabulary.values(), *added], default=-1) + 1
    tokens = [f"[PAD{number}]" for number in range(count)]
    types = [UNUSED] * count
    for text, number in vocabulary.items():
        tokens[number] = text
        types[number] = BYTE if has_bytes and _BYTE.fullmatch(text) else NORMAL
    for number, entry in added.items():
        tokens[number] = entry["content"]
        types[number] = CONTROL if entry.get("special") else USER_DEFINED
    unknown = _text(settings.get("unk_token")) or tokenizer["model"].get("unk_token")
    if has_bytes and unknown in vocabulary:
        types[vocabulary[unknown]] = UNKNOWN
    return tokens, types


def _scores(tokens: Sequence[str], types: Sequence[int], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores with which llama.cpp joins the same pieces in the same order: minus the number of the first merge."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    last = float(len(merges))
    never = dict.fromkeys((CONTROL, USER_DEFINED), -1000.0) | dict.fromkeys((BYTE, UNKNOWN), 0.0)
    pairs = zip(tokens, types, strict=True)
    return [never[kind] if kind in never else -float(ranks.get(text, last)) for text, kind in pairs]


def _merge(entry: Any) -> tuple[str, str]:
    left, right = entry.split(" ", 1) if isinstance(entry, str) else entry
    return left, right


def special_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """The texts of bos, eos, unk and pad in a tokenizer's settings, as far as it has them."""
    found = {name: _text(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return {name: text for name, text in found.items() if text is not None}


def _special(numbers: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, int]:
    texts = special_texts(settings).items()
    return {name.removesuffix("_token"): numbers[text] for name, text in texts if text in numbers}


def _text(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _added(folder: Path, numbers: Mapping[str, int], settings: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the tokenizer puts its bos before a text, and its eos after it."""
    from tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids
    except Exception as error:  # the library raises bare exceptions
        raise ExportError(f"{folder / 'tokenizer.json'} cannot be loaded ({error})") from error
    special = _special(numbers, settings)
    return bool(ids) and ids[0] == special.get("bos"), bool(ids) and ids[-1] == special.get("eos")


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    outer = tokenizer.get("normalizer") or {}
    if any(step.get("type") == "Prepend" for step in outer.get("normalizers") or [outer]):
        return True
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers") or [pre]
    return any(step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps)
