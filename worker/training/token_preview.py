"""Shows a data file as a session would train on it, token by token: `python -m worker.training.token_preview`.

Reads one request as JSON from standard input and writes one reply as JSON to standard output. The masks are those of
`Encoder`. It is a separate program, because a chat template is code and a tokenizer's file may be untrusted. It limits
its own time and memory, and the library runs the template in a sandbox. It does not need torch.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from worker.shared.dataset_files import DatasetError, Row, numbered_rows
from worker.shared.dataset_spec import FileFormat, RowFormat, TaughtTurns
from worker.shared.imports import quick_imports
from worker.shared.job_spec import ENCODING
from worker.shared.long_texts import piece_count
from worker.shared.taught_turns import as_taught
from worker.training import new_tokens
from worker.training.encoding import IGNORE, Encoder, Example, load_tokenizer
from worker.training.encoding_findings import ROWS_COMPARED, findings
from worker.training.end_counts import EndCounts
from worker.training.interface import PermanentError
from worker.training.model_limits import ModelLimits
from worker.training.row_faults import NOTHING_TRAINED, checked

MEMORY_BYTES = 1 << 30
TOKENS_OF_A_PIECE = 8
"""Maximum tokens that are shown as one, if each of them is only a part of a character."""
MAX_PIECE = 100
"""Maximum characters of a piece. A token of a normal vocabulary is shorter."""
TOKENS_SHOWN = 400
TOKENS_AROUND_THE_CUT = 60
LINES_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Request:
    """`tokenizer` is a folder. Measuring stops after `seconds`. `cpu_s` is the limit of CPU seconds.

    `encoding` is that of the job. `rendered_at` is the time that a chat template sees, in epoch seconds. `taught` are
    the `TaughtTurns` of the dataset. `chat_template`, `tokens` and `added_tokens_overrides` are the job's own.
    `split_texts`: texts are split, not cut off.
    """

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
    encoding: int | None = ENCODING
    rendered_at: float | None = None
    taught: dict[str, Any] = field(default_factory=dict[str, Any])
    chat_template: str | None = None
    split_texts: bool = False
    tokens: list[str] = field(default_factory=list[str])
    added_tokens_overrides: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def is_split(self) -> bool:
        """Whether the rows are texts that are split."""
        return self.split_texts and self.row_format == RowFormat.TEXT


def preview_tokens(request: Request) -> dict[str, Any]:
    """The reply to a request.

    `shown`: rows in pieces. `lengths`: tokens per row, or of its longer answer. `untrained`: rows without a token
    to train on. `fault`: the first error. `untaught`: the error if no row of the whole file has a token to train
    on. `findings`: what the model will do differently from what the rows teach. `counts`: the `TokenFacts` of the
    data checks.
    """
    folder = Path(request.tokenizer)
    tokenizer = load_tokenizer(folder, trust_remote_code=False, template=request.chat_template)
    try:
        new = new_tokens.add_to(tokenizer, request.tokens, request.added_tokens_overrides)
    except PermanentError as error:
        return {"fault": str(error)}
    encoder = Encoder(
        tokenizer,
        request.sequence_len,
        request.train_on_inputs,
        encoding=request.encoding,
        rendered_at=request.rendered_at,
    )
    limits = ModelLimits(tokens=max(_tokens_of(folder), *(number + 1 for number in new), 0))
    shown: list[dict[str, Any]] = []
    lengths: list[int] = []
    compared: list[Row] = []
    counts = EndCounts(tokenizer, request.sequence_len)
    untrained, is_whole, fault, until = 0, False, "", time.monotonic() + request.seconds
    silent: list[int] = []
    try:
        for number, (line, row) in enumerate(_valid_rows(request), 1):
            if number == 1 and row.messages:
                encoder.refuse_chance()
            if number > request.rows_measured or (number > request.rows_shown and time.monotonic() > until):
                break
            example = checked(encoder, limits, row, number, is_split=request.is_split)
            compared += [row] if number <= ROWS_COMPARED else []
            lengths.append(max(len(side.input_ids) for side in example.sides))
            counts.add(line, row, example.labels)
            untrained += not all(map(_is_trained, encoder.cut(example).sides))
            silent += [line] if row.messages and not row.taught else []
            if number <= request.rows_shown:
                shown += _sides_shown(tokenizer, example, request)
        else:
            is_whole = True
    except PermanentError as error:
        fault = str(error)
    return {
        "shown": shown,
        "lengths": lengths,
        "untrained": untrained,
        "fault": fault,
        "untaught": NOTHING_TRAINED.format(request.sequence_len) if is_whole and untrained == len(lengths) > 0 else "",
        "findings": (*findings(encoder, tokenizer, compared), *_of_silent(silent)),
        "counts": asdict(counts.facts()),
    }


def _of_silent(lines: list[int]) -> Iterator[str]:
    """What is said of rows none of whose turns is trained on."""
    if lines:
        shown = ", ".join(map(str, lines[:LINES_NAMED])) + (", ..." if len(lines) > LINES_NAMED else "")
        yield (
            f"{len(lines)} rows say that none of their turns is trained on, so they are left out (line {shown})."
            if len(lines) > 1
            else f"The row in line {shown} says that none of its turns is trained on, so it is left out."
        )


def _tokens_of(folder: Path) -> int:
    """Rows of the model's embedding by its configuration, or more than any token if that is not known."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
        size = own.get("vocab_size", config.get("vocab_size"))
    except (OSError, ValueError, AttributeError, RecursionError):
        size = None
    return size if isinstance(size, int) and size > 0 else sys.maxsize


def _valid_rows(request: Request) -> Iterator[tuple[int, Row]]:
    container = FileFormat(request.file_format) if request.file_format else None
    asked = TaughtTurns(**request.taught)
    try:
        for line, row in numbered_rows(Path(request.file), RowFormat(request.row_format), container):
            yield line, as_taught(row, asked, request.encoding)
    except DatasetError as error:  # the rules may have changed since the file was uploaded
        raise PermanentError(str(error)) from error


def _is_trained(example: Example) -> bool:
    return any(label != IGNORE for label in example.labels)


def _sides_shown(tokenizer: Any, example: Example, request: Request) -> Iterator[dict[str, Any]]:
    """The row, or each answer of a row of preferences. Of a text that is split, all is read."""
    tokens, length = len(example.input_ids), request.sequence_len
    if request.is_split and tokens > length:
        yield _shown(tokenizer, example, tokens) | {"parts": piece_count(tokens, length)}
        return
    if example.desirable is not None:
        names = ("good answer" if example.desirable else "bad answer",)
    else:
        names = ("",) if example.rejected is None else ("chosen", "rejected")
    for name, side in zip(names, example.sides, strict=True):
        yield _shown(tokenizer, side, length) | ({"side": name} if name else {})


def _shown(tokenizer: Any, example: Example, length: int) -> dict[str, Any]:
    trained = [label != IGNORE for label in example.labels]
    parts: list[dict[str, Any]] = []
    at = 0

    def pass_over(tokens: int) -> None:
        if tokens:
            parts.append({"text": None, "tokens": tokens, "trained": False, "cut": False})

    for begin, end in _windows(len(trained), length):
        pass_over(begin - at)
        parts += pieces(tokenizer, example.input_ids, trained, length, begin, end)
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
    """For a long row its beginning and the part around the truncation."""
    if total <= TOKENS_SHOWN:
        return [(0, total)]
    begin, end = length - TOKENS_AROUND_THE_CUT, min(total, length + TOKENS_AROUND_THE_CUT)
    if total <= length:
        return [(0, TOKENS_SHOWN)]
    return [(0, max(end, TOKENS_SHOWN))] if begin <= TOKENS_SHOWN else [(0, TOKENS_SHOWN), (begin, end)]


def pieces(
    tokenizer: Any, ids: Sequence[int], trained: Sequence[bool], length: int, begin: int, end: int
) -> Iterator[dict[str, Any]]:
    """Tokens `begin` to `end` as text. Tokens that form one character are one piece if they are treated alike."""

    def text(first: int, last: int) -> str:
        return tokenizer.decode(list(ids[first:last]), clean_up_tokenization_spaces=False)

    end = min(end, len(ids))
    context = start = begin
    for at in range(begin, end):
        # A token's text depends on the token before: some decoders drop a space at the beginning.
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


def limit_process(cpu_s: int) -> None:
    """Limit the computing time and the memory of this process, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


def how_to_install(error: ImportError) -> str:
    """The command that installs the missing library. TRL is only needed for the models that it has templates for."""
    is_trl = (error.name or "").partition(".")[0] == "trl"
    return f"pip install 'trainhop[{'train' if is_trl else 'preview'}]'"


def answer(reply: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer one request within its `cpu_s`. A missing library and what cannot be read give `away`."""
    request = json.load(sys.stdin)
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  transformers starts faster without torch

    limit_process(request["cpu_s"])
    try:
        with quick_imports():
            import transformers  # noqa: F401
        found = reply(request)
    except ImportError as error:
        found = {"away": f"{error.name or 'a library'} is not installed where Trainhop runs ({how_to_install(error)})"}
    except (PermanentError, DatasetError) as error:
        found = {"away": str(error)}
    except (MemoryError, RecursionError) as error:
        found = {"away": f"it exceeded its limits ({type(error).__name__})"}
    sys.stdout.write("\n" + json.dumps(found))


if __name__ == "__main__":
    answer(lambda asked: preview_tokens(Request(**asked)))
