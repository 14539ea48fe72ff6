"""Grants to read a file of this server end with the lease that they were made for.

The store signs the key, and that signature signs the lease. So a store needs to know nothing of leases.
"""

from __future__ import annotations

import hashlib
import hmac

from orchestrator.domain.errors import StaleFenceError
from orchestrator.domain.jobs import Lease
from orchestrator.services.context import Context
from worker.shared.messages import GRANT_HEADER, Grant


def bound(grant: Grant, lease: Lease) -> Grant:
    """The grant, valid while the lease is live. A path, and an address of another host, stay as they are."""
    signature = grant.headers.get(GRANT_HEADER)
    if signature is None:
        return grant
    return grant.model_copy(update={"headers": {**grant.headers, GRANT_HEADER: _signed(signature, lease.id)}})


def is_valid(signature: str, given: str) -> bool:
    """Whether the header was made by `bound` for a key with this signature of its store, or is that signature."""
    lease_id = given.rpartition(".")[0]
    wanted = _signed(signature, lease_id) if lease_id else signature
    return hmac.compare_digest(wanted.encode(), given.encode())


def require_live(ctx: Context, given: str) -> None:
    """Raise `StaleFenceError` unless the lease in the header is live.

    A header without a lease was made before this server was started, by an earlier version. It is valid while a
    session from that time runs.
    """
    lease_id = given.rpartition(".")[0]
    with ctx.uow() as tx:
        lease = tx.leases.get(lease_id) if lease_id else None
        from_before = not lease_id and any(one.created_at < ctx.started_at for one in tx.leases.live())
    if not from_before and (lease is None or not lease.state.is_live):
        raise StaleFenceError("The lease of this grant has ended. Stop the worker.")


def _signed(signature: str, lease_id: str) -> str:
    return f"{lease_id}.{hmac.new(signature.encode(), lease_id.encode(), hashlib.sha256).hexdigest()}"
