"""The server's own network, into which nobody but an admin may have it send anything: what lies there, and how it is kept shut."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any

Lookup = Callable[[str], Sequence[str]]
"""The addresses that a host has now; raises `OSError` if it has none."""

_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that is handed out of IPv6 for the world."""
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


def lookup(host: str) -> list[str]:
    """What the system's resolver says, also of the odd forms that it takes for an address (2130706433, 0x7f.1)."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except ValueError as error:  # a label that is empty or too long
        raise OSError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_inside(address: str) -> bool:
    """Whether an IP address is anything but one host of the public internet.

    A public address of this very server is outside: whoever sends there could do so without it. IPv4 inside IPv6 counts as
    what it leads to.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour
        if ip in _TRANSLATED:
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if carried is None and ip not in _UNICAST:
            return True
        ip = carried or ip
    return not ip.is_global or ip.is_multicast


_watch: ContextVar[list[str] | None] = ContextVar("_watch", default=None)


@contextlib.contextmanager
def only_outside() -> Iterator[list[str]]:
    """Nothing that runs in here connects to an address inside; the list fills with those that were turned back.

    It is looked at what a socket really connects to, so that names, redirects and a resolver that changes its mind make no
    difference. It holds for Python's sockets in this context, and in threads that were handed a copy of it; a library that
    connects in a thread of its own, or in C, is not held, and one that sends to a name leaves a moment for the name to change.
    """
    _install()
    turned_back: list[str] = []
    token = _watch.set(turned_back)
    try:
        yield turned_back
    finally:
        _watch.reset(token)


@cache
def _install() -> None:
    """An audit hook stays for good: only once, and only for those who need it."""
    sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event not in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        return
    turned_back = _watch.get()
    if turned_back is None:
        return
    where, address = args
    if address is None:  # `sendmsg` over a connection that was let through
        return
    if where.family not in (socket.AF_INET, socket.AF_INET6) or any(map(is_inside, lookup(address[0]))):
        turned_back.append(str(address))
        raise ConnectionRefusedError("this address lies inside the server's own network")
