"""Who speaks to Kaggle: an account's credentials, its name there, and for how long Kaggle's silence is believed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from orchestrator.domain.model import Account
from orchestrator.ports.providers import CredentialsRefused, Handle, ProviderUnavailable, Vault, VaultError
from orchestrator.providers.kaggle import errors
from orchestrator.providers.kaggle.client import Connection
from orchestrator.providers.kaggle.http import Credentials, KaggleError
from orchestrator.providers.kaggle.launch import KernelPlace, slug_of


class Access:
    """Connections of accounts. `endpoint` (loopback) stands in for Kaggle's own host; silence is believed for `fresh_s`."""

    def __init__(self, vault: Vault, endpoint: str | None, fresh_s: float) -> None:
        self._vault, self._endpoint, self._fresh_s = vault, endpoint, fresh_s
        self._names: dict[str, str] = {}
        self._silent: dict[str, tuple[float, str]] = {}

    def connect(self, account: Account) -> Connection:
        """Opens the vault for the moment of a call; raises `CredentialsRefused`."""
        try:
            if not account.credentials:
                raise CredentialsRefused(f"no Kaggle token is stored for {account.name}")
            text = self._vault.open(account.credentials)
            return Connection(Credentials.read(text, account.config.get("username")), self._endpoint)
        except (VaultError, ValueError) as error:
            raise CredentialsRefused(str(error)) from None

    def name(self, account: Account) -> str:
        """Whom the credentials sign in, as Kaggle spells it: in other letters its owner's own address is a stranger's there.

        Raises `CredentialsRefused` if that is nobody, or somebody else.
        """
        try:
            name, wanted = self.connect(account).username(), account.config.get("username")
        except KaggleError as refusal:
            if errors.signed_out(refusal):
                raise CredentialsRefused(errors.in_words(refusal)) from None
            raise
        if wanted and wanted.lower() != name.lower():
            raise CredentialsRefused(f"this token belongs to {name}, not to {wanted}")
        return name

    def owner(self, account: Account) -> str:
        """The same, asked of Kaggle once."""
        known = account.id + account.credentials
        if known not in self._names:
            self._names[known] = self.name(account)
        return self._names[known]

    def place(self, handle: Handle) -> KernelPlace:
        """Where a session is."""
        owner, _, slug = (handle.external_id or "").partition("/")
        if not slug:
            owner, slug = self.owner(handle.account), slug_of(handle.lease_id)
        return KernelPlace(connection=self.connect(handle.account), owner=owner, slug=slug)

    @contextlib.contextmanager
    def answering(self, account: Account) -> Iterator[None]:
        """Kaggle's silence is believed for a while too: its own sessions would wait for one time-out after another."""
        until, words = self._silent.get(account.id, (0.0, ""))
        if time.monotonic() < until:
            raise ProviderUnavailable(words)
        try:
            yield
        except CredentialsRefused:
            raise
        except KaggleError as refusal:
            if refusal.status == 429:
                until = time.monotonic() + (refusal.retry_after or errors.PAUSE_S)
                self._silent[account.id] = (until, errors.in_words(refusal))
            raise
        except ProviderUnavailable as error:
            self._silent[account.id] = (time.monotonic() + self._fresh_s, str(error))
            raise
