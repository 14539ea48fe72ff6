"""One row to token ids and labels: chat template, which tokens are trained on, truncation. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.shared.dataset_files import Message, Row
from worker.training.interface import PermanentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def load_tokenizer(directory: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer, with the fallback template if it brings none. Raises `PermanentError` if there is none to load."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PermanentError(f"the tokenizer in {directory.name} cannot be loaded: {reason}") from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    return tokenizer


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
        whole = self.whole(row)
        return Example(whole.input_ids[: self._length], whole.labels[: self._length])

    def whole(self, row: Row) -> Example:
        """The same before it is cut to `sequence_len`."""
        ids, trained = self._conversation(row) if row.messages else self._plain(row)
        if self._everything:
            trained = [True] * len(ids)
        labels = [token if train else IGNORE for token, train in zip(ids, trained, strict=True)]
        # Nothing predicts the first token; unmasked, it would be counted as trained by some losses and not by others.
        labels[:1] = [IGNORE]
        return Example(ids, labels)

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

    def render(self, row: Row) -> None:
        """Raise the `PermanentError` of a conversation that the chat template refuses; costs a hundredth of `encode`."""
        if row.messages:
            self._render(row.messages)

    def _conversation(self, row: Row) -> tuple[list[int], list[bool]]:
        if self._everything:
            ids = list(self._tokenizer(self._render(row.messages), add_special_tokens=False)["input_ids"])
            return ids, [True] * len(ids)
        if not self._tokenizer.is_fast:
            raise PermanentError(
                "the tokenizer of this model cannot tell where in a text its tokens lie, so the assistant's cannot be told "
                "apart; set train_on_inputs or use a model that brings a tokenizer.json"
            )
        if self._marks_generation:
            return self._by_template_marks(row)
        text = self._render(row.messages)
        spans = self._assistant_spans(row, text)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # A token that begins before the answer holds part of what the model is given, so it is not trained on.
        trained = [any(a <= start < b for a, b in spans) for start, _ in encoded["offset_mapping"]]
        return list(encoded["input_ids"]), trained

    def _by_template_marks(self, row: Row) -> tuple[list[int], list[bool]]:
        ids, trained = self._marked(row.messages)
        if row.given:
            spoken = sum(self._marked(row.messages[: row.given])[1])
            for place in [place for place, mark in enumerate(trained) if mark][:spoken]:
                trained[place] = False
        return ids, trained

    def _marked(self, messages: tuple[Message, ...]) -> tuple[list[int], list[bool]]:
        try:
            encoded = self._tokenizer.apply_chat_template(
                _plain_messages(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as error:  # templates are programs: any error in one is theirs
            raise PermanentError(
                f"the chat template refuses a row of the dataset: {str(error) or repr(error)}"
            ) from error
        return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]

    def _render(self, messages: tuple[Message, ...], generation_prompt: bool = False) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                _plain_messages(messages), tokenize=False, add_generation_prompt=generation_prompt
            )
        except Exception as error:  # templates are programs: any error in one is theirs
            raise PermanentError(
                f"the chat template refuses a row of the dataset: {str(error) or repr(error)}"
            ) from error

    def _assistant_spans(self, row: Row, text: str) -> list[tuple[int, int]]:
        """Character ranges of `text` that the assistant says, its end-of-turn mark included."""
        messages, spans = row.messages, []
        for turn, message in enumerate(messages):
            if message.role != "assistant" or turn < row.given:
                continue
            given = self._render(messages[:turn], generation_prompt=True) if turn else ""
            so_far = self._render(messages[: turn + 1])
            begin = len(given)
            if not text.startswith(given):
                begin = _begin_by_content(text, given, self._render(messages[:turn]), message)
            end = len(so_far) if text.startswith(so_far) else _end_by_content(text, so_far, message, begin or 0)
            if begin is None or end is None:
                raise PermanentError(
                    "the chat template renders an earlier turn differently once more turns follow, so the assistant's "
                    "tokens cannot be told apart; set train_on_inputs or use a template with {% generation %} marks"
                )
            spans.append((begin, end))
        return spans


def _begin_by_content(text: str, given: str, before: str, message: Message) -> int | None:
    """Where a turn begins in templates that open a thought for the model which an answer in a conversation does not have."""
    content = message.content.strip()
    at = text.find(content, len(before)) if content else -1
    shared = next((n for n, (a, b) in enumerate(zip(text, given, strict=False)) if a != b), len(given))
    return min(shared, at) if at >= 0 and shared >= len(before) and text.startswith(before) else None


def _end_by_content(text: str, so_far: str, message: Message, begin: int) -> int | None:
    """Where a turn ends in templates that decorate only the last one (with an empty thought, say)."""
    content = message.content.strip()
    tail = so_far[so_far.rfind(content) + len(content) :]
    at = text.find(content, begin)
    end = at + len(content) + len(tail)
    return end if at >= 0 and content in so_far and text[at + len(content) : end] == tail else None


def _plain_messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
