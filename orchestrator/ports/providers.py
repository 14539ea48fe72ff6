"""What the services need from the outside: the one module that a provider or store driver imports.

ProviderError
├── ProviderUnavailable   does not answer: try later, nothing is known
│   └── CredentialsRefused    nor will it, before the account's owner enters new credentials
├── QuotaExhausted        has no room before `until`
└── LaunchRejected        will never take this launch; `str(error)` is in the provider's own words
StoreError
├── StoreUnavailable      does not answer: try later
├── StoreFull             no space left
└── ObjectMissing         no such object
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from orchestrator.domain.model import Account
from orchestrator.ports.repository import StoreConfig, UnitOfWork
from orchestrator.ports.single_flight import SingleFlight
from worker.shared.memory_estimate import Shape
from worker.shared.messages import Assignment, Grant, GrantKind


class Clock(Protocol):
    """The time of this server."""

    def now(self) -> float:
        """Seconds since the Unix epoch, UTC."""
        ...


# --- providers -------------------------------------------------------------------------------------------


class ProviderError(Exception):
    """A provider could not do what was asked."""


class ProviderUnavailable(ProviderError):
    """It does not answer; nothing is known about what runs there."""


class CredentialsRefused(ProviderUnavailable):
    """It does not accept the account's credentials; `str(error)` says what its owner has to do."""


class QuotaExhausted(ProviderError):
    """It has no room now. `until` is when it will (epoch seconds), None if unknown."""

    def __init__(self, message: str, until: float | None = None) -> None:
        super().__init__(message)
        self.until = until


class LaunchRejected(ProviderError):
    """It refuses this launch for good."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a kind of machine is like.

    `shares_disk`: its workers see the server's files. `same_network`: they can call the server at its own address; others
    need a public one, or are started with everything they need and are only listened to. `personal`: an account there is one
    person's, with credentials in the vault and its owner's consent; others are pools of the installation. `saving_s` is what
    it may take after a session's time is over until the files that it kept can be had, and all of it seems to run. `local`:
    what there is room for is known here, without asking anybody.
    """

    provider: str
    shares_disk: bool
    same_network: bool = True
    personal: bool = False
    saving_s: float = 0.0
    local: bool = False


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What an account offers now: slots, seconds, bytes (of the GPU, if it has one).

    Of a quota of `hours_total`, `hours_left` are left until `refresh_at`. With `any_folder` its machines see the models that
    lie on the server's disk.
    """

    slots: int
    session_s: float
    memory_bytes: int = 0
    gpu: bool = False
    any_folder: bool = True
    start_up_s: float = 60.0
    hours_left: float | None = None
    hours_total: float | None = None
    refresh_at: float | None = None
    closed_reason: str = ""
    open_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """Start a worker for one lease. `token` is the lease's own and the only secret a machine is given.

    Without a `server_url` the machine cannot call: `assignment` then holds all it needs, and `inputs` the files that it
    reads, by grant key, for the driver to bring there.
    """

    lease_id: str
    job_id: str
    account: Account
    token: str
    server_url: str | None
    budget_s: float
    fence: int | None = None
    assignment: Assignment | None = None
    inputs: Mapping[str, Callable[[], Iterator[bytes]]] = field(
        default_factory=dict[str, Callable[[], Iterator[bytes]]]
    )


@dataclass(frozen=True, kw_only=True)
class Handle:
    """How a driver finds its session again, also after a restart of the server."""

    lease_id: str
    account: Account
    external_id: str | None


class Liveness(StrEnum):
    """What a provider says of a session.

    ENDED is certain. UNKNOWN (it does not answer) is not death. UNSEEN means that this kind of machine can only be judged
    by its reports: silence beyond the lease's expiry ends it.
    """

    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"
    UNSEEN = "unseen"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One session as its provider sees it, with its own words where it ended; `failed` if that was by an error of its own."""

    lease_id: str
    liveness: Liveness
    detail: str = ""
    external_id: str | None = None
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """What a session left behind: its messages as JSON lines, oldest first, and files by grant key."""

    messages: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])


class Provider(Protocol):
    """A driver for a kind of machine. Every call may be repeated; none is made inside a database transaction.

    Calls come from several threads at once, those that observe and settle an account's sessions one after the other.
    """

    capabilities: Capabilities

    def room(self, account: Account) -> Capacity:
        """What could start on this account now, leases of ours not deducted."""
        ...

    def launch(self, request: LaunchRequest) -> str:
        """Start a worker and return the external id; the same lease twice starts one worker."""
        ...

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        """What is known of these sessions; UNKNOWN where the provider does not answer."""
        ...

    def stop(self, handle: Handle) -> None:
        """End the session if it still runs; nothing happens if it does not."""
        ...

    def collect(self, handle: Handle) -> Leftovers:
        """What an ended session left behind."""
        ...

    def forget(self, handle: Handle) -> None:
        """The lease is over and everything is collected: remove what is left, keep the log."""
        ...

    def erase(self, handle: Handle) -> None:
        """Remove the log too, once everything else is forgotten; nothing happens if there is none."""
        ...

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        """Bytes of the session's output from `offset`, or None if this driver keeps none."""
        ...


@runtime_checkable
class SupportsLogs(Protocol):
    """What a driver adds whose machines cannot call the server: their words are read from the session's output."""

    def follow(self, handle: Handle) -> Iterator[str]:
        """Lines of the session's output from its beginning, as they appear, until it ends; again from the start each time."""
        ...


@runtime_checkable
class SupportsCheck(Protocol):
    """What a driver adds whose accounts have credentials."""

    def check(self, account: Account) -> str:
        """Who the credentials sign in as, in words; raises `CredentialsRefused` or `ProviderUnavailable`."""
        ...


@runtime_checkable
class SupportsIdentity(Protocol):
    """What a driver adds that can tell whose an account is: none may be connected for two people."""

    def login(self, account: Account) -> str:
        """The same words for the same person, and nobody else's; empty where that cannot be told.

        Raises `CredentialsRefused` or `ProviderUnavailable`.
        """
        ...


class Vault(Protocol):
    """Keeps credentials at rest: what is sealed can be read by this installation alone."""

    def seal(self, secret: str) -> str:
        """The secret, encrypted and authenticated, as text."""
        ...

    def open(self, sealed: str) -> str:
        """The secret; raises `VaultError` if it was sealed with another key or altered."""
        ...


class VaultError(Exception):
    """A sealed secret cannot be opened with this installation's key."""


# --- stores ----------------------------------------------------------------------------------------------


class StoreError(Exception):
    """The store could not do what was asked."""


class StoreUnavailable(StoreError):
    """It does not answer."""


class StoreFull(StoreError):
    """No space is left; free some or enlarge it."""


class ObjectMissing(StoreError):
    """There is no such object."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object as read back from the store: bytes and the hash of what really lies there."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes used by us and bytes left (None: unlimited)."""

    used: int
    free: int | None


class Store(Protocol):
    """Where files live. Keys are chosen by the server: lower-case letters, digits, `-`, `_`, `.` and `/`."""

    name: str

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        """Permission to write `key` once."""
        ...

    def grant_download(self, key: str, kind: GrantKind, *, sha256: str, size: int, shares_disk: bool) -> Grant:
        """Permission to read `key`."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Read back size and sha256; raises `ObjectMissing`."""
        ...

    def head(self, key: str, size: int) -> bytes:
        """The first `size` bytes (fewer if the object is shorter)."""
        ...

    def put(self, key: str, source: Path) -> ObjectInfo:
        """Store a file under `key`; the same bytes twice is no error."""
        ...

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        """The object in chunks, from the byte `start`, which is none beyond its end."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens if it is not there."""
        ...

    def keys(self, prefix: str) -> list[str]:
        """What lies in the folder `prefix` (it ends in a slash), uploads that broke off included."""
        ...

    def usage(self) -> Usage:
        """Space used and left."""
        ...


@runtime_checkable
class SupportsOwner(Protocol):
    """What a store adds that lies in a person's account."""

    def owner(self) -> str:
        """Whose it is, in the account's own words."""
        ...


@runtime_checkable
class SupportsDocuments(Protocol):
    """What a store adds whose owner can get at it from anywhere: small texts that both sides replace, and addresses."""

    def address(self, key: str) -> str:
        """Where the owner, signed in, reads this object; raises `ObjectMissing`."""
        ...

    def notebook_link(self, key: str) -> str:
        """Where the owner's browser opens this object as a notebook; raises `ObjectMissing`."""
        ...

    def read_document(self, key: str) -> str: ...
    def write_document(self, key: str, text: str) -> None:
        """Replace the text, under the same address, or make it."""
        ...


# --- what the server itself brings along -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model as it will be loaded: its pinned name and, where they can be told, its parameters and shape."""

    name: str
    parameters: int | None = None
    shape: Shape | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """A dataset brought to this server."""

    path: Path
    name: str


ROWS_SHOWN = 5
ROWS_MEASURED = 100_000


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token as text, or several that are one character; None for tokens that are not shown. `cut` is never read."""

    text: str | None
    tokens: int
    trained: bool
    cut: bool


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """A row in tokens: all of it, what is trained on, what is cut off, and how much of that would have been trained on."""

    pieces: tuple[Piece, ...]
    tokens: int
    trained: int
    cut: int
    cut_trained: int


@dataclass(frozen=True, kw_only=True)
class TokenLook:
    """Rows as a session would train on them; `lengths` in tokens of as many rows as there was time for.

    `untrained` rows have nothing left to learn once they are cut; `fault` is what the session would fail with; `away` says
    why nothing could be looked at.
    """

    shown: tuple[TokenRow, ...] = ()
    lengths: Sequence[int] = ()
    untrained: int = 0
    fault: str = ""
    away: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file of a model on the hub: its bytes if it is small, or a `url` that needs no sign-in for a while."""

    name: str
    sha256: str
    size: int
    url: str | None = field(default=None, repr=False)
    data: bytes | None = field(default=None, repr=False)


class Catalog(Protocol):
    """Where models and datasets named in a job are looked up, with a member's hub `token` if there is one.

    Raises `InvalidError` in words for what cannot be had, and `UnavailableError` while the hub does not answer.
    """

    def model(self, name: str, token: str | None = None) -> BaseModel:
        """A hub id pinned to a commit, or a folder the operator has allowed."""
        ...

    def dataset(self, path: str, split: str, token: str | None = None) -> DatasetFile:
        """A file of a hub dataset, or one in a folder the operator has allowed."""
        ...

    def files(self, name: str, token: str) -> Sequence[ModelFile]:
        """What a machine reads of a gated or private model; nothing of one that it can fetch by itself."""
        ...

    def whose(self, token: str) -> str:
        """The name of the hub account that a token belongs to."""
        ...


@dataclass(frozen=True, kw_only=True)
class ProviderEntry:
    """A registered driver, or the reason why it is not available."""

    name: str
    provider: Provider | None
    problem: str = ""


class Providers(Protocol):
    """The registered drivers."""

    def get(self, name: str) -> Provider:
        """The driver; raises `ProviderUnavailable` with the reason if it did not load."""
        ...

    def entries(self) -> Iterable[ProviderEntry]: ...


class Stores(Protocol):
    """The stores in use."""

    def local(self) -> Store:
        """The folder of this server, where datasets always are."""
        ...

    def current(self) -> Store:
        """Where new checkpoints and adapters go."""
        ...

    def get(self, name: str) -> Store:
        """The store of this name; one that cannot be used raises `StoreUnavailable` with the reason when it is."""
        ...

    def trial(self, config: StoreConfig) -> AbstractContextManager[Store]:
        """A store by a configuration that is not in use yet; raises `StoreUnavailable` or `InvalidError`."""
        ...

    def refresh(self) -> None:
        """Configurations have changed: look at them before the next call."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Numbers the services go by, in seconds.

    `lease_s` without a report makes a worker suspect; `start_grace_s` is what a machine may take to its first call;
    `stop_grace_s` what a worker may take to obey before its provider is told to end it; `mtbf_s` the mean time between
    losses that save cadence is tuned to; `offer_ttl_s` after which an offer that was never committed is garbage.
    `most_uploads` are opened in advance for a machine that cannot ask for more; it saves more rarely in a long session.
    `patience_s` is how long one account's silence may hold up what is done for the others.
    """

    lease_s: float = 60.0
    report_every_s: float = 15.0
    start_grace_s: float = 180.0
    stop_grace_s: float = 45.0
    mtbf_s: float = 21_600.0
    offer_ttl_s: float = 3_600.0
    most_uploads: int = 64
    patience_s: float = 3.0
    trusted_models: frozenset[str] = frozenset()


class Tokens(Protocol):
    """Makes and hashes secrets."""

    def new(self) -> str:
        """A fresh API token."""
        ...

    def for_lease(self, lease_id: str) -> str:
        """The lease's token: a keyed function of its id, so that it need not be stored to be sent again."""
        ...

    def hash(self, token: str) -> str:
        """What the database keeps instead of the token."""
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """Everything a use case needs, handed in by the composition root.

    `started_at` is when this server came up, or awoke with its computer: silence before it proves nothing. `server_url` is where machines of this network
    call, `public_url` (if any) where all others may. `wake` asks for a dispatch soon; `spawn` runs a slow call aside (at once in tests); `launching` holds the leases whose
    launch is under way in this process, which reconciling must leave alone. `rooms` and `settling` are the calls to accounts
    that are under way: what they have room for, and what went wrong with their sessions.
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
    launching: set[str] = field(default_factory=set[str])
    rooms: SingleFlight[Capacity] = field(default_factory=SingleFlight[Capacity])
    settling: SingleFlight[list[Exception]] = field(default_factory=SingleFlight[list[Exception]])
