"""`trainhop demo --sandbox`: the same run with local emulators of Kaggle and Google Drive, by two members.

The first session is a Kaggle kernel that is killed, the second runs on this computer until its time limit, the third is
a kernel again. It needs no credentials and no network. The real client libraries are used.
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
from orchestrator.entrypoints.cli.watch import until_final
from orchestrator.entrypoints.demo.director import LONG_S, Director
from orchestrator.entrypoints.demo.server import PrivateServer
from trainhop.polling import FINAL

KAGGLE_SESSION_S = 1200.0
"""Session limit, short enough that the upload grants allow a save every 20 s."""

BOBS_STEPS = 4


class Sandbox:
    """Emulators of Kaggle and Drive in threads of this process, and the members with accounts there."""

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
        """The settings that point a server at the emulators."""
        return {"TRAINHOP_KAGGLE_ENDPOINT": self.kaggle.endpoint, "TRAINHOP_DRIVE_ENDPOINT": self.drive.url}

    def move_in(self, server: PrivateServer) -> None:
        """Use the Drive store, add two members, and connect a Kaggle account for each."""
        admin = server.client
        used = admin.put("/stores/drive", {"credentials": json.dumps(self.drive.authorized_user())})
        say(f"new files are stored in Google Drive ({used['owner']}), emulated")
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
        """Pause or resume a member's Kaggle account."""
        self.clients[who].patch(f"/accounts/{self.accounts[who]}", {"paused": paused})

    def kill(self, session: str) -> bool:
        """Kill a session's kernel and delete its files. Returns whether it ran."""
        slug_of = import_module("orchestrator.providers.kaggle.launch").slug_of
        kernel = next((k for k in self.kaggle.world.kernels.values() if k.slug == slug_of(session)), None)
        if kernel is None or kernel.status != "RUNNING":
            return False
        self.kaggle.kill(kernel.slug, outputs=False)
        return True

    def tell(self) -> list[dict[str, Any]]:
        """The results of all members' jobs, printed and as data."""
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
    """Kills the first kernel, runs on this computer until its time limit, then finishes in a kernel. Then bob joins."""

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
        """Pause the pool after the second session and resume Kaggle for the third."""
        self._set_budget(LONG_S)
        self._open_pool(opened=False)
        self._sandbox.pause("alice", paused=False)
        self.bobs = self._sandbox.clients["bob"].post("/jobs", self._bobs_job, key="bob")["id"]
        self._view.note(f">>> bob submits {self.bobs}, which runs on his own account")

    def wait_for_bob(self) -> None:
        """Wait for bob's job, which was submitted late."""
        client = self._sandbox.clients["bob"]
        if self.bobs is not None and client.get(f"/jobs/{self.bobs}")["state"] not in FINAL:
            until_final(client, self.bobs, self._view)


def _emulators() -> tuple[Any, Any, Any]:
    root = Path(orchestrator.__file__).parent.parent
    if not (root / "tests" / "emulators" / "kaggle").is_dir():
        raise CommandError(
            Exit.USAGE,
            "The emulators are part of the tests, which the installed package does not contain.",
            "Run it from a checkout: git clone, then pip install -e '.[server,train,kaggle,drive,demo]'",
        )
    missing = [name for name in ("kagglesdk", "pydrive2") if not find_spec(name)]
    if missing:
        raise CommandError(
            Exit.USAGE,
            f"The sandbox needs {', '.join(missing)}, which this environment does not have.",
            "Install them with: pip install 'trainhop[kaggle,drive]'",
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return tuple(map(import_module, ("tests.emulators.kaggle", "tests.emulators.drive", "tests.images")))
