"""Refusals and boilerplate: plain phrases, one in each line of a file. There are no patterns, so no phrase is slow.

A line that begins with `>` is a phrase that counts only at the start of an answer. `#` begins a comment.
"""

from __future__ import annotations

from pathlib import Path

from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.texts import Seen, normal
from worker.shared.row_keys import DatasetError

FOLDER = Path(__file__).parent / "phrase_files"
START = 200
"""Characters of an answer that are its start."""
MAX_FILE_BYTES, MAX_PHRASES, MAX_LENGTH = 256 << 10, 2_000, 200
_OF_PATTERNS = ("\\", ".*", ".+", "[", "]", "(?", "{", "}", "^", "$", "|")


def own_phrases() -> tuple[str, ...]:
    """The phrases of all languages that come with the product."""
    return tuple(phrase for path in sorted(FOLDER.glob("*.txt")) for phrase in read_phrases(path))


def read_phrases(path: Path) -> tuple[str, ...]:
    """The phrases of a file. Raises `DatasetError` with the line of a bad one."""
    data = path.read_bytes()
    if len(data) > MAX_FILE_BYTES:
        raise DatasetError(f"{path.name} has more than {MAX_FILE_BYTES >> 10} KiB; keep the phrases that matter")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise DatasetError(f"{path.name} is not UTF-8; save it as UTF-8") from None
    phrases: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if fault := _fault(text):
            raise DatasetError(f"{path.name}, line {number}: {fault}")
        phrases.append((">" if text.startswith(">") else "") + _plain(text.removeprefix(">")))
    if len(phrases) > MAX_PHRASES:
        raise DatasetError(f"{path.name} has more than {MAX_PHRASES} phrases; keep the ones that matter")
    return tuple(dict.fromkeys(phrases))


def _fault(text: str) -> str:
    if sign := next((sign for sign in _OF_PATTERNS if sign in text), ""):
        return f"'{sign}' belongs to a pattern; write a plain phrase, as it is in the answers"
    if not 3 <= len(text.removeprefix(">").strip()) <= MAX_LENGTH:
        return f"a phrase has 3 to {MAX_LENGTH} characters"
    return ""


def _plain(text: str) -> str:
    return normal(text.replace("\u2019", "'"))


class Refusals:
    """Looks for the phrases in all answers."""

    def __init__(self, phrases: tuple[str, ...]) -> None:
        self._at_start = tuple(phrase[1:] for phrase in phrases if phrase.startswith(">"))
        self._anywhere = tuple(phrase for phrase in phrases if not phrase.startswith(">"))
        self._found = Found("refusals")
        self._rows = 0

    def add(self, seen: Seen) -> None:
        """Look at a row."""
        self._rows += 1
        for turn, text in zip(seen.turns, seen.normal_turns, strict=True):
            if turn.role == "assistant" and self._holds(_straight(text)):
                self._found.add(seen, turn.content)
                return

    def is_refusal(self, answer: str) -> bool:
        """Whether an answer has one of the phrases."""
        return self._holds(_straight(normal(answer)))

    def _holds(self, text: str) -> bool:
        start = text[:START]
        return any(phrase in start for phrase in self._at_start) or any(phrase in text for phrase in self._anywhere)

    def findings(self) -> tuple[RowsFound, ...]:
        """What was found."""
        words = "{count} of {total} rows ({share}) have an answer that refuses, or speaks of itself as a program"
        return self._found.finding(words, total=self._rows)


def _straight(text: str) -> str:
    return text.replace("\u2019", "'") if "\u2019" in text else text
