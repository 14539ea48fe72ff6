"""Groups rows that are copies of each other, so that a validation split does not separate them.

The groups are part of a job (`val_split: 2`), so every machine has to find the same ones with every Python and NumPy:
only bytes, CRC-32 and integer arithmetic are used, and what this module does never changes. Rows are in one group if

- their turns before the last answer, or their last user turn of at least five words, are equal, or
- they share half of their runs of three words, or four fifths of those of the shorter row,

compared without ASCII case, white space and punctuation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol
from zlib import crc32

import numpy as np

from worker.shared.job_spec import JobSpec
from worker.shared.row_split import split, split_groups
from worker.shared.rows import Row

_UNSPACED = b"\xe0[\xb8-\xbb][\x80-\xbf]|[\xe3-\xe9][\x80-\xbf]{2}"
"""Thai, Lao, Japanese and Chinese in UTF-8: each character is a word."""
_WORD = re.compile(rb"(?:" + _UNSPACED + rb")|(?:(?!" + _UNSPACED + rb")[a-z0-9\x80-\xff])+")
_PLAIN_WORD = re.compile(rb"[a-z0-9]+")
"""Finds the same words in ASCII, in less time."""
LEAST_WORDS, LEAST_RUNS = 5, 8
MAX_WORDS = 20_000
SAMPLED, SMALLEST = 8, 4
"""The marks of a row are its runs that are a multiple of `SAMPLED`, and its smallest ones."""
LEAST_SHARED, SHARED_PART = 2, 5
"""Rows are compared if they share two marks, and a fifth of those of the row with fewer."""
REACH = 8
MAX_MARKS = 2_000_000
"""With more, rows are compared by their smallest runs alone; with more of these, only by equal prompts and texts."""
_Turn = tuple[str, list[bytes]]
_A, _B, _C = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


class _Rows(Protocol):
    """Rows that are read once and need not be in memory."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Row]: ...


def split_rows(rows: _Rows, spec: JobSpec) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows to train on and to evaluate, each ascending, as the version of the job chooses them."""
    if spec.val_split is None or not spec.eval_rows:
        return split(len(rows), spec.eval_rows, spec.seed)
    return split_groups(groups(rows), spec.eval_rows, spec.seed)


def groups(rows: _Rows) -> np.ndarray:
    """For each row the first row of its group: int64 of shape (rows,)."""
    above = np.arange(len(rows))
    runs: list[np.ndarray] = []
    seen: dict[bytes, int] = {}
    for place, row in enumerate(rows):
        turns = [(role, _words(text)) for role, text in _turns(row)]
        own = _runs(turns)
        alike = seen.setdefault(_digest(b"runs", [own.tobytes()]), place) if len(own) >= LEAST_RUNS else place
        runs.append(own if alike == place else own[:0])
        for first in (alike, *(seen.setdefault(key, place) for key in _keys(turns))):
            _join(above, first, place)
    for first, second in _proposed(runs):
        if _root(above, first) != _root(above, second) and _are_near(runs[first], runs[second]):
            _join(above, first, second)
    return np.array([_root(above, place) for place in range(len(rows))], np.int64)


def _words(text: str) -> list[bytes]:
    return (_PLAIN_WORD if text.isascii() else _WORD).findall(text.encode().lower())


def _turns(row: Row) -> list[tuple[str, str]]:
    if row.messages:
        return [(turn.role, turn.said) for turn in row.messages]
    return ([("user", row.prompt)] if row.prompt else []) + [("assistant", row.text)]


def _runs(turns: Sequence[_Turn]) -> np.ndarray:
    """The runs of three words of all turns but the system's: ascending uint32 of shape (runs,)."""
    spoken = [word for role, words in turns if role not in ("system", "developer") for word in words]
    numbers = np.array([crc32(word) for word in spoken[:MAX_WORDS]], np.uint64)
    if len(numbers) < 3:
        return np.empty(0, np.uint32)
    mixed = numbers[:-2] * _A + numbers[1:-1] * _B + numbers[2:] * _C
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def _keys(turns: Sequence[_Turn]) -> Iterator[bytes]:
    """Rows with one of these in common are in one group: the prompt, the last question, or the text."""
    last = max((at for at, (role, _) in enumerate(turns) if role == "assistant"), default=0)
    before = [(role, words) for role, words in turns[:last] if role != "system"]
    if any(role == "user" for role, _ in before):
        yield _digest(b"prompt", (b" ".join((role.encode(), *words)) for role, words in before))
    question = next((words for role, words in reversed(turns) if role == "user"), [])
    if len(question) >= LEAST_WORDS:
        yield _digest(b"question", question)
    if not before:
        yield _digest(b"text", (b" ".join(words) for _, words in turns))


def _digest(kind: bytes, parts: Iterable[bytes]) -> bytes:
    return hashlib.sha256(kind + b"\0" + b"\0".join(parts)).digest()


def _proposed(runs: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of rows that may be near-copies, in order."""
    chosen = [(place, each) for place, each in enumerate(runs) if len(each) >= LEAST_RUNS]
    marks = [np.union1d(each[each % SAMPLED == 0], each[:SMALLEST]) for _, each in chosen]
    if sum(map(len, marks)) > MAX_MARKS:
        marks = [each[:SMALLEST] for _, each in chosen]
    if not marks or sum(map(len, marks)) > MAX_MARKS:
        return []
    numbers = np.concatenate(marks)
    rows = np.repeat(np.array([place for place, _ in chosen], np.int64), [len(each) for each in marks])
    order = np.argsort(numbers, kind="stable")
    numbers, rows = numbers[order], rows[order]
    pairs = [np.empty(0, np.int64)]
    for distance in range(1, min(REACH, len(numbers) - 1) + 1):
        same = np.flatnonzero(numbers[distance:] == numbers[:-distance])
        pairs.append((rows[same] << 32) | rows[same + distance])
    codes, shared = np.unique(np.concatenate(pairs), return_counts=True)
    first, second = codes >> 32, codes & 0xFFFFFFFF
    sizes = np.bincount(rows, minlength=len(runs))
    enough = shared >= np.maximum(LEAST_SHARED, np.minimum(sizes[first], sizes[second]) // SHARED_PART)
    return list(zip(first[enough].tolist(), second[enough].tolist(), strict=True))


def _are_near(first: np.ndarray, second: np.ndarray) -> bool:
    both = len(np.intersect1d(first, second, assume_unique=True))
    shorter = min(len(first), len(second))
    return 2 * both >= len(first) + len(second) - both or 5 * both >= 4 * shorter


def _root(above: np.ndarray, place: int) -> int:
    while above[place] != place:
        above[place] = above[above[place]]
        place = int(above[place])
    return place


def _join(above: np.ndarray, first: int, second: int) -> None:
    a, b = sorted((_root(above, first), _root(above, second)))
    above[b] = a
