"""Three views of a running job: a live panel in a terminal, plain lines, JSON lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from orchestrator.entrypoints.cli.output import clean, put_json_line, say, seconds, sparkline
from orchestrator.entrypoints.cli.phrases import machine, note, safe_age
from trainhop.polling import state_word
from worker.shared.counted_words import many

if TYPE_CHECKING:
    from rich.table import Table

LINE_PERIOD_S = 10.0
"""Interval between two plain lines when only the step has changed."""


class View(Protocol):
    """Shows a job. `losses` is the loss by step."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def show(self, job: dict[str, Any], losses: Mapping[int, float]) -> None:
        """Show the current job."""
        ...

    def note(self, text: str) -> None:
        """Show a note."""
        ...


def make_view(*, as_json: bool) -> View:
    """JSON lines with `as_json`. Otherwise a live panel if stderr is a terminal, else plain lines."""
    if as_json:
        return JsonView()
    return LiveView() if sys.stderr.isatty() else PlainView()


class _Quiet:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        return

    def note(self, text: str) -> None:
        say(text)


class JsonView(_Quiet):
    """One JSON line on stdout for each change of the job."""

    def __init__(self) -> None:
        self._last: Any = None

    def show(self, job: dict[str, Any], losses: Mapping[int, float]) -> None:
        key = (job["state"], job["step"], (job.get("session") or {}).get("id"), (job.get("head") or {}).get("sha256"))
        if key != self._last:
            self._last = key
            put_json_line(job)


class PlainView(_Quiet):
    """A line on stderr for each change of state or machine, and every few seconds during training."""

    def __init__(self) -> None:
        self._last: Any = None
        self._step = -1
        self._at = 0.0

    def show(self, job: dict[str, Any], losses: Mapping[int, float]) -> None:
        session = job.get("session") or {}
        key = (job["state"], session.get("id"), note(job))
        now = time.monotonic()
        if key == self._last and (job["step"] == self._step or now - self._at < LINE_PERIOD_S):
            return
        self._last, self._step, self._at = key, job["step"], now
        say("  ".join(part for part in _parts(job, losses) if part))


def _parts(job: dict[str, Any], losses: Mapping[int, float]) -> list[str]:
    session = job.get("session")
    return [
        f"{state_word(job['state']):<9}",
        f"step {job['step']}/{job['total_steps']}",
        f"loss {losses[max(losses)]:.4f}" if losses else "",
        f"{job['seconds_per_step']:.1f} s/step" if job.get("seconds_per_step") else "",
        f"{seconds(job['eta_seconds'])} left" if job.get("eta_seconds") else "",
        f"on {clean(machine(job))} ({session['phase']}, {session['id']})" if session else "",
        f"checkpoint at step {job['head']['step']} ({safe_age(job['head'])} ago)" if job.get("head") else "",
        clean(note(job)),
    ]


class LiveView:
    """A panel that is redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, job: dict[str, Any], losses: Mapping[int, float]) -> None:
        self._live.update(_panel(job, losses), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(text, markup=False)


_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "red", "paused": "yellow", "queued": "yellow"}


def _panel(job: dict[str, Any], losses: Mapping[int, float]) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim")
    grid.add_column()
    state = Text(state_word(job["state"]), style=f"bold {_COLOURS.get(job['state'], 'cyan')}")
    grid.add_row(Text("job"), Text.assemble((clean(job["name"]), "bold"), "  ", job["id"], "  ", state))
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row(ProgressBar(total=job["total_steps"], completed=job["step"], width=40), Text(_pace(job)))
    grid.add_row(Text("step"), bar)
    for name, value in _details(job, losses):
        grid.add_row(Text(name), Text(value))
    return grid


def _pace(job: dict[str, Any]) -> str:
    step_time = f"{job['seconds_per_step']:.1f} s/step" if job.get("seconds_per_step") else ""
    left = f"{seconds(job['eta_seconds'])} left" if job.get("eta_seconds") else ""
    return "  ".join(part for part in (f"{job['step']}/{job['total_steps']}", step_time, left) if part)


def _details(job: dict[str, Any], losses: Mapping[int, float]) -> list[tuple[str, str]]:
    session, head = job.get("session"), job.get("head")
    rows: list[tuple[str, str]] = []
    if losses:
        values = list(losses.values())
        rows.append(("loss", f"{sparkline(values)}  {values[0]:.3f} -> {values[-1]:.3f}"))
    if session:
        left = f", {seconds(session['seconds_left'])} left in this session" if session.get("seconds_left") else ""
        rows.append(("machine", f"{clean(machine(job))}, {session['phase']}{left}"))
    rows.append(("checkpoint", f"step {head['step']}, {safe_age(head)} ago" if head else "none yet"))
    if job.get("handoffs"):
        rows.append(("hand-offs", f"{job['handoffs']}, {many(job['steps_repeated'], 'step')} repeated"))
    if note(job):
        rows.append(("note", clean(note(job))))
    return rows


def start_of(spec: dict[str, Any]) -> str | None:
    """The adapter that the job began with."""
    found = spec.get("lora_model")
    if not found:
        return None
    names = f"{found.get('job') or ''} {found.get('name') or ''}".split(maxsplit=1)
    return f"{clean(' '.join(names))} (adapter {found['weights_sha256']})"
