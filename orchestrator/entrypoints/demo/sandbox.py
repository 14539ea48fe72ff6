"""`trainhop demo --sandbox`: the same run over Kaggle and Google Drive, both emulated on this computer, by two members.

The first machine is a Kaggle kernel that dies without a trace, the second this computer, whose time is up, and the third a
kernel again. Nobody's credentials are needed, and nothing leaves this computer; what is driven is the real clients.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orchestrator
from orchestrator.entrypoints.cli.client import Client, CommandError, Exit
from orchestrator.entrypoints.cli.output import say, seconds
from orchestrator.entrypoints.cli.phrases import listed
from orchestrator.entrypoints.cli.views import View
from orchestrator.entrypoints.cli.watch import FINAL, until_final
from orchestrator.entrypoints.demo.director import LONG_S, Director
from orchestrator.entrypoints.demo.server import PrivateServer

KAGGLE_SESSION_S = 1200.0
"""Short enough that the uploads opened in advance allow a save every 20 s."""

BOBS_STEPS = 4


class Sandbox:
    """Emulated Kaggle and Drive in threads of this process, and the members who have accounts there."""

    def __init__(self, folder: Path) -> None:
        kaggle, drive, images = _emulators()
        self.people = [kaggle.Person(name=name, token=f"KGAT_{name}") for name in ("alice", "bob")]
        home = folder / "sandbox"
        shutil.rmtree(home, ignore_errors=True)
        machine = images.place("kaggle-gpu")
        say(f"kernels have {machine.words}")
        environment = {**machine.environment, "HF_HUB_OFFLINE": "1"}
        self.kaggle = kaggle.KaggleEmulator(
            home / "kaggle", self.people, python=machine.python, environment=environment
        )
        self.drive = drive.Drive(home / "drive")
        self.clients: dict[str, Client] = {}
        self.accounts: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.drive.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kaggle.close()
        self.drive.__exit__(kind, error, tb)

    @property
    def settings(self) -> Mapping[str, str]:
        """What points a server at the emulators."""
        return {"TRAINHOP_KAGGLE_ENDPOINT": self.kaggle.endpoint, "TRAINHOP_DRIVE_ENDPOINT": self.drive.url}

    def move_in(self, server: PrivateServer) -> None:
        """Use Drive from now on, let two members in, and let each connect their own Kaggle account."""
        admin = server.client
        used = admin.put("/stores/drive", {"credentials": json.dumps(self.drive.authorized_user())})
        say(f"new files go to Google Drive ({used['owner']}), emulated")
        for person in self.people:
            admin.post("/members", {"name": person.name})
            secret = admin.post("/tokens", {"member": person.name, "name": "demo"})["secret"]
            client = self.clients[person.name] = Client(admin.url, secret)
            config = {"username": person.name, "session_s": KAGGLE_SESSION_S}
            made = client.post("/accounts", {"provider": "kaggle", "credentials": person.token, "config": config})
            self.accounts[person.name] = made["id"]
            words = client.post(f"/accounts/{made['id']}:check")["words"]
            say(f"{person.name} connects {made['name']}: {words}")

    def pause(self, who: str, *, paused: bool) -> None:
        """Keep new sessions away from a member's Kaggle account, or let them in again."""
        self.clients[who].patch(f"/accounts/{self.accounts[who]}", {"paused": paused})

    def kill(self, session: str) -> bool:
        """End a session's kernel as Kaggle's limit would, and lose its files; whether it ran."""
        slug_of = import_module("orchestrator.providers.kaggle.launch").slug_of
        kernel = next((k for k in self.kaggle.world.kernels.values() if k.slug == slug_of(session)), None)
        if kernel is None or kernel.status != "RUNNING":
            return False
        self.kaggle.kill(kernel.slug, outputs=False)
        return True

    def tell(self) -> list[dict[str, Any]]:
        """What became of every member's jobs, for people and for programs."""
        told = []
        for person in self.people:
            for job in listed(self.clients[person.name].get("/jobs")):
                sessions = listed(self.clients[person.name].get(f"/jobs/{job['id']}/sessions"))
                told.append(
                    {
                        "member": person.name,
                        "job": job["id"],
                        "state": job["state"],
                        "sessions": [{"provider": s["provider"], "account": s["account"]} for s in sessions],
                    }
                )
            say(f"{person.name:<11} {seconds(person.used_s)} of {person.gpu_hours:g} h at Kaggle used")
        return told


class SandboxDirector(Director):
    """The first kernel dies, this computer goes on until its time is up, and a kernel finishes; bob joins in then."""

    def __init__(
        self, server: PrivateServer, pool: str, view: View, sandbox: Sandbox, bobs_job: dict[str, Any]
    ) -> None:
        super().__init__(server, pool, view)
        self._sandbox, self._bobs_job = sandbox, bobs_job
        self.bobs: str | None = None
        self._open_pool(opened=False)

    def _open_pool(self, *, opened: bool) -> None:
        self._server.client.patch(f"/accounts/{self._account}", {"paused": not opened})

    def end(self, session: str) -> bool:
        self._sandbox.pause("alice", paused=True)
        if not self._sandbox.kill(session):
            self._sandbox.pause("alice", paused=False)
            return False
        self._open_pool(opened=True)
        return True

    def second_is_up(self) -> None:
        """The pool closes behind the second session, and the third finds Kaggle open."""
        self._set_budget(LONG_S)
        self._open_pool(opened=False)
        self._sandbox.pause("alice", paused=False)
        self.bobs = self._sandbox.clients["bob"].post("/jobs", self._bobs_job, key="bob")["id"]
        self._view.note(f">>> bob submits {self.bobs}, which runs on his own account")

    def wait_for_bob(self) -> None:
        """His job was submitted late and may still run."""
        client = self._sandbox.clients["bob"]
        if self.bobs is not None and client.get(f"/jobs/{self.bobs}")["state"] not in FINAL:
            until_final(client, self.bobs, self._view)


def _emulators() -> tuple[Any, Any, Any]:
    root = Path(orchestrator.__file__).parent.parent
    if not (root / "tests" / "emulators" / "kaggle").is_dir():
        raise CommandError(
            Exit.USAGE,
            "the sandbox's Kaggle and Drive are part of the tests, which an installed package does not contain",
            "run it from a checkout: git clone, then pip install -e '.[server,train,kaggle,drive,demo]'",
        )
    missing = [name for name in ("kagglesdk", "pydrive2") if not find_spec(name)]
    if missing:
        raise CommandError(
            Exit.USAGE,
            f"the sandbox drives the real clients and needs {', '.join(missing)}, which this environment lacks",
            "pip install 'trainhop[kaggle,drive]'",
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return tuple(map(import_module, ("tests.emulators.kaggle", "tests.emulators.drive", "tests.images")))
