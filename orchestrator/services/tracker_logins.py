"""Members' logins at experiment trackers: encrypted, used only by this server, and never passed on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.errors import ForbiddenError, InvalidError, NotFoundError
from orchestrator.domain.tracking import SealedLogin, TrackerLogin
from orchestrator.ports.system import VaultError
from orchestrator.ports.tracking import Trackers
from orchestrator.services.context import Context
from worker.shared.report_to import TRACKERS

MAX_KEY = 2_048
MAX_URL = 500
MAX_PROJECT = 100


@dataclass(frozen=True, kw_only=True)
class TrackerState:
    """A tracker as its member may see it. `problem` says why it cannot be used, with the remedy, or is empty."""

    tracker: str
    stored: bool
    url: str = ""
    project: str = ""
    problem: str = ""


def set_login(ctx: Context, actor: Actor, tracker: str, *, key: str, url: str, project: str) -> TrackerState:
    """Keep the actor's login and discard an earlier one. Raises `InvalidError` if it cannot be one."""
    _refuse_unknown(tracker)
    login = TrackerLogin(
        url=url.strip().rstrip("/"),
        key=_plain(key, "key", "/key", MAX_KEY),
        project=project.strip(),
        is_trusted=actor.role is Role.ADMIN,
    )
    if set(login.url) & set("@?# ") or len(login.url) > MAX_URL or len(login.project) > MAX_PROJECT:
        words = "An address has no user, no query and no spaces. Give the token as the key."
        raise InvalidError(words, [("/url", words)])
    if words := _trackers(ctx).fault(tracker, login):
        raise InvalidError(words, [("/tracker", words)])
    sealed = ctx.vault.seal(json.dumps(asdict(login)))
    with ctx.uow() as tx:
        if tx.members.get_for_share(actor.member_id) is None:
            raise ForbiddenError("You are no longer a member of this server. Ask an admin.")
        tx.tracking.put_login(SealedLogin(member_id=actor.member_id, tracker=tracker, sealed=sealed))
    return TrackerState(tracker=tracker, stored=True, url=login.url, project=login.project)


def forget_login(ctx: Context, member_id: str, tracker: str) -> None:
    """Delete a member's login. Nothing happens if there is none."""
    _refuse_unknown(tracker)
    with ctx.uow() as tx:
        tx.tracking.delete_login(member_id, tracker)


def states(ctx: Context, member_id: str) -> list[TrackerState]:
    """All trackers, with what of the member's logins may be shown: never the key."""
    found = list[TrackerState]()
    for tracker in TRACKERS:
        try:
            login = login_of(ctx, member_id, tracker)
        except InvalidError as error:
            found.append(TrackerState(tracker=tracker, stored=True, problem=str(error)))
            continue
        known = login or TrackerLogin()
        problem = _trackers(ctx).fault(tracker, login)
        stored = login is not None
        found.append(
            TrackerState(tracker=tracker, stored=stored, url=known.url, project=known.project, problem=problem)
        )
    return found


def refuse_unwritable(ctx: Context, member_id: str, trackers: Iterable[str]) -> None:
    """Raise `InvalidError` unless this server can write to all of these with the member's logins."""
    for tracker in trackers:
        try:
            words = _trackers(ctx).fault(tracker, login_of(ctx, member_id, tracker))
        except InvalidError as error:
            words = str(error)
        if words:
            raise InvalidError(words, [("/report_to", words)])


def login_of(ctx: Context, member_id: str, tracker: str) -> TrackerLogin | None:
    """The member's login for one run, or None. Must not be called inside a transaction."""
    with ctx.uow() as tx:
        kept = tx.tracking.login(member_id, tracker)
    if kept is None:
        return None
    try:
        return TrackerLogin(**json.loads(ctx.vault.open(kept.sealed)))
    except VaultError as error:
        again = f"Set it again with `trainhop trackers set {tracker}`."
        words = f"Your login for {tracker} could not be decrypted ({error}). {again}"
        raise InvalidError(words, [("/report_to", words)]) from error


def _trackers(ctx: Context) -> Trackers:
    if ctx.trackers is None:
        raise InvalidError("This server does not write to experiment trackers.", [("/report_to", "is not possible")])
    return ctx.trackers


def _refuse_unknown(tracker: str) -> None:
    if tracker not in TRACKERS:
        raise NotFoundError(f"There is no tracker {tracker[:64]}. There are {', '.join(TRACKERS)}.")


def _plain(text: str, what: str, pointer: str, most: int) -> str:
    text = text.strip()
    if not (text.isascii() and text.isprintable() and len(text) <= most) or " " in text:
        words = f"A {what} is one word of at most {most} characters."
        raise InvalidError(words, [(pointer, words)])
    return text
