"""A look at a data file as a session would train on it, token by token: `python -m worker.training.token_preview`.

One request as JSON on standard input, one answer as JSON on standard output. The masks are those of `Encoder`, which trains.
A program of its own, because a chat template is code and a tokenizer's file may come from anybody: it limits its own time
and memory, and the library runs the template in a sandbox. Nothing in it needs torch.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.shared.dataset_files import DatasetError, Row, examine
from worker.shared.messages import FileFormat, RowFormat
from worker.training.encoding import IGNORE, Encoder, Example, load_tokenizer
from worker.training.interface import PermanentError

MEMORY_BYTES = 1 << 30
TOKENS_OF_A_PIECE = 8
"""Tokens that are shown as one, where each of them holds only a part of a character."""
MAX_PIECE = 100
"""Characters; a token of an honest vocabulary is shorter."""
TOKENS_SHOWN = 400
TOKENS_AROUND_THE_CUT = 60


@dataclass(frozen=True, kw_only=True)
class Request:
    """`tokenizer` is a folder; after `seconds` of measuring what was measured so far will do; `cpu_s` ends the process."""

    tokenizer: str
    file: str
    row_format: str
    file_format: str | None
    sequence_len: int
    train_on_inputs: bool
    rows_shown: int
    rows_measured: int
    seconds: float
    cpu_s: int


def look(asked: Request) -> dict[str, Any]:
    """`shown`: rows in pieces; `lengths` in tokens; `untrained`: rows of which nothing is left to train on; `fault`."""
    tokenizer = load_tokenizer(Path(asked.tokenizer), trust_remote_code=False)
    encoder = Encoder(tokenizer, asked.sequence_len, asked.train_on_inputs)
    shown: list[dict[str, Any]] = []
    lengths: list[int] = []
    untrained, fault, until = 0, "", time.monotonic() + asked.seconds
    for number, row in enumerate(_rows(asked), 1):
        if number > asked.rows_measured or (number > asked.rows_shown and time.monotonic() > until):
            break
        try:
            whole = encoder.whole(row)
        except PermanentError as error:
            fault = f"row {number}: {error}"
            break
        lengths.append(len(whole.input_ids))
        untrained += all(label == IGNORE for label in whole.labels[: asked.sequence_len])
        if len(shown) < asked.rows_shown:
            shown.append(_shown(tokenizer, whole, asked.sequence_len))
    return {"shown": shown, "lengths": lengths, "untrained": untrained, "fault": fault}


def _rows(asked: Request) -> Iterator[Row]:
    container = FileFormat(asked.file_format) if asked.file_format else None
    _, found = examine(Path(asked.file), RowFormat(asked.row_format), container)
    return (row for row in found if not isinstance(row, DatasetError))


def _shown(tokenizer: Any, whole: Example, length: int) -> dict[str, Any]:
    trained = [label != IGNORE for label in whole.labels]
    parts: list[dict[str, Any]] = []
    at = 0

    def pass_over(tokens: int) -> None:
        if tokens:
            parts.append({"text": None, "tokens": tokens, "trained": False, "cut": False})

    for begin, end in _windows(len(trained), length):
        pass_over(begin - at)
        parts += pieces(tokenizer, whole.input_ids, trained, length, begin, end)
        at = end
    pass_over(len(trained) - at)
    return {
        "pieces": parts,
        "tokens": len(trained),
        "trained": sum(trained[:length]),
        "cut": max(0, len(trained) - length),
        "cut_trained": sum(trained[length:]),
    }


def _windows(total: int, length: int) -> list[tuple[int, int]]:
    """Of a long row the beginning, and where it is cut."""
    if total <= TOKENS_SHOWN:
        return [(0, total)]
    begin, end = length - TOKENS_AROUND_THE_CUT, min(total, length + TOKENS_AROUND_THE_CUT)
    if total <= length:
        return [(0, TOKENS_SHOWN)]
    return [(0, max(end, TOKENS_SHOWN))] if begin <= TOKENS_SHOWN else [(0, TOKENS_SHOWN), (begin, end)]


def pieces(
    tokenizer: Any, ids: Sequence[int], trained: Sequence[bool], length: int, begin: int, end: int
) -> Iterator[dict[str, Any]]:
    """Tokens `begin` to `end` as text; those that are one character together are one piece, where all fare alike."""

    def text(first: int, last: int) -> str:
        return tokenizer.decode(list(ids[first:last]), clean_up_tokenization_spaces=False)

    end = min(end, len(ids))
    context = start = begin
    for at in range(begin, end):
        # What a token looks like depends on the one before it: some decoders drop a space at the beginning.
        before, now = text(context, start), text(context, at + 1)
        alike = at + 1 < end and trained[at + 1] == trained[at] and (at + 1 < length) == (at < length)
        if now.endswith("\ufffd") and alike and at + 1 - start < TOKENS_OF_A_PIECE:
            continue
        shown = now.removeprefix(before)[:MAX_PIECE]
        yield {
            "text": shown,
            "tokens": at + 1 - start,
            "trained": trained[start] and start < length,
            "cut": start >= length,
        }
        context, start = start, at + 1


def _limit(cpu_s: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


def main() -> None:
    """Answer one request; what cannot be looked at is a `fault`, or `away` where the library or the tokenizer is missing."""
    asked = Request(**json.load(sys.stdin))
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  the library asks for it and is quicker without
    _limit(asked.cpu_s)
    try:
        answer = look(asked)
    except ImportError as error:
        answer = {
            "away": f"{error.name or 'a library'} is not installed on the server (pip install 'trainhop[preview]')"
        }
    except PermanentError as error:
        answer = {"away": str(error)}
    except (MemoryError, RecursionError) as error:
        answer = {"away": f"it took more than its share ({type(error).__name__})"}
    sys.stdout.write("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
