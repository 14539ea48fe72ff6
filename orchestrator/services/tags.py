"""Tags of jobs: words by which their owners find them again."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.domain.accounts import Actor
from orchestrator.services.access import owned_job
from orchestrator.services.context import Context

MAX_TAGS = 20
TAG = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$"


def set_tags(ctx: Context, actor: Actor, job_id: str, tags: Iterable[str]) -> list[str]:
    """Replace the tags of the actor's job. Returns them in their order, each once."""
    kept = sorted(set(tags))
    with ctx.uow() as tx:
        owned_job(tx, actor, job_id)
        tx.jobs.set_tags(job_id, kept)
    return kept
