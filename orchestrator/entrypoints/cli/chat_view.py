"""How the answers of a chat are shown: in two columns, one after the other, as plain lines, or not at all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol

from orchestrator.entrypoints.cli.output import clean, put
from worker.shared.chat import ChatEvent, Kind, Question
from worker.shared.evaluation_units import Arm

MIN_WIDTH = 80
"""Columns of a terminal in which two answers have room beside each other."""
Shown = Callable[[ChatEvent], None]


class Answers:
    """The answers to one question as far as they have arrived."""

    def __init__(self, question: Question) -> None:
        self.question, self._began = question, time.monotonic()
        self._texts: dict[Arm, list[str]] = {arm: [] for arm in question.arms}
        self._ends: dict[Arm, ChatEvent] = {}
        self._first_s: dict[Arm, float] = {}

    def add(self, event: ChatEvent) -> None:
        """Note a piece of an answer, or its end."""
        if event.arm is None:
            return
        if event.kind is Kind.TEXT:
            self._first_s.setdefault(event.arm, time.monotonic() - self._began)
            self._texts[event.arm].append(event.text)
        elif event.kind is Kind.END:
            self._ends[event.arm] = event

    def text(self, arm: Arm) -> str:
        """The text so far. Empty for a model that is not asked."""
        return "".join(self._texts.get(arm, ()))

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data. `first_s` are the seconds to the first piece."""
        found: dict[str, Any] = {"question": self.question.question}
        for arm in self.question.arms:
            end = self._ends.get(arm)
            first_s = self._first_s.get(arm)
            found[arm] = {
                "text": self.text(arm),
                "ended_by": end.text if end else "",
                "tokens": end.tokens if end else None,
                "first_s": round(first_s, 3) if first_s is not None else None,
            }
        return found


class View(Protocol):
    """Shows answers while they arrive."""

    @contextmanager
    def showing(self, answers: Answers) -> Generator[Shown]:
        """Call the function after each event that was added to `answers`."""
        ...


def view_for(*, as_json: bool, both: bool) -> View:
    """The view that fits the output."""
    if as_json:
        return _Nothing()
    if not sys.stdout.isatty():
        return _Lines()
    from rich.console import Console

    console = Console(highlight=False)
    return _Columns(console) if both and console.width >= MIN_WIDTH else _OneByOne()


class _Nothing:
    @contextmanager
    def showing(self, answers: Answers) -> Generator[Shown]:
        yield lambda _: None


class _Lines:
    """Each answer when it is complete, below the name of its model."""

    @contextmanager
    def showing(self, answers: Answers) -> Generator[Shown]:
        def show(event: ChatEvent) -> None:
            if event.kind is Kind.END and event.arm is not None:
                put(f"{event.arm}:\n{clean(answers.text(event.arm), one_line=False)}\n")

        yield show


class _OneByOne:
    """The first answer as it arrives, then the second one, of which a part has arrived meanwhile."""

    @contextmanager
    def showing(self, answers: Answers) -> Generator[Shown]:
        left = list(answers.question.arms)
        written, ended = 0, set[Arm]()

        def show(event: ChatEvent) -> None:
            nonlocal written
            if event.kind is Kind.END and event.arm is not None:
                ended.add(event.arm)
            while left:
                text = clean(answers.text(left[0]), one_line=False)
                if not written:
                    print(f"{left[0]}: ", end="", flush=True)  # noqa: T201
                    written = 1
                print(text[written - 1 :], end="", flush=True)  # noqa: T201
                written = len(text) + 1
                if left[0] not in ended:
                    return
                print(flush=True)  # noqa: T201
                del left[0]
                written = 0

        yield show


class _Columns:
    """Both answers side by side. The end of a long one is shown when it is complete."""

    def __init__(self, console: Any) -> None:
        self._console = console

    @contextmanager
    def showing(self, answers: Answers) -> Generator[Shown]:
        from rich.live import Live

        with Live(console=self._console, transient=True, refresh_per_second=10) as live:
            yield lambda _: live.update(_grid(answers))
        self._console.print(_grid(answers))


def _grid(answers: Answers) -> Any:
    from rich.table import Table
    from rich.text import Text

    grid = Table(expand=True, show_lines=False)
    for arm in answers.question.arms:
        grid.add_column(str(arm), ratio=1, overflow="fold")
    grid.add_row(*(Text(clean(answers.text(arm), one_line=False)) for arm in answers.question.arms))
    return grid
