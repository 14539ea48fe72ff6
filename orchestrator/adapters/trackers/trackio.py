"""Trackio: one run per job in a Space on Hugging Face, or at a Trackio server of one's own.

Each step has an id, and Trackio keeps only the first row with an id, so a step that is sent again changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from orchestrator.adapters.trackers.run import DEFAULT_PROJECT, Login, Point, Run, set_it

LIBRARY = "trackio"
MAX_AT_ONCE = 500
"""Steps of one request."""


def login_fault(login: Login | None) -> str:
    """It needs a Space or a server, and a key for it."""
    if login is None:
        return set_it("trackio", "Trackio needs a Space and a Hugging Face token that can write to it.")
    owner, slash, name = login.url.partition("/")
    is_space = bool(slash and owner and name) and not set(login.url) & set(":?#@ ") and "/" not in name
    if not is_space and not login.url.startswith(("http://", "https://")):
        return "The address is that of a Space (OWNER/NAME), or of a Trackio server (https://...)."
    if not login.key:
        return "Trackio needs a key: a Hugging Face token for a Space, the write token for a server of one's own."
    return ""


class TrackioRun:
    """A run over Trackio's client of remote servers."""

    def __init__(self, run: Run) -> None:
        is_space = not run.url.startswith(("http://", "https://"))
        self._hf_token = run.key if is_space else None
        self._client: Any = import_module("trackio.remote_client").RemoteClient(
            run.url,
            hf_token=self._hf_token,
            write_token=None if is_space else run.key,
            httpx_kwargs={"timeout": 60},
        )
        self._run, self._url = run, f"https://huggingface.co/spaces/{run.url}" if is_space else run.url
        self._names = {"project": run.project or DEFAULT_PROJECT, "run": run.name, "run_id": run.id}
        last = self._client.predict(api_name="/get_run_summary", **self._names)["last_step"]
        self._last = -1 if last is None else int(last)

    @property
    def last_step(self) -> int:
        return self._last

    def write(self, points: list[Point]) -> None:
        logs = [
            {**self._names, "metrics": values, "step": step, "log_id": f"{self._run.id}-{step}", "config": None}
            for step, _, values in points
        ]
        if logs:
            logs[0]["config"] = self._run.config | {"sessions": self._run.notes}
        for first in range(0, len(logs), MAX_AT_ONCE):
            chunk = logs[first : first + MAX_AT_ONCE]
            self._client.predict(api_name="/bulk_log", logs=chunk, hf_token=self._hf_token)

    def close(self, state: str) -> str:
        return self._url


def open_run(run: Run) -> TrackioRun:
    """Open the job's run. Trackio makes it with its first step."""
    return TrackioRun(run)
