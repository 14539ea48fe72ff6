"""Messages on their way out: over Apprise's services, or as requests signed after the Standard Webhooks specification.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from typing import Any
from urllib.parse import urlsplit

import httpx

from orchestrator.domain.errors import InvalidError
from orchestrator.notice_ports import ChannelKind, Delivery, NotSent

TIMEOUT_S = 10.0
GONE = 410
_ON_THIS_COMPUTER = {"dbus", "gio", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows"}
"""Services of Apprise that would show a message on the server's own screen or log."""


class WebCarrier:
    """Implements `notice_ports.Carrier`."""

    def check(self, address: str) -> tuple[ChannelKind, str]:
        parts = _split(address)
        if parts.scheme in ("http", "https"):
            if not parts.hostname:
                raise _refused("a webhook's address needs a host")
            port = f":{parts.port}" if parts.port else ""
            return ChannelKind.WEBHOOK, f"{parts.scheme}://{parts.hostname}{port}"
        if not parts.scheme:
            raise _refused("an address begins with its service: https://, ntfy://, slack://, mailto:// ...")
        if parts.scheme in _ON_THIS_COMPUTER:
            raise _refused(f"{parts.scheme}:// would only reach the server's own screen")
        if not _apprise().Apprise().add(address):
            raise _refused(f"Apprise does not understand this {parts.scheme}:// address; its wiki shows the form")
        return ChannelKind.APPRISE, f"{parts.scheme}://…"

    def send(self, kind: ChannelKind, address: str, secret: str, delivery: Delivery, at: float) -> None:
        if kind is ChannelKind.WEBHOOK:
            _post(address, secret, delivery, at)
            return
        carrier: Any = _apprise().Apprise()
        if not carrier.add(address) or not carrier.notify(title=delivery.title, body=delivery.text):
            raise NotSent("the service did not take the message; is the address still right?")


def _split(address: str) -> Any:
    try:
        parts = urlsplit(address.strip())
        _ = parts.port
    except ValueError as error:
        raise _refused("this is no address") from error
    return parts


def _refused(words: str) -> InvalidError:
    return InvalidError(words, [("/url", words)])


def _apprise() -> Any:
    import apprise  # half a second, for those who use it

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it would log addresses with their secrets
    return apprise


def signed(secret: str, message_id: str, at: float, body: bytes) -> dict[str, str]:
    """The three headers by which a receiver knows who sent this, what, and when."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = b".".join((message_id.encode(), str(int(at)).encode(), body))
    signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(int(at)), "webhook-signature": f"v1,{signature}"}


def _post(address: str, secret: str, delivery: Delivery, at: float) -> None:
    body = json.dumps(delivery.body).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "trainhop"} | signed(secret, delivery.id, at, body)
    try:
        answer = httpx.post(address, content=body, headers=headers, timeout=TIMEOUT_S, follow_redirects=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotSent(f"no answer ({type(error).__name__})") from None  # the error's words may hold the address
    if answer.status_code == GONE:
        raise NotSent("it answered 410: nobody listens there any more", final=True)
    if not answer.is_success:
        raise NotSent(f"it answered {answer.status_code}")
