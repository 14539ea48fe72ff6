"""Everything outside that a use case needs, in one object, and the ids of new things."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.ports.catalog import Catalog, Looks, PieceCount, Verdict
from orchestrator.ports.providers import Capacity, Providers
from orchestrator.ports.repository import UnitOfWork
from orchestrator.ports.stores import Stores
from orchestrator.ports.system import Clock, Limits, Tokens, Vault
from orchestrator.ports.tracking import Trackers
from orchestrator.services.running_checks import RunningChecks
from orchestrator.services.running_exports import RunningExports
from orchestrator.services.single_flight import SingleFlight

if TYPE_CHECKING:
    from orchestrator.services.adapter_files import AdapterFiles
    from worker.shared.start_adapter import StartAdapter

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, kw_only=True)
class Context:
    """Everything a use case needs. The composition root creates it.

    `started_at` is when this server started, or woke up with its computer. Silence before that time proves nothing.
    `instance_id` is this server's own. Machines of this network call `server_url`, all others `public_url` (if any).
    `wake` triggers a dispatch soon.
    `spawn` runs a slow call in another thread (at once in tests). `launching` holds the leases that this process is
    launching now, which reconciling must not touch. `rooms` holds running calls for the capacity of accounts. `storing`
    has the keys of received files that are being put into their store. `settling` holds running calls that settle
    sessions of accounts, and what went wrong in them. `looks` shows rows in tokens, if this server can. `verdicts`
    holds what it has found, by model, data and settings, and `piece_counts` the pieces of texts. `checks` holds running
    data checks and `exports` the exports of adapters, if this server makes them. `start_adapters` has what was read of
    adapters to continue from, by their key in the store. `trackers` are what `report_to` can name.
    `benchmarks` has the sha256 and the number of items of each benchmark at a commit that was used here.
    """

    uow: UnitOfWork
    clock: Clock
    providers: Providers
    stores: Stores
    catalog: Catalog
    tokens: Tokens
    limits: Limits
    vault: Vault
    server_url: Callable[[], str]
    public_url: str | None
    wake: Callable[[], None]
    spawn: Callable[[Callable[[], None]], None]
    started_at: float
    instance_id: str = ""
    looks: Looks | None = None
    checks: RunningChecks | None = None
    exports: RunningExports | None = None
    trackers: Trackers | None = None
    verdicts: dict[tuple[object, ...], Verdict] = field(default_factory=dict[tuple[object, ...], Verdict])
    piece_counts: dict[tuple[object, ...], PieceCount] = field(default_factory=dict[tuple[object, ...], PieceCount])
    start_adapters: dict[str, tuple[StartAdapter, AdapterFiles]] = field(
        default_factory=dict[str, "tuple[StartAdapter, AdapterFiles]"]
    )
    benchmarks: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict[tuple[str, str], tuple[str, int]])
    launching: set[str] = field(default_factory=set[str])
    storing: dict[str, object] = field(default_factory=dict[str, object])
    rooms: SingleFlight[Capacity] = field(default_factory=SingleFlight[Capacity])
    settling: SingleFlight[list[Exception]] = field(default_factory=SingleFlight[list[Exception]])


def new_id(prefix: str, now: float) -> str:
    """For example `job-01kaz5v9h4q7rtw2`: prefix, milliseconds since the epoch (9 characters), 7 random characters."""
    return first_id(prefix, now) + "".join(_ALPHABET[byte & 31] for byte in secrets.token_bytes(7))


def first_id(prefix: str, at: float) -> str:
    """An id that sorts before every id made since then."""
    stamp = int(at * 1000)
    return f"{prefix}-" + "".join(_ALPHABET[(stamp >> shift) & 31] for shift in range(40, -1, -5))
