"""The interface of the database: transactions, with one repository for each noun."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from orchestrator.ports.repository.accounts import (
    AccountRepository,
    CodeRepository,
    IdempotencyRepository,
    MemberRepository,
    TeamRepository,
    TokenRepository,
)
from orchestrator.ports.repository.audits import AuditRepository
from orchestrator.ports.repository.evaluations import ComparisonRepository, EvaluationRepository
from orchestrator.ports.repository.exports import MachineExportRepository
from orchestrator.ports.repository.jobs import (
    CheckpointRepository,
    EventRepository,
    JobRepository,
    LeaseRepository,
    ReportRepository,
)
from orchestrator.ports.repository.judgements import JudgeEndpointRepository, JudgementRepository
from orchestrator.ports.repository.models import ModelRepository
from orchestrator.ports.repository.notifications import ChannelRepository, DeliveryRepository
from orchestrator.ports.repository.pushes import PushRepository
from orchestrator.ports.repository.shares import ShareRepository
from orchestrator.ports.repository.storage import DatasetRepository, StoreObjectRepository, StoreRepository
from orchestrator.ports.repository.tracking import TrackingRepository


class TimeRepository(Protocol):
    """All times that the server compares with the present."""

    def shift(self, seconds: float) -> None:
        """Move them by these seconds: the computer's clock has jumped. Times of what has ended stay as they are."""
        ...


class Transaction(Protocol):
    """One open transaction. Reads see what was written in it. Either everything is kept or nothing."""

    @property
    def jobs(self) -> JobRepository: ...
    @property
    def leases(self) -> LeaseRepository: ...
    @property
    def checkpoints(self) -> CheckpointRepository: ...
    @property
    def reports(self) -> ReportRepository: ...
    @property
    def events(self) -> EventRepository: ...
    @property
    def members(self) -> MemberRepository: ...
    @property
    def team(self) -> TeamRepository: ...
    @property
    def accounts(self) -> AccountRepository: ...
    @property
    def tokens(self) -> TokenRepository: ...
    @property
    def codes(self) -> CodeRepository: ...
    @property
    def idempotency(self) -> IdempotencyRepository: ...
    @property
    def stores(self) -> StoreRepository: ...
    @property
    def store_objects(self) -> StoreObjectRepository: ...
    @property
    def datasets(self) -> DatasetRepository: ...
    @property
    def audits(self) -> AuditRepository: ...
    @property
    def evaluations(self) -> EvaluationRepository: ...
    @property
    def comparisons(self) -> ComparisonRepository: ...
    @property
    def judge_endpoints(self) -> JudgeEndpointRepository: ...
    @property
    def judgements(self) -> JudgementRepository: ...
    @property
    def models(self) -> ModelRepository: ...
    @property
    def pushes(self) -> PushRepository: ...
    @property
    def shares(self) -> ShareRepository: ...
    @property
    def machine_exports(self) -> MachineExportRepository: ...
    @property
    def tracking(self) -> TrackingRepository: ...
    @property
    def channels(self) -> ChannelRepository: ...
    @property
    def deliveries(self) -> DeliveryRepository: ...
    @property
    def times(self) -> TimeRepository: ...


UnitOfWork = Callable[[], AbstractContextManager[Transaction]]
"""`with uow() as tx:` is one durable transaction. It is committed at the end and rolled back on an exception."""
