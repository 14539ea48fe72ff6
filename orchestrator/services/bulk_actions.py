"""One action on several jobs. Each job is acted on by itself: what one refuses does not keep the others from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError, TrainhopError
from orchestrator.domain.jobs import Job
from orchestrator.domain.lifecycle import JobState
from orchestrator.services import jobs, tags
from orchestrator.services.context import Context

MAX_JOBS = 50


class Action(StrEnum):
    """What can be done with several jobs at once."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    TAG = "tag"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened to one job, in a sentence. `is_done` is false if the job is as it was."""

    job_id: str
    is_done: bool
    words: str


def act(ctx: Context, actor: Actor, job_ids: Sequence[str], action: Action, tag: str = "") -> list[Outcome]:
    """Act on each of these jobs, once. `tag` is the tag to add. Raises `InvalidError` for none and for too many."""
    chosen = list(dict.fromkeys(job_ids))
    if not chosen:
        raise InvalidError("No job is ticked. Tick the jobs first.")
    if len(chosen) > MAX_JOBS:
        raise InvalidError(f"At most {MAX_JOBS} jobs at once. These are {len(chosen)}.")
    return [_on_one(ctx, actor, job_id, action, tag) for job_id in chosen]


def _on_one(ctx: Context, actor: Actor, job_id: str, action: Action, tag: str) -> Outcome:
    try:
        if action is Action.TAG:
            tags.add_tag(ctx, actor, job_id, tag)
            words = f"It has the tag {tag}."
        else:
            words = _in_words(action, _ACTIONS[action](ctx, actor, job_id))
    except TrainhopError as error:
        return Outcome(job_id=job_id, is_done=False, words=str(error))
    return Outcome(job_id=job_id, is_done=True, words=words)


_ACTIONS: dict[Action, Callable[[Context, Actor, str], Job]] = {
    Action.PAUSE: jobs.pause,
    Action.RESUME: jobs.resume,
    Action.CANCEL: jobs.cancel,
}


def _in_words(action: Action, job: Job) -> str:
    if action is Action.RESUME:
        return "It is in the queue again." if job.state is JobState.QUEUED else "It keeps running."
    if action is Action.PAUSE:
        return "It is paused." if job.state is JobState.PAUSED else "It saves a checkpoint and is then paused."
    return "It is cancelled." if job.state is JobState.CANCELLED else "It is cancelled as soon as its machine knows."
