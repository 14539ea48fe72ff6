"""Reads a kernel's log, live or stored, as pieces of text and then as lines."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import requests
import urllib3

from orchestrator.ports.providers import ProviderUnavailable

END_MARK = "END_OF_LOG"
MAX_EVENT = 64 << 20
"""Maximum bytes of one event. A longer one is not from a worker and is skipped."""
MAX_LINE = 4 << 20
CHUNK = 1 << 16


class Piece(NamedTuple):
    """Some output of a kernel: the stream, and the text as it was written (not whole lines)."""

    stream: str
    text: str


def pieces(answer: requests.Response) -> Iterator[Piece]:
    """The whole log. Raises `ProviderUnavailable` if the stream breaks off before its end."""
    kind = answer.headers.get("Content-Type", "").lower()
    if kind.startswith("text/event-stream"):
        yield from _live(answer)
    elif "html" in kind:
        raise ProviderUnavailable("Kaggle returned a web page instead of a session's log")
    else:
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        yield from stored(utf8.decode(chunk) for chunk in _arriving(answer))


def _live(answer: requests.Response) -> Iterator[Piece]:
    for line in _split(_arriving(answer)):
        if not line.startswith(b"data:"):
            continue
        said = line[5:].strip().decode(errors="replace")
        if said == END_MARK:
            return
        try:
            yield _piece(json.loads(said))
        except ValueError:
            yield Piece("stdout", said + "\n")
    raise ProviderUnavailable("the connection to Kaggle's live log was lost")


def _arriving(answer: requests.Response) -> Iterator[bytes]:
    """Bytes as they arrive.

    `iter_content` would wait until a chunk is full, which may take a whole epoch of reports.
    """
    try:
        while data := answer.raw.read1(CHUNK, decode_content=True):
            yield data
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(type(error).__name__) from None


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of bytes without their ends. A line that is too long is skipped and not kept in memory."""
    waiting, dropping = bytearray(), False
    for chunk in chunks:
        waiting += chunk
        if b"\n" in chunk:
            *whole, rest = waiting.split(b"\n")
            yield from (bytes(line) for line in whole[dropping:])
            waiting, dropping = rest, False
        if len(waiting) > MAX_EVENT:
            waiting, dropping = bytearray(), True


def stored(chunks: Iterable[str]) -> Iterator[Piece]:
    """Pieces of a stored log, which is a JSON array of events. Each is returned as soon as it arrives."""
    decoder, text, opened, wanted = json.JSONDecoder(), "", False, 1
    for chunk in itertools.chain(chunks, (None,)):
        text += chunk or ""
        if len(text) < wanted and chunk is not None:
            continue
        if not opened and text.strip():
            text, opened = text.lstrip(), True
            if text[0] != "[":
                raise ProviderUnavailable("Kaggle's stored log is not a list of events")
            text = text[1:]
        place = 0
        while (place := _next(text, place)) < len(text):
            if text[place] == "]":
                return
            try:
                event, place = decoder.raw_decode(text, place)
            except ValueError:
                break
            yield _piece(event)
        text = text[place:]
        wanted = 2 * len(text)  # a long event is not parsed again after every few bytes
        if len(text) > MAX_EVENT:
            raise ProviderUnavailable("Kaggle's stored log cannot be read")
    if opened:
        raise ProviderUnavailable("Kaggle's stored log is truncated")


def _next(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place


def _piece(event: object) -> Piece:
    if isinstance(event, dict) and isinstance(event.get("data"), str):
        stream = event.get("stream_name")
        return Piece(stream if isinstance(stream, str) else "stdout", event["data"])
    return Piece("stdout", "")


def lines(found: Iterable[Piece]) -> Iterator[str]:
    """Whole lines of standard output. A line can come in several pieces with errors between them."""
    waiting = ""
    for piece in found:
        if piece.stream != "stdout":
            continue
        *whole, waiting = (waiting + piece.text).split("\n")
        yield from whole
        if len(waiting) > MAX_LINE:
            waiting = ""
    if waiting:
        yield waiting
