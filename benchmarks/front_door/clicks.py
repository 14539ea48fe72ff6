"""Counts the clicks and fields from an empty data folder to a job that trains, as a person takes the way."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.browser import browser
from benchmarks.lab import Lab, lab
from benchmarks.report import Figure
from benchmarks.tiny_job import write_rows
from benchmarks.tiny_model import make_tiny_llama
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator, Repo
from tests.emulators.kaggle import KaggleEmulator, Person

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

MAX_ACTIONS = 15
TOKEN, MODEL = "KGAT_alice", "trail/Guide-7B-Instruct"
PARAMETERS = 7_615_616_512
"""What the emulated hub says of the model. Its files are those of a tiny one, so that the emulated machine trains."""
PAGE_S, PATIENCE_S = 60.0, 240.0


class Person7B:
    """A person at a page. Every click, entered field and chosen file is one action."""

    def __init__(self, page: Page) -> None:
        self.page, self.actions = page, list[str]()

    def click(self, what: Locator) -> None:
        self.actions.append(f"click {' '.join(what.inner_text().split())}")
        what.click()

    def enter(self, label: str, text: str) -> None:
        self.actions.append(f"enter {label}")
        self.page.get_by_label(label).fill(text)

    def choose(self, what: Locator, file: Path) -> None:
        self.actions.append(f"choose {file.name}")
        what.set_input_files(str(file))

    def press(self, name: str, role: Any = "button") -> None:
        """Click a button or link by its name."""
        self.click(self.page.get_by_role(role, name=name))


def clicks(folder: Path, running: Browser | None = None) -> Iterator[Figure]:
    """An empty data folder, a browser, and nothing else: until a 7B-shaped job trains on emulated Kaggle with Drive.

    The emulated Google agrees at once. What a person clicks in Google's own dialog is not counted.
    """
    client, rows = folder / "client.json", write_rows(folder / "rows.jsonl")
    with _outside(folder) as (kaggle, drive, hub), _browser(running) as chromium:
        client.write_text(json.dumps(drive.tokens.client_secrets(drive.url)))
        settings = {"kaggle_endpoint": kaggle.endpoint, "drive_endpoint": drive.url, "hub_endpoint": hub.endpoint}
        variables = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hub")}
        quick = {"reconcile_s": 0.5, "report_every_s": 1}
        with lab(folder / "lab", variables, local_slots=0, **settings, **quick) as server:
            page = chromium.new_page()
            page.set_default_timeout(PAGE_S * 1000)
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
            page.goto(server.post("/login-links")["url"])  # what `trainhop up` opens in the browser
            person = Person7B(page)
            _walk(person, client, rows)
            job = page.url.rpartition("/")[2]
            server.wait_for(lambda: server.job(job)["step"] >= 1, "a first step", PATIENCE_S, 0.2)
            yield _counted(person)
            yield from _reached(server, job, complaints)
            page.close()
            server.post(f"/jobs/{job}:cancel")


def _walk(person: Person7B, client: Path, rows: Path) -> None:
    """The four steps, and the start of the job."""
    page = person.page
    person.enter("Kaggle credentials", TOKEN)
    person.press("Connect Kaggle")
    page.get_by_text("signed in at Kaggle as alice").wait_for()
    person.choose(page.get_by_label("OAuth client (JSON file)"), client)
    person.press("Sign in to Google Drive")
    person.press("Continue to Google Drive", role="link")
    page.get_by_role("heading", name="Set up").wait_for()
    person.enter("Part of the model's name", "7b")
    person.press("Search")
    person.press(f"Use this model {MODEL}", role="link")
    person.choose(page.locator("#file"), rows)
    page.locator("#plan").get_by_text("Would start immediately").wait_for()
    person.press("Submit")
    page.get_by_role("heading", name="guide-7b-instruct").wait_for()


def _counted(person: Person7B) -> Figure:
    for number, action in enumerate(person.actions, 1):
        print(f"    {number:>2} {action}", file=sys.stderr)
    count = len(person.actions)
    bar = f"<= {MAX_ACTIONS}, no terminal, no docs"
    return Figure(name="clicks and fields until a 7B trains", value=count, bar=bar, ok=count <= MAX_ACTIONS)


def _reached(server: Lab, job: str, complaints: list[str]) -> Iterator[Figure]:
    shown = server.job(job)
    where = [(s["provider"], s["account"]) for s in server.get(f"/jobs/{job}/sessions")["items"]][-1]
    store = next(s["name"] for s in server.get("/stores")["items"] if s["current"])
    told = f"{shown['spec']['base_model'].partition('@')[0]} on {where[1]}, checkpoints in {store}"
    ok = shown["state"] == "running" and where[0] == "kaggle" and store == "drive"
    yield Figure(name="what runs then", value=told, bar=f"{MODEL} on Kaggle, in Drive", ok=ok and MODEL in told)
    yield Figure(name="errors in the browser's console", value=len(complaints), bar="0", ok=not complaints)


@contextlib.contextmanager
def _outside(folder: Path) -> Iterator[tuple[KaggleEmulator, Drive, HubEmulator]]:
    """Kaggle, Drive and a hub with one model that says it has 7 billion parameters."""
    files = {f.name: f.read_bytes() for f in make_tiny_llama(folder / "model").iterdir()}
    repo = Repo(id=MODEL, files=files, parameters=PARAMETERS, licence="apache-2.0", downloads=1)
    with HubEmulator(repo) as hub:
        environment = hub.environment(folder / "kernels-hub") | {"OMP_NUM_THREADS": "1"}
        people = [Person(name="alice", token=TOKEN)]
        with (
            KaggleEmulator(folder / "kaggle", people, environment=environment) as kaggle,
            Drive(folder / "drive") as drive,
        ):
            yield kaggle, drive, hub


@contextlib.contextmanager
def _browser(running: Browser | None) -> Iterator[Browser]:
    if running is not None:
        yield running
        return
    with browser() as own:
        yield own
