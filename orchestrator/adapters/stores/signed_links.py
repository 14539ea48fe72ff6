"""Links to this server's blob endpoint: a URL, and a keyed header for one key, store and direction."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.shared.messages import GRANT_HEADER, Grant, GrantKind


@dataclass(frozen=True)
class BlobLinks:
    """`url` returns the address of a key on this server. `secret` signs."""

    url: Callable[[str], str]
    secret: bytes = field(repr=False)

    def signature(self, direction: str, key: str, store: str) -> str:
        """The value of the `X-Grant` header for this direction (`get` or `put`), key and store."""
        return hmac.new(self.secret, f"{direction} {store} {key}".encode(), hashlib.sha256).hexdigest()

    def upload(self, key: str, kind: GrantKind, store: str) -> Grant:
        """Permission to write the key once."""
        return Grant(
            key=key, kind=kind, url=self._address(key, store), headers={GRANT_HEADER: self.signature("put", key, store)}
        )

    def download(self, key: str, kind: GrantKind, store: str, *, sha256: str, size: int) -> Grant:
        """Permission to read the key."""
        headers = {GRANT_HEADER: self.signature("get", key, store)}
        return Grant(key=key, kind=kind, url=self._address(key, store), headers=headers, sha256=sha256, size=size)

    def _address(self, key: str, store: str) -> str:
        return self.url(key) if store == "local" else f"{self.url(key)}?store={store}"
