"""Calls OpenAI-compatible chat endpoints. What an endpoint writes is read within limits and repeated nowhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import httpx

from orchestrator.adapters import private_networks
from orchestrator.adapters.endpoint_calls import JSON, NOT_COMPATIBLE, EndpointCalls, content_type
from orchestrator.ports.judges import JudgeAddress, NoReply, Remedy, Reply

TIMEOUT_S = 60.0
"""For a whole request, however slowly its answer arrives."""
MAX_BYTES = 256 << 10
"""Of an answer, which is a few hundred bytes of JSON."""
MAX_TEXT = 2_000
"""Characters of the judge's text that are looked at."""
MAX_COUNTED = 10_000_000
"""Tokens of one request that are believed."""


class WebJudge:
    """Implements `ports.judges.JudgeClient`. `lookup` resolves a host's addresses."""

    def __init__(
        self,
        lookup: private_networks.Lookup = private_networks.lookup,
        inside: private_networks.IsInside = private_networks.is_inside,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._calls, self._timeout_s = EndpointCalls(lookup, inside), timeout_s

    def check(self, url: str, *, anywhere: bool) -> str:
        return self._calls.check(url, anywhere=anywhere)

    def ask(self, where: JudgeAddress, messages: Sequence[dict[str, str]], max_tokens: int) -> Reply:
        body = {"model": where.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        with self._calls.post(
            where.url,
            body,
            key=where.key,
            anywhere=where.anywhere,
            accept=JSON,
            read_s=self._timeout_s,
            whole_s=self._timeout_s,
        ) as answer:
            return _reply(_read(answer))


def _read(answer: httpx.Response) -> bytes:
    if content_type(answer) != JSON:
        raise NoReply(NOT_COMPATIBLE, Remedy.RETRY, may_cost=True)
    found = bytearray()
    for piece in answer.iter_raw():
        found += piece
        if len(found) > MAX_BYTES:
            words = f"An answer is larger than {MAX_BYTES >> 10} KiB."
            raise NoReply(words, Remedy.NOTHING, may_cost=True)
    return bytes(found)


def _reply(content: bytes) -> Reply:
    try:
        found = json.loads(content)
        text = found["choices"][0]["message"]["content"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise NoReply(NOT_COMPATIBLE, Remedy.RETRY, may_cost=True) from None
    if text is not None and not isinstance(text, str):
        raise NoReply(NOT_COMPATIBLE, Remedy.RETRY, may_cost=True)
    return Reply(text=(text or "")[:MAX_TEXT], tokens=_tokens(found))


def _tokens(found: dict[str, Any]) -> int | None:
    """The tokens that the endpoint counted, if they are numbers that can be true."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        return None
    counted = cast("dict[str, Any]", usage)
    parts = [counted.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(part) is int and 0 <= part <= MAX_COUNTED for part in parts):
        return None
    total = counted.get("total_tokens")
    known = [sum(cast("list[int]", parts))] + ([total] if type(total) is int and 0 <= total <= MAX_COUNTED else [])
    return max(known)
