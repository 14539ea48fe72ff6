"""Which addresses are those of this computer itself."""

from __future__ import annotations

from urllib.parse import urlsplit

HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(url: str) -> bool:
    """Whether only programs on this computer can reach the address."""
    return urlsplit(url).hostname in HOSTS
