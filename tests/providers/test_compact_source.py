"""Sources without comments are the same programs."""

from __future__ import annotations

import ast
import io
import zipfile

import pytest

from orchestrator.providers.kaggle.compact_source import compact
from worker.shared import wheel


def program(source: str) -> str:
    """All of a program that is executed, with its line numbers and without the texts of docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value, node.end_lineno, node.value.end_lineno = "", None, None
    return ast.dump(tree) + str([(type(n).__name__, getattr(n, "lineno", 0)) for n in ast.walk(tree)])


def test_every_source_of_a_worker_stays_the_same_program() -> None:
    with zipfile.ZipFile(io.BytesIO(wheel.build(adapters=True).data)) as built:
        sources = {name: built.read(name).decode() for name in built.namelist() if name.endswith(".py")}
    assert len(sources) > 100
    for name, source in sources.items():
        small = compact(source)
        assert program(small) == program(source), name
        assert len(small) <= len(source), name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1  # one\n", "x = 1\n"),
        ('x = "# no comment"\n', 'x = "# no comment"\n'),
        ('def f():\n    """Of two\n\n    lines."""\n', 'def f():\n    ""\n\n\n'),
        ('"""ä"""  # noqa\n"b"\ny = """a\n# text"""\n', '""\n""\ny = """a\n# text"""\n'),
        ('class E(Exception):\n    "only this"  # here\n', 'class E(Exception):\n    ""\n'),
    ],
)
def test_comments_and_docstrings_are_left_out(source: str, expected: str) -> None:
    assert compact(source) == expected
