"""What makes the driver one that can be checked: see `orchestrator.diagnosis_ports`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from orchestrator.diagnosis_ports import CheckOrder, Examined
from orchestrator.domain.model import Account
from orchestrator.ports import CredentialsRefused, ProviderUnavailable
from orchestrator.providers.kaggle import refusals
from orchestrator.providers.kaggle.client import Connection
from orchestrator.providers.kaggle.diagnosis import Check, Limits, clear
from orchestrator.providers.kaggle.wire import KaggleSaid
from worker.doctor.outcome import Outcome


class Diagnosing(ABC):
    """Implements `SupportsDiagnosis` for a driver that can open a connection for an account."""

    limits = Limits()

    @abstractmethod
    def _connect(self, account: Account) -> Connection: ...

    @abstractmethod
    def _owner(self, account: Account, connection: Connection) -> str: ...

    def diagnose(self, account: Account, order: CheckOrder, tell: Callable[[Outcome], None]) -> Examined:
        """See the port."""
        connection = self._connect(account)
        try:
            return Check(connection, self._owner(account, connection), order, self.limits, tell).run()
        except KaggleSaid as refusal:
            raise _in_words(refusal) from None

    def clear_check(self, account: Account, check_id: str) -> None:
        """See the port."""
        connection = self._connect(account)
        clear(connection, self._owner(account, connection), check_id)


def _in_words(refusal: KaggleSaid) -> ProviderUnavailable:
    refused = refusals.signed_out(refusal) or refusals.unverified(refusal)
    return (CredentialsRefused if refused else ProviderUnavailable)(refusals.in_words(refusal))
