"""Members' judge endpoints: tried when they are added, with keys that only the vault can read, and with consent."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from orchestrator.domain.judgements import MAX_ENDPOINTS, JudgeEndpoint
from orchestrator.ports.judges import JudgeAddress, JudgeClient, NoReply
from orchestrator.ports.repository import Transaction
from orchestrator.services.context import Context, new_id
from orchestrator.services.single_flight import SingleFlight
from worker.shared.judge_prompt import MAX_OUTPUT_TOKENS

MAX_KEY = 2_048
MAX_TRIALS = 8
"""Endpoints that are tried at once, because each keeps a thread of the server. One of each member."""
_TRIAL = ({"role": "user", "content": "Reply with the word tie."},)


@dataclass(frozen=True, kw_only=True)
class RunningJudges:
    """What this process does with judge models. `judgements` has a call of each member with a judgement under way.

    All of them end soon after `stopping` is set.

    `trying` has the members with an endpoint that is being tried.
    """

    judgements: SingleFlight[None] = field(default_factory=SingleFlight[None])
    stopping: threading.Event = field(default_factory=threading.Event)
    trying: set[str] = field(default_factory=set[str])
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, kw_only=True)
class JudgingContext:
    """The context of every use case, and the client of judge models."""

    ctx: Context
    client: JudgeClient
    running: RunningJudges = field(default_factory=RunningJudges)


def add(
    context: JudgingContext, actor: Actor, *, name: str, url: str, model: str, key: str = "", consent: bool = False
) -> JudgeEndpoint:
    """Add an endpoint of the actor, after one short request there without any data of the actor's.

    Only an admin's endpoint may be in the server's own network. Raises `InvalidError` if the request fails.
    """
    anywhere = actor.role is Role.ADMIN
    url, key = context.client.check(url, anywhere=anywhere), _plain_key(key)
    with context.ctx.uow() as tx:
        _refuse_taken(tx, actor, name)
    _try(context, actor, JudgeAddress(url=url, model=model, key=key, anywhere=anywhere))
    now = context.ctx.clock.now()
    endpoint = JudgeEndpoint(
        id=new_id("judge", now),
        member_id=actor.member_id,
        name=name,
        url=url,
        model=model,
        created_at=now,
        sealed=context.ctx.vault.seal(key) if key else "",
    )
    if consent:
        _agree(endpoint, actor, now)
    with context.ctx.uow() as tx:
        _refuse_removed(tx, actor)
        _refuse_taken(tx, actor, name)
        if not tx.judge_endpoints.add(endpoint):
            raise ConflictError(_taken(name))
    return endpoint


def replace_key(context: JudgingContext, actor: Actor, endpoint_id: str, key: str) -> JudgeEndpoint:
    """Replace an endpoint's key, after one short request with the new one. The consent stays."""
    key = _plain_key(key)
    with context.ctx.uow() as tx:
        endpoint = own_endpoint(tx, actor, endpoint_id)
    anywhere = actor.role is Role.ADMIN
    _try(context, actor, JudgeAddress(url=endpoint.url, model=endpoint.model, key=key, anywhere=anywhere))
    with context.ctx.uow() as tx:
        endpoint = own_endpoint(tx, actor, endpoint_id)
        endpoint.sealed = context.ctx.vault.seal(key) if key else ""
        tx.judge_endpoints.save(endpoint)
    return endpoint


def consent(ctx: Context, actor: Actor, endpoint_id: str) -> JudgeEndpoint:
    """Record that the actor agrees that prompts and answers of their evaluations are sent to this endpoint."""
    with ctx.uow() as tx:
        endpoint = own_endpoint(tx, actor, endpoint_id)
        if endpoint.consented_at is None:
            _agree(endpoint, actor, ctx.clock.now())
            tx.judge_endpoints.save(endpoint)
    return endpoint


def endpoints(ctx: Context, actor: Actor) -> list[JudgeEndpoint]:
    """The actor's own endpoints."""
    with ctx.uow() as tx:
        return tx.judge_endpoints.of_member(actor.member_id)


def remove(ctx: Context, actor: Actor, endpoint_id: str) -> None:
    """Delete an endpoint with its key. Judgements that use it stop, and their results stay."""
    with ctx.uow() as tx:
        tx.judge_endpoints.delete(own_endpoint(tx, actor, endpoint_id).id)


def own_endpoint(tx: Transaction, actor: Actor, name_or_id: str) -> JudgeEndpoint:
    """One of the actor's endpoints by name or id. Those of others do not exist for them."""
    known = tx.judge_endpoints.of_member(actor.member_id)
    found = next((one for one in known if name_or_id in (one.id, one.name)), None)
    if found is None:
        raise NotFoundError(f"There is no judge endpoint {name_or_id}. List them with `trainhop judge ls`.")
    return found


def _agree(endpoint: JudgeEndpoint, actor: Actor, now: float) -> None:
    endpoint.consented_at, endpoint.consented_by = now, actor.name[:100]


def _plain_key(key: str) -> str:
    key = key.strip()
    if not (key.isascii() and key.isprintable() and len(key) <= MAX_KEY) or " " in key:
        words = f"A key is one word of at most {MAX_KEY} characters."
        raise InvalidError(words, [("/key", words)])
    return key


def _refuse_removed(tx: Transaction, actor: Actor) -> None:
    if tx.members.get_for_share(actor.member_id) is None:
        raise ForbiddenError("You are no longer a member of this server. Ask an admin.")


def _refuse_taken(tx: Transaction, actor: Actor, name: str) -> None:
    known = tx.judge_endpoints.of_member(actor.member_id)
    if any(one.name == name for one in known):
        raise ConflictError(_taken(name))
    if len(known) >= MAX_ENDPOINTS:
        raise ConflictError(f"A member has at most {MAX_ENDPOINTS} judge endpoints. Remove one first.")


def _taken(name: str) -> str:
    return f"You have a judge endpoint named {name} already. Choose another name."


def _try(context: JudgingContext, actor: Actor, where: JudgeAddress) -> None:
    try:
        with _trial(context.running, actor.member_id):
            context.client.ask(where, _TRIAL, MAX_OUTPUT_TOKENS)
    except NoReply as error:
        raise InvalidError(f"{error} The endpoint was not saved. Check address, model and key.") from None


@contextmanager
def _trial(running: RunningJudges, member_id: str) -> Generator[None]:
    with running.lock:
        if member_id in running.trying or len(running.trying) >= MAX_TRIALS:
            raise ConflictError("Another endpoint is being tried. Try again when that has ended.")
        running.trying.add(member_id)
    try:
        yield
    finally:
        with running.lock:
            running.trying.discard(member_id)
