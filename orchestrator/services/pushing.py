"""Pushes at work: the adapter is read from its store, checked, and published as one commit.

A push that was under way when a server ended begins again. Its id in the commit says whether it had succeeded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.errors import InvalidError, TrainhopError, UnavailableError
from orchestrator.domain.jobs import Job
from orchestrator.domain.pushes import Push, PushState
from orchestrator.ports.publishing import Publication, Published, Publisher
from orchestrator.ports.stores import ObjectMissing, StoreError
from orchestrator.services import model_cards
from orchestrator.services.context import Context
from orchestrator.services.hub_tokens import LOG_IN, token_of
from orchestrator.services.pushes import note
from orchestrator.services.single_flight import SingleFlight
from orchestrator.services.stored_adapters import SPARE_BYTES, unpack_adapter
from worker.shared.adapter_archive import CARD, PROVENANCE, ArchiveError
from worker.shared.files import temporary_folder

log = structlog.get_logger()

RETRY_S = (5.0, 30.0, 120.0, 600.0, 600.0)
"""Waits after failures that may pass. After one more the push has failed."""
LEAST_WAIT_S, MAX_WAIT_S = 1.0, 900.0
"""Bounds of what the hub may ask for with `Retry-After`."""


@dataclass(frozen=True, kw_only=True)
class PushingContext:
    """The context of every use case, the publisher, and the folder for the files of pushes under way.

    `running` has a call of each member with a push under way. A push leaves `spare_bytes` of the server's disk free.
    """

    ctx: Context
    publisher: Publisher
    folder: Path
    spare_bytes: int = SPARE_BYTES
    running: SingleFlight[None] = field(default_factory=SingleFlight[None])


def push_due(context: PushingContext) -> None:
    """Work on the pushes that may send now, one of each member, in threads of their own. Does not wait for them."""
    now = context.ctx.clock.now()
    with context.ctx.uow() as tx:
        due = [push for push in tx.pushes.running() if push.not_before <= now]
    calls = {push.member_id: partial(_work_safely, context, push.id) for push in reversed(due)}
    context.running.gather(calls, patience_s=0.0, on_late=lambda: None)


def _work_safely(context: PushingContext, push_id: str) -> None:
    try:
        work(context, push_id)
    except Exception:
        log.exception("a push failed; retrying in a later round", push=push_id)


def work(context: PushingContext, push_id: str) -> None:
    """Try a push once, if it runs and may send now."""
    ctx = context.ctx
    with ctx.uow() as tx:
        push = tx.pushes.get(push_id)
        job = tx.jobs.get_many([push.job_id]).get(push.job_id) if push is not None else None
        akin = tx.pushes.akin(push) if push is not None else []
    if push is None or job is None or push.state is not PushState.RUNNING or push.not_before > ctx.clock.now():
        return
    try:
        published = _published(context, push, job, akin)
    except UnavailableError as error:
        _wait(ctx, push, error)
    except TrainhopError as error:
        _fail(ctx, push, str(error))
    except Exception:
        log.exception("a push met an unexpected error", push=push_id)
        _wait(ctx, push, UnavailableError("The server had an unexpected error. Its log says more."))
    else:
        _succeed(ctx, push, published)


def _published(context: PushingContext, push: Push, job: Job, akin: list[str]) -> Published:
    token = token_of(context.ctx, push.member_id)
    if token is None:
        raise InvalidError(LOG_IN)
    try:
        context.folder.mkdir(mode=0o700, exist_ok=True)
        with temporary_folder("push-", context.folder) as temporary:
            _write(context, job, push.member_id, temporary)
            return context.publisher.publish(
                Publication(
                    repo=push.repo,
                    folder=temporary / "adapter",
                    push_id=push.id,
                    title=f"Adapter of {job.id} ({push.id})",
                    description=f"Pushed by Trainhop.\n\nadapter sha256: {job.adapter_sha256}",
                    akin=frozenset(akin),
                    is_public=push.is_public,
                    replace=push.replace,
                    token=token,
                )
            )
    except OSError as error:
        raise UnavailableError(f"The server could not write the adapter's files: {error.strerror}.") from error


def _write(context: PushingContext, job: Job, member_id: str, temporary: Path) -> None:
    """Write the folder `adapter`, with card and provenance as of now."""
    ctx = context.ctx
    try:
        folder = unpack_adapter(ctx, job, temporary, context.spare_bytes)
    except ObjectMissing as error:
        raise InvalidError("The adapter's file is missing in its store.") from error
    except StoreError as error:
        raise UnavailableError(f"The store of the adapter does not answer: {error}") from error
    except ArchiveError as error:
        raise InvalidError(f"The stored adapter cannot be pushed. {error}") from error
    owner = Actor(member_id=member_id, name="server", role=Role.MEMBER)
    (folder / CARD).write_text(model_cards.card(ctx, owner, job.id), encoding="utf-8")
    facts = json.dumps(model_cards.provenance(ctx, owner, job.id), ensure_ascii=False, separators=(",", ":"))
    (folder / PROVENANCE).write_text(facts, encoding="utf-8")


def _succeed(ctx: Context, push: Push, published: Published) -> None:
    """Record the commit, also if the push was ended meanwhile."""
    push.state, push.reason, push.finished_at = PushState.PUSHED, "", ctx.clock.now()
    push.commit_id, push.made_commit = published.commit_id, published.is_new
    _end(ctx, push, "job.pushed", f"to {push.repo}", always=True)


def _fail(ctx: Context, push: Push, words: str) -> None:
    push.state, push.reason, push.finished_at = PushState.FAILED, words, ctx.clock.now()
    _end(ctx, push, "job.not_pushed", words)


def _end(ctx: Context, push: Push, kind: str, reason: str, *, always: bool = False) -> None:
    with ctx.uow() as tx:
        job = tx.jobs.get(push.job_id)  # locked before its pushes
        current = tx.pushes.get_for_update(push.id)
        if job is None or current is None or (current.state is not PushState.RUNNING and not always):
            return
        tx.pushes.save(push)
        note(job, push, kind, "server", ctx.clock.now(), reason)
        tx.jobs.save(job)


def _wait(ctx: Context, push: Push, error: UnavailableError) -> None:
    """Try again later, or give up."""
    if push.attempts >= len(RETRY_S):
        _fail(ctx, push, f"{error} It was tried {push.attempts + 1} times. Push again later.")
        return
    wanted = RETRY_S[push.attempts] if error.retry_after_s is None else error.retry_after_s
    with ctx.uow() as tx:
        current = tx.pushes.get_for_update(push.id)
        if current is None or current.state is not PushState.RUNNING:
            return
        current.attempts += 1
        current.reason = str(error)
        current.not_before = ctx.clock.now() + min(max(wanted, LEAST_WAIT_S), MAX_WAIT_S)
        tx.pushes.save(current)
