"""Tags of jobs: words by which their owners find them again."""

from __future__ import annotations

import re
from collections.abc import Iterable

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError
from orchestrator.services.access import owned_job
from orchestrator.services.context import Context

MAX_TAGS = 20
TAG = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$"


def add_tag(ctx: Context, actor: Actor, job_id: str, tag: str) -> list[str]:
    """Add a tag to the actor's job. Returns its tags. Raises `InvalidError` for a tag that is none, or one too many."""
    if not re.fullmatch(TAG, tag):
        raise InvalidError("A tag has 1 to 50 letters, digits, dots, underscores and hyphens, and no spaces.")
    with ctx.uow() as tx:
        owned_job(tx, actor, job_id)
        kept = sorted({*tx.jobs.tags(job_id), tag})
        if len(kept) > MAX_TAGS:
            raise InvalidError(f"Job {job_id} has {MAX_TAGS} tags, and more are not possible.")
        tx.jobs.set_tags(job_id, kept)
    return kept


def set_tags(ctx: Context, actor: Actor, job_id: str, tags: Iterable[str]) -> list[str]:
    """Replace the tags of the actor's job. Returns them in their order, each once."""
    kept = sorted(set(tags))
    with ctx.uow() as tx:
        owned_job(tx, actor, job_id)
        tx.jobs.set_tags(job_id, kept)
    return kept
