"""Messages on their way out: over Apprise's services, or as requests signed after the Standard Webhooks specification.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import httpx

from orchestrator.adapters import private_networks
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.notifications import ChannelKind, Delivery, NotSent

TIMEOUT_S = 10.0
GONE = 410
_ON_THIS_COMPUTER = {"blink1", "dbus", "gio", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows"}
"""Services of Apprise that would show a message on the server's own screen, lamp or log."""
_A_HOST = re.compile(r"[.:]|^(\d+|0x[0-9a-f]+|localhost)$", re.IGNORECASE)
INSIDE = "this address leads into the server's own network, where only an admin's messages may go"


class WebCarrier:
    """Implements `notice_ports.Carrier`. `lookup` finds a host's addresses.

    A webhook that must stay outside is sent, without a proxy, to the very address that was looked at. Apprise's services
    find their own: beforehand only the host that is written in an address can be told, and while a message goes out their
    connections are watched. What a service does once it has the message, or a proxy of the environment that it is handed to,
    is out of reach.
    """

    def __init__(self, lookup: private_networks.Lookup = private_networks.lookup) -> None:
        self._lookup = lookup

    def check(self, address: str, *, anywhere: bool) -> tuple[ChannelKind, str]:
        parts = _split(address)
        if parts.scheme in ("http", "https"):
            if not parts.hostname:
                raise _refused("a webhook's address needs a host")
            port = f":{parts.port}" if parts.port else ""
            kind, label, hosts = ChannelKind.WEBHOOK, f"{parts.scheme}://{parts.hostname}{port}", [parts.hostname]
        else:
            kind, label, hosts = ChannelKind.APPRISE, f"{parts.scheme}://…", _hosts(_service(parts.scheme, address))
        if not anywhere and any(self._is_inside(host) for host in hosts):
            raise _refused(INSIDE)
        return kind, label

    def _is_inside(self, host: str) -> bool:
        """A name without an address may get one: that is for the sending to find out."""
        try:
            return any(map(private_networks.is_inside, self._lookup(host)))
        except OSError:
            return False

    def send(
        self, kind: ChannelKind, address: str, secret: str, delivery: Delivery, at: float, *, anywhere: bool
    ) -> None:
        if kind is ChannelKind.WEBHOOK:
            _post(address, secret, delivery, at, None if anywhere else _Outside(self._lookup))
        elif anywhere:
            _notify(address, delivery)
        else:
            with private_networks.only_outside() as turned_back:
                try:
                    _notify(address, delivery)
                except NotSent:
                    if turned_back:
                        raise NotSent(INSIDE) from None
                    raise


class _Outside(httpx.HTTPTransport):
    """Looks a host up once and connects to what it saw; the request and TLS go on naming the host."""

    def __init__(self, lookup: private_networks.Lookup) -> None:
        super().__init__()
        self._lookup = lookup

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url, host = request.url, request.url.raw_host.decode()
        try:
            found = self._lookup(host)
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None
        if any(map(private_networks.is_inside, found)):
            raise NotSent(INSIDE)
        request.extensions = {**request.extensions, "sni_hostname": host}
        failed = httpx.ConnectError("it has no address")
        for address in found:
            request.url = url.copy_with(host=address)
            try:
                return super().handle_request(request)
            except httpx.ConnectError as error:
                failed = error
        raise failed


def _split(address: str) -> Any:
    try:
        parts = urlsplit(address.strip())
        _ = parts.scheme in ("http", "https") and parts.port  # a bot's token has a colon of its own
    except ValueError as error:
        raise _refused("this is no address") from error
    return parts


def _refused(words: str) -> InvalidError:
    return InvalidError(words, [("/url", words)])


def _service(scheme: str, address: str) -> Any:
    """Apprise's service of an address; raises `InvalidError`."""
    if not scheme:
        raise _refused("an address begins with its service: https://, ntfy://, slack://, mailto:// ...")
    if scheme in _ON_THIS_COMPUTER:
        raise _refused(f"{scheme}:// would only reach the server's own screen")
    service = _apprise().Apprise.instantiate(address.strip())
    if service is None:
        raise _refused(f"Apprise does not understand this {scheme}:// address; its wiki shows the form")
    return service


def _hosts(service: Any) -> Iterable[str]:
    """What a service will connect to, where its address says so; a single word may be a topic or a token as well."""
    written = {getattr(service, key, None) for key in ("smtp_host", "xmpp_host")} - {None, ""}
    if not written and "host" in service.template_tokens:
        written = {service.host}
    return [host.strip("[]") for host in written if isinstance(host, str) and _A_HOST.search(host)]


def _notify(address: str, delivery: Delivery) -> None:
    carrier: Any = _apprise().Apprise()
    service = carrier.instantiate(address)
    if service is None or not carrier.add(service) or not carrier.notify(title=delivery.title, body=delivery.text):
        raise NotSent("the service did not take the message; is the address still right?")


def _apprise() -> Any:
    import apprise  # half a second, for those who use it
    from apprise.manager_attachment import AttachmentManager

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it would log addresses with their secrets
    AttachmentManager().remove("file")  # some addresses may name a file of this computer to send, or a key to sign with
    return apprise


def signed(secret: str, message_id: str, at: float, body: bytes) -> dict[str, str]:
    """The three headers by which a receiver knows who sent this, what, and when."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = b".".join((message_id.encode(), str(int(at)).encode(), body))
    signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(int(at)), "webhook-signature": f"v1,{signature}"}


def _post(address: str, secret: str, delivery: Delivery, at: float, transport: httpx.BaseTransport | None) -> None:
    body = json.dumps(delivery.body).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "trainhop"} | signed(secret, delivery.id, at, body)
    try:
        with (
            httpx.Client(transport=transport, timeout=TIMEOUT_S, follow_redirects=False) as client,
            client.stream("POST", address, content=body, headers=headers) as answer,  # what else it says is not read
        ):
            status = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotSent(f"no answer ({type(error).__name__})") from None  # the error's words may hold the address
    if status == GONE:
        raise NotSent("it answered 410: nobody listens there any more", final=True)
    if not httpx.codes.is_success(status):
        raise NotSent(f"it answered {status}")
