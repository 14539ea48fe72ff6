"""A kernel's log as it comes over the wire, live or stored, turned into pieces of text and then into lines."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import requests

from orchestrator.ports import ProviderUnavailable

END_MARK = "END_OF_LOG"
LONGEST_EVENT = 8 << 20
"""Bytes of one event; what is longer is no log of a worker and is passed over."""
LONGEST_LINE = 4 << 20
CHUNK = 1 << 13


class Piece(NamedTuple):
    """Some output of a kernel: which stream, and the text as it was written (not whole lines)."""

    stream: str
    text: str


def pieces(answer: requests.Response) -> Iterator[Piece]:
    """Everything from the beginning; raises `ProviderUnavailable` if the stream breaks off before its end."""
    kind = answer.headers.get("Content-Type", "").lower()
    if kind.startswith("text/event-stream"):
        yield from _live(answer)
    elif "html" in kind:
        raise ProviderUnavailable("Kaggle sent a web page in place of a session's log")
    else:
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        yield from stored(utf8.decode(chunk) for chunk in answer.iter_content(CHUNK << 3))


def _live(answer: requests.Response) -> Iterator[Piece]:
    for line in _split(answer.iter_content(CHUNK)):
        if not line.startswith(b"data:"):
            continue
        said = line[5:].strip().decode(errors="replace")
        if said == END_MARK:
            return
        try:
            yield _piece(json.loads(said))
        except ValueError:
            yield Piece("stdout", said + "\n")
    raise ProviderUnavailable("Kaggle's live log broke off")


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of bytes, without their ends; one that is too long is dropped rather than kept in memory."""
    waiting, dropping = b"", False
    for chunk in chunks:
        *whole, waiting = (waiting + chunk).split(b"\n")
        for line in whole:
            if not dropping:
                yield line
            dropping = False
        if len(waiting) > LONGEST_EVENT:
            waiting, dropping = b"", True


def stored(chunks: Iterable[str]) -> Iterator[Piece]:
    """Pieces of a stored log, a JSON array of events, one by one as the text arrives."""
    decoder, text = json.JSONDecoder(), ""
    opened = False
    for chunk in chunks:
        text += chunk
        while True:
            text = text.lstrip(" \t\r\n," if opened else " \t\r\n")
            if not opened:
                if not text:
                    break
                if text[0] != "[":
                    raise ProviderUnavailable("Kaggle's stored log is not a list of events")
                opened, text = True, text[1:]
                continue
            if text.startswith("]"):
                return
            try:
                event, end = decoder.raw_decode(text)
            except ValueError:
                if len(text) > LONGEST_EVENT:
                    raise ProviderUnavailable("Kaggle's stored log cannot be read") from None
                break
            text = text[end:]
            yield _piece(event)
    if opened:
        raise ProviderUnavailable("Kaggle's stored log is cut off")


def _piece(event: object) -> Piece:
    if isinstance(event, dict) and isinstance(event.get("data"), str):
        stream = event.get("stream_name")
        return Piece(stream if isinstance(stream, str) else "stdout", event["data"])
    return Piece("stdout", "")


def lines(found: Iterable[Piece]) -> Iterator[str]:
    """Whole lines of standard output; a line in several pieces, with errors between them, is put together again."""
    waiting = ""
    for piece in found:
        if piece.stream != "stdout":
            continue
        *whole, waiting = (waiting + piece.text).split("\n")
        yield from whole
        if len(waiting) > LONGEST_LINE:
            waiting = ""
    if waiting:
        yield waiting
