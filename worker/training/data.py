"""Rows to token ids and labels: chat template, which tokens are trained on, truncation, padding."""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from worker.dataset import DatasetError, Message, Row, read_rows
from worker.training.job import PermanentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from worker.protocol import JobSpec

IGNORE = -100
"""Label of a token that is not trained on."""

FALLBACK_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""Used, and exported with the adapter, where the base model's tokenizer brings no chat template."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row; `input_ids` and `labels` have the same length, at most `sequence_len`."""

    input_ids: list[int]
    labels: list[int]


def load_rows(paths: Sequence[Path], spec: JobSpec) -> list[Row]:
    """All rows of the job's datasets in order. Raises `PermanentError` if one is faulty or the count is not the spec's."""
    rows: list[Row] = []
    for path, dataset in zip(paths, spec.datasets, strict=True):
        try:
            rows.extend(read_rows(path, dataset.type, dataset.file_format))
        except DatasetError as error:
            raise PermanentError(f"dataset {dataset.path}: {error}") from error
    if len(rows) != spec.rows:
        raise PermanentError(
            f"the datasets have {len(rows)} rows but the job was made for {spec.rows}; submit it again"
        )
    return rows


class Encoder:
    """Tokenises rows on demand, so that a resume never pays for rows it will not see.

    Trains on assistant turns, completions and plain texts; on everything if `train_on_inputs`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sequence_len: int, train_on_inputs: bool) -> None:
        self._tokenizer: Any = tokenizer
        self._length = sequence_len
        self._everything = train_on_inputs
        self._marks_generation = bool(_GENERATION.search(str(tokenizer.chat_template or "")))

    def encode(self, row: Row) -> Example:
        """Token ids and labels of `row`; a row whose trained part lies past `sequence_len` stays, with none to train."""
        ids, trained = self._conversation(row.messages) if row.messages else self._plain(row)
        if self._everything:
            trained = [True] * len(ids)
        labels = [token if train else IGNORE for token, train in zip(ids, trained, strict=True)]
        # Nothing predicts the first token; unmasked, it would be counted as trained by some losses and not by others.
        labels[:1] = [IGNORE]
        return Example(ids[: self._length], labels[: self._length])

    def prompt_ids(self, prompt: str, chat: bool) -> list[int]:
        """Token ids of a sample prompt, up to where the model has to answer."""
        if not chat:
            return self._tokenizer(prompt)["input_ids"]
        text = self._render((Message("user", prompt),), generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _plain(self, row: Row) -> tuple[list[int], list[bool]]:
        # Tokenised apart, because at inference the prompt is tokenised without its completion as well.
        before = self._tokenizer(row.prompt)["input_ids"] if row.prompt else []
        after = self._tokenizer(row.text, add_special_tokens=not before)["input_ids"]
        eos = self._tokenizer.eos_token_id
        if eos is not None and after[-1:] != [eos]:
            after = [*after, eos]
        return before + after, [False] * len(before) + [True] * len(after)

    def _conversation(self, messages: tuple[Message, ...]) -> tuple[list[int], list[bool]]:
        if self._marks_generation:
            return self._by_template_marks(messages)
        text = self._render(messages)
        spans = self._assistant_spans(messages, text)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # A token that begins before the answer holds part of what the model is given, so it is not trained on.
        trained = [any(a <= start < b for a, b in spans) for start, _ in encoded["offset_mapping"]]
        return list(encoded["input_ids"]), trained

    def _by_template_marks(self, messages: tuple[Message, ...]) -> tuple[list[int], list[bool]]:
        try:
            encoded = self._tokenizer.apply_chat_template(
                _plain_messages(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as error:  # templates are programs: any error in one is theirs
            raise PermanentError(f"the chat template refuses a row of the dataset: {error}") from error
        return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]

    def _render(self, messages: tuple[Message, ...], generation_prompt: bool = False) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                _plain_messages(messages), tokenize=False, add_generation_prompt=generation_prompt
            )
        except Exception as error:  # templates are programs: any error in one is theirs
            raise PermanentError(f"the chat template refuses a row of the dataset: {error}") from error

    def _assistant_spans(self, messages: tuple[Message, ...], text: str) -> list[tuple[int, int]]:
        """Character ranges of `text` that the assistant says, its end-of-turn mark included."""
        spans = []
        for turn, message in enumerate(messages):
            if message.role != "assistant":
                continue
            given = self._render(messages[:turn], generation_prompt=True) if turn else ""
            so_far = self._render(messages[: turn + 1])
            end = len(so_far) if text.startswith(so_far) else _end_by_content(text, so_far, message, len(given))
            if not text.startswith(given) or end is None:
                raise PermanentError(
                    "the chat template renders an earlier turn differently once more turns follow, so the assistant's "
                    "tokens cannot be told apart; set train_on_inputs or use a template with {% generation %} marks"
                )
            spans.append((len(given), end))
        return spans


def _end_by_content(text: str, so_far: str, message: Message, begin: int) -> int | None:
    """Where a turn ends in templates that decorate only the last one (with an empty thought, say)."""
    content = message.content.strip()
    tail = so_far[so_far.rfind(content) + len(content) :]
    at = text.find(content, begin)
    end = at + len(content) + len(tail)
    return end if at >= 0 and content in so_far and text[at + len(content) : end] == tail else None


def _plain_messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


class Rows(torch.utils.data.Dataset[Example]):
    """Map-style view of some rows, tokenised when asked for and remembered for a while."""

    def __init__(self, rows: Sequence[Row], chosen: Sequence[int], encoder: Encoder) -> None:
        self._rows, self._chosen = rows, chosen
        self._encode = lru_cache(maxsize=4096)(lambda number: encoder.encode(rows[number]))

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        return self._encode(int(self._chosen[index]))


def trained_tokens(examples: Sequence[Example]) -> int:
    """Labels of `examples` that are trained on; the first of a row never is, since nothing predicts it."""
    return sum(label != IGNORE for example in examples for label in example.labels[1:])


def row_crc(example: Example) -> int:
    """CRC-32 of a row's token ids."""
    return zlib.crc32(array("i", example.input_ids).tobytes())


def checksum(rows: Sequence[int]) -> int:
    """One number for the rows of an update in their order, however they were cut into processes and micro-batches."""
    return zlib.crc32(array("Q", rows).tobytes())


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-pad to the longest example: `input_ids`, `attention_mask`, `labels`, each int64 of shape (batch, length)."""
    longest = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), longest), pad_id, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE)
    mask = torch.zeros_like(ids)
    for place, example in enumerate(examples):
        length = len(example.input_ids)
        ids[place, :length] = torch.tensor(example.input_ids, dtype=torch.int64)
        labels[place, :length] = torch.tensor(example.labels, dtype=torch.int64)
        mask[place, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
