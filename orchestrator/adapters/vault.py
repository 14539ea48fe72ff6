"""Credentials at rest: Fernet (AES-128-CBC with HMAC-SHA256) under one key per installation."""

from __future__ import annotations

from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from orchestrator.ports.system import VaultError
from worker.shared.files import create_once


class FernetVault:
    """Implements `ports.Vault`. Without the key file the secrets in a database cannot be read by anyone."""

    def __init__(self, key: str) -> None:
        """`key` is 32 random bytes in URL-safe base64. Raises `VaultError` for any other value."""
        try:
            self._fernet = Fernet(key)
        except ValueError as error:
            raise VaultError(
                "The vault's key (TRAINHOP_VAULT_KEY, or vault.key in the data folder) is not valid. It "
                "must be 32 bytes in URL-safe base64."
            ) from error

    @classmethod
    def from_file(cls, path: Path) -> FernetVault:
        """Read the key file (0600), or make one on the first start."""
        create_once(path, Fernet.generate_key() + b"\n")
        return cls(path.read_text().strip())

    def seal(self, secret: str) -> str:
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise VaultError(
                "a stored credential cannot be decrypted, because the vault's key has changed. "
                "Restore vault.key, or enter the credential again"
            ) from None
