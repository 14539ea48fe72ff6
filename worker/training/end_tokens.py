"""The tokens that end an answer, and which of them are trained. Needs no torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from worker.shared.rows import EACH_TURN, Message
from worker.training.interface import PermanentError

_ANSWER = "Zq7"
"""A word that no chat template writes."""


def stop_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids at which the model stops: the tokenizer's end token, and those of its generation settings."""
    ids: set[Any] = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json") if tokenizer.name_or_path else ():
        try:
            settings = json.loads((Path(tokenizer.name_or_path) / name).read_text(encoding="utf-8"))
            ends = settings.get("eos_token_id")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        ids |= set(ends) if isinstance(ends, list) else {ends}
    return frozenset(number for number in ids if isinstance(number, int))


def turn_end(tokenizer: Any, write: Callable[[Sequence[Message]], str]) -> int | None:
    """The control token that the chat template writes after an answer. An adapter learns it. None if there is none.

    `write` is the template, which may refuse this conversation.
    """
    with contextlib.suppress(PermanentError):
        text = write((Message("user", "?"), Message("assistant", _ANSWER)))
        _, found, after = text.rpartition(_ANSWER)
        ids = tokenizer(after.strip(), add_special_tokens=False)["input_ids"] if found else []
        if ids and ids[0] in special_ids(tokenizer):
            return ids[0]
    return None


def answer_ends(model: Any, tokenizer: Any, write: Callable[[Sequence[Message]], str] | None) -> list[int]:
    """Ids that end an answer of a loaded model, ascending: its own, the tokenizer's, and that of the chat template.

    `write` is the template, or None for a model of plain texts. Ids that the model does not have are left out.
    """
    own = model.generation_config.eos_token_id
    ends: set[int | None] = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    if write is not None:
        ends.add(turn_end(tokenizer, write))
    known = model.get_input_embeddings().weight.shape[0]
    return sorted(number for number in ends if number is not None and number < known)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of control tokens, also of those that are not the tokenizer's start, end or padding."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def with_trained_ends(which: str, ids: Sequence[int], trained: Sequence[bool], ends: Collection[int]) -> list[bool]:
    """The mask with the ends of turns trained as axolotl's `train_on_eos` says: `all` or only the `last` one."""
    mask = list(trained)
    if which == EACH_TURN:
        return mask
    places = [place for place, number in enumerate(ids) if number in ends]
    if which == "last":
        after = False
        for place, (number, was_trained) in enumerate(zip(ids, trained, strict=True)):
            after = was_trained and (after or number in ends)
            mask[place] = was_trained and not after  # templates write a line break behind an end
    for place in places if which == "all" else places[-1:]:
        mask[place] = True
    return mask
