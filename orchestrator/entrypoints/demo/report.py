"""The demo's report: steps by session, answers before and after, and a loss curve as PNG."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.entrypoints.cli.output import clean, put, say, seconds, table
from worker.shared.counted_words import many

_COLOURS = ("#1f5fa8", "#c2571a", "#2b8a5a", "#7a4fa3", "#8a6d1f")
_INK, _FAINT = "#24292f", "#8c959f"

Curves = Mapping[str, Mapping[int, float]]


def tell(
    job: Mapping[str, Any],
    sessions: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    *,
    to_stderr: bool,
) -> None:
    """Print the table of sessions and the answers, on stdout or, with JSON, on stderr."""
    write = say if to_stderr else put
    write("")
    rows = [
        (
            number,
            _machine(s),
            f"{s['first_step'] + 1} to {s['last_step']}" if s["last_step"] > s["first_step"] else "none",
            clean(_ending(s)),
            seconds(s["seconds"]),
            s.get("fidelity"),
        )
        for number, s in enumerate(sessions, 1)
    ]
    table(("SESSION", "MACHINE", "STEPS", "ENDED", "TIME", "FIDELITY"), rows, write)
    write("")
    loss = job.get("loss")
    if loss:
        write(f"loss {loss['first']:.3f} -> {loss['last']:.3f}, {many(job['steps_repeated'], 'step')} repeated")
    _answers(samples, write)
    write("")


def _machine(session: Mapping[str, Any]) -> str:
    hardware = session.get("hardware") or {}
    return f"{session['provider']}, {hardware.get('name') or hardware.get('device') or 'unknown'}"


def _ending(session: Mapping[str, Any]) -> str:
    words = {"lost": "killed", "handed_off": "time limit", "completed": "completed"}
    outcome = str(session["outcome"] or session["state"])
    return words.get(outcome, outcome)


def _answers(samples: Sequence[Mapping[str, Any]], write: Any) -> None:
    """The first and the last answer to each prompt."""
    for prompt in dict.fromkeys(s["prompt"] for s in samples):
        mine = sorted((s for s in samples if s["prompt"] == prompt), key=lambda s: s["step"])
        write("")
        write(f"  {clean(prompt)}")
        for label, sample in (("before", mine[0]), ("after", mine[-1])):
            write(f"    {label:<6}  {clean(sample['text'])}")


def tell_how_to_use(adapter: str, export: Mapping[str, Any]) -> None:
    """Say how to chat with the adapter, what was exported, and the command for each program that reads it."""
    say(f"try it      trainhop chat {shlex.quote(adapter)}")
    if "error" in export:
        say(f"gguf        {clean(export['error'])}")
        return
    check = export["check"]
    say(f"gguf        {export['path']} (logits differ by {check['error']:.1%} from base model and adapter)")
    for program, command in export["commands"].items():
        say(f"{program:<10}  {command}")


def draw(path: Path, curves: Curves, sessions: Sequence[Mapping[str, Any]]) -> Path | None:
    """Plot the loss by step, one colour per session, as PNG. None if matplotlib is not installed."""
    if find_spec("matplotlib") is None or not any(curves.values()):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), dpi=150, facecolor="white")
    axes = figure.subplots()
    for number, session in enumerate(sessions):
        _draw_session(axes, number, session, sessions, curves)
    _decorate(axes, len(sessions))
    figure.tight_layout()
    figure.savefig(path)
    return path


def _draw_session(
    axes: Any, number: int, session: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]], curves: Curves
) -> None:
    """The final steps as a line, and repeated steps as dotted rings."""
    values = curves.get(session["id"], {})
    colour = _COLOURS[number % len(_COLOURS)]
    following = sessions[number + 1] if number + 1 < len(sessions) else None
    cut = following["first_step"] if following else max(values, default=0)
    counted = sorted(step for step in values if step <= cut)
    lost = sorted(step for step in values if step > cut)
    line = partial(axes.plot, color=colour, linewidth=1.8, marker="o")
    line(counted, [values[s] for s in counted], markersize=3, label=f"session {number + 1}")
    if lost:
        joined = [*counted[-1:], *lost]
        rings = {"markersize": 7, "markerfacecolor": "none", "markevery": list(range(len(counted[-1:]), len(joined)))}
        label = f"session {number + 1}, repeated"
        line(joined, [values[s] for s in joined], linestyle=":", label=label, **rings)
    if following:
        _mark(axes, cut, f"session {number + 1}: {_ending(session)}", number)


def _mark(axes: Any, step: int, why: str, number: int) -> None:
    axes.axvline(step + 0.5, color=_FAINT, linestyle="--", linewidth=1)
    axes.annotate(
        f"{why}\nresumed from step {step}",
        xy=(step + 0.5, 0.98 - 0.16 * (number % 2)),
        xycoords=("data", "axes fraction"),
        xytext=(6, 0),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        color=_INK,
    )


def _decorate(axes: Any, sessions: int) -> None:
    axes.set_title(f"One run, {many(sessions, 'session')}", loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("training loss", color=_INK)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.tick_params(colors=_INK)
    axes.grid(axis="y", color="#eaeef2")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(facecolor="white", edgecolor="none", framealpha=1, fontsize=8.5, loc="lower left")
