"""Data checks for a test's server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.services.running_checks import RunningChecks
from tests.helpers.waiting import PATIENCE_S


@contextmanager
def data_checks(**options: Any) -> Iterator[RunningChecks]:
    """Data checks of which none runs any more when the test ends, because they use its database.

    Guard: without the waiting, the garbage collection of a later test found their open connection.
    """
    before = set(threading.enumerate())
    yield RunningChecks(**options)
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("aside-"):
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), thread.name
