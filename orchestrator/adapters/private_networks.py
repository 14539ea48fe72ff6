"""Keeps requests of members out of the server's own network. Only an admin may send anything there."""

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
"""Resolves a host's current addresses. Raises `OSError` if it has none."""

_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The range of all public IPv6 addresses."""
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


def lookup(host: str) -> list[str]:
    """The addresses that the system's resolver returns, also for unusual forms such as 2130706433 and 0x7f.1."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except ValueError as error:  # a label that is empty or too long
        raise OSError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_inside(address: str) -> bool:
    """Whether an IP address is anything but one host of the public internet.

    A public address of this server is outside, because anyone can send there without the server. An IPv4 address inside
    an IPv6 address counts as that IPv4 address.
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


IsInside = Callable[[str], bool]
"""Whether only an admin may have the server connect to this address."""


def leads_inside(host: str, lookup: Lookup, inside: IsInside) -> bool:
    """Whether any address of a host is inside. A name that does not resolve now counts as outside."""
    try:
        return any(map(inside, lookup(host)))
    except OSError:
        return False


_watch: ContextVar[tuple[list[str], IsInside] | None] = ContextVar("_watch", default=None)


@contextlib.contextmanager
def only_outside(inside: IsInside = is_inside) -> Iterator[list[str]]:
    """Prevents connections in this block to addresses that are `inside`. The list contains the refused addresses.

    The check looks at the address that a socket really connects to, so it covers names, redirects and changing DNS
    answers. It applies to Python's sockets in this context and in threads that got a copy of it. It does not apply to a
    library that connects in its own thread or in C. A library that sends to a name leaves a short time in which the
    name can change.
    """
    _install()
    turned_back: list[str] = []
    token = _watch.set((turned_back, inside))
    try:
        yield turned_back
    finally:
        _watch.reset(token)


@cache
def _install() -> None:
    """Install the audit hook. It cannot be removed, so it is installed only once and only when it is needed."""
    sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event not in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        return
    watched = _watch.get()
    if watched is None:
        return
    turned_back, inside = watched
    where, address = args
    if address is None:  # `sendmsg` over a connection that was allowed
        return
    if where.family not in (socket.AF_INET, socket.AF_INET6) or any(map(inside, lookup(address[0]))):
        turned_back.append(str(address))
        raise ConnectionRefusedError("this address is inside the server's own network")
