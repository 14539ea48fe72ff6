"""The part of the driver that runs checks. See `SupportsDiagnosis`."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.ports.providers import Account, CheckOrder, CredentialsRefused, Examined, ProviderUnavailable
from orchestrator.providers.kaggle import errors
from orchestrator.providers.kaggle.access import Access
from orchestrator.providers.kaggle.diagnosis import Check, Limits, clear
from orchestrator.providers.kaggle.http import KaggleError
from worker.doctor.outcome import Outcome


class Diagnosing:
    """Implements `SupportsDiagnosis`."""

    limits: Limits
    _access: Access

    def diagnose(self, account: Account, order: CheckOrder, tell: Callable[[Outcome], None]) -> Examined:
        """See the port."""
        try:
            place = self._access.connect(account), self._access.owner(account)
            return Check(*place, order, self.limits, tell).run()
        except KaggleError as refusal:
            refused = errors.signed_out(refusal) or errors.unverified(refusal)
            raise (CredentialsRefused if refused else ProviderUnavailable)(errors.in_words(refusal)) from None

    def clear_check(self, account: Account, check_id: str) -> None:
        """See the port."""
        clear(self._access.connect(account), self._access.owner(account), check_id)
