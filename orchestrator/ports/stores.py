"""The interface of stores: what the server gives a driver of a store, what it calls, and the errors it may raise.

A driver imports this module and nothing else of the server. It is a class that is found by an entry point of the group
`trainhop.stores` and made with a `StoreEnv`.

StoreError
├── StoreUnavailable      does not answer: try later
├── StoreFull             no space left
└── ObjectMissing         no such object
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from orchestrator.domain.errors import InvalidError
from orchestrator.domain.storage import StoreConfig
from orchestrator.ports.system import Loopback
from worker.shared.messages import Grant, GrantKind

__all__ = [
    "Grant",
    "GrantKind",
    "InvalidError",
    "Links",
    "Loopback",
    "ObjectIds",
    "ObjectInfo",
    "ObjectMissing",
    "Store",
    "StoreConfig",
    "StoreEnv",
    "StoreError",
    "StoreFull",
    "StoreKind",
    "StoreOptions",
    "StoreSettings",
    "StoreTexts",
    "StoreUnavailable",
    "Stores",
    "SupportsDocuments",
    "SupportsOwner",
    "Usage",
]


class StoreError(Exception):
    """The store could not do what was requested."""


class StoreUnavailable(StoreError):
    """It does not answer."""


class StoreBusy(StoreUnavailable):
    """It deletes nothing now, because a backup reads it. Try again."""


class StoreFull(StoreError):
    """No space is left. Free some or enlarge the store."""


class ObjectMissing(StoreError):
    """There is no such object."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object as read back from the store: size in bytes and the hash of the stored bytes."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes used by us and bytes left (None: unlimited)."""

    used: int
    free: int | None


# --- what a driver is given, and how it describes itself ---


class StoreSettings(BaseModel):
    """The operator's settings of one store, read from variables named `TRAINHOP_NAME_KEY`.

    A driver adds keys by a subclass with a `description` for each. A key named `endpoint` is the address of an
    emulator.
    """

    model_config = ConfigDict(frozen=True)


class StoreOptions(BaseModel):
    """What an admin chooses when a store is set up. A driver adds keys by a subclass with a `description` for each."""


@dataclass(frozen=True, kw_only=True)
class StoreTexts:
    """What people read about a store: its name as it is written, and what to enter as credentials.

    A store without a text for `credentials` needs none.
    """

    title: str = ""
    credentials: str = ""


class Links(Protocol):
    """Links to this server for objects. Each is valid for one key of one store in one direction."""

    def signature(self, direction: str, key: str, store: str) -> str:
        """The value of the `X-Grant` header for this direction (`get` or `put`), key and store."""
        ...

    def upload(self, key: str, kind: GrantKind, store: str) -> Grant:
        """Permission to write the key once."""
        ...

    def download(self, key: str, kind: GrantKind, store: str, *, sha256: str, size: int) -> Grant:
        """Permission to read the key."""
        ...


class ObjectIds(Protocol):
    """Ids that a store has given to its keys, kept in the server's database. Folders have keys that end in a slash."""

    def get(self, key: str) -> str | None:
        """The key's id, or None."""
        ...

    def claim(self, key: str, ident: str) -> str:
        """Give the key this id for good, unless it has one. Returns the id of the key."""
        ...

    def forget(self, key: str, ident: str) -> None:
        """Delete the key's id if it is this one."""
        ...

    def keys(self, prefix: str) -> list[str]:
        """Keys in this folder that have an id."""
        ...


@dataclass(frozen=True, kw_only=True)
class StoreEnv:
    """Everything that the server gives a store.

    `folder` is the store's own folder on the server's disk. `config` holds the admin's options, and under `folder` a
    name that no other installation uses. `endpoint` is the address of an emulator on this computer, None for the real
    service. `report_problem` keeps in words what a person must correct. An empty text means that the problem is solved.
    `has_problem` says whether a problem is kept.
    """

    name: str
    folder: Path
    links: Links
    ids: ObjectIds
    settings: StoreSettings = field(default_factory=StoreSettings)
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    credentials: str = field(default="", repr=False)
    endpoint: str | None = None
    report_problem: Callable[[str], None] = lambda _: None
    has_problem: bool = False


@dataclass(frozen=True, kw_only=True)
class StoreKind:
    """A registered driver: how a store is made, and the `settings`, `options` and `texts` of its class."""

    name: str
    make: Callable[[StoreEnv], Store]
    settings: type[StoreSettings] = StoreSettings
    options: type[StoreOptions] = StoreOptions
    texts: StoreTexts = field(default_factory=StoreTexts)


class Store(Protocol):
    """Where files are stored. The server chooses keys of lower-case letters, digits, `-`, `_`, `.` and `/`."""

    name: str

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        """Permission to write `key` once."""
        ...

    def grant_download(self, key: str, kind: GrantKind, *, sha256: str, size: int, shares_disk: bool) -> Grant:
        """Permission to read `key`."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Read back size and sha256. Raises `ObjectMissing`."""
        ...

    def head(self, key: str, size: int) -> bytes:
        """The first `size` bytes (fewer if the object is shorter)."""
        ...

    def put(self, key: str, source: Path) -> ObjectInfo:
        """Store a file under `key`. Storing the same bytes twice is not an error."""
        ...

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        """The object in chunks from the byte `start`. Beyond the object's end there are none."""
        ...

    def delete(self, key: str) -> None:
        """Delete the object. Nothing happens if it does not exist."""
        ...

    def keys(self, prefix: str) -> list[str]:
        """Keys in the folder `prefix` (which ends in a slash), including those of uploads that broke off."""
        ...

    def usage(self) -> Usage:
        """Space used and left."""
        ...


@runtime_checkable
class SupportsOwner(Protocol):
    """What a store adds if it is in a person's account."""

    def owner(self) -> str:
        """The owner, in the account's own words."""
        ...


@runtime_checkable
class SupportsDocuments(Protocol):
    """What a store adds if its owner can read it from anywhere: addresses, and small texts that both sides replace.

    `notebook_editor` names the editor that opens a notebook in this store.
    """

    notebook_editor: str

    def address(self, key: str) -> str:
        """The address where the signed-in owner reads this object. Raises `ObjectMissing`."""
        ...

    def notebook_link(self, key: str) -> str:
        """The address at which the owner's browser opens this object as a notebook. Raises `ObjectMissing`."""
        ...

    def read_document(self, key: str) -> str: ...
    def write_document(self, key: str, text: str) -> None:
        """Replace the text under the same address, or create it."""
        ...


class Stores(Protocol):
    """The stores in use."""

    def local(self) -> Store:
        """The folder of this server, where datasets always are."""
        ...

    def current(self) -> Store:
        """The store of new checkpoints and adapters."""
        ...

    def get(self, name: str) -> Store:
        """The store of this name. If it cannot be used, its calls raise `StoreUnavailable` with the reason."""
        ...

    def names(self) -> Iterable[str]:
        """The registered kinds of store."""
        ...

    def kind(self, name: str) -> StoreKind:
        """The kind of this name. Raises `NotFoundError`, or `StoreUnavailable` if its driver did not load."""
        ...

    def trial(self, config: StoreConfig) -> AbstractContextManager[Store]:
        """A store with a configuration that is not in use yet. Raises `StoreUnavailable` or `InvalidError`."""
        ...

    def refresh(self) -> None:
        """Read the configurations again before the next call, because they have changed."""
        ...
