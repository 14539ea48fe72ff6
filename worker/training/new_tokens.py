"""Adds a job's tokens to the tokenizer, and rows for them to the model. Needs torch only for the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from worker.training.interface import PermanentError

_ROWS_AT_ONCE = 8_192


def add_to(tokenizer: Any, tokens: Sequence[str], overrides: Mapping[str, str]) -> list[int]:
    """Rename the tokens in `overrides` (by number) and add `tokens` after the last one. Returns the numbers of both.

    Raises `PermanentError` for a token that cannot be added, or one that cannot be renamed.
    """
    if not tokens and not overrides:
        return []
    known = tokenizer.get_vocab()
    if there := [text for text in (*overrides.values(), *tokens) if text in known]:
        raise PermanentError(
            f"the tokenizer already has the token {there[0]!r} (number {known[there[0]]}); leave it out, and name its "
            "number in peft_trainable_token_indices to train it"
        )
    if overrides:
        _rename(tokenizer, {int(number): text for number, text in overrides.items()})
    before = len(tokenizer)
    if tokenizer.add_tokens(list(tokens)) != len(tokens):
        raise PermanentError("tokens: the tokenizer has not taken all of them; use other texts")
    numbers = [*map(int, overrides), *range(before, before + len(tokens))]
    wrong = [text for text in tokens if tokenizer.convert_tokens_to_ids(text) not in numbers]
    if wrong:
        raise PermanentError(f"tokens: the tokenizer does not keep {wrong[0]!r} as one token; use another text")
    return numbers


def _rename(tokenizer: Any, overrides: Mapping[int, str]) -> None:
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise PermanentError("added_tokens_overrides needs a tokenizer with a tokenizer.json; use tokens")
    core = json.loads(backend.to_str())
    reserved = {entry["id"]: entry for entry in core.get("added_tokens", ())}
    used, template = _used(tokenizer), str(tokenizer.chat_template or "")
    for number, text in overrides.items():
        if number not in reserved:
            raise PermanentError(
                f"added_tokens_overrides: {number} is not one of the tokens that were added to the tokenizer; "
                f"{_shown(reserved)}"
            )
        old = reserved[number]["content"]
        if old in used or old in template:
            place = "is a special token of the model" if old in used else "is in the chat template"
            raise PermanentError(f"added_tokens_overrides: token {number} ({old}) {place}; rename another one")
        reserved[number]["content"] = text
        vocabulary = core["model"].get("vocab")
        if isinstance(vocabulary, dict) and vocabulary.get(old) == number:
            del vocabulary[old]
            vocabulary[text] = number
        elif isinstance(vocabulary, list) and number < len(vocabulary) and vocabulary[number][0] == old:
            vocabulary[number][0] = text
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(core))  # noqa: SLF001  the library has no other way


def _shown(reserved: Mapping[int, Any]) -> str:
    return f"those are {min(reserved)} to {max(reserved)}" if reserved else "it has none"


def _used(tokenizer: Any) -> set[str]:
    """Tokens by which the library starts, ends and pads texts, and others that its settings name."""
    found: set[str] = set()
    for value in tokenizer.special_tokens_map.values():
        found |= {str(each) for each in value} if isinstance(value, list | tuple) else {str(value)}
    return found | {str(each) for each in getattr(tokenizer, "extra_special_tokens", None) or ()}


def make_room(model: Any, numbers: Sequence[int], known: int) -> None:
    """Give each of the new tokens `numbers` a row in embedding and head: the mean of the first `known` rows.

    The table only grows, and by the rows that it lacks. The mean is computed on the CPU in a fixed order.
    """
    if not numbers:
        return
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if max(numbers) >= rows:
        model.resize_token_embeddings(max(numbers) + 1, mean_resizing=False)
    tables = {id(part.weight): part.weight for part in _tables(model)}
    with torch.no_grad():
        for weight in tables.values():
            total, count = torch.zeros(weight.shape[1], dtype=torch.float64), min(known, rows)
            for start in range(0, count, _ROWS_AT_ONCE):
                total += weight[start : min(start + _ROWS_AT_ONCE, count)].cpu().double().sum(0)
            weight[list(numbers)] = (total / count).to(weight)


def trained_rows(model: Any, also: Sequence[int], numbers: Sequence[int]) -> list[int] | dict[str, list[int]] | None:
    """PEFT's `trainable_token_indices`: rows of the embedding, and of a head of its own where tokens are new."""
    rows = [*also, *(number for number in numbers if number not in also)]
    head = model.get_output_embeddings()
    if not numbers or head is None or head.weight is model.get_input_embeddings().weight:
        return rows or None
    if getattr(head, "bias", None) is not None:
        raise PermanentError("tokens: the output layer of this model has a bias, so new tokens cannot be trained in it")
    names = {id(module): name for name, module in model.named_modules()}
    embedding = names[id(model.get_input_embeddings())].rpartition(".")[2]
    return {embedding: rows, names[id(head)].rpartition(".")[2]: list(numbers)}


def _tables(model: Any) -> list[Any]:
    head = model.get_output_embeddings()
    return [model.get_input_embeddings(), *([head] if head is not None else [])]
