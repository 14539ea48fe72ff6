"""What the services need of a database: one open transaction, and what is kept that is no noun of the domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.model import Account, Checkpoint, Event, Job, Lease, Member, OneTimeCode, Role, StepTime
from worker.shared.messages import MetricRow, Reading, Sample


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An uploaded file, kept once by its sha256; `key` is its place in the server's own store, never used again for another.

    `name` and `member_id` are those of the first upload.
    """

    sha256: str
    size: int
    file_format: str
    row_format: str
    rows: int
    name: str
    member_id: str
    created_at: float
    key: str


@dataclass(frozen=True, kw_only=True)
class Upload:
    """That a member has brought a file, and what they called it."""

    id: str
    sha256: str
    member_id: str
    name: str
    created_at: float


@dataclass(frozen=True, kw_only=True)
class TokenInfo:
    """An API token without its secret."""

    id: str
    member_id: str
    role: Role
    name: str
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """A store that was set up: the driver's `config`, its sealed `credentials`, whether new files go there.

    `problem` says in words what a person must put right before it can be used again.
    """

    name: str
    config: dict[str, Any]
    credentials: str = field(default="", repr=False)
    current: bool = False
    problem: str = ""
    created_at: float


class Transaction(Protocol):
    """One open transaction. Reads see what was written in it; everything or nothing is kept."""

    # jobs
    def job(self, job_id: str) -> Job | None:
        """The job, locked against others until the transaction ends."""
        ...

    def add_job(self, job: Job) -> None: ...
    def save_job(self, job: Job) -> None:
        """Write the job and its new events."""
        ...

    def typical_step_time(self, base_model: str, tokens_per_step: int) -> StepTime:
        """What a step took last in jobs with this model and this many tokens per step."""
        ...

    def typical_checkpoint_bytes(self, base_model: str, lora_r: int) -> int | None: ...
    def has_queued(self) -> bool:
        """Whether any job is queued, ready or not."""
        ...

    def queued(self, limit_per_member: int, now: float) -> list[Job]:
        """The best queued jobs of every member by priority and age, and those with a deadline."""
        ...

    # leases
    def lease(self, lease_id: str) -> Lease | None: ...
    def live_lease(self, job_id: str) -> Lease | None: ...
    def live_leases(self) -> list[Lease]: ...
    def uncollected_leases(self) -> list[Lease]:
        """Ended leases whose machine may still hold something of ours."""
        ...

    def leases_of(self, job_id: str) -> list[Lease]:
        """All that the job has had."""
        ...

    def leases_on(self, account_id: str, limit: int) -> list[Lease]:
        """The newest on an account, newest first."""
        ...

    def live_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Live leases by member id and by account id."""
        ...

    def add_lease(self, lease: Lease) -> None: ...
    def save_lease(self, lease: Lease) -> None: ...
    def note_external_id(self, lease_id: str, external_id: str) -> None: ...
    def note_collected(self, lease_id: str, at: float) -> None: ...

    # checkpoints
    def checkpoint(self, job_id: str, sha256: str) -> Checkpoint | None: ...
    def checkpoints(self, job_id: str, state: CheckpointState | None = None) -> list[Checkpoint]: ...
    def add_checkpoint(self, checkpoint: Checkpoint) -> None: ...
    def save_checkpoint(self, checkpoint: Checkpoint) -> None: ...
    def stale_offers(self, before: float) -> list[Checkpoint]:
        """Checkpoints still OFFERED since before that time."""
        ...

    def undeleted_checkpoints(self) -> list[Checkpoint]:
        """Those that nobody goes on from and whose object has not been deleted yet (their `key` is not empty).

        A damaged one stays while it is its job's head: a job without any other fails on it again, in words.
        """
        ...

    def is_in_use(self, store: str, key: str) -> bool:
        """Whether any job still counts on this object. What is not, never is again: only a kept checkpoint is cloned."""
        ...

    # what workers tell
    def add_metrics(
        self, job_id: str, lease: Lease, rows: Sequence[MetricRow], at: float, *, replace: bool = True
    ) -> None:
        """By (job, step, name): a step run again replaces what was there, unless only what is missing is wanted."""
        ...

    def add_samples(self, job_id: str, samples: Sequence[Sample], at: float) -> None: ...
    def add_reading(self, lease_id: str, at: float, step: int, reading: Reading) -> None: ...
    def forget_records(self, job_id: str) -> None:
        """Remove the job's metrics, samples and readings, and whom to tell of it."""
        ...

    # people
    def member(self, member_id: str) -> Member | None:
        """The member, removed or not."""
        ...

    def member_by_name(self, name: str) -> Member | None: ...
    def members(self) -> list[Member]:
        """All that were not removed."""
        ...

    def hold_member(self, member_id: str) -> Member | None:
        """The member unless they were removed; nobody can do that before this transaction ends."""
        ...

    def lock_members(self, *member_ids: str) -> list[Member]:
        """Those of them that were not removed; nobody else can hold or lock them before this transaction ends."""
        ...

    def add_member(self, member: Member) -> None: ...
    def save_member(self, member: Member) -> None: ...
    def remove_member(self, member: Member) -> None:
        """Write the member; forget their tokens, their accounts and where they wanted to be told of what."""
        ...

    def unended_jobs(self, member_id: str) -> list[Job]: ...
    def account(self, account_id: str) -> Account | None: ...
    def accounts(self) -> list[Account]: ...
    def add_account(self, account: Account) -> None: ...
    def save_account(self, account: Account) -> None: ...
    def delete_account(self, account_id: str) -> None: ...
    def add_token(self, token: TokenInfo, token_hash: str) -> None: ...
    def token(self, token_hash: str) -> TokenInfo | None: ...
    def tokens(self, member_id: str | None = None) -> list[TokenInfo]: ...
    def delete_token(self, token_id: str) -> None: ...

    # claims
    def claim(self, code_hash: str) -> OneTimeCode | None:
        """The claim, locked against others until the transaction ends."""
        ...

    def add_claim(self, claim: OneTimeCode) -> None: ...
    def save_claim(self, claim: OneTimeCode) -> None: ...
    def open_mailboxes(self) -> list[OneTimeCode]:
        """Claims whose notebook speaks through documents."""
        ...

    def forget_claims(self, before: float) -> None:
        """Remove claims that expired before that time."""
        ...

    # stores
    def store_configs(self) -> list[StoreConfig]: ...
    def put_store_config(self, config: StoreConfig) -> None:
        """Add or replace the store of this name; a current one takes over from the one before."""
        ...

    def store_object(self, store: str, key: str) -> str | None:
        """The id that a store knows this key by."""
        ...

    def claim_store_object(self, store: str, key: str, external_id: str) -> str:
        """Tie an id to the key unless one is tied to it; returns the one that is."""
        ...

    def forget_store_object(self, store: str, key: str, external_id: str) -> None: ...
    def store_keys(self, store: str, prefix: str) -> list[str]:
        """Keys that have an id in this store."""
        ...

    def forget_store_folders(self, store: str) -> None:
        """The folders of a store (keys that end in a slash) are to be made anew."""
        ...

    def kept_in_store(self, store: str) -> int:
        """How many checkpoints and adapters lie there that may be needed."""
        ...

    # datasets
    def dataset(self, sha256: str) -> Dataset | None: ...
    def hold_dataset(self, sha256: str) -> Dataset | None:
        """The dataset, which nobody can delete before this transaction ends."""
        ...

    def lock_dataset(self, sha256: str) -> Dataset | None:
        """The dataset, which nobody else can hold or lock before this transaction ends."""
        ...

    def add_dataset(self, dataset: Dataset) -> Dataset:
        """Keep it unless its bytes are kept already; returns the one that is, held."""
        ...

    def add_upload(self, upload: Upload) -> None:
        """Note it unless this member has brought these bytes before."""
        ...

    def uploaders(self, sha256: str) -> set[str]:
        """Ids of the members who have brought these bytes."""
        ...

    def remove_upload(self, sha256: str, member_id: str) -> None: ...
    def delete_dataset(self, dataset: Dataset) -> None:
        """Forget the dataset, and discard its key."""
        ...

    def job_that_needs(self, sha256: str, member_id: str | None) -> Job | None:
        """Any job that has not ended and reads these bytes; with a member only of theirs."""
        ...

    def discard(self, key: str) -> None:
        """Note that the object under this key in the server's own store is to be deleted."""
        ...

    def discarded(self, limit: int) -> list[str]: ...
    def forget_discarded(self, key: str) -> None: ...

    # what is too old for anybody to need; each removes up to `limit` rows and says how many
    def forget_expired_tokens(self, before: float, limit: int) -> int: ...
    def forget_deliveries(self, before: float, limit: int) -> int:
        """Messages made before that time, but none that is still to go out."""
        ...

    def forget_readings(self, first_lease: str, limit: int) -> int:
        """Those of sessions whose id sorts before this one."""
        ...

    # idempotency
    def remembered(self, member_id: str, key: str) -> tuple[str, dict[str, Any]] | None:
        """`(request hash, answer)` of an earlier request with this idempotency key."""
        ...

    def remember(self, member_id: str, key: str, request_hash: str, answer: dict[str, Any], at: float) -> None: ...
    def forget_remembered(self, before: float) -> None: ...
    def events(self, *, after: int, job_id: str | None, limit: int) -> list[Event]: ...


UnitOfWork = Callable[[], AbstractContextManager[Transaction]]
"""`with uow() as tx:` is one durable transaction: committed on leaving, rolled back on an exception."""
