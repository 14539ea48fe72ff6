"""A Trainhop driver: sessions are processes of the server's computer, for people with a token of its operator."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from orchestrator.ports import providers as port
from worker.shared.messages import Ticket
from worker.shared.process import process_birth


class WorkshopSettings(port.DriverSettings):
    """The operator's: TRAINHOP_WORKSHOP_TOKENS and TRAINHOP_WORKSHOP_SEATS."""

    tokens: Annotated[
        Path | None, Field(description="File of people: a name and the sha256 of a token on each line.")
    ] = None
    seats: Annotated[int, Field(ge=1, le=64, description="How many sessions of one person may run at once.")] = 1


class WorkshopAccountSettings(port.AccountSettings):
    """The account owner's: trainhop accounts add workshop --set niceness=15."""

    niceness: Annotated[int, Field(ge=0, le=19, description="How readily a session gives way to other programs.")] = 10


class WorkshopProvider(port.Provider):
    """Each session has a folder in `env.folder`. An external id is `pid:birth`: a pid alone may be used again."""

    capabilities = port.Capabilities(provider="workshop", shares_disk=False, personal=True)
    texts = port.ProviderTexts(
        title="Workshop",
        machines="Processes of the server's computer.",
        credentials="The token that the operator gave you.",
        connect="trainhop accounts add workshop --token-file FILE",
        terms="One token is one person's.",
    )
    settings = WorkshopSettings
    account_settings = WorkshopAccountSettings

    def __init__(self, env: port.DriverEnv) -> None:
        self._env, self._settings = env, env.read(WorkshopSettings)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    # --- accounts: these two make it SupportsCheck and SupportsIdentity ---

    def check(self, account: port.Account) -> str:
        return f"signed in at the workshop as {self.login(account)}"

    def login(self, account: port.Account) -> str:
        try:
            digest = hashlib.sha256(self._env.vault.open(account.credentials).encode()).hexdigest()
            lines = self._settings.tokens.read_text().splitlines() if self._settings.tokens else []
        except (port.VaultError, OSError) as error:
            raise port.CredentialsRefused(f"the token cannot be checked: {error}") from error
        for name, known in (line.split() for line in lines if line.strip()):
            if hmac.compare_digest(known, digest):
                return name
        raise port.CredentialsRefused("the workshop does not know this token. Ask its operator for a new one")

    def capacity(self, account: port.Account) -> port.Capacity:
        self.login(account)
        wanted = WorkshopAccountSettings.model_validate(account.config)
        slots = min(wanted.slots, self._settings.seats)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return port.Capacity(slots=slots, session_s=wanted.session_s, memory_bytes=memory, start_up_s=20.0)

    # --- the life of a session ---

    def launch(self, request: port.LaunchRequest) -> str:
        self.login(request.account)
        home = self._home(request.lease_id)
        if (home / "id").exists():  # asked a second time
            return (home / "id").read_text()
        home.mkdir(mode=0o700, exist_ok=True)
        ticket = Ticket(
            lease=request.lease_id, token=request.token, budget_s=request.budget_s, server_url=request.server_url
        )
        (home / "ticket.json").write_text(ticket.model_dump_json())
        niceness = WorkshopAccountSettings.model_validate(request.account.config).niceness
        command = ["nice", "-n", str(niceness), sys.executable, "-m", "worker", str(home / "ticket.json")]
        # The server's own settings and Hugging Face token are not the worker's business.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINHOP_", "HF_TOKEN"))}
        with (home / "output.log").open("ab") as log:
            child = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
        self._children[request.lease_id] = child
        threading.Thread(target=lambda: (child.wait(), self._env.notify()), daemon=True).start()
        (home / "id").write_text(f"{child.pid}:{process_birth(child.pid)}")
        return (home / "id").read_text()

    def observe(self, handles: Sequence[port.Handle]) -> list[port.Observation]:
        return [self._observe(handle) for handle in handles]

    def _observe(self, handle: port.Handle) -> port.Observation:
        alive, child = self._pid(handle) is not None, self._children.get(handle.lease_id)
        code = child.poll() if child is not None else None
        if alive and code is None:
            return port.Observation(lease_id=handle.lease_id, liveness=port.Liveness.RUNNING)
        detail = f"the process ended with exit code {code}" if code else ""
        return port.Observation(
            lease_id=handle.lease_id, liveness=port.Liveness.ENDED, detail=detail, failed=bool(code)
        )

    def _pid(self, handle: port.Handle) -> int | None:
        """The session's process while it lives, also after a restart of the server."""
        note = self._home(handle.lease_id) / "id"
        pid, _, birth = (note.read_text() if note.exists() else "0:").partition(":")
        return int(pid) if birth and str(process_birth(int(pid))) == birth else None

    def stop(self, handle: port.Handle) -> None:
        if (pid := self._pid(handle)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def collect_outputs(self, handle: port.Handle) -> port.SessionOutput:
        outbox = self._home(handle.lease_id) / "outbox.jsonl"
        return port.SessionOutput(messages=outbox.read_text().splitlines() if outbox.exists() else [])

    def clean_up(self, handle: port.Handle) -> None:
        for entry in self._home(handle.lease_id).glob("*"):
            if entry.name not in ("id", "output.log"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)

    def delete_log(self, handle: port.Handle) -> None:
        shutil.rmtree(self._home(handle.lease_id), ignore_errors=True)

    def log(self, handle: port.Handle, offset: int, limit: int) -> bytes | None:
        path = self._home(handle.lease_id) / "output.log"
        return path.read_bytes()[offset : offset + limit] if path.exists() else b""

    def _home(self, lease_id: str) -> Path:
        return self._env.folder / lease_id
