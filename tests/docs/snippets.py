"""What is written in code blocks of the README and the docs.

A block without a language, or with `bash`, holds commands; `text` is for drawings and for what a program prints.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OUTSIDE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
PAGES = sorted([*OUTSIDE, *(ROOT / "docs").rglob("*.md")])
COMMANDS = ("", "bash")
LANGUAGES = (*COMMANDS, "yaml", "python", "json", "text")
_BLOCK = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(trainhop [^`\n]+)`")
_ENDS = ("&&", "||", "|", ";", ">")


def all_blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every code block of a page, in order."""
    return _BLOCK.findall(page.read_text())


def blocks(language: str, page: Path) -> list[str]:
    """Code blocks of a page in one language."""
    return [text for named, text in all_blocks(page) if named == language]


def command_lines(text: str) -> list[str]:
    """The commands of a block, without their comments."""
    lines = (re.split(r"(?:^|\s+)#\s", line)[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `trainhop` command in a page's code blocks."""
    for language, text in all_blocks(page):
        if language in COMMANDS:
            for line in command_lines(text):
                yield from _of_line(line)


def mentions(page: Path) -> Iterator[list[str]]:
    """The words of every `trainhop` command in a page's sentences, where arguments may be left out."""
    for written in _INLINE.findall(_BLOCK.sub("", page.read_text())):
        if "[" not in written:
            yield from _of_line(written)


def _of_line(line: str) -> Iterator[list[str]]:
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if words[:1] == ["trainhop"]:
        end = next((place for place, word in enumerate(words) if word in _ENDS), len(words))
        yield words[1:end]


def files(page: Path) -> set[str]:
    """Every file and folder of this repository that a page names as code, from its root."""
    tops = "orchestrator|worker|tests|migrations|benchmarks|examples|trainhop"
    return set(re.findall(rf"`((?:{tops})/[\w./-]*\w)/?`", page.read_text()))
