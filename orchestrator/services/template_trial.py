"""Tries a chat template of a job's own on fixed conversations before the job is queued.

A template is a program. It runs in a sandbox, in a process with little time and memory, with the functions that
transformers gives it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.domain.errors import InvalidError
from worker.shared import limited_call
from worker.shared.job_spec import JobSpec
from worker.shared.own_template import CHANCE, template_of

CPU_S, MEMORY_BYTES = 4, 256 << 20
MAX_WORDS = 300
MAX_TEXT = 1 << 20
"""Characters that a template may make of four short turns."""
_POINTER = "/chat_template_jinja"
_TURNS = (
    {"role": "user", "content": "Mark one."},
    {"role": "assistant", "content": "Mark two."},
    {"role": "user", "content": "Mark three."},
    {"role": "assistant", "content": "Mark four."},
)
_SYSTEM = {"role": "system", "content": "Mark zero."}
Turns = Sequence[dict[str, str]]


def refuse_bad_template(spec: JobSpec, *, cpu_s: int = CPU_S) -> tuple[str, ...]:
    """What the author of a template should know. Raises `InvalidError` for one that no row can be written with."""
    text = template_of(spec.chat_template, spec.chat_template_jinja)
    if text is None or spec.chat_template_jinja is None:
        return ()
    try:
        answer = _answer(text, cpu_s)
    except limited_call.LimitError as error:
        answer = {"fault": f"does not end: {error}"}
    if fault := answer.get("fault"):
        raise InvalidError(f"The chat template cannot be used: {fault}.", [(_POINTER, fault)])
    return tuple(answer["notes"])


@lru_cache(maxsize=64)
def _answer(text: str, cpu_s: int) -> dict[str, Any]:
    """A page asks for a plan at each change of its form."""
    return limited_call.call(f"{__name__}:tried", {"template": text}, cpu_s=cpu_s, memory_bytes=MEMORY_BYTES)


def tried(request: dict[str, Any]) -> dict[str, Any]:
    """`fault` of the template, or `notes`. Runs in the process with limits."""
    try:
        return {"notes": _Trial(request["template"]).notes()}
    except _TemplateFault as error:
        return {"fault": str(error)}


class _TemplateFault(Exception):
    """The fault in words."""


class _Generation(Extension):
    """`{% generation %}`, whose content is the answer."""

    tags = {"generation"}  # noqa: RUF012  the library's own form

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return caller()


class _Trial:
    def __init__(self, text: str) -> None:
        if CHANCE.search(text):
            raise _TemplateFault("it draws random text, so the rows would differ in each session")
        environment: Any = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters |= {"tojson": _to_json}
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _today}
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise _TemplateFault(f"line {error.lineno}: {_short(error.message)}") from None
        except (ValueError, RecursionError, TypeError) as error:
            raise _TemplateFault(_short(error)) from None

    def notes(self) -> list[str]:
        """What a template does that its author may not expect. Raises `_TemplateFault`."""
        once, twice = self._text(_TURNS[:2]), self._text(_TURNS)
        if self._text(_TURNS) != twice:
            raise _TemplateFault("it writes another text each time")
        for turns, text in ((_TURNS[:2], once), (_TURNS, twice)):
            _refuse_left_out(turns, text)
        return [*self._of_prompts(once), *self._of_prefix(once, twice), *self._of_system()]

    def _of_prompts(self, once: str) -> list[str]:
        prompt = self._text(_TURNS[:1], prompt=True)
        if prompt == self._text(_TURNS[:1]):
            return [
                "The chat template writes nothing for add_generation_prompt, so the model begins its answers itself."
            ]
        if not once.startswith(prompt):
            return ["The chat template begins an answer in another way than the prompt that asks for it ends."]
        return []

    def _of_prefix(self, once: str, twice: str) -> list[str]:
        if twice.startswith(once):
            return []
        return ["The chat template writes earlier turns in another way when more turns follow."]

    def _of_system(self) -> list[str]:
        turns = (_SYSTEM, *_TURNS[:2])
        try:
            _refuse_left_out(turns, self._text(turns))
        except _TemplateFault:
            return ["The chat template has no place for a system turn, so rows with one would be refused."]
        return []

    def _text(self, turns: Turns, *, prompt: bool = False) -> str:
        names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        try:
            pieces = self._template.generate(messages=list(turns), add_generation_prompt=prompt, **names)
            text = ""
            for piece in pieces:
                text += piece
                if len(text) > MAX_TEXT:
                    raise _TemplateFault(f"it writes more than {MAX_TEXT:,} characters for {len(turns)} short turns")
        except (_TemplateFault, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  a template is a program and may raise anything
            raise _TemplateFault(f"it refuses a conversation of user and assistant ({_short(error)})") from None
        return text


def _refuse_left_out(turns: Turns, text: str) -> None:
    at = 0
    for number, turn in enumerate(turns, 1):
        at = text.find(turn["content"], at)
        if at < 0:
            raise _TemplateFault(f"it leaves out turn {number} ({turn['role']}) of a conversation")


def _refuse(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _today(_pattern: str) -> str:
    return "01 Jan 2026"


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _short(error: object) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:MAX_WORDS]
