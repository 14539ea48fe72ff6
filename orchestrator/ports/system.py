"""The clock, the secrets and the limits that a server runs with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol
from urllib.parse import urlsplit

from pydantic import AfterValidator

from worker.shared.loopback import HOSTS


def _loopback(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in HOSTS:
        raise ValueError("must be an http address on this computer, for example http://127.0.0.1:8700")
    return url.rstrip("/")


Loopback = Annotated[str, AfterValidator(_loopback)]
"""An address on this computer. Credentials go only to their provider or to an emulator of it on this computer."""


class Clock(Protocol):
    """The time of this server."""

    def now(self) -> float:
        """Seconds since the Unix epoch, UTC."""
        ...


class Vault(Protocol):
    """Protects stored credentials: only this installation can read what it sealed."""

    def seal(self, secret: str) -> str:
        """The secret, encrypted and authenticated, as text."""
        ...

    def open(self, sealed: str) -> str:
        """The secret. Raises `VaultError` if it was sealed with another key or altered."""
        ...


class VaultError(Exception):
    """A sealed secret cannot be opened with this installation's key."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the services, in seconds unless a name says otherwise.

    After `lease_s` without a report a worker is suspect. `start_grace_s` is the time a machine has until its first
    call. `stop_grace_s` is the time a worker has to obey before its provider is called to end it. `mtbf_s` is the mean
    time between losses for which the interval of checkpoints is tuned. An offer that is not committed within
    `offer_ttl_s` is garbage. `most_uploads` is the number of uploads that are opened in advance for a machine that
    cannot request more. Such a machine saves less often in a long session. `patience_s` is how long one slow account
    may delay the work for the others. `max_upload_bytes` is the largest file that this server takes in one request.
    """

    lease_s: float = 60.0
    report_every_s: float = 15.0
    start_grace_s: float = 180.0
    stop_grace_s: float = 45.0
    mtbf_s: float = 21_600.0
    offer_ttl_s: float = 3_600.0
    most_uploads: int = 64
    patience_s: float = 3.0
    max_upload_bytes: int = 4 << 30
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
        """The hash that the database keeps in place of the token."""
        ...
