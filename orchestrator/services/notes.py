"""Notes of jobs: a short plain text that a job's owner writes for everybody who may see the job."""

from __future__ import annotations

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError
from orchestrator.services.access import owned_job
from orchestrator.services.context import Context

MAX_NOTE = 500
"""Characters of a note."""


def set_note(ctx: Context, actor: Actor, job_id: str, note: str) -> str:
    """Replace the note of the actor's job. Returns it without white space at its ends. An empty one removes it.

    Raises `InvalidError` if it is longer than `MAX_NOTE`.
    """
    kept = note.strip()
    if len(kept) > MAX_NOTE:
        raise InvalidError(f"A note has at most {MAX_NOTE} characters. This one has {len(kept)}.")
    with ctx.uow() as tx:
        owned_job(tx, actor, job_id)
        tx.jobs.set_note(job_id, kept)
    return kept
