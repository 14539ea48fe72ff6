"""A transaction on either database, with one repository for each noun."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.adapters.database.accounts import SqlAccountRepository
from orchestrator.adapters.database.audits import SqlAuditRepository
from orchestrator.adapters.database.checkpoints import SqlCheckpointRepository
from orchestrator.adapters.database.codes import SqlCodeRepository
from orchestrator.adapters.database.comparisons import SqlComparisonRepository
from orchestrator.adapters.database.datasets import SqlDatasetRepository
from orchestrator.adapters.database.evaluations import SqlEvaluationRepository
from orchestrator.adapters.database.events import SqlEventRepository, insert_events
from orchestrator.adapters.database.idempotency import SqlIdempotencyRepository
from orchestrator.adapters.database.jobs import SqlJobRepository
from orchestrator.adapters.database.judgements import SqlJudgeEndpointRepository, SqlJudgementRepository
from orchestrator.adapters.database.leases import SqlLeaseRepository
from orchestrator.adapters.database.machine_exports import SqlMachineExportRepository
from orchestrator.adapters.database.members import SqlMemberRepository
from orchestrator.adapters.database.models import SqlModelRepository
from orchestrator.adapters.database.notifications import SqlChannelRepository, SqlDeliveryRepository
from orchestrator.adapters.database.pushes import SqlPushRepository
from orchestrator.adapters.database.reports import SqlReportRepository
from orchestrator.adapters.database.shares import SqlShareRepository
from orchestrator.adapters.database.stores import SqlStoreObjectRepository, SqlStoreRepository
from orchestrator.adapters.database.team import SqlTeamRepository
from orchestrator.adapters.database.times import SqlTimeRepository
from orchestrator.adapters.database.tokens import SqlTokenRepository
from orchestrator.adapters.database.tracking import SqlTrackingRepository
from orchestrator.domain.jobs import Event


class SqlTransaction:
    """Implements `ports.repository.Transaction` over one connection. `flush` writes the new events as the last step.

    A repository is created when it is first used, because opening a transaction must stay cheap.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._new_events: list[Event] = []
        self.jobs = SqlJobRepository(connection, self._new_events)

    def flush(self) -> None:
        """Write the new events. Called once, right before the commit."""
        if self._new_events:
            insert_events(self.connection, self._new_events)
            self._new_events.clear()

    @property
    def leases(self) -> SqlLeaseRepository:
        return SqlLeaseRepository(self.connection)

    @property
    def checkpoints(self) -> SqlCheckpointRepository:
        return SqlCheckpointRepository(self.connection)

    @property
    def reports(self) -> SqlReportRepository:
        return SqlReportRepository(self.connection)

    @property
    def events(self) -> SqlEventRepository:
        return SqlEventRepository(self.connection)

    @property
    def members(self) -> SqlMemberRepository:
        return SqlMemberRepository(self.connection)

    @property
    def team(self) -> SqlTeamRepository:
        return SqlTeamRepository(self.connection)

    @property
    def accounts(self) -> SqlAccountRepository:
        return SqlAccountRepository(self.connection)

    @property
    def tokens(self) -> SqlTokenRepository:
        return SqlTokenRepository(self.connection)

    @property
    def codes(self) -> SqlCodeRepository:
        return SqlCodeRepository(self.connection)

    @property
    def idempotency(self) -> SqlIdempotencyRepository:
        return SqlIdempotencyRepository(self.connection)

    @property
    def stores(self) -> SqlStoreRepository:
        return SqlStoreRepository(self.connection)

    @property
    def store_objects(self) -> SqlStoreObjectRepository:
        return SqlStoreObjectRepository(self.connection)

    @property
    def datasets(self) -> SqlDatasetRepository:
        return SqlDatasetRepository(self.connection)

    @property
    def audits(self) -> SqlAuditRepository:
        return SqlAuditRepository(self.connection)

    @property
    def evaluations(self) -> SqlEvaluationRepository:
        return SqlEvaluationRepository(self.connection)

    @property
    def comparisons(self) -> SqlComparisonRepository:
        return SqlComparisonRepository(self.connection)

    @property
    def judge_endpoints(self) -> SqlJudgeEndpointRepository:
        return SqlJudgeEndpointRepository(self.connection)

    @property
    def judgements(self) -> SqlJudgementRepository:
        return SqlJudgementRepository(self.connection)

    @property
    def models(self) -> SqlModelRepository:
        return SqlModelRepository(self.connection)

    @property
    def pushes(self) -> SqlPushRepository:
        return SqlPushRepository(self.connection)

    @property
    def shares(self) -> SqlShareRepository:
        return SqlShareRepository(self.connection)

    @property
    def machine_exports(self) -> SqlMachineExportRepository:
        return SqlMachineExportRepository(self.connection)

    @property
    def tracking(self) -> SqlTrackingRepository:
        return SqlTrackingRepository(self.connection)

    @property
    def channels(self) -> SqlChannelRepository:
        return SqlChannelRepository(self.connection)

    @property
    def deliveries(self) -> SqlDeliveryRepository:
        return SqlDeliveryRepository(self.connection)

    @property
    def times(self) -> SqlTimeRepository:
        return SqlTimeRepository(self.connection)
