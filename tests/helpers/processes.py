"""Whether processes that others started are gone."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import wait


def assert_gone(pid: int, patience_s: float = 30.0) -> None:
    """Wait until a process, which need not be a child of this one, has ended; one that has not is killed."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        is_gone = bool(wait([descriptor], patience_s))
        if not is_gone:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        assert is_gone, f"process {pid} was still there"
    finally:
        os.close(descriptor)
