"""A `Modelfile` for Ollama. Its TEMPLATE is derived from the chat template, and compared with it.

The two languages differ, so the template is not translated. It is rendered with marked texts, cut at the marks, and the
pieces are put together again for several conversations. Where that does not give the same text, there is no TEMPLATE,
and Ollama uses the chat template in the GGUF file if it knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_SYSTEM, _USER, _ANSWER, _NEXT = "<<S-0>>", "<<U-1>>", "<<A-2>>", "<<U-3>>"
Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The text before and after each message. `prompt` begins the answer, `first` stands where no system message is.

    A system message has its own turn (`system`), or stands in the first user's turn before the text `in_user`, or
    cannot be given.
    """

    user: tuple[str, str]
    answer: tuple[str, str]
    prompt: str
    first: str
    system: tuple[str, str] | None = None
    in_user: str | None = None

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation with the beginning of an answer."""
        rest, system = list(messages), None
        if rest[0]["role"] == "system":
            system = rest.pop(0)["content"]
        found = self.first if system is None or self.system is None else self.system[0] + system + self.system[1]
        for number, message in enumerate(rest):
            before, after = self.user if message["role"] == "user" else self.answer
            inside = system + self.in_user if number == 0 and system is not None and self.in_user is not None else ""
            found += before + inside + message["content"] + after
        return found + self.prompt


def turns_of(template: str, special: Mapping[str, str]) -> Turns | None:
    """The text around each message, or None if the template is not of this simple kind.

    `special` has the texts of the tokens that a template may name, such as `bos_token`. llama.cpp and Ollama add a bos
    token themselves, so it is left out at the beginning.
    """
    try:
        render = _renderer(template, special)
        found = _derived(render)
        return found if _is_faithful(found, render) else None
    except Exception:  # noqa: BLE001  a template is a program of its author's and raises what it likes
        return None


def modelfile(source: str, turns: Turns | None, stops: Sequence[str], *, adapter: str | None = None) -> str:
    """The file's text. `source` is the name after FROM."""
    lines = []
    if adapter is not None:
        lines.append("# FROM needs the base model as a GGUF file, or its name in Ollama.")
    lines.append(f"FROM {source}")
    if adapter is not None:
        lines.append(f"ADAPTER {adapter}")
    if turns is not None:
        lines.append(f'TEMPLATE """{_go(turns)}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop]
    return "\n".join(lines) + "\n"


def stops_of(turns: Turns | None, special_tokens: Sequence[str], eos: str | None) -> list[str]:
    """Texts at which an answer ends: the end of sequence, and special tokens after an answer or before a question."""
    near = "" if turns is None else turns.answer[1] + turns.user[0]
    found = ([eos] if eos else []) + [token for token in special_tokens if token and token in near]
    return list(dict.fromkeys(found))


def _derived(render: Render) -> Turns:
    opening, after_user = render([_message("user", _USER)]).split(_USER)
    chat = render([_message("user", _USER), _message("assistant", _ANSWER), _message("user", _NEXT)])
    to_answer, rest = chat.partition(_USER)[2].split(_ANSWER)
    to_user = rest.partition(_NEXT)[0]
    # Before the first question stands what may stand in its place, and then what stands before each question.
    user = _common_end(to_user, opening)
    # After a question stands its end, and then the beginning of an answer, which differs from the last one in some.
    shared = 0 if to_answer == after_user else _common_start(to_answer, after_user)
    turns = Turns(
        user=(user, to_answer[:shared]),
        answer=(to_answer[shared:], to_user.removesuffix(user)),
        prompt=after_user[shared:],
        first=opening.removesuffix(user),
    )
    return _with_system(turns, render)


def _with_system(turns: Turns, render: Render) -> Turns:
    try:
        before, rest = render([_message("system", _SYSTEM), _message("user", _USER)]).split(_SYSTEM)
    except Exception:  # noqa: BLE001  many templates raise for a system message
        return turns
    between = rest.partition(_USER)[0]
    if between.endswith(turns.user[0]) and turns.user[0]:
        return replace(turns, system=(before, between.removesuffix(turns.user[0])))
    return replace(turns, in_user=between) if before == turns.first + turns.user[0] else turns


def _common_start(left: str, right: str) -> int:
    size = 0
    while left[size : size + 1] and left[size : size + 1] == right[size : size + 1]:
        size += 1
    return size


def _common_end(left: str, right: str) -> str:
    size = _common_start(left[::-1], right[::-1])
    return left[len(left) - size :]


def _is_faithful(turns: Turns, render: Render) -> bool:
    short = [_message("user", "How are you?")]
    chat = [*short, _message("assistant", "Fine."), _message("user", "And\nnow?")]
    tests = [short, chat, [*chat, _message("assistant", "Still fine."), _message("user", "Good.")]]
    if turns.system is not None or turns.in_user is not None:
        tests += [[_message("system", "Be brief."), *messages] for messages in list(tests)]
    return all(turns.render(messages) == render(messages) for messages in tests)


def _renderer(template: str, special: Mapping[str, str]) -> Render:
    from transformers.utils.chat_template_utils import render_jinja_template

    bos = special.get("bos_token", "")
    names: dict[str, Any] = dict(special)

    def render(messages: Sequence[Message]) -> str:
        texts, _ = render_jinja_template(
            [[dict(message) for message in messages]], chat_template=template, add_generation_prompt=True, **names
        )
        return texts[0].removeprefix(bos) if bos else texts[0]

    return render


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _go(turns: Turns) -> str:
    """The template in Go. Texts are quoted, because braces and trimming have a meaning outside quotes."""
    inside = f"{{{{ if and $first $.System }}}}{{{{ $.System }}}}{_text(turns.in_user or '')}{{{{ end }}}}"
    parts = [
        _turn("system", turns.system) if turns.system is not None else "",
        _turn("user", turns.user, inside if turns.in_user is not None else "", "{{ $first = false }}"),
        _turn("assistant", turns.answer),
    ]
    first = _text(turns.first)
    if first and turns.system is not None:
        first = f"{{{{ if not .System }}}}{first}{{{{ end }}}}"
    return f"{{{{ $first := true }}}}{first}{{{{ range .Messages }}}}{''.join(parts)}{{{{ end }}}}{_text(turns.prompt)}"


def _turn(role: str, around: tuple[str, str], inside: str = "", then: str = "") -> str:
    before, after = map(_text, around)
    return f'{{{{ if eq .Role "{role}" }}}}{before}{inside}{{{{ .Content }}}}{after}{then}{{{{ end }}}}'


def _text(text: str) -> str:
    if not text:
        return ""
    escaped = "".join(_ESCAPES.get(char, char) for char in text)
    return f'{{{{ "{escaped}" }}}}'


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
