"""Both answers to a question, token by token in turns, so that they grow side by side from one loaded model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from worker.chat.model import ChatError, ChatModel
from worker.shared.chat import ChatEvent, Kind, Question, failed
from worker.shared.chat_limits import MAX_ANSWER_S
from worker.shared.evaluation_units import Arm
from worker.training import generation

Emit = Callable[[ChatEvent], None]
_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are not yet a character."""


def answer(model: ChatModel, question: Question, emit: Emit, is_cancelled: Callable[[], bool]) -> None:
    """Answer a question, ending with DONE or FAILED. `is_cancelled` is asked before every token."""
    try:
        _answer(model, question, emit, is_cancelled)
    except ChatError as error:
        emit(failed(str(error)))
    except (torch.OutOfMemoryError, MemoryError):
        emit(failed("the computer ran out of memory; ask a shorter question, or begin a new conversation"))
    except Exception as error:  # noqa: BLE001  models and their libraries raise many types, and others may be asked
        emit(failed(f"the model failed ({' '.join(f'{type(error).__name__}: {error}'.split())[:300]})"))
    else:
        emit(ChatEvent(kind=Kind.DONE))


def _answer(model: ChatModel, question: Question, emit: Emit, is_cancelled: Callable[[], bool]) -> None:
    going = [_Answer(model, question, arm, emit) for arm in question.arms]
    until = time.monotonic() + MAX_ANSWER_S
    while going:
        for each in list(going):
            if is_cancelled():
                each.end("cancelled")
            elif time.monotonic() > until:
                each.end("time")
            else:
                each.go_on()
            if each.is_over:
                going.remove(each)


class _Answer:
    """The answer of one arm. Raises `ChatError` if the model cannot read its conversation."""

    def __init__(self, model: ChatModel, question: Question, arm: Arm, emit: Emit) -> None:
        self._model, self._arm, self._emit = model, arm, emit
        ids, room = model.prompt(question, arm)
        decoding = replace(model.decoding, max_new_tokens=room, temperature=question.temperature)
        seed = generation.seed_of(question.seed, len(question.turns), arm)
        self._tokens = generation.tokens(model.model, ids, decoding, seed)
        self._room, self._written, self._sent = room, list[int](), ""
        self.is_over = False

    def go_on(self) -> None:
        """Generate one more token."""
        self._model.answer_as(self._arm)
        token = next(self._tokens, None)
        if token is None:
            self.end("length" if len(self._written) == self._room else "stop")
            return
        self._written.append(token)
        self._send(self._model.text(self._written).rstrip(_UNFINISHED))

    def end(self, reason: str) -> None:
        """Send what is left of the text, and that the answer is complete."""
        self._send(self._model.text(self._written))
        self._emit(ChatEvent(kind=Kind.END, arm=self._arm, text=reason, tokens=len(self._written)))
        self.is_over = True

    def _send(self, text: str) -> None:
        if len(text) > len(self._sent) and text.startswith(self._sent):
            self._emit(ChatEvent(kind=Kind.TEXT, arm=self._arm, text=text[len(self._sent) :]))
            self._sent = text
