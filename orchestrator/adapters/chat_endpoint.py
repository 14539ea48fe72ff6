"""Streams answers of OpenAI-compatible chat endpoints: llama-server, Ollama, vLLM and others."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from orchestrator.adapters import private_networks
from orchestrator.adapters.endpoint_calls import JSON, NOT_COMPATIBLE, EndpointCalls, Line, content_type
from orchestrator.ports.chats import ChatAddress
from orchestrator.ports.judges import NoReply, Remedy
from worker.shared.chat import ChatEvent, Kind, Question, failed
from worker.shared.chat_limits import MAX_ANSWER_S
from worker.shared.evaluation_units import Arm

READ_S = 60.0
"""Without a byte. A server may load its model before the first one."""
MAX_LINE = 256 << 10
MAX_BYTES = 8 << 20
STREAM = "text/event-stream"
_LOOK_EVERY_S = 0.2
_ENDLESS = "The answer of the endpoint does not end. It was cut off."
_BROKEN = "The endpoint broke off in the middle of its answer."


class EndpointChat:
    """Asks base and adapter at the same time, each in a thread with a request of its own."""

    def __init__(
        self,
        lookup: private_networks.Lookup = private_networks.lookup,
        inside: private_networks.IsInside = private_networks.is_inside,
        *,
        read_s: float = READ_S,
        whole_s: float = MAX_ANSWER_S,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._calls = EndpointCalls(lookup, inside)
        self._read_s, self._whole_s, self._max_bytes = read_s, whole_s, max_bytes

    def check(self, url: str, *, anywhere: bool) -> str:
        """The address in its normal form. Raises `InvalidError` for one that cannot be used."""
        return self._calls.check(url, anywhere=anywhere)

    def ask(self, where: ChatAddress, question: Question, cancelled: threading.Event) -> Iterator[ChatEvent]:
        """The events of the answers, the last one DONE or FAILED. Ends soon after `cancelled` is set."""
        requests = [_Request(where, question, arm) for arm in question.arms]
        events: queue.SimpleQueue[ChatEvent] = queue.SimpleQueue()
        for each in requests:
            others = [other for other in requests if other is not each]
            threading.Thread(
                target=self._run, args=(each, others, events), name=f"chat-{each.arm}", daemon=True
            ).start()
        try:
            yield from _until_the_end(events, len(requests), cancelled)
        finally:
            for each in requests:
                each.line.cut()

    def _run(self, request: _Request, others: Sequence[_Request], events: queue.SimpleQueue[ChatEvent]) -> None:
        try:
            if not self._is_answered(request, events, may_wait=bool(others)):
                for other in others:
                    other.rests.wait()
                self._is_answered(request, events, may_wait=False)
        except NoReply as error:
            words = str(error)
            if len(request.question.arms) > 1:
                words = f"No answer of the {'base model' if request.arm is Arm.BASE else 'adapter'}: {words}"
            events.put(failed(words))
        except Exception as error:  # noqa: BLE001  a thread that ends silently would leave its caller waiting
            events.put(failed(f"the endpoint's answer could not be read ({type(error).__name__})"))
        finally:
            request.rests.set()

    def _is_answered(self, request: _Request, events: queue.SimpleQueue[ChatEvent], *, may_wait: bool) -> bool:
        """Pass the answer on. False if the endpoint broke off before the first word.

        llama-cpp-python's server has one model, and gives up a request for the next one.
        """
        has_text = False
        try:
            for event in self._stream(request):
                events.put(event)
                has_text = True
        except _BrokenOffError:
            if has_text or not may_wait:
                raise
            request.rests.set()
            return False
        return True

    def _stream(self, request: _Request) -> Iterator[ChatEvent]:
        where = request.where
        with self._calls.post(
            where.url,
            request.body(),
            key=where.key,
            anywhere=where.anywhere,
            accept=STREAM,
            read_s=self._read_s,
            whole_s=self._whole_s,
            line=request.line,
        ) as answer:
            _refuse_other(answer)
            reason = ""
            for data in _data(answer, self._max_bytes):
                text, ended_by = _piece(data)
                reason = ended_by or reason
                if text:
                    yield ChatEvent(kind=Kind.TEXT, arm=request.arm, text=text)
            if not reason:
                raise _BrokenOffError(_BROKEN, Remedy.RETRY, may_cost=True)
        yield ChatEvent(kind=Kind.END, arm=request.arm, text="length" if reason == "length" else "stop")


class _BrokenOffError(NoReply):
    """The stream ended before its answer did."""


class _Request:
    """One arm's request. `rests` says that the endpoint does not work on it, now or any more."""

    def __init__(self, where: ChatAddress, question: Question, arm: Arm) -> None:
        self.where, self.question, self.arm = where, question, arm
        self.line, self.rests = Line(), threading.Event()

    def body(self) -> dict[str, Any]:
        asked = self.question
        body: dict[str, Any] = {
            "messages": asked.messages(self.arm),
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "stream": True,
        }
        if model := self.where.models.get(self.arm):
            body["model"] = model
        if self.where.lora is not None:
            body["lora"] = [{"id": self.where.lora, "scale": 0.0 if self.arm is Arm.BASE else 1.0}]
        return body


def _until_the_end(
    events: queue.SimpleQueue[ChatEvent], answers: int, cancelled: threading.Event
) -> Iterator[ChatEvent]:
    while answers and not cancelled.is_set():
        try:
            event = events.get(timeout=_LOOK_EVERY_S)
        except queue.Empty:
            continue
        yield event
        if event.is_last:
            return
        answers -= event.kind is Kind.END
    if not answers:
        yield ChatEvent(kind=Kind.DONE)


def _refuse_other(answer: httpx.Response) -> None:
    kind = content_type(answer)
    if kind == STREAM:
        return
    words = "This endpoint does not stream its answers, which a chat needs." if kind == JSON else NOT_COMPATIBLE
    raise NoReply(words, Remedy.PERSON, may_cost=True)


def _data(answer: httpx.Response, most: int) -> Iterator[str]:
    """The data of each event until the one that ends the stream."""
    buffer, size = b"", 0
    for piece in answer.iter_raw():
        size += len(piece)
        *lines, buffer = (buffer + piece).split(b"\n")
        if size > most or len(buffer) > MAX_LINE:
            raise NoReply(_ENDLESS, Remedy.NOTHING, may_cost=True)
        for line in lines:
            if line.startswith(b"data:"):
                data = line.removeprefix(b"data:").strip().decode(errors="replace")
                if data == "[DONE]":
                    return
                yield data


def _piece(data: str) -> tuple[str, str]:
    """The text in an event, and the reason of the answer's end if it is the last one."""
    try:
        found = json.loads(data)
        if found.get("error"):
            raise NoReply("The endpoint reports an error of its own in its answer.", Remedy.RETRY, may_cost=True)
        if not found["choices"]:  # some servers end with the numbers of tokens
            return "", ""
        choice = found["choices"][0]
        text, reason = choice.get("delta", {}).get("content"), choice.get("finish_reason")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise NoReply(NOT_COMPATIBLE, Remedy.RETRY, may_cost=True) from None
    if not isinstance(text, str | None) or not isinstance(reason, str | None):
        raise NoReply(NOT_COMPATIBLE, Remedy.RETRY, may_cost=True)
    return text or "", reason or ""
