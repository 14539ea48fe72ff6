"""Connections to Kaggle: an account's credentials, its name at Kaggle, and how long a failure is cached."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from orchestrator.ports.providers import Account, CredentialsRefused, Handle, ProviderUnavailable, Vault, VaultError
from orchestrator.providers.kaggle import errors
from orchestrator.providers.kaggle.client import Connection
from orchestrator.providers.kaggle.http import Credentials, KaggleError
from orchestrator.providers.kaggle.launch import KernelPlace, slug_of


class Access:
    """Connections for accounts. `endpoint` (loopback) replaces Kaggle's own host.

    A failure to reach Kaggle is cached for `fresh_s`.
    """

    def __init__(self, vault: Vault, endpoint: str | None, fresh_s: float) -> None:
        self._vault, self._endpoint, self._fresh_s = vault, endpoint, fresh_s
        self._names: dict[str, str] = {}
        self._silent: dict[str, tuple[float, str]] = {}

    def connect(self, account: Account) -> Connection:
        """Decrypts the credentials for one call. Raises `CredentialsRefused`."""
        try:
            if not account.credentials:
                raise CredentialsRefused(f"no Kaggle token is stored for {account.name}")
            text = self._vault.open(account.credentials)
            return Connection(Credentials.read(text, account.config.get("username")), self._endpoint)
        except (VaultError, ValueError) as error:
            raise CredentialsRefused(str(error)) from None

    def name(self, account: Account) -> str:
        """The account's name as Kaggle spells it. In another spelling Kaggle treats the owner as a stranger.

        Raises `CredentialsRefused` if the credentials belong to another account or to none.
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
        """The same name, requested from Kaggle once."""
        known = account.id + account.credentials
        if known not in self._names:
            self._names[known] = self.name(account)
        return self._names[known]

    def place(self, handle: Handle) -> KernelPlace:
        """The kernel of a session."""
        owner, _, slug = (handle.external_id or "").partition("/")
        if not slug:
            owner, slug = self.owner(handle.account), slug_of(handle.lease_id)
        return KernelPlace(connection=self.connect(handle.account), owner=owner, slug=slug)

    @contextlib.contextmanager
    def answering(self, account: Account) -> Iterator[None]:
        """A failure to reach Kaggle is cached for a while. Otherwise each of its sessions would wait for a time-out."""
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
