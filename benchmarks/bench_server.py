"""The product's server with one provider more, whose machines are the benchmark's own coroutines.

    python -m benchmarks.bench_server DATA_DIR PORT SOCKET [ACCELERATOR]

Everything but that provider is what `trainhop up` runs. A launch is a datagram to SOCKET. An accelerator that is named
is left out, as `benchmarks.substitutes` does it.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.substitutes import leave_out
from orchestrator.config import Settings
from orchestrator.domain.accounts import Account
from orchestrator.entrypoints.background import server
from orchestrator.ports.providers import (
    Capabilities,
    Capacity,
    Handle,
    LaunchRequest,
    Liveness,
    Observation,
    Provider,
    SessionOutput,
)
from orchestrator.providers.registry import Registry

SLOTS = 1_000


class Coroutines(Provider):
    """Implements `ports.Provider`. A launch notifies the benchmark, which then runs the lease over HTTP."""

    capabilities = Capabilities(provider="local", shares_disk=True, local=True, this_computer=True)

    def __init__(self, address: str) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def capacity(self, account: Account) -> Capacity:
        return Capacity(slots=SLOTS, session_s=3600.0)

    def launch(self, request: LaunchRequest) -> str:
        self._socket.sendto(json.dumps({"lease": request.lease_id, "token": request.token}).encode(), self._address)
        return request.lease_id

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        return [Observation(lease_id=h.lease_id, liveness=Liveness.UNSEEN) for h in handles]

    def stop(self, handle: Handle) -> None: ...

    def collect_outputs(self, handle: Handle) -> SessionOutput:
        return SessionOutput()

    def clean_up(self, handle: Handle) -> None: ...

    def delete_log(self, handle: Handle) -> None: ...

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        return None


def main() -> None:
    """Serve until stopped."""
    folder, port, address, without = [*sys.argv[1:], ""][:4]
    if without:
        leave_out(without)
    settings = Settings(data_dir=Path(folder), port=int(port), offline=True)
    server.run(settings, providers=Registry.of({"local": Coroutines(address)}))


if __name__ == "__main__":
    main()
