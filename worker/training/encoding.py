"""Converts a row to token ids and labels: chat template, trained tokens, truncation. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.shared.dataset_files import Message, Row
from worker.shared.job_spec import WITH_TRAINING_TEMPLATES, WITH_TURNS_KEYS
from worker.shared.long_texts import piece_count, piece_start
from worker.shared.own_template import CHANCE
from worker.shared.rows import EACH_TURN
from worker.training.end_tokens import turn_end, with_trained_ends
from worker.training.interface import PermanentError
from worker.training.left_out import LeftOut
from worker.training.pinned_time import strftime_at
from worker.training.renderer import Renderer
from worker.training.spans import UNSTABLE, Write, answer_spans, common_start, content_spans, untaught_ranges
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

ADDED_TOKENS = 8
"""More than the tokens that a tokenizer adds to a text."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = "strftime_now"
_SHOWN = 40
"""Maximum characters of a thought that an error shows."""


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row. `input_ids` and `labels` have the same length, at most `sequence_len`.

    A row of preferences has a `rejected` answer to the same prompt, or says whether its answer is `desirable`.
    """

    input_ids: list[int]
    labels: list[int]
    rejected: Example | None = None
    desirable: bool | None = None

    @property
    def sides(self) -> tuple[Example, ...]:
        """The row and, if it has one, its rejected answer."""
        return (self,) if self.rejected is None else (self, self.rejected)


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
        self._by_turns = encoding is not None and encoding >= WITH_TURNS_KEYS
        self._trains_with_another = encoding is not None and encoding >= WITH_TRAINING_TEMPLATES
        template = str(getattr(tokenizer, "chat_template", None) or "")
        self._own_marks = bool(_GENERATION.search(template))
        self._left_out = LeftOut(lambda messages, tools: self.text_of(messages, tools=tools))
        self._draws = bool(CHANCE.search(template))
        self._asks_for_the_time = _CLOCK in template
        self._is_pinned = rendered_at is not None
        # A variable of the template hides the library's function of the same name.
        given: dict[str, Any] = dict(variables or {})
        if rendered_at is not None and self._asks_for_the_time:
            given[_CLOCK] = strftime_at(rendered_at)
        self._renderer = Renderer(tokenizer, given, is_first_version=self._first_way)
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
        rejected = None if full.rejected is None else self.cut(full.rejected)
        ids, labels = full.input_ids[: self.sequence_len], full.labels[: self.sequence_len]
        return Example(ids, labels, rejected, full.desirable)

    def split(self, full: Example) -> Iterator[Example]:
        """The pieces of an encoded text. In each, no token predicts the first one."""
        for place in range(piece_count(len(full.input_ids), self.sequence_len)):
            start = piece_start(place, self.sequence_len)
            stop = start + self.sequence_len
            yield Example(full.input_ids[start:stop], [IGNORE, *full.labels[start + 1 : stop]])

    def encode_full(self, row: Row) -> Example:
        """The same without truncation."""
        if row.rejected is None and row.desirable is None:
            return self._encoded(row)
        rejected = None if row.rejected is None else self._encoded(row.rejected)
        return replace(self._encoded(row), rejected=rejected, desirable=row.desirable)

    def _encoded(self, row: Row) -> Example:
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

    def answer_prompt(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """Token ids of a conversation, up to the start of the model's next answer."""
        return self.written_ids(self.own_text_of(messages, tools=tools, generation_prompt=True))

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
        """Whether the first trained token of an answer could be beyond `sequence_len`. Tokenises nothing."""
        if row.rejected is not None and self.may_teach_nothing(row.rejected):
            return True
        if self._everything:
            return False
        if not row.messages:
            return self._tokenizer.eos_token_id is None or len(row.prompt.encode()) + ADDED_TOKENS > self.sequence_len
        if not row.taught or row.tools or row.messages[row.taught[0]].role != "assistant":
            return True
        before = row.messages[: row.taught[0]]
        if any(message.thought or message.calls for message in before):
            return True
        around = self._bytes_around(tuple(message.role for message in before))
        # A token is at least a byte. A template that refuses such a beginning is measured by the tokens.
        return around is None or around + sum(len(m.content.encode()) for m in before) > self.sequence_len

    def _written_around(self, roles: tuple[str, ...]) -> int | None:
        """Bytes that the template writes around turns with these roles and before the next answer."""
        try:
            text = self.text_of(tuple(Message(role, "x") for role in roles), generation_prompt=True) if roles else ""
        except PermanentError:
            return None
        return len(text.encode()) - len(roles) + ADDED_TOKENS

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
        text = self.text_of(row.messages, tools=row.tools)
        if not self._first_way and (reason := self._left_out.reason(row, text) or self._unsaid_thought(row, text)):
            raise PermanentError(reason)
        return text

    def _unsaid_thought(self, row: Row, text: str) -> str:
        """Why the row cannot be used if it teaches a thought, and the template writes none of them."""
        lost = self._left_out.thoughts(row, text)
        taught = row.taught
        turn = next((turn for turn in lost if turn in taught), None)
        if turn is None or len(lost) < sum(bool(message.thought.strip()) for message in row.messages):
            return ""
        start = " ".join(row.messages[turn].thought.split())[:_SHOWN]
        if not self._renderer.reads_thoughts(self.training_template):
            return (
                f"the chat template has no place for the thought of turn {turn + 1} ('{start}...'); write it into the "
                "text as <think>...</think>, remove the key, or use a model that thinks"
            )
        return (
            f"the chat template leaves out the thought of turn {turn + 1} ('{start}...'), and the row has no other one;"
            " remove the thought, or use a model with a template that keeps the thoughts of all answers"
        )

    def dropped_thoughts(self, row: Row) -> int:
        """Number of thoughts of a conversation that its rendering does not have."""
        return len(self._left_out.thoughts(row, self.text_of(row.messages, tools=row.tools))) if row.messages else 0

    def _conversation(self, row: Row) -> tuple[list[int], list[bool]]:
        text = self._whole_text(row)
        if self._everything:
            if any(message.train is False for message in row.messages):
                raise PermanentError(
                    "a turn says that it is not to be trained on, but train_on_inputs trains on all of them; remove "
                    "one of the two"
                )
            ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            trained = [True] * len(ids)
        elif not self._tokenizer.is_fast:
            raise PermanentError(
                "the tokenizer of this model has no token offsets, so the assistant's tokens cannot be "
                "found; set train_on_inputs or use a model with a tokenizer.json"
            )
        elif self._own_marks or self.training_template is not None:
            ids, trained = self._by_template_marks(row, text)
        else:
            ids, trained = self._by_spans(text, self.assistant_spans(row, text))
            trained = self._with_other_roles(row, text, trained)
        if row.ends != EACH_TURN:
            trained = with_trained_ends(row.ends, ids, trained, self.ends)
        surplus = 0 if self._first_way else len(ids) - len(self._with_one_start(ids))
        return ids[surplus:], trained[surplus:]

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end a turn: the tokenizer's end token, and the one after an answer in the chat template."""
        ends = {self._tokenizer.eos_token_id, turn_end(self._tokenizer, self.text_of)}
        return frozenset(number for number in ends if number is not None)

    def _by_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # A token that begins before the answer contains part of the prompt, so it is not trained on.
        trained = [any(a <= start < b for a, b in spans) for start, _ in encoded["offset_mapping"]]
        return list(encoded["input_ids"]), trained

    def _with_other_roles(self, row: Row, text: str, trained: list[bool]) -> list[bool]:
        """The mask with the turns of other roles than the assistant's that are trained on, and their ends."""
        turns = [turn for turn in row.taught if row.messages[turn].role != "assistant"]
        if not turns:
            return trained
        ids, others = self._by_spans(text, content_spans(row, turns, text, self._writer(row)))
        for place in [place for place, (a, b) in enumerate(zip(others, [*others[1:], False], strict=True)) if a > b]:
            if place + 1 < len(ids) and ids[place + 1] in self.ends:
                others[place + 1] = True
        return [a or b for a, b in zip(trained, others, strict=True)]

    def _by_template_marks(self, row: Row, text: str) -> tuple[list[int], list[bool]]:
        """The answers that the template marks, without those that are not trained on."""
        ids, trained = self._renderer.marked(row.messages, self.training_template, tools=row.tools)
        if not self._by_turns:
            before = row.messages[: row.given]
            earlier = sum(self._renderer.marked(before, self.training_template)[1]) if before else 0
            for place in [place for place, mark in enumerate(trained) if mark][:earlier]:
                trained[place] = False
            return ids, trained
        left_out = untaught_ranges(row, text, self._writer(row))
        if left_out:
            in_text, inside = self._by_spans(text, left_out)
            if in_text != ids:
                raise PermanentError(UNSTABLE)
            trained = [mark and not out for mark, out in zip(trained, inside, strict=True)]
        return ids, self._with_other_roles(row, text, trained)

    def text_of(self, messages: Sequence[Message], generation_prompt: bool = False, *, tools: str = "") -> str:
        """The conversation as it is written in rows. Raises `PermanentError` if the chat template refuses."""
        return self._renderer.text(messages, self.training_template, tools=tools, generation_prompt=generation_prompt)

    def own_text_of(self, messages: Sequence[Message], generation_prompt: bool = False, *, tools: str = "") -> str:
        """The same with the tokenizer's own chat template."""
        return self._renderer.text(messages, None, tools=tools, generation_prompt=generation_prompt)

    def _writer(self, row: Row) -> Write:
        return lambda messages, prompt: self.text_of(messages, prompt, tools=row.tools)

    def assistant_spans(self, row: Row, text: str) -> list[tuple[int, int]]:
        """Character ranges of the trained assistant turns in `text`, including their end-of-turn marks."""
        turns = [turn for turn in row.taught if row.messages[turn].role == "assistant"]
        return answer_spans(row, turns, text, self._writer(row), checked=not self._first_way)
