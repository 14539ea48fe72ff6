"""A download that resumes after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from http.client import PARTIAL_CONTENT, REQUESTED_RANGE_NOT_SATISFIABLE
from pathlib import Path

import httpx

Request = Callable[[Mapping[str, str]], AbstractContextManager[httpx.Response]]
"""Sends the request with these headers. Raises for every error status but 416."""


def fetch(request: Request, partial: Path) -> bool:
    """Append the missing bytes of the file to `partial`. True if a part was there before.

    The file's hash has to be checked then. The bytes in `partial` are kept after an error. Raises `OSError`,
    `httpx.HTTPError`, and the errors of `ask`.
    """
    offset = partial.stat().st_size if partial.is_file() else 0
    range_header = {"Range": f"bytes={offset}-"} if offset else {}
    with request({"Accept-Encoding": "identity", **range_header}) as response:
        if response.status_code == REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # the last byte had arrived before the interruption
        with partial.open("ab" if response.status_code == PARTIAL_CONTENT else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
    return offset > 0
