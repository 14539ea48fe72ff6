"""Converts a row to token ids and labels: chat template, trained tokens, truncation. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.shared.dataset_files import Message, Row
from worker.shared.job_spec import WITH_TRAINING_TEMPLATES
from worker.shared.own_template import CHANCE
from worker.training.interface import PermanentError
from worker.training.left_out import LeftOut, holds
from worker.training.pinned_time import strftime_at
from worker.training.training_template import training_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""Label of a token that is not trained on."""

FALLBACK_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""Chat template for a tokenizer without one. It is exported with the adapter."""

_ADDED = 8
"""More than the tokens that a tokenizer adds to a text."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = "strftime_now"


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row. `input_ids` and `labels` have the same length, at most `sequence_len`."""

    input_ids: list[int]
    labels: list[int]


def load_tokenizer(directory: Path, trust_remote_code: bool, template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer, with the job's own `template` if there is one, or the fallback template if it has none.

    Raises `PermanentError` if it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PermanentError(f"the tokenizer in {directory.name} cannot be loaded: {reason}") from error
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None):
        model.dropout = None  # it draws other tokens for the same text each time
    if template is not None:
        tokenizer.chat_template = template
    if not tokenizer.chat_template:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    return tokenizer


class Encoder:
    """Tokenises rows on demand, so that a resumed session does not tokenise rows it will not use.

    Trains on assistant turns, completions and plain texts, or on all tokens if `train_on_inputs`. `encoding` is that of
    the job: without a number, rows become the tokens that they became when there was only one way. Prompts are always
    written with the tokenizer's own chat template. Chat templates see the time `rendered_at` (epoch seconds), or the
    machine's own if it is None, and further `variables`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sequence_len: int,
        train_on_inputs: bool,
        *,
        encoding: int | None = None,
        rendered_at: float | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer: Any = tokenizer
        self.sequence_len = sequence_len
        self._everything = train_on_inputs
        self._first_way = encoding is None
        self._trains_with_another = encoding is not None and encoding >= WITH_TRAINING_TEMPLATES
        template = str(getattr(tokenizer, "chat_template", None) or "")
        self._own_marks = bool(_GENERATION.search(template))
        self._left_out = LeftOut(self.text_of)
        self._draws = bool(CHANCE.search(template))
        self._asks_for_the_time = _CLOCK in template
        self._is_pinned = rendered_at is not None
        # A variable of the template hides the library's function of the same name.
        self._given: dict[str, Any] = dict(variables or {})
        if rendered_at is not None and self._asks_for_the_time:
            self._given[_CLOCK] = strftime_at(rendered_at)
        self._bytes_around = lru_cache(maxsize=64)(self._written_around)

    @cached_property
    def training_template(self) -> str | None:
        """The chat template that writes the rows, if that is not the tokenizer's own.

        Raises `ImportError` on a computer without TRL if TRL has one.
        """
        return training_template(self._tokenizer) if self._trains_with_another else None

    @property
    def is_repeatable(self) -> bool:
        """Whether a row is the same text at any time. Not so for a template with a date in a job without a time."""
        return self._is_pinned or not self._asks_for_the_time

    def refuse_chance(self) -> None:
        """Raise `PermanentError` for a chat template that draws random text."""
        if self._draws:
            raise PermanentError(
                "the chat template draws random text, so the rows would differ in each session; use a template without "
                "random or lipsum"
            )

    def encode(self, row: Row) -> Example:
        """Token ids and labels of `row`, truncated to `sequence_len`.

        A row whose trained part is beyond that length is kept without any trained token.
        """
        return self.cut(self.encode_full(row))

    def cut(self, full: Example) -> Example:
        """The first `sequence_len` tokens."""
        return Example(full.input_ids[: self.sequence_len], full.labels[: self.sequence_len])

    def encode_full(self, row: Row) -> Example:
        """The same without truncation."""
        ids, trained = self._conversation(row) if row.messages else self._texts(row)
        if self._everything:
            trained = [True] * len(ids)
        labels = [token if train else IGNORE for token, train in zip(ids, trained, strict=True)]
        # No token predicts the first one. Unmasked, some losses would count it as trained and others would not.
        labels[:1] = [IGNORE]
        return Example(ids, labels)

    def prompt_ids(self, prompt: str, chat: bool) -> list[int]:
        """Token ids of a sample prompt, up to the start of the model's answer."""
        if chat:
            return self.answer_prompt((Message("user", prompt),))
        ids = list(self._tokenizer(prompt)["input_ids"])
        return ids if self._first_way else self._opened(ids, prompt)

    def answer_prompt(self, messages: tuple[Message, ...]) -> list[int]:
        """Token ids of a conversation, up to the start of the model's next answer."""
        return self.written_ids(self.own_text_of(messages, generation_prompt=True))

    def written_ids(self, text: str) -> list[int]:
        """Token ids of a text that a chat template has written."""
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids if self._first_way else self._with_one_start(ids)

    def rendered(self, row: Row) -> str:
        """The text of a conversation, or of a plain row. Takes a small part of the time of `encode`.

        Raises `PermanentError` if the chat template rejects the conversation or leaves out one of its turns.
        """
        return self._whole_text(row) if row.messages else row.prompt + row.text

    def may_teach_nothing(self, row: Row) -> bool:
        """Whether the first trained token of a row could be beyond `sequence_len`. Tokenises nothing."""
        if self._everything:
            return False
        if not row.messages:
            return self._tokenizer.eos_token_id is None or len(row.prompt.encode()) + _ADDED > self.sequence_len
        turns = range(row.given, len(row.messages))
        first = next((turn for turn in turns if row.messages[turn].role == "assistant"), row.given)
        before = row.messages[:first]
        around = self._bytes_around(tuple(message.role for message in before))
        # A token is at least a byte. A template that refuses such a beginning is measured by the tokens.
        return around is None or around + sum(len(m.content.encode()) for m in before) > self.sequence_len

    def _written_around(self, roles: tuple[str, ...]) -> int | None:
        """Bytes that the template writes around turns with these roles and before the next answer."""
        try:
            text = self.text_of(tuple(Message(role, "x") for role in roles), generation_prompt=True) if roles else ""
        except PermanentError:
            return None
        return len(text.encode()) - len(roles) + _ADDED

    def _texts(self, row: Row) -> tuple[list[int], list[bool]]:
        return self._plain(row) if self._first_way else self._joined(row)

    def _joined(self, row: Row) -> tuple[list[int], list[bool]]:
        """Prompt and text tokenised as one, since a tokenizer may put a space at the start of each piece."""
        whole, boundary = row.prompt + row.text, len(row.prompt)
        encoded = self._tokenizer(whole, return_offsets_mapping=self._tokenizer.is_fast)
        ids = list(encoded["input_ids"])
        if not row.prompt:
            trained = [True] * len(ids)
        elif self._tokenizer.is_fast:
            # A token that joins both ends is trained: the answer's first word is in it.
            trained = [end > boundary for _, end in encoded["offset_mapping"]]
        else:
            shared = common_start(ids, self._tokenizer(row.prompt)["input_ids"])
            trained = [place >= shared for place in range(len(ids))]
        surplus = len(ids) - len(self._with_one_start(ids))
        ids, trained = ids[surplus:], trained[surplus:]
        end = self._tokenizer.eos_token_id
        if end is None:
            return ids, trained
        while ids[-1:] == [end]:  # written in the text, added by the tokenizer, or both
            ids, trained = ids[:-1], trained[:-1]
        return [*ids, end], [*trained, True]

    def _with_one_start(self, ids: list[int]) -> list[int]:
        """The ids with one start token, where both the text and the tokenizer or the template have written one."""
        start = self._tokenizer.bos_token_id
        return ids[1:] if start is not None and ids[:2] == [start, start] else ids

    def _opened(self, ids: list[int], prompt: str) -> list[int]:
        """The ids of a prompt without an end token that the tokenizer adds to each text."""
        end = self._tokenizer.eos_token
        added = end is not None and ids[-1:] == [self._tokenizer.eos_token_id] and not prompt.endswith(end)
        return self._with_one_start(ids[:-1] if added else ids)

    def _plain(self, row: Row) -> tuple[list[int], list[bool]]:
        # Tokenised separately, because at inference the prompt has no completion.
        before = self._tokenizer(row.prompt)["input_ids"] if row.prompt else []
        after = self._tokenizer(row.text, add_special_tokens=not before)["input_ids"]
        eos = self._tokenizer.eos_token_id
        if eos is not None and after[-1:] != [eos]:
            after = [*after, eos]
        return before + after, [False] * len(before) + [True] * len(after)

    def _whole_text(self, row: Row) -> str:
        text = self.text_of(row.messages)
        if not self._first_way and (reason := self._left_out.reason(row.messages, text)):
            raise PermanentError(reason)
        return text

    def _conversation(self, row: Row) -> tuple[list[int], list[bool]]:
        text = self._whole_text(row)
        if self._everything:
            ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            trained = [True] * len(ids)
        elif not self._tokenizer.is_fast:
            raise PermanentError(
                "the tokenizer of this model has no token offsets, so the assistant's tokens cannot be "
                "found; set train_on_inputs or use a model with a tokenizer.json"
            )
        elif self._own_marks or self.training_template is not None:
            ids, trained = self._by_template_marks(row)
        else:
            ids, trained = self._by_spans(row, text)
        surplus = 0 if self._first_way else len(ids) - len(self._with_one_start(ids))
        return ids[surplus:], trained[surplus:]

    def _by_spans(self, row: Row, text: str) -> tuple[list[int], list[bool]]:
        spans = self.assistant_spans(row, text)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # A token that begins before the answer contains part of the prompt, so it is not trained on.
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
                _plain_messages(messages),
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                chat_template=self.training_template,
                **self._given,
            )
        except Exception as error:  # a template is a program and may raise anything
            raise PermanentError(
                f"the chat template refuses a row of the dataset: {str(error) or repr(error)}"
            ) from error
        return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]

    def text_of(self, messages: tuple[Message, ...], generation_prompt: bool = False) -> str:
        """The conversation as it is written in rows. Raises `PermanentError` if the chat template refuses."""
        return self._written(messages, self.training_template, generation_prompt)

    def own_text_of(self, messages: tuple[Message, ...], generation_prompt: bool = False) -> str:
        """The same with the tokenizer's own chat template."""
        return self._written(messages, None, generation_prompt)

    def _written(self, messages: tuple[Message, ...], template: str | None, generation_prompt: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                _plain_messages(messages),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self._given,
            )
        except Exception as error:  # a template is a program and may raise anything
            raise PermanentError(
                f"the chat template refuses a row of the dataset: {str(error) or repr(error)}"
            ) from error

    def assistant_spans(self, row: Row, text: str) -> list[tuple[int, int]]:
        """Character ranges of the assistant turns in `text`, including their end-of-turn marks."""
        messages, spans = row.messages, []
        for turn, message in enumerate(messages):
            if message.role != "assistant" or turn < row.given:
                continue
            prompt = self.text_of(messages[:turn], generation_prompt=True) if turn else ""
            so_far = self.text_of(messages[: turn + 1])
            begin = len(prompt)
            if not text.startswith(prompt):
                begin = _begin_by_content(text, prompt, self.text_of(messages[:turn]), message)
            end = len(so_far) if text.startswith(so_far) else _end_by_content(text, so_far, message, begin or 0)
            lost = begin is None or end is None or not (self._first_way or holds(text[begin:end], message.content))
            if lost:
                raise PermanentError(
                    "the chat template renders an earlier turn differently when more turns follow, so the assistant's "
                    "tokens cannot be found; set train_on_inputs or use a template with {% generation %} marks"
                )
            spans.append((begin or 0, end or 0))
        return spans


def common_start(first: Sequence[object], second: Sequence[object]) -> int:
    """Number of equal ids, or characters, at the start of both."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _begin_by_content(text: str, prompt: str, before: str, message: Message) -> int | None:
    """Where a turn begins, for templates that open a thought in the prompt that earlier answers do not have."""
    content = message.content.strip()
    at = text.find(content, len(before)) if content else -1
    shared = next((n for n, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), len(prompt))
    return min(shared, at) if at >= 0 and shared >= len(before) and text.startswith(before) else None


def _end_by_content(text: str, so_far: str, message: Message, begin: int) -> int | None:
    """Where a turn ends, for templates that decorate only the last turn, for example with an empty thought."""
    content = message.content.strip()
    tail = so_far[so_far.rfind(content) + len(content) :]
    at = text.find(content, begin)
    end = at + len(content) + len(tail)
    return end if at >= 0 and content in so_far and text[at + len(content) : end] == tail else None


def _plain_messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
