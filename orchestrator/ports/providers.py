"""The interface of providers: what the server gives a driver, what it calls, and the errors that a driver may raise.

A driver imports this module and nothing else of the server. It is a class that is found by an entry point of the group
`trainhop.providers` and made with a `DriverEnv`.

ProviderError
├── ProviderUnavailable   it does not answer: nothing is known, try later
│   └── CredentialsRefused    it will not answer until the account's owner enters new credentials
├── QuotaExhausted        no room before `until`
└── LaunchRejected        it refuses this launch for good, `str(error)` is in the provider's own words
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.domain.accounts import Account
from orchestrator.domain.jobs import Lease
from orchestrator.domain.scheduling import Capacity
from orchestrator.ports.system import Clock, Loopback, Vault, VaultError
from worker.doctor.outcome import PROBES, Outcome
from worker.shared.messages import Assignment

__all__ = [
    "Account",
    "AccountSettings",
    "Capabilities",
    "Capacity",
    "CheckOrder",
    "Clock",
    "CredentialsRefused",
    "DriverEnv",
    "DriverSettings",
    "Examined",
    "Handle",
    "LaunchRejected",
    "LaunchRequest",
    "Liveness",
    "Loopback",
    "Observation",
    "Provider",
    "ProviderEntry",
    "ProviderError",
    "ProviderTexts",
    "ProviderUnavailable",
    "Providers",
    "QuotaExhausted",
    "SessionOutput",
    "SupportsCheck",
    "SupportsDiagnosis",
    "SupportsIdentity",
    "SupportsLogs",
    "Vault",
    "VaultError",
]
MAX_SLOTS = 1000
MAX_SESSION_S = 30 * 86_400.0
S = TypeVar("S", bound="DriverSettings")


class ProviderError(Exception):
    """A provider could not do what was requested."""


class ProviderUnavailable(ProviderError):
    """It does not answer. Nothing is known about what runs there."""


class CredentialsRefused(ProviderUnavailable):
    """It does not accept the account's credentials. `str(error)` says what its owner has to do."""


class QuotaExhausted(ProviderError):
    """It has no room before `until` (epoch seconds, None if unknown)."""

    def __init__(self, message: str, until: float | None = None) -> None:
        super().__init__(message)
        self.until = until


class LaunchRejected(ProviderError):
    """It refuses this launch for good."""


# --- what a driver is given, and how it describes itself ---


class DriverSettings(BaseModel):
    """The operator's settings of one driver, read from variables named `TRAINHOP_NAME_KEY`.

    A driver adds keys by a subclass with a `description` for each. A key named `endpoint` is the address of an
    emulator.
    """

    model_config = ConfigDict(frozen=True)


class AccountSettings(BaseModel):
    """The settings that an account's owner makes. A driver adds keys by a subclass with a `description` for each."""

    slots: Annotated[int, Field(ge=0, le=MAX_SLOTS, description="How many sessions may run at once.")] = 1
    session_s: Annotated[
        float, Field(gt=0, le=MAX_SESSION_S, allow_inf_nan=False, description="Longest session, in seconds.")
    ] = 12 * 3600.0
    env: dict[str, str] = Field(default_factory=dict, description="Variables that a worker starts with.")


@dataclass(frozen=True, kw_only=True)
class ProviderTexts:
    """What people read about a kind of machine. Each text is one or two sentences, or empty.

    `title` is its name as it is written. `machines` says what it offers. `credentials` says what the owner enters and
    where to create it. `connect` is the command that connects an account. `terms` says what its terms of use allow and
    forbid. `page` is the address where the owner creates the credentials, and `steps` say what to click there.
    """

    title: str = ""
    machines: str = ""
    credentials: str = ""
    connect: str = ""
    terms: str = ""
    page: str = ""
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DriverEnv:
    """Everything that the server gives a driver.

    `folder` is the driver's own, and only this user may read it. `vault` opens an account's sealed credentials.
    `endpoint` is the address of an emulator on this computer, None for the real provider. `notify` may be called from
    any thread when a session has ended. `can_deliver` says whether remote machines can deliver their files. With
    `offline` workers must not call the Hugging Face hub. Otherwise they call `hub_endpoint` in its place, if it is set.
    `instance_id` is this server's own. A driver stops nothing that another instance started.
    """

    folder: Path
    vault: Vault
    clock: Clock
    settings: DriverSettings = field(default_factory=DriverSettings)
    endpoint: str | None = None
    notify: Callable[[], None] = lambda: None
    can_deliver: Callable[[], bool] = lambda: True
    offline: bool = False
    hub_endpoint: str | None = None
    instance_id: str = ""

    def read(self, schema: type[S]) -> S:
        """The settings as the driver's own schema."""
        return schema.model_validate(self.settings.model_dump())


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Properties of a kind of machine.

    `shares_disk`: its workers can read the server's files. `same_network`: they can call the server at its own address.
    Other workers need a public address. Without one they are started with everything they need, and the server only
    reads their messages. `personal`: an account there belongs to one person and has credentials in the vault and its
    owner's consent. Accounts of other providers are pools of the installation. `saving_s` is how long it may take after
    the end of a session until the session's files are available. The session seems to run until then. `local`: the free
    room is known here without a remote call. `this_computer`: its machines are processes of the server's own computer.
    A new installation begins with a pool there, and a launch for which the disk has no room has started nothing.
    `notebooks`: sessions in notebooks that people open themselves, in any editor, are counted here. Exactly one
    registered driver sets it. `free_of_charge`: no session there costs money. Otherwise the cost is not known.
    """

    provider: str
    shares_disk: bool
    same_network: bool = True
    personal: bool = False
    saving_s: float = 0.0
    local: bool = False
    this_computer: bool = False
    notebooks: bool = False
    free_of_charge: bool = False


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """Start a worker for one lease. `token` is the lease's own and the only secret that a machine is given.

    Without a `server_url` the machine cannot call. `assignment` then holds all it needs. `inputs` holds the files that
    it reads, by grant key, for the driver to copy to the machine. With `exports` the session exports an adapter
    and needs no GPU, with `chats` it answers questions. Both need more of the worker's code (`worker.shared.wheel`).
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
    exports: bool = False
    chats: bool = False


@dataclass(frozen=True, kw_only=True)
class Handle:
    """Identifies a driver's session, also after a restart of the server. `lease_id` is the lease that it launched."""

    lease_id: str
    account: Account
    external_id: str | None

    @classmethod
    def of(cls, lease: Lease, account: Account | None) -> Handle:
        """The handle of a lease's session. `account` is None if it was removed."""
        removed = Account(
            id=lease.account_id, provider=lease.provider, member_id=None, name="removed", config={}, created_at=0.0
        )
        return cls(lease_id=lease.session, account=account or removed, external_id=lease.external_id)


class Liveness(StrEnum):
    """What a provider reports about a session.

    ENDED is certain. UNKNOWN means that the provider does not answer, and the session may still run. UNSEEN means that
    this kind of machine can only be judged by its reports: silence beyond the lease's expiry ends it.
    """

    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"
    UNSEEN = "unseen"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One session as its provider sees it.

    `detail` holds the provider's own words once the session ended. `failed` says that it ended by an error of its own.
    """

    lease_id: str
    liveness: Liveness
    detail: str = ""
    external_id: str | None = None
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class SessionOutput:
    """What a session left behind: its messages as JSON lines, oldest first, and files by grant key."""

    messages: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])


class Provider(Protocol):
    """A driver for a kind of machine. Every call may be repeated. None is made inside a database transaction.

    Calls come from several threads at once. Calls that observe and settle the sessions of one account come one after
    the other. A driver that names this class as its base inherits the defaults here. `folder_name` is the name of its
    folder in the data folder. If it is empty, the folder is `drivers/NAME`.
    """

    capabilities: Capabilities
    texts: ProviderTexts = ProviderTexts()
    account_settings: type[AccountSettings] = AccountSettings
    settings: ClassVar[type[DriverSettings]] = DriverSettings
    folder_name: ClassVar[str] = ""

    def capacity(self, account: Account) -> Capacity:
        """What could start on this account now. Leases of ours are not deducted."""
        ...

    def launch(self, request: LaunchRequest) -> str:
        """Start a worker and return the external id. The same lease twice starts one worker."""
        ...

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        """What is known of these sessions. UNKNOWN where the provider does not answer."""
        ...

    def stop(self, handle: Handle) -> None:
        """End the session if it still runs. Otherwise nothing happens."""
        ...

    def collect_outputs(self, handle: Handle) -> SessionOutput:
        """What an ended session left behind."""
        ...

    def clean_up(self, handle: Handle) -> None:
        """Delete what is left of a session, except its log. The lease is over and everything is collected."""
        ...

    def delete_log(self, handle: Handle) -> None:
        """Delete the log too, after everything else. Nothing happens if there is none."""
        ...

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        """Bytes of the session's output from `offset`, or None if this driver keeps none."""
        ...


@runtime_checkable
class SupportsLogs(Protocol):
    """What a driver adds if its machines cannot call the server.

    The server reads their messages in the session's output.
    """

    def follow(self, handle: Handle) -> Iterator[str]:
        """Lines of the session's output from its beginning, as they appear, until it ends.

        Each call begins again at the start.
        """
        ...


@runtime_checkable
class SupportsCheck(Protocol):
    """What a driver adds if its accounts have credentials."""

    def check(self, account: Account) -> str:
        """The owner of the credentials, in words. Raises `CredentialsRefused` or `ProviderUnavailable`."""
        ...


@runtime_checkable
class SupportsIdentity(Protocol):
    """What a driver adds if it can identify the owner of an account, so that no account is connected for two people."""

    def login(self, account: Account) -> str:
        """A text that is the same for the same person and differs between people. Empty where the owner is unknown.

        Raises `CredentialsRefused` or `ProviderUnavailable`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CheckOrder:
    """One check. `token` signs the machine's messages and opens nothing. `uploads` are addresses of upload sessions."""

    id: str
    token: str
    gpu: bool
    probes: frozenset[str] = frozenset(PROBES)
    uploads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Result of a check: the image, its installed packages (name and version), and the outcome of each probe."""

    image: str
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    outcomes: tuple[Outcome, ...] = ()


@runtime_checkable
class SupportsDiagnosis(Protocol):
    """What a driver adds if it can check an account on a machine of its own, before any job runs there.

    Both calls raise `ProviderError` like every other call of a driver.
    """

    def diagnose(self, account: Account, order: CheckOrder, tell: Callable[[Outcome], None]) -> Examined:
        """Run the probes of `order`, which takes minutes.

        `tell` gets each outcome as the probe ends, from any thread.
        """
        ...

    def clear_check(self, account: Account, check_id: str) -> None:
        """Delete what that check left at the provider. Nothing happens if nothing is there."""
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
        """The driver. Raises `ProviderUnavailable` with the reason if it did not load."""
        ...

    def entries(self) -> Iterable[ProviderEntry]: ...
