"""The certificates that a client of HTTP trusts."""

from __future__ import annotations

import functools
import ssl

import httpx


@functools.cache
def certificates() -> ssl.SSLContext:
    """Those that httpx trusts. Kept, because loading them takes as long as a hundred requests on one machine."""
    return httpx.create_ssl_context()
