"""Secrets: API tokens that are kept as hashes, lease tokens that are a keyed function of the lease."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from worker.shared.files import create_once


class KeyedTokens:
    """Implements `ports.Tokens` with one random key file (0600) per installation."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> KeyedTokens:
        """Read the key, or make one on the first start."""
        create_once(path, secrets.token_hex(32) + "\n")
        return cls(bytes.fromhex(path.read_text().strip()))

    def new(self) -> str:
        return f"th_{secrets.token_urlsafe(32)}"

    def for_lease(self, lease_id: str) -> str:
        return f"thl_{hmac.new(self._key, lease_id.encode(), hashlib.sha256).hexdigest()}"

    def hash(self, token: str) -> str:
        return hashlib.sha256(token.encode()).hexdigest()
