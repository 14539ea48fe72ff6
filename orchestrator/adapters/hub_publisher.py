"""Starts `hub_push` in a process of its own, which ends in time, whatever the hub does, and with this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

from orchestrator.adapters.hub import HUB
from orchestrator.domain.errors import InvalidError, UnavailableError
from orchestrator.ports.publishing import Publication, Published
from worker.shared.process import NETWORK_VARIABLES, last_line, tied, variables

START_S, LEAST_BYTES_PER_S, MAX_S = 300.0, 50_000, 6 * 3600.0
"""A push may take `START_S` seconds, and as many more as its bytes take at the slowest rate, up to `MAX_S`."""
_SETTINGS = {
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class HubPublisher:
    """Implements `ports.publishing.Publisher`. `endpoint` is the address of an emulator on this computer, for tests.

    The token goes to the process by its standard input, and the operator's own token and settings do not go there.
    """

    def __init__(self, *, is_offline: bool, endpoint: str | None = None) -> None:
        self._is_offline, self._endpoint = is_offline, endpoint or HUB

    def publish(self, publication: Publication) -> Published:
        from huggingface_hub.constants import is_offline_mode

        if self._is_offline or is_offline_mode():
            raise InvalidError("This server is set to stay offline, so it cannot push to Hugging Face.")
        size = sum(path.stat().st_size for path in publication.folder.rglob("*") if path.is_file())
        plain = asdict(publication) | {"akin": [], "folder": ""}
        request = {
            "endpoint": self._endpoint,
            "publication": plain,
            "akin": sorted(publication.akin),
            "folder": str(publication.folder),
        }
        try:
            done = subprocess.run(
                tied([sys.executable, "-W", "ignore", "-m", "orchestrator.adapters.hub_push"]),
                input=json.dumps(request),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # the client writes addresses there that grant access
                text=True,
                env=_environment(),
                timeout=min(START_S + size / LEAST_BYTES_PER_S, MAX_S),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UnavailableError("Hugging Face was too slow.") from None
        try:
            answer = json.loads(last_line(done.stdout))
        except ValueError:
            raise UnavailableError(f"The push ended without a result (exit code {done.returncode}).") from None
        if "published" in answer:
            return Published(**answer["published"])
        if "refused" in answer:
            raise InvalidError(answer["refused"])
        raise UnavailableError(answer["later"], retry_after_s=answer["retry_after_s"])


def _environment() -> dict[str, str]:
    paths = [path for path in sys.path if path]
    return variables(*NETWORK_VARIABLES) | _SETTINGS | {"PYTHONPATH": os.pathsep.join(paths)}
