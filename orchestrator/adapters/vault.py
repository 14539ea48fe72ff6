"""Credentials at rest: Fernet (AES-128-CBC with HMAC-SHA256) under one key per installation."""

from __future__ import annotations

from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from orchestrator.adapters.tokens import write_secret_once
from orchestrator.ports.providers import VaultError


class FernetVault:
    """Implements `ports.Vault`. A database without its key file is of no use to a thief, nor to its owner."""

    def __init__(self, key: str) -> None:
        """`key` is 32 random bytes in URL-safe base64; raises `VaultError` for anything else."""
        try:
            self._fernet = Fernet(key)
        except ValueError as error:
            raise VaultError(
                "the vault's key (TRAINHOP_VAULT_KEY, or vault.key in the data folder) must be 32 bytes in URL-safe base64"
            ) from error

    @classmethod
    def from_file(cls, path: Path) -> FernetVault:
        """Read the key file (0600), or make one on the first start."""
        write_secret_once(path, Fernet.generate_key().decode())
        return cls(path.read_text().strip())

    def seal(self, secret: str) -> str:
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise VaultError(
                "a sealed credential cannot be opened: the vault's key is not the one it was sealed with; "
                "bring back vault.key, or enter the credential again"
            ) from None
