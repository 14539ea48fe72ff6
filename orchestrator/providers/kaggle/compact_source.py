"""Python sources without what only people read, for a script whose length is limited."""

from __future__ import annotations

import ast
import io
import tokenize


def compact(source: str) -> str:
    """The same program without comments and with empty docstrings. Each line keeps its number, for tracebacks."""
    lines = [line.encode() for line in source.split("\n")]  # ast counts bytes
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
            rest = lines[last][node.end_col_offset :]
            lines[first : last + 1] = [lines[first][: node.col_offset] + b'""', *[b""] * (last - first)]
            lines[last] += rest
    return _without_comments(b"\n".join(lines).decode())


def _without_comments(source: str) -> str:
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    return "\n".join(lines)
