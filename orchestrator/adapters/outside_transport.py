"""An HTTP transport that connects only to addresses outside the server's own network."""

from __future__ import annotations

import ssl

import httpx

from orchestrator.adapters import private_networks
from worker.shared.certificates import certificates


class InsideError(Exception):
    """The host has an address inside the server's own network."""


class OutsideTransport(httpx.HTTPTransport):
    """Resolves a host once and connects to that address. The request and TLS still use the host's name.

    Raises `InsideError` for an address that is inside.
    """

    def __init__(
        self,
        lookup: private_networks.Lookup,
        inside: private_networks.IsInside,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(verify=verify or certificates())
        self._lookup, self._inside = lookup, inside

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url, host = request.url, request.url.raw_host.decode()
        try:
            found = self._lookup(host)
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None
        if any(map(self._inside, found)):
            raise InsideError
        request.extensions = {**request.extensions, "sni_hostname": host}
        failed = httpx.ConnectError("it has no address")
        for address in found:
            request.url = url.copy_with(host=address)
            try:
                return super().handle_request(request)
            except httpx.ConnectError as error:
                failed = error
        raise failed
