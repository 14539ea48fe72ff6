"""The distribution's Chromium for tests, screenshots and benchmarks. No browser is ever downloaded."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
"""The first needs a third of the processor time of the second for the same pages."""
MISSING = "chromium is missing; on Debian: apt-get install chromium-headless-shell"


def program() -> str | None:
    """The browser's path, or None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A running headless browser."""
    from playwright.sync_api import sync_playwright

    path = program()
    if path is None:
        raise SystemExit(MISSING)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=120_000)
        yield running
        running.close()
