"""Shows progress while the cell runs: a bar, the loss and the time left, as HTML or as lines of text."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass, field
from typing import Any

from worker.shared.messages import Finish, Message, Offer, Phase, Release, Report
from worker.shared.notebook_messages import Claimed

_PHASES = {
    Phase.BOOT: "starting",
    Phase.DOWNLOAD: "fetching data",
    Phase.LOAD: "loading the model",
    Phase.RESTORE: "restoring the last checkpoint",
    Phase.TRAIN: "training",
    Phase.SAVE: "saving",
    Phase.EVAL: "evaluating",
    Phase.EXPORT: "writing the adapter",
    Phase.WAIT: "uploading the last files",
}
_BAR = (
    '<div style="background:#8884;border-radius:3px;height:10px;max-width:32em">'
    '<div style="background:#2a7;border-radius:3px;height:10px;width:{percent:.1f}%"></div></div>'
)
_SPARK = '<svg width="160" height="28" viewBox="0 0 160 28"><polyline fill="none" stroke="#2a7" points="{}"/></svg>'
_LINES_EVERY_S = 15.0


@dataclass(kw_only=True)
class Progress:
    """The state of one session, built from the worker's messages. Times of day are this machine's, in UTC."""

    name: str
    job: str
    total: int
    first: int
    step: int
    doing: str = "starting"
    machine: str = ""
    losses: list[float] = field(default_factory=list[float])
    step_s: float | None = None
    session_ends: float | None = None
    saved: int | None = None
    last_word: str = ""
    as_of: float = field(default_factory=time.time)

    @classmethod
    def of(cls, claimed: Claimed, machine: str) -> Progress:
        """The state before the worker's first message."""
        return cls(
            name=claimed.name,
            job=claimed.job,
            total=claimed.total_steps,
            first=claimed.step,
            step=claimed.step,
            machine=machine,
            saved=claimed.step or None,
        )

    def take(self, message: Message) -> None:
        """Apply a message of the worker."""
        self.as_of = time.time()
        match message:
            case Report():
                self.step, self.doing = max(self.step, message.step), _PHASES[message.phase]
                self.losses += [row.values["loss"] for row in message.metrics if "loss" in row.values]
                self.step_s = message.seconds_per_step or self.step_s
                if message.seconds_left is not None:
                    self.session_ends = self.as_of + message.seconds_left
            case Offer():
                self.saved = message.manifest.step
            case Release() | Finish():
                self.step = max(self.step, message.step)
            case _:
                pass

    @property
    def facts(self) -> list[str]:
        """The known facts, as short texts for the person."""
        texts = [f"step {self.step} of {self.total}"]
        if self.losses:
            texts.append(f"loss {self.losses[-1]:.4f}")
        if self.step_s:
            left = (self.total - self.step) * self.step_s
            texts.append(f"{duration(left)} left" if self.step < self.total else "all steps completed")
        if self.session_ends is not None and not self.last_word:
            texts.append(f"this session ends by {_clock(self.session_ends)}")
        if self.saved is not None:
            texts.append(f"saved up to step {self.saved}")
        return texts

    @property
    def state(self) -> str:
        """One line that is still correct when the notebook is opened later."""
        return self.last_word or f"{self.doing}, as of {_clock(self.as_of)} on {self.machine}"

    def __repr__(self) -> str:
        return f"{self.name}: {' · '.join(self.facts)} · {self.state}"

    def _repr_html_(self) -> str:
        weight = "bold" if self.last_word else "normal"
        lines = [
            f"<b>{html.escape(self.name)}</b> <code>{html.escape(self.job)}</code>",
            _BAR.format(percent=100.0 * self.step / max(1, self.total)),
            html.escape(" · ".join(self.facts)),
            _sparkline(self.losses),
            f'<span style="font-weight:{weight}">{html.escape(self.state)}</span>',
        ]
        body = "".join(f"<div>{line}</div>" for line in lines if line)
        return f'<div style="font-family:sans-serif;line-height:1.6;max-width:44em">{body}</div>'


def _sparkline(values: list[float]) -> str:
    """The loss curve of this session, at most 80 points."""
    kept = [v for v in values if v == v and abs(v) != float("inf")][:: max(1, len(values) // 80)]  # noqa: PLR0124
    if len(kept) < 2:
        return ""
    low, span = min(kept), (max(kept) - min(kept)) or 1.0
    points = (f"{160 * i / (len(kept) - 1):.0f},{26 - 24 * (v - low) / span:.0f}" for i, v in enumerate(kept))
    return _SPARK.format(" ".join(points))


class Panel:
    """Displays a `Progress`, updated in place where possible, else as a line every 15 seconds."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown, self._shown_at = "", 0.0
        self._handle: Any = _display(progress)

    def show(self, *, last: bool = False) -> None:
        """Update the display."""
        text = repr(self._progress)
        if text == self._shown:
            return
        if self._handle is not None:
            self._handle.update(self._progress)
        elif last or time.monotonic() - self._shown_at >= _LINES_EVERY_S:
            print(text, flush=True)
        else:
            return
        self._shown, self._shown_at = text, time.monotonic()


def _display(progress: Progress) -> Any:
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    return None if get_ipython() is None else display(progress, display_id=True)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `2 h 05 min`."""
    total_s = max(0, round(seconds))
    if total_s < 60:
        return f"{total_s} s"
    return f"{total_s // 60} min" if total_s < 3600 else f"{total_s // 3600} h {total_s % 3600 // 60:02d} min"


def _clock(at: float) -> str:
    return time.strftime("%H:%M UTC", time.gmtime(at))
