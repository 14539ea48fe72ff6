"""Secrets: API tokens that are kept as hashes, lease tokens that are a keyed function of the lease."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path


class KeyedTokens:
    """Implements `ports.Tokens` with one random key file (0600) per installation."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> KeyedTokens:
        """Read the key, or make one on the first start."""
        write_secret_once(path, secrets.token_hex(32))
        return cls(bytes.fromhex(path.read_text().strip()))

    def new(self) -> str:
        return f"th_{secrets.token_urlsafe(32)}"

    def for_lease(self, lease_id: str) -> str:
        return f"thl_{hmac.new(self._key, lease_id.encode(), hashlib.sha256).hexdigest()}"

    def hash(self, token: str) -> str:
        return hashlib.sha256(token.encode()).hexdigest()


def write_secret_once(path: Path, text: str) -> bool:
    """Create `path` with mode 0600 and this content, whole or not at all; False if it exists, and is left as it is."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    return True
