"""Which store new files go to, whether it works, and how full it is."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from orchestrator.domain.accounts import Account
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError, TrainhopError, UnavailableError
from orchestrator.domain.storage import StoreConfig
from orchestrator.ports.providers import ProviderUnavailable
from orchestrator.ports.stores import (
    ObjectMissing,
    SignIn,
    Store,
    StoreError,
    StoreFull,
    StoreKind,
    StoreUnavailable,
    SupportsOwner,
)
from orchestrator.services.capacity import is_offline
from orchestrator.services.context import Context
from orchestrator.services.options import checked
from worker.shared import resumable_upload
from worker.shared.certificates import certificates
from worker.shared.messages import GRANT_HEADER, Grant, GrantKind

MAX_NAMED = 3
"""Accounts that an error names."""
PROBE_BYTES = 1024
TRIAL_S = 30.0


class _UploadRefused(StoreUnavailable):
    """Its upload addresses want a sign-in, which no worker has."""


def from_store(error: StoreError) -> TrainhopError:
    """The error that a caller gets if a store fails."""
    if isinstance(error, StoreFull):
        return UnavailableError(f"The store is full: {error}")  # a worker keeps what it has and tries again

    if isinstance(error, ObjectMissing):
        return NotFoundError(str(error))
    return UnavailableError(f"The store does not answer: {error}")


@dataclass(frozen=True, kw_only=True)
class StoreState:
    """One store: whether new files go there, its owner, bytes used and bytes free (None: no limit, or not known).

    `note` says after a check what works in another way than usual.
    """

    name: str
    current: bool
    owner: str = ""
    used: int | None = None
    free: int | None = None
    problem: str = ""
    note: str = ""


def list_stores(ctx: Context) -> list[StoreState]:
    """The local folder and every store that was set up, each with its space at this moment."""
    local, current = ctx.stores.local(), ctx.stores.current().name
    states = [_state(local, StoreConfig(name=local.name, config={}, current=current == local.name, created_at=0.0))]
    return states + [_state(ctx.stores.get(config.name), config) for config in _configs(ctx)]


def _configs(ctx: Context) -> list[StoreConfig]:
    with ctx.uow() as tx:
        return tx.stores.all()


def _state(store: Store, config: StoreConfig) -> StoreState:
    owner = str(config.config.get("owner", ""))
    try:
        usage = store.usage()
    except StoreError as error:
        return StoreState(name=config.name, current=config.current, owner=owner, problem=str(error))
    return StoreState(name=config.name, current=config.current, owner=owner, used=usage.used, free=usage.free)


def check_store(ctx: Context, name: str) -> StoreState:
    """Write, read back and delete a small file. Raises an error that says what does not work. See `_try_out`."""
    state = next((s for s in list_stores(ctx) if s.name == name), None)
    if state is None:
        kind(ctx, name)  # there may be no such store at all
        raise NotFoundError(f"The store {name} is not set up. Run `trainhop store use {name}`.")
    try:
        note = _try_out(ctx, ctx.stores.get(name))
    except StoreError as error:
        raise _in_words(error) from error
    return replace(state, note=note)


def kind(ctx: Context, name: str) -> StoreKind:
    """What a kind of store needs. Raises `NotFoundError`, or `UnavailableError` if its driver did not load."""
    try:
        return ctx.stores.kind(name)
    except StoreError as error:
        raise _in_words(error) from error


def is_set_up(ctx: Context, name: str) -> bool:
    """Whether its options and credentials are known."""
    return any(config.name == name for config in _configs(ctx))


def kinds(ctx: Context) -> list[StoreKind]:
    """The installed kinds of stores by name. Those that do not load are left out."""
    found: list[StoreKind] = []
    for name in sorted(ctx.stores.names()):
        with contextlib.suppress(StoreError):
            found.append(ctx.stores.kind(name))
    return found


def sign_in(ctx: Context, name: str, client: str) -> SignIn:
    """A sign-in at a store with an OAuth client. Raises `InvalidError` if the client or the store is none for it."""
    try:
        return ctx.stores.sign_in(name, client)
    except StoreError as error:
        raise _in_words(error) from error


def finish_sign_in(begun: SignIn, answer: str) -> str:
    """The credentials from the address that the browser was sent to."""
    try:
        return begun.finish(answer)
    except StoreError as error:
        raise _in_words(error) from error


def check_options(ctx: Context, name: str, options: Mapping[str, Any]) -> None:
    """Raise `InvalidError` for options with which the store could not be used."""
    known = {config.name: config.config for config in _configs(ctx)}
    _checked(kind(ctx, name), known.get(name, {}), options)


def use_store(ctx: Context, name: str, credentials: str | None, options: Mapping[str, Any] | None = None) -> StoreState:
    """Test the store, then let new files go there.

    Credentials and options that are left out keep their known values. Raises an error that says what does not work. See
    `_try_out`.
    """
    known = {config.name: config for config in _configs(ctx)}
    if name == ctx.stores.local().name:
        return _back_home(ctx, known)
    needs = kind(ctx, name)
    config = known.get(name) or _fresh(ctx, name)
    config = replace(config, config=config.config | _checked(needs, config.config, options or {}))
    if credentials is not None:
        config = replace(config, credentials=ctx.vault.seal(credentials))
    elif needs.texts.credentials and not config.credentials:
        raise InvalidError(
            f"The store {name} needs credentials. Run `trainhop store use {name} --help`.",
            [("/credentials", "is missing")],
        )
    try:
        with ctx.stores.trial(config) as store:
            owner = store.owner() if isinstance(store, SupportsOwner) else ""
            _take_over(ctx, config, owner)
            note = _try_out(ctx, store)
    except StoreError as error:
        raise _in_words(error) from error
    config = replace(config, config=config.config | {"owner": owner}, current=True, problem="")
    with ctx.uow() as tx:
        tx.stores.put(config)
    ctx.stores.refresh()
    ctx.wake()
    return replace(_state(ctx.stores.get(name), config), note=note)


def _checked(needs: StoreKind, known: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, validated by the store's own schema. Raises `InvalidError`."""
    return checked(needs.options, {**known, **options}, besides=known).model_dump(mode="json")


def _back_home(ctx: Context, known: dict[str, StoreConfig]) -> StoreState:
    with ctx.uow() as tx:
        for config in known.values():
            if config.current:
                tx.stores.put(replace(config, current=False))
    ctx.stores.refresh()
    return list_stores(ctx)[0]


def _fresh(ctx: Context, name: str) -> StoreConfig:
    """A configuration with a folder of its own, so that several servers may use the same account."""
    return StoreConfig(name=name, config={"folder": f"Trainhop {secrets.token_hex(4)}"}, created_at=ctx.clock.now())


def _take_over(ctx: Context, config: StoreConfig, owner: str) -> None:
    """Refuse to move to another person's account while the first one holds files that may be needed."""
    before = config.config.get("owner", owner)
    if before == owner:
        return
    with ctx.uow() as tx:
        kept = tx.stores.count_kept(config.name)
        if kept:
            raise ConflictError(
                f"{kept} files of jobs are stored in the account of {before}. Sign in as {before}, not as {owner}, "
                f"or run `trainhop store use local` until those jobs have ended."
            )
        tx.store_objects.delete_folders(config.name)


def _try_out(ctx: Context, store: Store) -> str:
    """Write, read and delete a small file with the store's credentials, and one as a worker writes it: without.

    A worker that can call this server uploads here if the store refuses it. So a store that refuses workers is accepted
    with a note if all machines can call. Returns the note, or an empty text.
    """
    content, note = secrets.token_bytes(PROBE_BYTES), ""
    with tempfile.NamedTemporaryFile(prefix="trainhop-check-") as file:
        file.write(content)
        file.flush()
        source = Path(file.name)
        _write_and_read(store, content, lambda key: _put(store, key, source))
        try:
            _write_and_read(store, content, lambda key: _upload_as_a_worker(store, key, source))
        except _UploadRefused as refusal:
            note = _through_this_server(ctx, refusal)
    return note


def _write_and_read(store: Store, content: bytes, write: Callable[[str], None]) -> None:
    """Write a file, read it with the store's credentials and as a worker does, and delete it."""
    key = f"checks/{secrets.token_hex(8)}"
    try:
        write(key)
        if b"".join(store.read(key)) != content:
            raise StoreUnavailable("the file read back differs from the one written")
        _read_as_a_worker(store, key, content)
    finally:
        store.delete(key)


def _through_this_server(ctx: Context, refusal: _UploadRefused) -> str:
    """The note about uploads through this server. Raises `StoreUnavailable` if a machine cannot call it."""
    with ctx.uow() as tx:
        offline = sorted(account.name for account in tx.accounts.all() if _is_offline(ctx, account))
    if offline:
        raise StoreUnavailable(
            f"{refusal}. Machines of {', '.join(offline[:MAX_NAMED])} cannot upload to this server instead. "
            "Set TRAINHOP_PUBLIC_URL, remove those accounts (see `trainhop accounts ls`), or use "
            "`trainhop store use local`"
        )
    return f"{refusal}. Machines upload to this server, which stores the files and needs free space for them meanwhile."


def _is_offline(ctx: Context, account: Account) -> bool:
    try:
        return is_offline(ctx, account.provider)
    except ProviderUnavailable:  # its driver did not load, and nothing is known of its machines
        return True


def _put(store: Store, key: str, source: Path) -> None:
    store.put(key, source)


def _upload_as_a_worker(store: Store, key: str, source: Path) -> None:
    """Upload through a grant alone. Raises `_UploadRefused` if that needs a sign-in."""
    grant = store.grant_upload(key, GrantKind.CHECKPOINT, shares_disk=False)
    if grant.resumable:
        _resumably(grant, source)
    elif _is_elsewhere(grant):
        _request("PUT", grant, source.read_bytes())
    else:
        store.put(key, source)


def _read_as_a_worker(store: Store, key: str, content: bytes) -> None:
    """Download through a grant alone. Raises `StoreUnavailable` if that needs a sign-in."""
    sha256 = hashlib.sha256(content).hexdigest()
    grant = store.grant_download(key, GrantKind.CHECKPOINT, sha256=sha256, size=len(content), shares_disk=False)
    if _is_elsewhere(grant) and _request("GET", grant) != content:
        raise StoreUnavailable("the file that a worker reads differs from the one written")


def _is_elsewhere(grant: Grant) -> bool:
    """Whether it is an address of another host. This server uses the store's credentials at its own addresses."""
    return grant.url is not None and GRANT_HEADER not in grant.headers


def _request(method: str, grant: Grant, content: bytes = b"") -> bytes:
    """A plain request to an address of the store. No error names the address, which is a permission."""
    what = "take a file from" if method == "PUT" else "give a file to"
    try:
        reply = httpx.request(
            method, grant.url or "", content=content, headers=grant.headers, timeout=TRIAL_S, verify=certificates()
        )
    except httpx.HTTPError as error:
        raise StoreUnavailable(f"its addresses do not {what} a worker ({type(error).__name__})") from None
    if not reply.is_success:
        is_refused = method == "PUT" and reply.is_client_error and reply.status_code not in resumable_upload.RETRY
        kind_of_error = _UploadRefused if is_refused else StoreUnavailable
        raise kind_of_error(f"its addresses do not {what} a worker, which has no sign-in (HTTP {reply.status_code})")
    return reply.content


def _resumably(grant: Grant, source: Path) -> None:
    try:
        resumable_upload.send(grant.url or "", source, patience=resumable_upload.Patience(attempts=4))
    except resumable_upload.SessionFull as error:
        raise StoreFull(str(error)) from None
    except resumable_upload.SessionGone as error:
        raise _UploadRefused(
            f"its upload addresses do not take a file from a worker, which has no sign-in ({error})"
        ) from None
    except resumable_upload.SessionAway as error:
        raise StoreUnavailable(str(error)) from None


def _in_words(error: StoreError) -> TrainhopError:
    """The error for a person who checks a store: it keeps the store's own words."""
    return UnavailableError(str(error)) if isinstance(error, StoreUnavailable) else from_store(error)
