"""Documents between a notebook and the server, over an emulated Drive: what is claimed, heard, refused and cleared
away."""

from __future__ import annotations

import ast
import hashlib
import json
from typing import Any

import google.oauth2.credentials
import pytest
import stamina

from orchestrator.ports.system import Limits
from orchestrator.services import stores
from orchestrator.services.mailbox import LISTENS_S, MailboxPoller
from orchestrator.services.notebooks import CODE_LASTS_S
from orchestrator.services.reconcile import reconcile
from tests.emulators.drive import Drive, Rule
from tests.http.conftest import _api
from tests.http.http_client import People
from worker.notebook.mailbox_connection import MailboxConnection
from worker.shared.manifest import Hardware
from worker.shared.messages import Phase, Release, Report, Started, StartRequest, sign_line
from worker.shared.notebook_messages import ClaimRequest, MailboxRequest
from worker.shared.wire import PROTOCOL_VERSION

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the claims' own tests use both


T4 = Hardware(device="cuda", name="Tesla T4", memory_bytes=15 << 30)


class Tab:
    """A notebook that a test drives by hand: signed in as the Drive's owner, it can only read and replace."""

    def __init__(self, made, drive, nonce="run-1"):
        tree = ast.parse(made["notebook"]["cells"][1]["source"])
        values: dict[str, Any] = {}
        for each in ast.walk(tree):
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
                values[each.targets[0].id] = each.value
        self.code, self.nonce = ast.literal_eval(values["CODE"]), nonce
        user = {k: v for k, v in drive.authorized_user().items() if k != "type"}
        self.pen = MailboxConnection(
            ast.literal_eval(values["DRIVE"]), google.oauth2.credentials.Credentials(None, **user)
        )
        self.claimed: Any = None
        self.seq = 0

    def ask(self, **more):
        asked = {"protocol": PROTOCOL_VERSION, "code": self.code, "nonce": self.nonce, "hardware": T4} | more
        assert self.pen._write(MailboxRequest(nonce=self.nonce, claim=ClaimRequest(**asked)))

    def answer(self) -> Any:
        found = self.pen._read()
        assert found is not None
        assert found.nonce == self.nonce
        self.claimed = found.claimed or self.claimed
        return found

    def say(self, kind, **fields):
        """A signed line, with those before it that nobody has acknowledged."""
        self.seq += 1
        assert self.claimed is not None
        said = {"lease": self.claimed.ticket.lease, "fence": self.claimed.fence, "seq": self.seq} | fields
        return sign_line(self.claimed.ticket.token, kind(**said).as_line())

    def send(self, *lines):
        assert self.pen._write(MailboxRequest(nonce=self.nonce, lines=lines))

    def started(self):
        return self.say(Started, request=StartRequest(protocol=PROTOCOL_VERSION, nonce="n", hardware=T4))

    def report(self, step):
        return self.say(Report, step=step, phase=Phase.TRAIN)


@pytest.fixture
def drive(tmp_path):
    with Drive(tmp_path / "drive") as emulator:
        yield emulator


@pytest.fixture
def app(database_url, make_server, drive):
    made = make_server(database_url, drivers={"drive": {"endpoint": drive.url}})
    stores.use_store(made.context, "drive", json.dumps(drive.authorized_user()))
    return made


@pytest.fixture
def ann(app):
    for api in _api(app):
        yield People.of(api).ann


@pytest.fixture
def job(ann):
    return ann.submit()


@pytest.fixture
def made(ann, job):
    answer = ann.post(f"/jobs/{job['id']}:notebook")
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.fixture
def poller(app):
    return MailboxPoller(app.context)


def state(ann, job):
    return ann.get(f"/jobs/{job['id']}").json()["state"]


def begun(made, drive, poller) -> Tab:
    """A notebook whose session has started."""
    tab = Tab(made, drive)
    tab.ask()
    poller.round()
    tab.answer()
    tab.send(tab.started())
    poller.round()
    return tab


def test_a_claim_brings_all_that_a_session_reads_and_writes(ann, job, made, drive, poller):
    tab = Tab(made, drive)
    poller.round()
    assert state(ann, job) == "queued", "nobody has run it yet"
    tab.ask()
    poller.round()
    assignment = tab.answer().claimed.ticket.assignment
    (data,) = assignment.datasets
    assert data.url.startswith(f"{drive.url}/drive/v2/files/")
    assert data.sha256 in {hashlib.sha256(drive.bytes_of(f)).hexdigest() for f in drive.files()}
    assert all(grant.resumable for grant in assignment.uploads)
    assert tab.claimed.ticket.server_url is None
    before = len(drive.requests)
    poller.round()
    assert not [r for r in list(drive.requests)[before:] if r.startswith(("POST", "PUT"))], "asked twice, answered once"
    assert (state(ann, job), made["note"]) == (
        "starting",
        "It connects to this server through Google Drive. Sign in to Google as somebody@example.com",
    )


def test_lines_are_heard_in_order_said_again_without_harm_and_answered(ann, job, made, drive, poller):
    """Guard: without the signature's check a line with another lease's token counted."""
    tab = Tab(made, drive)
    tab.ask()
    poller.round()
    tab.answer()
    lines = [tab.started(), tab.report(1), tab.report(2)]
    text = lines[2].split(" ", 2)[2]
    forged = sign_line("thl_wrong", text.replace('"step":2', '"step":9').replace('"seq":3', '"seq":9'))
    tab.send(*lines, forged)
    poller.round()
    assert (tab.answer().heard, state(ann, job)) == (3, "running")
    assert ann.get(f"/jobs/{job['id']}").json()["step"] == 2
    ann.post(f"/jobs/{job['id']}:pause")
    tab.send(*lines, tab.report(3))
    poller.round()
    answer = tab.answer()
    assert (answer.heard, answer.directive.action, answer.directive.reason) == (4, "drain", "paused")
    tab.send(tab.say(Release, step=3, reason="drained"))
    poller.round()
    answer = tab.answer()
    assert (answer.heard, answer.over) == (5, "handed_off")
    assert state(ann, job) == "paused"


def test_a_second_tab_is_refused_and_the_first_one_goes_on(ann, job, made, drive, poller):
    """Guard: with letters of any run taken for the claimed one's, the second tab was told to go on."""
    first, second = Tab(made, drive), Tab(made, drive, "run-2")
    first.ask()
    poller.round()
    first.answer()
    second.ask()
    poller.round()
    assert "used" in second.answer().refused
    second.send("nothing of use")
    poller.round()
    assert "another tab" in second.answer().refused
    first.send(first.started())
    poller.round()
    assert first.answer().heard == 1


def test_what_does_not_fit_is_said_and_another_runtime_may_try(ann, job, made, drive, poller):
    unfit, fit = Tab(made, drive), Tab(made, drive, "run-2")
    unfit.ask(hardware=Hardware(device="cpu"), runs_in="colab")
    poller.round()
    assert "no GPU" in unfit.answer().refused
    fit.ask()
    poller.round()
    assert fit.answer().taken


def test_a_store_that_takes_nothing_costs_the_job_nothing(ann, job, made, drive, poller, app):
    """Guard: without the hand-back the job stayed leased to a notebook that had been refused."""
    tab = Tab(made, drive)
    tab.ask()
    drive.rules.add(Rule("POST /upload", status=403, reason="storageQuotaExceeded"))
    poller.round()
    assert "Create a new notebook" in tab.answer().refused
    assert state(ann, job) == "queued"
    with app.context.uow() as tx:
        assert tx.jobs.get(job["id"]).losses_in_a_row == 0


def test_silence_gives_the_job_back_and_a_late_notebook_is_told(ann, job, made, drive, poller, app, clock):
    tab = begun(made, drive, poller)
    clock.tick(Limits().lease_s + 1)
    reconcile(app.context)
    assert state(ann, job) == "queued"
    tab.send(tab.report(5))
    poller.round()
    assert tab.answer().over == "no report came in time"


def test_nothing_is_left_in_the_drive_when_a_notebook_is_over(ann, job, made, drive, poller, clock):
    """Guard: without `_close` a mailbox was asked for ever."""
    tab = Tab(ann.post(f"/jobs/{job['id']}:notebook").json(), drive)
    tab.ask()
    poller.round()
    tab.answer()
    tab.send(tab.started(), tab.say(Release, step=0, reason="drained"))
    poller.round()
    clock.tick(LISTENS_S + 1)
    poller.round()
    assert len([f for f in drive.files() if f.title.endswith(("json", "whl"))]) == 3, "the one that was never run"
    clock.tick(CODE_LASTS_S)
    poller.round()
    assert not [f for f in drive.files() if f.title.endswith(("json", "whl"))]
    before = len(drive.requests)
    poller.round()
    assert len(drive.requests) == before


def test_a_drive_that_is_away_is_asked_again_in_the_next_round(ann, job, made, drive, poller):
    tab = Tab(made, drive)
    tab.ask()
    drive.rules.add(Rule("GET /", status=503, times=None))
    with stamina.set_testing(True, attempts=1):
        poller.round()
    drive.rules.clear()
    poller.round()
    assert tab.answer().taken


def test_a_mailbox_that_cannot_be_read_proves_no_silence(ann, job, made, drive, poller, app, clock):
    """Guard: without `_was_not_heard` a minute without Drive took every running notebook's job away."""
    tab = begun(made, drive, poller)
    drive.rules.add(Rule("GET /", status=503, times=None))
    with stamina.set_testing(True, attempts=1):
        for _ in range(10):
            clock.tick(20.0)
            poller.round()
            reconcile(app.context)
    drive.rules.clear()
    assert state(ann, job) == "running"
    tab.send(tab.report(5))
    poller.round()
    clock.tick(Limits().lease_s + 1)
    reconcile(app.context)
    assert state(ann, job) == "queued", "it has not written since"
