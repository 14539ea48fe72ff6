"""Sends notifications over Apprise's services, or as requests signed by the Standard Webhooks specification.

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
from orchestrator.adapters.outside_transport import InsideError, OutsideTransport
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.notifications import ChannelKind, Delivery
from orchestrator.ports.notifications import NotSent
from worker.shared.certificates import certificates

TIMEOUT_S = 10.0
GONE = 410
_ON_THIS_COMPUTER = {"blink1", "dbus", "gio", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows"}
"""Apprise's services that would show a message on the server's own screen, lamp or log."""
_A_HOST = re.compile(r"[.:]|^(\d+|0x[0-9a-f]+|localhost)$", re.IGNORECASE)
INSIDE = "This address is in the server's own network. Only an admin can add it."


class WebNotifier:
    """Implements `ports.notifications.Notifier`. `lookup` resolves a host's addresses.

    A webhook outside the server's network is sent without a proxy to exactly the address that was checked. Apprise's
    services resolve addresses on their own. Only a host that appears in the channel's address can be checked before
    sending, and the connections are checked while they send. What a service or a proxy does with the message afterwards
    cannot be controlled.
    """

    def __init__(
        self,
        lookup: private_networks.Lookup = private_networks.lookup,
        inside: private_networks.IsInside = private_networks.is_inside,
    ) -> None:
        self._lookup, self._inside = lookup, inside

    def check(self, address: str, *, anywhere: bool) -> tuple[ChannelKind, str]:
        parts = _split(address)
        if parts.scheme in ("http", "https"):
            if not parts.hostname:
                raise _refused("The webhook's URL has no host. Add one.")
            port = f":{parts.port}" if parts.port else ""
            kind, label, hosts = ChannelKind.WEBHOOK, f"{parts.scheme}://{parts.hostname}{port}", [parts.hostname]
        else:
            kind, label, hosts = ChannelKind.APPRISE, f"{parts.scheme}://…", _hosts(_service(parts.scheme, address))
        if not anywhere and any(private_networks.leads_inside(host, self._lookup, self._inside) for host in hosts):
            raise _refused(INSIDE)
        return kind, label

    def send(
        self, kind: ChannelKind, address: str, secret: str, delivery: Delivery, at: float, *, anywhere: bool
    ) -> None:
        if kind is ChannelKind.WEBHOOK:
            _post(address, secret, delivery, at, None if anywhere else OutsideTransport(self._lookup, self._inside))
        elif anywhere:
            _notify(address, delivery)
        else:
            with private_networks.only_outside(self._inside) as turned_back:
                try:
                    _notify(address, delivery)
                except NotSent:
                    if turned_back:
                        raise NotSent(INSIDE) from None
                    raise


def _split(address: str) -> Any:
    try:
        parts = urlsplit(address.strip())
        _ = parts.scheme in ("http", "https") and parts.port  # a bot's token contains a colon

    except ValueError as error:
        raise _refused("This is not a valid URL. Correct it.") from error
    return parts


def _refused(words: str) -> InvalidError:
    return InvalidError(words, [("/url", words)])


def _service(scheme: str, address: str) -> Any:
    """Apprise's service for an address. Raises `InvalidError`."""
    if not scheme:
        raise _refused("The URL has no scheme. Start it with https://, ntfy://, slack://, mailto:// or another one.")
    if scheme in _ON_THIS_COMPUTER:
        raise _refused(f"{scheme}:// only shows messages on the server itself. Use another service.")
    service = _apprise().Apprise.instantiate(address.strip())
    if service is None:
        raise _refused(f"Apprise cannot parse this {scheme}:// URL. See the format in its wiki.")
    return service


def _hosts(service: Any) -> Iterable[str]:
    """The hosts that a service will connect to, if its address contains them.

    A single word may be a topic or a token.
    """
    written = {getattr(service, key, None) for key in ("smtp_host", "xmpp_host")} - {None, ""}
    if not written and "host" in service.template_tokens:
        written = {service.host}
    return [host.strip("[]") for host in written if isinstance(host, str) and _A_HOST.search(host)]


def _notify(address: str, delivery: Delivery) -> None:
    apprise: Any = _apprise().Apprise()
    service = apprise.instantiate(address)
    if service is None or not apprise.add(service) or not apprise.notify(title=delivery.title, body=delivery.text):
        raise NotSent("the service did not accept the message. Check the URL")


def _apprise() -> Any:
    import apprise  # the import takes half a second, so only those who need it pay for it
    from apprise.manager_attachment import AttachmentManager

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # its log would contain addresses with their secrets

    AttachmentManager().remove("file")  # some addresses may name a file of this computer to send, or a key to sign with
    return apprise


def signed(secret: str, message_id: str, at: float, body: bytes) -> dict[str, str]:
    """The three headers that tell a receiver the sender, the content and the time."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = b".".join((message_id.encode(), str(int(at)).encode(), body))
    signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(int(at)), "webhook-signature": f"v1,{signature}"}


def _post(address: str, secret: str, delivery: Delivery, at: float, transport: httpx.BaseTransport | None) -> None:
    body = json.dumps(delivery.body).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "trainhop"} | signed(secret, delivery.id, at, body)
    try:
        with (
            httpx.Client(
                transport=transport, verify=certificates(), timeout=TIMEOUT_S, follow_redirects=False
            ) as client,
            # the rest of the response is not read
            client.stream("POST", address, content=body, headers=headers) as answer,
        ):
            status = answer.status_code
    except InsideError:
        raise NotSent(INSIDE) from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        # A host that cannot be a name is a `UnicodeError`. The error's message may contain the address.
        raise NotSent(f"no answer ({type(error).__name__})") from None

    if status == GONE:
        raise NotSent("it answered 410: the address no longer exists", final=True)
    if not httpx.codes.is_success(status):
        raise NotSent(f"it answered {status}")
