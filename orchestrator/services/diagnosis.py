"""Checks of an account before its first job: start a check, keep its results, delete what it left."""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Generator
from typing import Any

from orchestrator.domain import diagnosis
from orchestrator.domain.accounts import Account, Actor
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from orchestrator.ports.providers import (
    CheckOrder,
    CredentialsRefused,
    Examined,
    ProviderError,
    SupportsDiagnosis,
    SupportsIdentity,
)
from orchestrator.ports.stores import Store, StoreError
from orchestrator.services.accounts import owned
from orchestrator.services.context import Context, new_id
from orchestrator.services.hidden_names import hidden
from orchestrator.services.stores import kind
from worker.doctor.outcome import DRIVE_UPLOAD, PROBES, Outcome, attempt
from worker.doctor.uploads import SIZES, uploads
from worker.shared.messages import GrantKind

Json = dict[str, Any]
MAX_AT_ONCE = 3
"""Maximum of checks that run on this server. Each one holds a thread that launches need, too."""
MAX_CHECK_S = 1800.0


def start(ctx: Context, actor: Actor, account_id: str, *, gpu: bool, probes: frozenset[str] | None = None) -> Account:
    """Start a check of this account. `read` returns its results. Raises `ConflictError` while another one runs."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
        _provider(ctx, account)
        if account.consented_at is None and account.member_id is not None:
            raise ConflictError(
                f"The owner of {account.name} has not allowed sessions yet. The owner runs "
                f"`trainhop accounts consent {shlex.quote(account.name)}`."
            )
        if _is_running(ctx, account):
            raise ConflictError(f"A check of {account.name} is already running. Wait a few minutes.")
        if sum(_is_running(ctx, other) for other in tx.accounts.all()) >= MAX_AT_ONCE:
            raise UnavailableError(f"{MAX_AT_ONCE} other checks are running. Try again in a few minutes.")
        left = [*account.image.get("left", ()), *_ids(account.image.get("running"))]
        check = new_id("check", now)
        running: Json = {"check": check, "at": now, "gpu": gpu, "seen": []}
        account.image = {k: v for k, v in account.image.items() if k != "problem"} | {"running": running, "left": left}
        tx.accounts.save(account)
    chosen = frozenset(PROBES) if probes is None else probes
    ctx.spawn(lambda: _run(ctx, account, check, gpu=gpu, probes=chosen))
    return read(ctx, actor, account_id)


def read(ctx: Context, actor: Actor, account_id: str) -> Account:
    """The account with its checks, for its owner and admins.

    A check that an earlier run of the server started does not count as running.
    """
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
    if "running" in account.image and not _is_running(ctx, account):
        problem = "The server stopped during the check. Start the check again."
        account.image = {k: v for k, v in account.image.items() if k != "running"} | {"problem": problem}
    return account


def clear_left(ctx: Context) -> None:
    """Delete what checks left at their providers because a deletion failed or the server was stopped."""
    with ctx.uow() as tx:
        found = [a for a in tx.accounts.all() if a.image.get("left") or "running" in a.image]
    for account in found:
        if not _is_running(ctx, account):
            _clear(ctx, account, [*account.image.get("left", ()), *_ids(account.image.get("running"))])


def keep(account: Account, found: Examined, *, check: str, machine: str, at: float, names: set[str]) -> None:
    """Judge the results and keep them as the account's known image. Anything that may identify its owner is hidden."""
    probes = diagnosis.judged([o.as_dict() for o in found.outcomes])
    kept = {"check": check, "at": at, "image": found.image, "versions": dict(found.versions), "probes": probes}
    image = {k: v for k, v in account.image.items() if k not in ("running", "changed", "problem")}
    account.image = image | {machine: hidden(kept, names)}


def _provider(ctx: Context, account: Account) -> SupportsDiagnosis:
    provider = ctx.providers.get(account.provider)
    if not isinstance(provider, SupportsDiagnosis):
        words = f"The server cannot check machines of {account.provider}. See `trainhop doctor --help`."
        raise InvalidError(words, [("/account", words)])
    return provider


def _is_running(ctx: Context, account: Account) -> bool:
    running = account.image.get("running")
    if running is None:
        return False
    return running["at"] >= ctx.started_at and ctx.clock.now() < running["at"] + MAX_CHECK_S


def _ids(running: dict[str, Any] | None) -> list[str]:
    return [] if running is None else [running["check"]]


def _run(ctx: Context, account: Account, check: str, *, gpu: bool, probes: frozenset[str]) -> None:
    """Run the check in a thread of its own. Afterwards it never counts as running, and what it left is deleted."""
    machine, problem, found = "gpu" if gpu else "cpu", "", None
    try:
        provider = _provider(ctx, account)
        if left := account.image.get("left"):
            _clear(ctx, account, left)
        with _uploads(ctx) as uploads:
            token = ctx.tokens.for_lease(check)
            order = CheckOrder(id=check, token=token, gpu=gpu, probes=probes, uploads=uploads)
            found = provider.diagnose(account, order, lambda o: _tell(ctx, account, check, o))
    except CredentialsRefused as error:
        problem = str(error)
    except ProviderError as error:
        problem = f"The check could not be started: {error}"
    except Exception as error:  # noqa: BLE001  recorded as the account's problem
        problem = f"The check failed ({type(error).__name__}: {error})"
    names = _names(ctx, account)
    with ctx.uow() as tx:
        current = tx.accounts.get(account.id)
        if current is not None:
            current.image = _without_run(current.image, check)
            if found is not None:
                keep(current, found, check=check, machine=machine, at=ctx.clock.now(), names=names)
            else:
                current.image |= {"problem": str(hidden(problem, names))}
            current.image |= {"left": [*current.image.get("left", ()), check]}
            tx.accounts.save(current)
    _clear(ctx, account, [check])
    ctx.wake()


def _without_run(image: dict[str, Any], check: str) -> dict[str, Any]:
    mine = image.get("running", {}).get("check") == check
    return {k: v for k, v in image.items() if not (k == "running" and mine)}


def _tell(ctx: Context, account: Account, check: str, found: Outcome) -> None:
    """Show the result of one more probe while the check still runs."""
    (probe,) = diagnosis.judged([found.as_dict()])
    with ctx.uow() as tx:
        current = tx.accounts.get(account.id)
        running: Json = current.image.get("running", {}) if current is not None else {}
        if current is None or running.get("check") != check:
            return
        seen: list[Json] = [p for p in running["seen"] if p["name"] != found.name]
        seen.append(hidden(probe, _known_names(current)))
        current.image = {**current.image, "running": {**running, "seen": seen}}
        tx.accounts.save(current)


def _clear(ctx: Context, account: Account, checks: list[str]) -> None:
    """Delete what these checks left. Those for which that fails are recorded."""
    done: list[str] = []
    for check in dict.fromkeys(checks):
        with contextlib.suppress(ProviderError, InvalidError):
            _provider(ctx, account).clear_check(account, check)
            done.append(check)
    with ctx.uow() as tx:
        current = tx.accounts.get(account.id)
        if current is None:
            return
        stale = current.image.get("running", {}).get("check") in checks
        left = [c for c in dict.fromkeys([*current.image.get("left", ()), *checks]) if c not in done]
        image = {k: v for k, v in current.image.items() if k != "left" and not (k == "running" and stale)}
        current.image = image | ({"left": left} if left else {})
        tx.accounts.save(current)


def try_uploads(ctx: Context, name: str) -> Json:
    """Upload two small files to the store as a machine would, without signing in. Returns a judged probe.

    Both files are deleted afterwards.
    """
    with ctx.uow() as tx:
        known = {config.name for config in tx.stores.all()}
    if name not in known:
        kind(ctx, name)  # there may be no such store at all
        raise NotFoundError(f"The store {name} is not set up. Run `trainhop store use {name}`.")
    store = ctx.stores.get(name)
    with _sessions(store) as addresses:
        if len(addresses) != len(SIZES):
            raise UnavailableError("The store opened no upload session. Find the cause with `trainhop store check`.")
        (probe,) = diagnosis.judged([attempt(DRIVE_UPLOAD, lambda: uploads(addresses)).as_dict()])
    return probe


@contextlib.contextmanager
def _uploads(ctx: Context) -> Generator[tuple[str, ...]]:
    """Upload sessions in the store that machines write to. None if that is this server's folder."""
    store = ctx.stores.current()
    if store.name == ctx.stores.local().name:
        yield ()
        return
    with _sessions(store) as addresses:
        yield tuple(addresses)


@contextlib.contextmanager
def _sessions(store: Store) -> Generator[list[str]]:
    """Two upload sessions. Their files are deleted afterwards."""
    keys = [f"checks/{secrets.token_hex(8)}" for _ in SIZES]
    try:
        yield upload_addresses(store, keys)
    finally:
        for key in keys:
            with contextlib.suppress(StoreError):
                store.delete(key)


def upload_addresses(store: Store, keys: list[str]) -> list[str]:
    """Upload addresses, one for each key, that need no sign-in. Empty if the store cannot be reached."""
    try:
        granted = [store.grant_upload(key, GrantKind.CHECKPOINT, shares_disk=False) for key in keys]
    except StoreError:
        return []
    return [grant.url for grant in granted if grant.url and grant.resumable]


def _known_names(account: Account) -> set[str]:
    return {account.name, str(account.config.get("username", ""))}


def _names(ctx: Context, account: Account) -> set[str]:
    """Texts from which a reader could identify the owner of the account."""
    names = _known_names(account)
    with ctx.uow() as tx:
        names |= {m.name for m in tx.members.all() if m.id == account.member_id}
    provider = ctx.providers.get(account.provider)
    if isinstance(provider, SupportsIdentity):
        with contextlib.suppress(ProviderError):
            names.add(provider.login(account))
    return {name for name in names if len(name) > 2}
