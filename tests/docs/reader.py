"""A reader of the docs: types commands in a folder, with a real server and emulated services behind it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.tiny_model import make_tiny_llama
from tests.cli.conftest import environment
from tests.docs.snippets import ROOT
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator
from tests.emulators.hub.state import Repo
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.helpers import forked_process
from tests.helpers.benchmark_repos import arc_repo, gsm8k_repo
from tests.helpers.waiting import wait_for

PATIENCE_S = 120.0
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "mistralai/Mistral-7B-Instruct-v0.3")
PEOPLE = {"alice": "KGAT_alice", "bob": "KGAT_bob"}
HUB_TOKEN = "hf_of_alice"
BROWSER = """#!{python}
import sys, urllib.request
urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(sys.argv[1]).read()
"""
SERVE = "trainhop up"
OF_A_SHELL = frozenset("$|&;<>*?`\\'{")
"""What a command without a shell cannot have. Double quotes mean the same here and there."""
OTHER_NAMES = '{{"turns": [{{"who": "kim", "says": "Hello {0}"}}, {{"who": "bot", "says": "Hi {0}"}}]}}\n'
"""A row of the page on job files."""
PROGRAM = """#!/bin/sh
exec "{python}" -m orchestrator.entrypoints.cli.main "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Services:
    """What is behind the server, all of it in this process."""

    hub: HubEmulator
    kaggle: KaggleEmulator
    drive: Drive


@contextlib.contextmanager
def services(folder: Path) -> Iterator[Services]:
    """A hub with one tiny model under two names, a Kaggle whose GPU hours are used up, and a Drive."""
    model = make_tiny_llama(folder / "model")
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    people = [Person(name=name, token=token, gpu_hours=0.0) for name, token in PEOPLE.items()]
    with HubEmulator() as hub, KaggleEmulator(folder / "kaggle", people) as kaggle, Drive(folder / "drive") as drive:
        forked_process.share_hub(hub.endpoint)
        hub.accounts[HUB_TOKEN] = "alice-on-the-hub"
        for name in MODELS:
            hub.add(Repo(id=name, files=files))
        for repo in (arc_repo(), gsm8k_repo()):
            hub.add(repo)
        yield Services(hub=hub, kaggle=kaggle, drive=drive)


@dataclass
class Reader:
    """Types commands in `folder`, which has the repository's examples. `printed` is what each command printed.

    `read` are the commands that stand on pages; others brought about what these needed.
    """

    folder: Path
    services: Services
    printed: dict[str, str] = field(default_factory=dict[str, str])
    read: set[str] = field(default_factory=set[str])
    _server: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        shutil.copytree(ROOT / "examples", self.folder / "examples")
        shutil.copy(ROOT / "examples" / "trail-guide.jsonl", self.folder / "data.jsonl")
        drive = self.services.drive
        self._write("user.json", json.dumps(drive.authorized_user()))
        self._write("client.json", json.dumps(drive.tokens.client_secrets(drive.url)))
        self._write("rows.jsonl", "".join(map(OTHER_NAMES.format, range(8))))
        self._write("questions.csv", "frage,antwort\n" + "".join(f"what is {n},it is {n}\n" for n in range(8)))
        self._write("kaggle-token.txt", PEOPLE["alice"])
        self._write("F", PEOPLE["bob"])
        (self.folder / "bin").mkdir()
        self._write("bin/trainhop", PROGRAM.format(python=sys.executable)).chmod(0o700)
        self._write("browser", BROWSER.format(python=sys.executable)).chmod(0o700)
        self.variables = environment(
            PATH=f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            HOME=str(self.folder.parent),
            BROWSER=f"{self.folder / 'browser'} %s",
            HF_HUB_OFFLINE="0",
            TRAINHOP_DATA_DIR=str(self.folder / "data"),
            TRAINHOP_PORT="0",
            TRAINHOP_REPORT_EVERY_S="1",
            TRAINHOP_HUB_ENDPOINT=self.services.hub.endpoint,
            TRAINHOP_KAGGLE_ENDPOINT=self.services.kaggle.endpoint,
            TRAINHOP_DRIVE_ENDPOINT=drive.url,
        )

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    @property
    def url(self) -> str:
        """Where the server is."""
        return (Path(self.variables["TRAINHOP_DATA_DIR"]) / "server.url").read_text().strip()

    def _words(self, command: str) -> list[str]:
        """The command without a shell, as most are. A process that Python starts need not import everything anew."""
        words = shlex.split(command) if not OF_A_SHELL & set(command) else []
        main = [sys.executable, "-m", "orchestrator.entrypoints.cli.main"]
        return [*main, *words[1:]] if words[:1] == ["trainhop"] else []

    def type(self, command: str, text: str = "", **variables: str) -> str:
        """Run a command to its end, with `text` typed at it; what it printed. One that fails fails the test."""
        done = subprocess.run(
            self._words(command) or ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.variables | variables,
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        self.printed[command] = done.stdout
        return done.stdout

    def serve(self, command: str) -> None:
        """Start the server as this command says, in the place of one that runs already."""
        self.stop()
        if found := re.search(r"--data-dir (\S+)", command):
            self.variables["TRAINHOP_DATA_DIR"] = found[1]
        data = Path(self.variables["TRAINHOP_DATA_DIR"])
        (data / "server.url").unlink(missing_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            server = subprocess.Popen(
                self._words(command) or ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self.variables,
                stdout=log,
                stderr=log,
            )
        self._server = server
        wait_for(lambda: self._answers(data) or server.poll() is not None, "the server")
        assert server.poll() is None, (self.folder / "server.log").read_text()
        self.printed[command] = ""

    def _answers(self, data: Path) -> bool:
        with contextlib.suppress(OSError, httpx.TransportError):
            url = (data / "server.url").read_text().strip()
            return httpx.get(f"{url}/healthz", trust_env=False).is_success
        return False

    @property
    def is_served(self) -> bool:
        """Whether a server of this reader runs."""
        return self._server is not None

    def stop(self) -> None:
        """End the server and its workers."""
        if self._server is None:
            return
        self._server.terminate()
        self._server.wait(60)
        self._server = None
        for note in Path(self.variables["TRAINHOP_DATA_DIR"]).glob("sessions/*/pid.json"):
            with contextlib.suppress(ValueError, ProcessLookupError):
                os.kill(json.loads(note.read_text())["pid"], signal.SIGKILL)
