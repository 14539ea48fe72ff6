"""The certificates that a client of HTTP trusts."""

from __future__ import annotations

import functools
import os
import ssl

import httpx


def certificates() -> ssl.SSLContext:
    """Those that httpx trusts. Kept, because loading them takes as long as a hundred requests on one machine."""
    return _loaded(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.cache
def _loaded(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context()
