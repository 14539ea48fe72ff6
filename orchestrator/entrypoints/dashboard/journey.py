"""A job's way over its machines, for people without an account: nothing in it names people, paths or hosts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.lifecycle import EndReason, JobState
from orchestrator.entrypoints.dashboard.curve_picture import Picture, draw
from orchestrator.entrypoints.http.dependencies import Server
from orchestrator.entrypoints.http.machine_hours import Hours, hours_of
from worker.shared.manifest import Fidelity

SAMPLES_READ = 1_000
SAMPLES_SHOWN = 20

Row = dict[str, Any]
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One session on the way. `number` counts from 1. `provider` is the provider's title, never the account's name.

    `saved` is the sha256 of the checkpoint that the next session began with, empty if it began without one.
    """

    number: int
    provider: str
    machine: str
    first_step: int
    last_step: int
    seconds: float
    outcome: str
    fidelity: str
    saved: str


@dataclass(frozen=True, kw_only=True)
class Journey:
    """What a shared page shows. `claim` says how the result compares with an unbroken run, `is_exact` that it is equal.

    `samples` are prompts with `(step, answer)` before and after the training.
    """

    row: Row
    model: str
    stops: tuple[Stop, ...]
    hand_offs: int
    lost: int
    hours: Hours
    claim: str
    is_exact: bool
    picture: Picture
    samples: tuple[tuple[str, tuple[int, str], tuple[int, str]], ...]


def of_job(server: Server, job_id: str, *, with_samples: bool) -> Journey | None:
    """The journey of a job, or None if it was deleted."""
    row = server.queries.job(job_id, server.ctx.clock.now())
    if row is None:
        return None
    sessions = [s for s in server.queries.sessions(job_id=job_id) if s["started_at"] is not None]
    stops = tuple(_stops(server, job_id, sessions))
    resumed = sessions[1:]
    claim, is_exact = fidelity_in_words(row, sessions)
    loss, eval_loss = (server.dashboard_queries.curve(job_id, name) for name in ("loss", "eval_loss"))
    numbers = {s["fence"]: n for n, s in enumerate(sessions, 1)}
    return Journey(
        row=row,
        model=public_model(row["spec"].get("base_model", "")),
        stops=stops,
        hand_offs=len(resumed),
        lost=sum(s["outcome"] == EndReason.LOST for s in sessions),
        hours=hours_of(server, sessions),
        claim=claim,
        is_exact=is_exact,
        picture=draw(loss, eval_loss, numbers, [s["first_step"] for s in resumed], row["total_steps"]),
        samples=_samples(server, job_id) if with_samples else (),
    )


def fidelity_in_words(row: Row, sessions: Sequence[Row]) -> tuple[str, bool]:
    """How a job's result compares with that of an unbroken run, and whether it is equal byte for byte.

    `sessions` are those that began, oldest first. It is equal only if each session that trained was recorded as exact.
    """
    if JobState(row["state"]) is not JobState.SUCCEEDED or not row["adapter"]:
        return "", False
    trained = [s for s in sessions if s["last_step"] > s["first_step"]]
    if row["first_step"]:
        return "It continues a checkpoint of another job. The sessions of that job are not part of this page.", False
    if len(sessions) < 2:
        return "It ran in one session without a hand-off.", False
    if trained and all(s["fidelity"] == Fidelity.EXACT for s in trained):
        return "Byte-identical to an unbroken run: every hand-off was recorded as exact.", True
    exact = sum(s["fidelity"] == Fidelity.EXACT for s in trained)
    return (
        f"{exact} of {len(trained)} sessions were recorded as exact. It is not claimed that the result is "
        "byte-identical to an unbroken run."
    ), False


def public_model(name: str) -> str:
    """The name of a model of the hub. A folder's path is not told."""
    repo = name.partition("@")[0]
    return repo if _HUB_NAME.fullmatch(repo) else "a model in a local folder"


def _stops(server: Server, job_id: str, sessions: Sequence[Row]) -> list[Stop]:
    heads = {
        c["step"]: c["sha256"] for c in server.queries.checkpoints(job_id) if c["state"] in ("committed", "pruned")
    }
    titles = {e.name: e.provider.texts.title for e in server.ctx.providers.entries() if e.provider is not None}
    found: list[Stop] = []
    for place, session in enumerate(sessions):
        following = sessions[place + 1] if place + 1 < len(sessions) else None
        hardware = session["hardware"] or {}
        count = hardware.get("count", 1)
        found.append(
            Stop(
                number=place + 1,
                provider=titles.get(session["provider"]) or session["provider"],
                machine=f"{hardware.get('name', '')}{f' ×{count}' if count > 1 else ''}",
                first_step=session["first_step"],
                last_step=session["last_step"],
                seconds=session["seconds"],
                outcome=str(session["outcome"] or "running"),
                fidelity=session["fidelity"] or "",
                saved=heads.get(following["first_step"], "") if following else "",
            )
        )
    return found


def _samples(server: Server, job_id: str) -> tuple[tuple[str, tuple[int, str], tuple[int, str]], ...]:
    """Each prompt with its first and its last answer. A prompt with one answer is left out."""
    answers: dict[str, list[tuple[int, str]]] = {}
    for sample in server.queries.samples(job_id, SAMPLES_READ):
        answers.setdefault(sample["prompt"], []).append((sample["step"], sample["text"]))
    found = [(prompt, both[0], both[-1]) for prompt, both in answers.items() if len(both) > 1]
    return tuple(found[:SAMPLES_SHOWN])
