"""Which store new files go to, whether it works, and how full it is."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from orchestrator.ports.providers import Context, Store, StoreError, StoreUnavailable, SupportsOwner
from orchestrator.ports.repository import StoreConfig
from orchestrator.services.errors import from_store

PROBE_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class StoreState:
    """One store: whether new files go there, whose it is, bytes used and free (None: no limit, or not known)."""

    name: str
    current: bool
    owner: str = ""
    used: int | None = None
    free: int | None = None
    problem: str = ""


def list_stores(ctx: Context) -> list[StoreState]:
    """The local folder and every store that was set up, asked for its space now."""
    local, current = ctx.stores.local(), ctx.stores.current().name
    found = [_state(local, StoreConfig(name=local.name, config={}, current=current == local.name, created_at=0.0))]
    return found + [_state(ctx.stores.get(config.name), config) for config in _configs(ctx)]


def _configs(ctx: Context) -> list[StoreConfig]:
    with ctx.uow() as tx:
        return tx.store_configs()


def _state(store: Store, config: StoreConfig) -> StoreState:
    owner = str(config.config.get("owner", ""))
    try:
        usage = store.usage()
    except StoreError as error:
        return StoreState(name=config.name, current=config.current, owner=owner, problem=str(error))
    return StoreState(name=config.name, current=config.current, owner=owner, used=usage.used, free=usage.free)


def check_store(ctx: Context, name: str) -> StoreState:
    """Write, read back and delete a small file; raises in words what does not work."""
    found = next((s for s in list_stores(ctx) if s.name == name), None)
    if found is None:
        raise NotFoundError(f"there is no store {name} here; set it up with trainhop store use {name}")
    try:
        _try_out(ctx.stores.get(name))
    except StoreError as error:
        raise _in_words(error) from error
    return found


def use_store(ctx: Context, name: str, credentials: str | None) -> StoreState:
    """Let new files go to this store from now on, after it has been tried out with these credentials (or the known ones)."""
    known = {config.name: config for config in _configs(ctx)}
    if name == ctx.stores.local().name:
        return _back_home(ctx, known)
    config = known.get(name) or _fresh(ctx, name)
    if credentials is not None:
        config = replace(config, credentials=ctx.vault.seal(credentials))
    elif not config.credentials:
        raise InvalidError(f"the store {name} needs credentials", [("/credentials", "is missing")])
    try:
        with ctx.stores.trial(config) as store:
            owner = store.owner() if isinstance(store, SupportsOwner) else ""
            _take_over(ctx, config, owner)
            _try_out(store)
    except StoreError as error:
        raise _in_words(error) from error
    config = replace(config, config=config.config | {"owner": owner}, current=True, problem="")
    with ctx.uow() as tx:
        tx.put_store_config(config)
    ctx.stores.refresh()
    ctx.wake()
    return _state(ctx.stores.get(name), config)


def _back_home(ctx: Context, known: dict[str, StoreConfig]) -> StoreState:
    with ctx.uow() as tx:
        for config in known.values():
            if config.current:
                tx.put_store_config(replace(config, current=False))
    ctx.stores.refresh()
    return list_stores(ctx)[0]


def _fresh(ctx: Context, name: str) -> StoreConfig:
    """A folder of its own, so that several servers may use the same account."""
    return StoreConfig(name=name, config={"folder": f"Trainhop {secrets.token_hex(4)}"}, created_at=ctx.clock.now())


def _take_over(ctx: Context, config: StoreConfig, owner: str) -> None:
    """Refuse to move to another person's account while files that may be needed lie in the first one's."""
    before = config.config.get("owner", owner)
    if before == owner:
        return
    with ctx.uow() as tx:
        kept = tx.kept_in_store(config.name)
        if kept:
            raise ConflictError(
                f"{kept} files of jobs lie in the account of {before}; sign in as {before}, not as {owner}, "
                f"or use `trainhop store use local` until those jobs are done"
            )
        tx.forget_store_folders(config.name)


def _try_out(store: Store) -> None:
    content = secrets.token_bytes(PROBE_BYTES)
    key = f"checks/{secrets.token_hex(8)}"
    with tempfile.NamedTemporaryFile(prefix="trainhop-check-") as file:
        file.write(content)
        file.flush()
        store.put(key, Path(file.name))
    try:
        if b"".join(store.read(key)) != content:
            raise StoreUnavailable("what was written was not what was read back")
    finally:
        store.delete(key)


def _in_words(error: StoreError) -> Exception:
    """A store that was looked at on purpose: its own words are what the person wants to read."""
    return UnavailableError(str(error)) if isinstance(error, StoreUnavailable) else from_store(error)
