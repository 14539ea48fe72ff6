"""Python sources without what only people read, for a script whose length is limited."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator

_BEFORE = frozenset({tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT})
"""Kinds of tokens after which a statement begins."""
_BLANK = frozenset({tokenize.NL, tokenize.COMMENT})


def compact(source: str) -> str:
    """The same program without comments and with empty docstrings. Each line keeps its number, for tracebacks."""
    lines = source.split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    for text in _docstrings(tokens):
        (first, begin), (last, end) = text.start, text.end
        rest = lines[last - 1][end:]
        lines[first - 1 : last] = [lines[first - 1][:begin] + '""', *[""] * (last - first)]
        lines[last - 1] += rest
    return "\n".join(lines)


def _docstrings(tokens: list[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
    """Strings that are a whole statement. With `ast`, Python 3.11 fails in two threads at once."""
    told = [token for token in tokens if token.type not in _BLANK]
    for before, token, after in zip([None, *told], told, told[1:], strict=False):
        begins = before is None or before.type in _BEFORE
        if begins and token.type == tokenize.STRING and after.type == tokenize.NEWLINE:
            yield token
