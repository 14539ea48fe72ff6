"""A download that goes on where it was cut off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from http.client import PARTIAL_CONTENT, REQUESTED_RANGE_NOT_SATISFIABLE
from pathlib import Path

import httpx

Ask = Callable[[Mapping[str, str]], AbstractContextManager[httpx.Response]]
"""Sends the request with these headers; raises for every refusal but 416."""


def fetch(ask: Ask, aside: Path) -> bool:
    """Add to `aside` what it lacks of the file; True if it held a part before, which only the file's hash can vouch for.

    What has arrived stays there, whatever is raised: `OSError`, `httpx.HTTPError`, and what `ask` raises.
    """
    have = aside.stat().st_size if aside.is_file() else 0
    wanted = {"Range": f"bytes={have}-"} if have else {}
    with ask({"Accept-Encoding": "identity", **wanted}) as answer:
        if answer.status_code == REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # it was cut off after the last byte
        with aside.open("ab" if answer.status_code == PARTIAL_CONTENT else "wb") as file:
            for chunk in answer.iter_bytes():
                file.write(chunk)
    return have > 0
