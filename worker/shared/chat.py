"""A question to base and adapter with the turns before it, and the events of the answers. Needs no torch.

A session on a machine asks its server for questions. Each call brings the events since the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from worker.shared.chat_limits import ANSWER_TOKENS, MAX_ANSWER_TOKENS, MAX_EVENTS, MAX_TEXT, MAX_TURNS
from worker.shared.evaluation_units import Arm
from worker.shared.wire import Count, Storable, Wire, excerpt

Text = Annotated[str, Field(max_length=MAX_TEXT)]


class ChatTurn(BaseModel):
    """An earlier question with its answers. An empty answer leaves the turn out for that model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
    base: Text = ""
    adapter: Text = ""


class Question(BaseModel):
    """A question and everything before it. `only` asks one of the models. `temperature` 0 is greedy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=r"\S")]
    system: Text = ""
    turns: Annotated[tuple[ChatTurn, ...], Field(max_length=MAX_TURNS)] = ()
    only: Literal["base", "adapter"] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS)] = ANSWER_TOKENS
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The models that are asked."""
        return (Arm.BASE, Arm.ADAPTER) if self.only is None else (Arm(self.only),)

    def messages(self, arm: Arm) -> list[dict[str, str]]:
        """The conversation as this model knows it: every question with its own answer."""
        found = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns:
            answer = turn.base if arm is Arm.BASE else turn.adapter
            if answer.strip():
                found += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": answer}]
        return [*found, {"role": "user", "content": self.question}]


class Kind(StrEnum):
    """Kinds of events. READY, TEXT and END may repeat, FAILED and DONE are the last one of a question."""

    LOADING = "loading"
    """`text` says what is being done."""
    READY = "ready"
    """The model is loaded. `text` describes it."""
    TEXT = "text"
    """A piece of the answer of `arm`."""
    END = "end"
    """The answer of `arm` is complete. `text` is the reason: stop, length, time or cancelled. It has `tokens`."""
    FAILED = "failed"
    """There are no more answers. `text` is one sentence."""
    DONE = "done"
    """All answers are complete."""


@dataclass(frozen=True, kw_only=True)
class ChatEvent:
    """One event of an answer. `tokens` is the length of a complete answer, None where it is unknown."""

    kind: Kind
    arm: Arm | None = None
    text: str = ""
    tokens: int | None = None

    @property
    def is_last(self) -> bool:
        """Whether no further event follows."""
        return self.kind in (Kind.FAILED, Kind.DONE)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without what is not set."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> ChatEvent:
        """From plain data. Raises `ValueError`, `KeyError` or `TypeError` if it is none."""
        arm = data.get("arm")
        return cls(
            kind=Kind(data["kind"]),
            arm=Arm(arm) if arm is not None else None,
            text=str(data.get("text", "")),
            tokens=data.get("tokens"),
        )


def failed(text: str) -> ChatEvent:
    """The end of an answer, with one sentence that begins with a capital letter."""
    text = text.strip().rstrip(".")
    return ChatEvent(kind=Kind.FAILED, text=f"{text[:1].upper()}{text[1:]}.")


# --- between a session on a machine and its server ---


class AnswerEvent(Wire):
    """A `ChatEvent` on the wire."""

    kind: Kind
    arm: Arm | None = None
    text: Annotated[Storable, AfterValidator(lambda text: excerpt(text, MAX_TEXT))] = ""
    tokens: Count | None = None


class ChatReply(Wire):
    """What a session says: its next `events` for question number `question`, of which `first` were sent before.

    Without a question it only asks for one.
    """

    fence: Count
    question: Count | None = None
    first: Count = 0
    events: Annotated[tuple[AnswerEvent, ...], Field(max_length=MAX_EVENTS)] = ()


class ChatTask(Wire):
    """What the server answers: a question with its number, or that the answer is no longer wanted."""

    number: Count | None = None
    question: Question | None = None
    is_cancelled: bool = False
