"""Trying an account out before its first job: starting a check, keeping what it found, and clearing away what it left."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Generator
from typing import Any, cast

from orchestrator.domain import diagnosis
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from orchestrator.domain.model import Account
from orchestrator.ports.diagnosis import CheckOrder, Examined, SupportsDiagnosis
from orchestrator.ports.providers import Context, CredentialsRefused, ProviderError, Store, StoreError, SupportsIdentity
from orchestrator.services.accounts import owned
from orchestrator.services.ids import new_id
from orchestrator.services.jobs import Actor
from worker.doctor.outcome import DRIVE_UPLOAD, PROBES, Outcome, attempt
from worker.doctor.uploads import SIZES, uploads
from worker.shared.messages import GrantKind

Json = dict[str, Any]
MAX_AT_ONCE = 3
"""Checks under way on this server: each holds a thread that launches need, too."""
MAX_CHECK_S = 1800.0
_HIDDEN = re.compile(
    r"https?://[^\s'\"]+|host='[^']*'|[\w.+-]+@[\w.-]+\.\w+|/(?:home|Users)/[^/\s]+|\b\d+\.\d+\.\d+\.\d+\b"
)
"""Addresses of all kinds, and homes that are named after people."""


def start(ctx: Context, actor: Actor, account_id: str, *, gpu: bool, probes: frozenset[str] | None = None) -> Account:
    """Begin a check of this account; what it finds is read with `read`. Raises `ConflictError` while one is under way."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
        _provider(ctx, account)
        if account.consented_at is None and account.member_id is not None:
            raise ConflictError(
                f"nothing may run on {account.name} before its owner agrees (trainhop accounts consent)"
            )
        if _is_running(ctx, account):
            raise ConflictError(f"a check of {account.name} is under way; it takes minutes")
        if sum(_is_running(ctx, other) for other in tx.accounts()) >= MAX_AT_ONCE:
            raise UnavailableError(f"{MAX_AT_ONCE} other checks are under way; try again in some minutes")
        left = [*account.image.get("left", ()), *_ids(account.image.get("running"))]
        check = new_id("check", now)
        running: Json = {"check": check, "at": now, "gpu": gpu, "seen": []}
        account.image = {k: v for k, v in account.image.items() if k != "problem"} | {"running": running, "left": left}
        tx.save_account(account)
    asked = frozenset(PROBES) if probes is None else probes
    ctx.spawn(lambda: _run(ctx, account, check, gpu=gpu, probes=asked))
    return read(ctx, actor, account_id)


def read(ctx: Context, actor: Actor, account_id: str) -> Account:
    """The account with its checks, for its owner and admins; a check that a stopped server was at is not running any more."""
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
    if "running" in account.image and not _is_running(ctx, account):
        problem = "the server was stopped during the check; start it again"
        account.image = {k: v for k, v in account.image.items() if k != "running"} | {"problem": problem}
    return account


def clear_left(ctx: Context) -> None:
    """Delete what checks left at their providers that could not be deleted, or whose server was stopped."""
    with ctx.uow() as tx:
        found = [a for a in tx.accounts() if a.image.get("left") or "running" in a.image]
    for account in found:
        if not _is_running(ctx, account):
            _clear(ctx, account, [*account.image.get("left", ()), *_ids(account.image.get("running"))])


def keep(account: Account, found: Examined, *, check: str, machine: str, at: float, names: set[str]) -> None:
    """Make this the account's known image, judged; what may tell who it belongs to is hidden."""
    probes = diagnosis.judged([o.as_dict() for o in found.outcomes])
    kept = {"check": check, "at": at, "image": found.image, "versions": dict(found.versions), "probes": probes}
    image = {k: v for k, v in account.image.items() if k not in ("running", "changed", "problem")}
    account.image = image | {machine: hidden(kept, names)}


def _provider(ctx: Context, account: Account) -> SupportsDiagnosis:
    provider = ctx.providers.get(account.provider)
    if not isinstance(provider, SupportsDiagnosis):
        words = f"machines of {account.provider} have no check that can be started from here"
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
    """The check itself, in a thread of its own; whatever happens, it is not running afterwards, and is cleared."""
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
        problem = f"the check could not be made: {error}"
    except Exception as error:  # noqa: BLE001  told where people look
        problem = f"the check failed ({type(error).__name__}: {error})"
    names = _names(ctx, account)
    with ctx.uow() as tx:
        current = tx.account(account.id)
        if current is not None:
            current.image = _without_run(current.image, check)
            if found is not None:
                keep(current, found, check=check, machine=machine, at=ctx.clock.now(), names=names)
            else:
                current.image |= {"problem": str(hidden(problem, names))}
            current.image |= {"left": [*current.image.get("left", ()), check]}
            tx.save_account(current)
    _clear(ctx, account, [check])
    ctx.wake()


def _without_run(image: dict[str, Any], check: str) -> dict[str, Any]:
    mine = image.get("running", {}).get("check") == check
    return {k: v for k, v in image.items() if not (k == "running" and mine)}


def _tell(ctx: Context, account: Account, check: str, found: Outcome) -> None:
    """One more probe has ended; shown while the check goes on."""
    (probe,) = diagnosis.judged([found.as_dict()])
    with ctx.uow() as tx:
        current = tx.account(account.id)
        running: Json = current.image.get("running", {}) if current is not None else {}
        if current is None or running.get("check") != check:
            return
        seen: list[Json] = [p for p in running["seen"] if p["name"] != found.name]
        seen.append(hidden(probe, _known_names(current)))
        current.image = {**current.image, "running": {**running, "seen": seen}}
        tx.save_account(current)


def _clear(ctx: Context, account: Account, checks: list[str]) -> None:
    """Delete what these checks left; those that could not be cleared are kept in mind."""
    done: list[str] = []
    for check in dict.fromkeys(checks):
        with contextlib.suppress(ProviderError, InvalidError):
            _provider(ctx, account).clear_check(account, check)
            done.append(check)
    with ctx.uow() as tx:
        current = tx.account(account.id)
        if current is None:
            return
        stale = current.image.get("running", {}).get("check") in checks
        left = [c for c in dict.fromkeys([*current.image.get("left", ()), *checks]) if c not in done]
        image = {k: v for k, v in current.image.items() if k != "left" and not (k == "running" and stale)}
        current.image = image | ({"left": left} if left else {})
        tx.save_account(current)


def try_uploads(ctx: Context, name: str) -> Json:
    """Send two small files to the store as a machine would, without signing in; a judged probe. Nothing of them stays."""
    with ctx.uow() as tx:
        known = {config.name for config in tx.store_configs()}
    if name not in known:
        raise NotFoundError(f"there is no store {name} here; set it up with trainhop store use {name}")
    store = ctx.stores.get(name)
    with _sessions(store) as addresses:
        if len(addresses) != len(SIZES):
            raise UnavailableError("the store opened no upload session; see what it says: trainhop store check")
        (probe,) = diagnosis.judged([attempt(DRIVE_UPLOAD, lambda: uploads(addresses)).as_dict()])
    return probe


@contextlib.contextmanager
def _uploads(ctx: Context) -> Generator[tuple[str, ...]]:
    """Upload sessions in the store that machines write to; none where it is this server's folder."""
    store = ctx.stores.current()
    if store.name == ctx.stores.local().name:
        yield ()
        return
    with _sessions(store) as addresses:
        yield tuple(addresses)


@contextlib.contextmanager
def _sessions(store: Store) -> Generator[list[str]]:
    """Two upload sessions; what was sent to them is deleted afterwards."""
    keys = [f"checks/{secrets.token_hex(8)}" for _ in SIZES]
    try:
        yield upload_addresses(store, keys)
    finally:
        for key in keys:
            with contextlib.suppress(StoreError):
                store.delete(key)


def upload_addresses(store: Store, keys: list[str]) -> list[str]:
    """Where a file under each key can be sent to, by whoever knows the address; none where the store is out of reach."""
    try:
        granted = [store.grant_upload(key, GrantKind.CHECKPOINT, shares_disk=False) for key in keys]
    except StoreError:
        return []
    return [grant.url for grant in granted if grant.url and grant.resumable]


def _known_names(account: Account) -> set[str]:
    return {account.name, str(account.config.get("username", ""))}


def _names(ctx: Context, account: Account) -> set[str]:
    """By what a reader could tell whose account it is."""
    names = _known_names(account)
    with ctx.uow() as tx:
        names |= {m.name for m in tx.members() if m.id == account.member_id}
    provider = ctx.providers.get(account.provider)
    if isinstance(provider, SupportsIdentity):
        with contextlib.suppress(ProviderError):
            names.add(provider.login(account))
    return {name for name in names if len(name) > 2}


def hidden(value: Any, names: set[str]) -> Any:
    """JSON in which no text names a person, an account or an address."""
    if isinstance(value, dict):
        return {k: hidden(v, names) for k, v in cast("Json", value).items()}
    if isinstance(value, list):
        return [hidden(v, names) for v in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value
    text = _HIDDEN.sub("***", value)
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}\b", "***", text, flags=re.IGNORECASE) if name else text
    return text
