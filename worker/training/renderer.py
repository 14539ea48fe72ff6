"""Writes conversations with a chat template, in the form in which that template reads them. Needs no torch.

Templates read the same thing under several names: a thought, the arguments of a call as an object or as JSON text, no
text as "" or as None, a text as a string or as a list of parts. Which of them a template reads is tried on marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from worker.shared.row_keys import THOUGHTS
from worker.shared.rows import Message
from worker.training.interface import PermanentError

_MARKS = ("turn0mark", "turn1mark", "turn2mark", "turn3mark")
_PRINTED = re.compile(r"""['"]type['"]: ['"]text['"]""")
_ID = "call00001"
"""Some templates accept only nine letters and digits."""
Template = str | None
"""A chat template, or None for the tokenizer's own."""


@dataclass(frozen=True)
class _Form:
    thought: str = THOUGHTS[0]
    arguments_as_text: bool = False
    none_for_empty: bool = False
    parts: bool = False


class Renderer:
    """Writes conversations. `variables` are those that templates see. A first-version job knows only one form."""

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any], *, is_first_version: bool) -> None:
        self._tokenizer, self._variables, self._is_first = tokenizer, variables, is_first_version
        self._with_parts = lru_cache(maxsize=4)(self._find_parts)
        self._thought_key = lru_cache(maxsize=4)(self._find_thought_key)
        self._of_calls = lru_cache(maxsize=4)(self._find_form_of_calls)

    def text(
        self, messages: Sequence[Message], template: Template, *, tools: str = "", generation_prompt: bool = False
    ) -> str:
        """The conversation as text. Raises `PermanentError` if the template refuses it."""
        how = {"tokenize": False, "add_generation_prompt": generation_prompt}
        return self._apply(messages, template, self._form(messages, template), tools, **how)

    def marked(
        self, messages: Sequence[Message], template: Template, *, tools: str = ""
    ) -> tuple[list[int], list[bool]]:
        """Token ids, and whether the template marks them as the assistant's. Raises like `text`."""
        how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        encoded = self._apply(messages, template, self._form(messages, template), tools, **how)
        return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]

    def reads_thoughts(self, template: Template) -> bool:
        """Whether the template writes the thought of a turn, under any name."""
        return bool(self._thought_key(template))

    def _form(self, messages: Sequence[Message], template: Template) -> _Form:
        if self._is_first:
            return _Form()
        calls = self._of_calls(template) if any(turn.calls for turn in messages) else _Form()
        thought = self._thought_key(template) if any(turn.thought for turn in messages) else ""
        return _Form(
            thought=thought or THOUGHTS[0],
            arguments_as_text=calls.arguments_as_text,
            none_for_empty=calls.none_for_empty,
            parts=self._with_parts(template),
        )

    def _apply(self, messages: Sequence[Message], template: Template, form: _Form, tools: str, **how: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                [_as_template_reads(message, form) for message in messages],
                tools=json.loads(tools) if tools else None,
                chat_template=template,
                **how,
                **self._variables,
            )
        except Exception as error:  # a template is a program and may raise anything
            raise PermanentError(
                f"the chat template refuses a row of the dataset: {str(error) or repr(error)}"
            ) from error

    def _shows(
        self, messages: Sequence[Message], marks: Sequence[str], template: Template, form: _Form, tools: str = ""
    ) -> bool:
        try:
            text = self._apply(messages, template, form, tools, tokenize=False)
        except PermanentError:
            return False
        # A template that only prints what it gets does not read a list of parts.
        return all(mark in text for mark in marks) and not (form.parts and _PRINTED.search(text))

    def _find_parts(self, template: Template) -> bool:
        turns, marks = (Message("user", _MARKS[0]), Message("assistant", _MARKS[1])), _MARKS[:2]
        if any(self._shows(turns, [mark], template, _Form()) for mark in marks):
            return False
        return self._shows(turns, marks, template, _Form(parts=True))

    def _find_thought_key(self, template: Template) -> str:
        call = {"id": _ID, "type": "function", "function": {"name": _MARKS[0], "arguments": {}}}
        parts, mark = self._with_parts(template), _MARKS[2]
        for calls in ("", json.dumps([call])):  # some templates write only the thought before a call
            turns = (Message("user", _MARKS[0]), Message("assistant", "" if calls else _MARKS[1], mark, calls))
            for key in THOUGHTS:
                if self._shows(turns, [mark], template, _Form(thought=key, parts=parts)):
                    return key
        return ""

    def _find_form_of_calls(self, template: Template) -> _Form:
        call = {"id": _ID, "type": "function", "function": {"name": _MARKS[0], "arguments": {"x": _MARKS[1]}}}
        turns = (
            Message("user", "x"),
            Message("assistant", "", calls=json.dumps([call])),
            Message("tool", _MARKS[2], name=_MARKS[0], call_id=_ID),
            Message("assistant", _MARKS[3]),
        )
        parameters = {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}}
        schema = {"type": "function", "function": {"name": "x", "description": "x", "parameters": parameters}}
        shows = (
            form
            for form in _forms_of_calls(self._with_parts(template))
            if self._shows(turns, _MARKS[:2], template, form, json.dumps([schema]))
        )
        return next(shows, _Form())


def _forms_of_calls(parts: bool) -> Iterator[_Form]:
    for as_text in (False, True):
        for none in (False, True):
            yield _Form(arguments_as_text=as_text, none_for_empty=none, parts=parts)


def _as_template_reads(message: Message, form: _Form) -> dict[str, Any]:
    content: Any = message.content
    if form.parts:
        content = [{"type": "text", "text": content}]
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.thought:
        found[form.thought] = message.thought
    if message.calls:
        found["tool_calls"] = _calls(message.calls, as_text=form.arguments_as_text)
        if form.none_for_empty and not message.content:
            found["content"] = None
    if message.name:
        found["name"] = message.name
    if message.call_id:
        found["tool_call_id"] = message.call_id
    return found


def _calls(calls: str, *, as_text: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(calls)
    if as_text:
        for call in found:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return found
