"""Files that workers upload to this server, which puts them into their store with its own rights.

Workers that do not see the server's disk upload to the local store like this. All others do if their store refuses the
addresses that it gave out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.domain.errors import ConflictError, StaleFenceError, UnavailableError
from orchestrator.domain.jobs import Lease
from orchestrator.ports.stores import ObjectInfo, ObjectMissing
from orchestrator.services.context import Context
from orchestrator.services.leases import lease_prefix
from worker.shared.checkpoint_file import sha256_file


def may_upload(ctx: Context, key: str) -> None:
    """Raise `StaleFenceError` once the lease of this key has ended, which closes its folder.

    Raises `UnavailableError` while an earlier upload of the same file is being stored.
    """
    _require_live(ctx, key)
    if key in ctx.storing:
        raise _still_stored(key)


def _require_live(ctx: Context, key: str) -> None:
    named = re.fullmatch(r"jobs/([^/]+)/f(\d+)/[^/]+", key)
    with ctx.uow() as tx:
        lease = tx.leases.live_of_job(named[1]) if named else None
    if named is None or lease is None or lease.fence != int(named[2]):
        raise StaleFenceError(f"The lease of {key} has ended. Stop the worker.")


def store_once(ctx: Context, key: str, put: Callable[[], bool]) -> None:
    """Store a received file. `put` returns False if the key has other bytes, which raises `ConflictError`.

    The same bytes again succeed. The worker keeps its file until it has the answer, so a crash in between costs
    nothing. The lease is not cleaned up before its last file is stored (see `is_storing`), so none stays behind.
    """
    with _alone(ctx, key):
        if not put():
            raise ConflictError(f"The file {key} already exists with different bytes.")


def is_storing(ctx: Context, lease: Lease) -> bool:
    """Whether a file of this lease is being stored now."""
    return any(key.startswith(lease_prefix(lease)) for key in tuple(ctx.storing))


def put_once(ctx: Context, store_name: str, key: str, path: Path) -> bool:
    """Put the file into a store. Returns False and changes nothing if `key` has other bytes. Raises `StoreError`."""
    store = ctx.stores.get(store_name)
    wanted = ObjectInfo(key=key, size=path.stat().st_size, sha256=sha256_file(path))
    try:
        return store.stat(key) == wanted
    except ObjectMissing:
        return store.put(key, path) == wanted


@contextmanager
def _alone(ctx: Context, key: str) -> Generator[None]:
    """Mark the key as being stored. The lease is looked at after that, so a clean-up sees one of the two."""
    me = object()
    if ctx.storing.setdefault(key, me) is not me:
        raise _still_stored(key)
    try:
        _require_live(ctx, key)
        yield
    finally:
        del ctx.storing[key]


def _still_stored(key: str) -> UnavailableError:
    return UnavailableError(f"The file {key} is still being stored. Try again.")
