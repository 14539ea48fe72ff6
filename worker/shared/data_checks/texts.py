"""A row as the checks see it: its turns, its normal form, and its words as numbers."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from zlib import crc32

import numpy as np

from worker.shared.rows import Message, Row

SHINGLE = 3
"""Words that are compared together; characters in scripts without spaces."""
MAX_WORDS = 50_000
"""Words of one text that are compared. The rest of a longer one is not."""
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese: each character counts as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_PLAIN_WORD = re.compile(rb"[a-z0-9_]+")
_MIX = tuple(np.uint64(factor) for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


def normal(text: str) -> str:
    """NFKC, without case, and with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(normal_text: str) -> np.ndarray:
    """A number for each word of a text in its normal form: uint32 of shape (words,)."""
    if normal_text.isascii():
        found: list[bytes] = _PLAIN_WORD.findall(normal_text.encode())
    else:
        found = [word.encode() for word in _WORD.findall(normal_text)]
    return np.fromiter(map(crc32, found[:MAX_WORDS]), np.uint32, min(len(found), MAX_WORDS))


def shingles(word_numbers: np.ndarray) -> np.ndarray:
    """A number for each run of three words, each once and in ascending order: uint32 of shape (runs,).

    A text of fewer words is one run.
    """
    if not len(word_numbers):
        return np.empty(0, np.uint32)
    wide = word_numbers.astype(np.uint64)
    if len(wide) < SHINGLE:
        wide = np.concatenate([wide, np.zeros(SHINGLE - len(wide), np.uint64)])
    mixed = wide[:-2] * _MIX[0] + wide[1:-1] * _MIX[1] + wide[2:] * _MIX[2]
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def key(text: str) -> int:
    """64 bits of the sha256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def overlap(first: np.ndarray, second: np.ndarray) -> int:
    """Number of equal entries of two arrays, each ascending and without repetition."""
    both = np.concatenate([first, second])
    both.sort()
    return int(np.count_nonzero(both[1:] == both[:-1]))


class Seen:
    """One row of a dataset: `number` counts from 0, `line` is where it stands in its file."""

    def __init__(self, number: int, line: int, row: Row) -> None:
        self.number, self.line, self.row = number, line, row

    @property
    def is_conversation(self) -> bool:
        """Whether a chat template writes this row."""
        return bool(self.row.messages)

    @cached_property
    def turns(self) -> tuple[Message, ...]:
        """The turns. A plain text is one answer after its prompt."""
        if self.row.messages:
            return self.row.messages
        asked = (Message("user", self.row.prompt),) if self.row.prompt else ()
        return (*asked, Message("assistant", self.row.text))

    @cached_property
    def all_turns(self) -> tuple[Message, ...]:
        """The turns, and after them the rejected answer of a pair."""
        return (*self.turns, *self._rejected)

    @property
    def _rejected(self) -> tuple[Message, ...]:
        other = self.row.rejected
        if other is None:
            return ()
        return other.messages[other.given :] if other.messages else (Message("assistant", other.text),)

    @cached_property
    def answers(self) -> tuple[Message, ...]:
        """The turns that are taught: not the rejected answer of a pair, and no undesirable one."""
        if self.row.desirable is False:
            return ()
        given = self.row.given if self.row.messages else 0
        return tuple(turn for turn in self.turns[given:] if turn.role == "assistant" and turn.said.strip())

    @cached_property
    def normal_turns(self) -> tuple[str, ...]:
        """Each turn in its normal form."""
        return tuple(normal(turn.said) for turn in self.turns)

    @cached_property
    def turn_words(self) -> tuple[np.ndarray, ...]:
        """The words of each turn."""
        return tuple(words(text) for text in self.normal_turns)

    @cached_property
    def whole_key(self) -> int:
        """Equal for exact duplicates."""
        texts = (*self.normal_turns, *(normal(turn.content) for turn in self._rejected))
        return key("\x1e".join(f"{t.role}\x1f{n}" for t, n in zip(self.all_turns, texts, strict=True)))

    @cached_property
    def last_answer(self) -> int | None:
        """The place of the last answer among the turns."""
        return next((at for at in reversed(range(len(self.turns))) if self.turns[at].role == "assistant"), None)

    @cached_property
    def prompt_key(self) -> int | None:
        """Equal for rows with the same turns before their last answer. None without such turns."""
        return self._key_before(self.last_answer)

    @cached_property
    def asked_key(self) -> int | None:
        """The same for a row that is asked. A task has no answer."""
        return self._key_before(len(self.turns) if self.last_answer is None else self.last_answer)

    def earlier_prompt_keys(self) -> Iterator[int]:
        """The keys of the turns before each answer but the last one. A model is trained on these answers too."""
        digest, separator, is_asked = hashlib.sha256(), "", False
        for turn, text in zip(self.turns[: self.last_answer], self.normal_turns, strict=False):
            if turn.role == "assistant" and is_asked:
                yield int.from_bytes(digest.copy().digest()[:8], "little")
            is_asked = is_asked or turn.role == "user"
            if turn.role != "system":
                digest.update(f"{separator}{turn.role}\x1f{text}".encode())
                separator = "\x1e"

    def _key_before(self, end: int | None) -> int | None:
        if not end or not any(turn.role == "user" for turn in self.turns[:end]):
            return None
        before = zip(self.turns[:end], self.normal_turns[:end], strict=True)
        return key("\x1e".join(f"{turn.role}\x1f{text}" for turn, text in before if turn.role != "system"))

    @cached_property
    def compared_words(self) -> np.ndarray:
        """The words of all turns but those of the system, which many rows share."""
        spoken = [w for t, w in zip(self.turns, self.turn_words, strict=True) if t.role not in ("system", "developer")]
        spoken += [words(normal(turn.content)) for turn in self._rejected]
        return np.concatenate(spoken) if spoken else np.empty(0, np.uint32)

    @cached_property
    def shingles(self) -> np.ndarray:
        """The runs of three words of the row."""
        return shingles(self.compared_words)
