"""What is written in code blocks of the README and the docs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(trainhop [^`\n]+)`")
_ENDS = ("&&", "||", "|", ";", ">")


def blocks(language: str, page: Path) -> list[str]:
    """Code blocks of a page in one language; those that name none are commands and drawings."""
    return [text for named, text in _BLOCK.findall(page.read_text()) if named == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `trainhop` command in a page's code blocks."""
    for block in blocks("", page) + blocks("bash", page):
        for line in block.splitlines():
            yield from _of_line(line)


def mentions(page: Path) -> Iterator[list[str]]:
    """The words of every `trainhop` command in a page's sentences, where arguments may be left out."""
    for written in _INLINE.findall(_BLOCK.sub("", page.read_text())):
        if "[" not in written:
            yield from _of_line(written)


def _of_line(line: str) -> Iterator[list[str]]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a drawing
        return
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if words[:1] == ["trainhop"]:
        end = next((place for place, word in enumerate(words) if word in _ENDS), len(words))
        yield words[1:end]


def files(page: Path) -> set[str]:
    """Every file and folder of this repository that a page names as code, from its root."""
    tops = "orchestrator|worker|tests|migrations|benchmarks|examples|trainhop"
    return set(re.findall(rf"`((?:{tops})/[\w./-]*\w)/?`", page.read_text()))
