"""Machines that cannot call, as real worker processes: they know neither the server's address nor its disk."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.adapters.stores.local import LocalStore
from orchestrator.ports.providers import (
    Capabilities,
    Handle,
    LaunchRequest,
    Liveness,
    ProviderUnavailable,
    SessionOutput,
)
from orchestrator.providers.local import LOG_NAME, LocalProvider
from worker.shared.messages import Grant, GrantKind, Ticket


class RemoteMachines(LocalProvider):
    """Brings a session its files, reads its output, hands over its keep folder, as a remote provider's driver does."""

    capabilities = Capabilities(provider="remote", shares_disk=False, same_network=False)
    reachable = True
    loses_files = False

    def _spawn(self, home: Path, request: LaunchRequest) -> subprocess.Popen[bytes]:
        assert request.server_url is None
        assert request.assignment is not None
        (home / "input").mkdir()
        (home / "keep").mkdir()
        assignment = request.assignment.model_copy(
            update={
                "datasets": tuple(self._bring(home, g, request) for g in request.assignment.datasets),
                "resume": self._bring(home, request.assignment.resume, request) if request.assignment.resume else None,
                "keep_dir": str(home / "keep"),
            }
        )
        ticket = Ticket(lease=request.lease_id, token=request.token, budget_s=request.budget_s, assignment=assignment)
        (home / "ticket.json").write_text(ticket.model_dump_json())
        return super()._spawn(home, request)

    def _bring(self, home: Path, grant: Grant, request: LaunchRequest) -> Grant:
        path = home / "input" / grant.key.replace("/", "__")
        path.write_bytes(b"".join(request.inputs[grant.key]()))
        return grant.model_copy(update={"path": str(path)})

    def follow(self, handle: Handle) -> Iterator[str]:
        with (self._home(handle.lease_id) / LOG_NAME).open(errors="replace") as log:
            rest = ""
            while True:
                if not self.reachable:
                    raise ProviderUnavailable("no route")
                over = self._observe(handle.lease_id).liveness is Liveness.ENDED
                rest += log.read()
                *lines, rest = rest.split("\n")
                yield from lines
                if over and not lines:
                    return
                if not lines:
                    time.sleep(0.05)

    def collect_outputs(self, handle: Handle) -> SessionOutput:
        if not self.reachable:
            raise ProviderUnavailable("no route")
        keep = self._home(handle.lease_id) / "keep"
        if self.loses_files or not keep.is_dir():
            return SessionOutput()
        files = {p.name.replace("__", "/"): p for p in keep.iterdir() if "__" in p.name}
        outbox = keep / "outbox.jsonl"
        return SessionOutput(messages=outbox.read_text().splitlines() if outbox.exists() else (), files=files)


class RemoteStore(LocalStore):
    """A store that machines everywhere can upload to, for which a folder stands in."""

    name = "remote"

    def grant_upload(self, key: str, kind: GrantKind, *, shares_disk: bool) -> Grant:
        return super().grant_upload(key, kind, shares_disk=True)
