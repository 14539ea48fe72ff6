"""Ports of this computer for programs that start later."""

from __future__ import annotations

import contextlib
import random
import socket


def quiet_port() -> int:
    """A free loopback port below the ephemeral range, so that no other program takes it before it is used, or again."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            return probe.getsockname()[1]
