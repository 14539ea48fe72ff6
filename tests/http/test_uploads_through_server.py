"""A store that refuses its upload addresses: the server takes the files, and people read why nothing was saved before.

The Drive is emulated, everything else is real.
"""

import dataclasses
from functools import partial

import pytest

from orchestrator.domain.errors import UnavailableError
from orchestrator.domain.lifecycle import EndReason
from orchestrator.entrypoints.cli.phrases import note
from orchestrator.ports.providers import Liveness
from orchestrator.services import received_files, worker_messages
from orchestrator.services.reconcile import reconcile
from tests.emulators.drive import Rule
from tests.http.http_client import Machine
from tests.http.test_stores import app, sqlite_app, use  # noqa: F401  fixtures
from worker.shared.messages import Release, Report

WORDS = "the checkpoint of step 4 is not in the store yet: upload of k: the upload session has expired: HTTP 401"


@pytest.fixture
def refused(api, people, provider, drive) -> Machine:
    """A machine whose store has begun to want a sign-in at its upload addresses."""
    use(people, drive)
    people.ann.submit()
    machine = Machine.launched(api, provider)
    machine.start()
    drive.anonymous = False
    assert machine.put(machine.assignment["uploads"][0], b"x").status_code == 401
    return machine


def through_server(machine: Machine, kind: str = "checkpoint", count: int = 1) -> list[dict]:
    asked = {"fence": machine.fence, "kind": kind, "count": count, "through_server": True}
    grants = machine.say("grants", asked).json()
    assert not any(grant["resumable"] for grant in grants)
    machine.assignment["uploads"] = grants + machine.assignment["uploads"]
    return grants


def job_of(machine: Machine, people) -> dict:
    return people.ann.get(f"/jobs/{machine.assignment['job']}").json()


# --- through the server ---


def test_the_server_stores_what_the_store_refuses_from_a_worker(refused, people, drive, tmp_path):
    """Guard: with the file left in the server's own store, its offer was refused: "the store has no file"."""
    through_server(refused)
    assert refused.save(4, tmp_path).json()["committed"]
    through_server(refused)
    assert refused.save(10, tmp_path).json()["committed"]
    through_server(refused, "adapter")
    assert refused.finish(10).status_code == 204
    job = job_of(refused, people)
    assert job["state"] == "succeeded"
    assert people.ann.get(f"/jobs/{job['id']}/adapter").content == b"PK the adapter"
    assert sorted(f.title[-4:] for f in drive.files()) == [".zip", "sors", "sors"]
    local = refused.api.app.store.folder
    assert not [path for path in local.rglob("*") if path.is_file() and "datasets" not in path.parts]


def test_a_file_is_stored_once_and_never_replaced(refused, drive):
    """Guard: without `stat` in `put_once` the second bytes took the place of the first, which may be the head."""
    (grant,) = through_server(refused)
    assert refused.put(grant, b"first").status_code == 204
    assert refused.put(grant, b"first").status_code == 204
    assert refused.put(grant, b"other").status_code == 409
    assert [drive.bytes_of(f) for f in drive.files()] == [b"first"]
    stolen = grant | {"url": grant["url"].replace("store=drive", "store=local")}
    assert refused.put(stolen, b"first").status_code == 403


def test_nothing_is_stored_once_the_lease_is_over(refused, drive):
    """Guard: without `_require_live` in `_alone` a file that was on its way when the lease ended came into Drive."""
    grant, late = through_server(refused, count=2)
    release = Release.model_validate(refused.said("release", step=0, reason="drained"))

    def ends_meanwhile():
        worker_messages.receive(refused.api.app.context, release)
        yield b"late"

    for answer in (refused.put(grant, ends_meanwhile()), refused.put(late, b"late")):
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:trainhop:problem:stale-fence")
    assert drive.files() == []


def test_a_file_that_is_being_stored_is_not_received_again(refused, drive):
    """Guards: without `_alone` two uploads of one file went to Drive at once, and a slow Drive got ever more of them;
    without the look at `storing` in `may_upload` the whole file was received to be refused."""
    (grant,) = through_server(refused)
    answers, received = [], []

    def body():
        received.append(True)
        yield b"first"

    drive.rules.add(Rule("PUT /upload", meanwhile=lambda: answers.append(refused.put(grant, body()))))
    assert refused.put(grant, b"first").status_code == 204
    (again,) = answers
    with pytest.raises(UnavailableError):  # both were received before either was stored
        received_files.store_once(
            refused.api.app.context,
            grant["key"],
            lambda: received_files.store_once(refused.api.app.context, grant["key"], lambda: True) is None,
        )
    assert (again.status_code, again.headers["retry-after"]) == (503, "5")
    assert not received
    assert not refused.api.app.context.storing


def test_a_lease_is_not_cleaned_up_under_a_file_on_its_way(refused, provider, drive):
    """Guard: without `is_storing` in `reconcile` the lease was collected before the file came into Drive, where it lay
    for ever."""
    (grant,) = through_server(refused)
    context = refused.api.app.context

    def ends() -> None:
        worker_messages.receive(context, Release.model_validate(refused.said("release", step=0, reason="drained")))
        provider.liveness[refused.lease] = Liveness.ENDED
        reconcile(context)

    drive.rules.add(Rule("PUT /upload", meanwhile=ends))
    assert refused.put(grant, b"late").status_code == 204
    assert [drive.bytes_of(f) for f in drive.files()] == [b"late"]
    reconcile(context)
    assert drive.files() == []
    with context.uow() as tx:
        assert tx.leases.get(refused.lease).collected_at is not None


def test_a_server_killed_while_it_stores_loses_and_leaves_nothing(refused, provider, drive, tmp_path):
    """The file has just come into Drive, nobody was told. The worker sends it again; what it does not need is deleted.

    Guard: without `store.keys` of the lease's own store in `sweep_strays` both files stayed.
    """

    class Killed(Exception):
        """The server's last moment."""

    context, file = refused.api.app.context, tmp_path / "received"
    file.write_bytes(b"a file")
    first, second = through_server(refused, count=2)

    def dies(key: str) -> bool:
        assert received_files.put_once(context, "drive", key, file)
        raise Killed

    for grant in (first, second):
        with pytest.raises(Killed):
            received_files.store_once(context, grant["key"], partial(dies, grant["key"]))
    restarted = dataclasses.replace(context, storing={})
    assert len(drive.files()) == 2
    assert refused.put(first, b"a file").status_code == 204
    assert len(drive.files()) == 2
    refused.say("release", refused.said("release", step=0, reason="deadline"))
    provider.liveness[refused.lease] = Liveness.ENDED
    reconcile(restarted)
    assert drive.files() == []


# --- what people read ---


def test_a_refused_upload_is_shown_while_it_lasts(refused, people):
    """Guards: without `_note_problem` nothing of this was told; without `without_addresses` the address was, too."""
    before = job_of(refused, people)
    secret = "https://store.example/upload?upload_id=s3cret"
    for _ in range(2):
        refused.report(4, problem=f"{WORDS} at {secret} by {'x' * 9_000}")
    job = job_of(refused, people)
    shown = job["session"]["detail"]
    assert shown.startswith(f"{WORDS} at *** by xxx")
    assert len(shown) <= 255
    assert note(job) == shown
    link = people.ann.post("/login-links").json()["url"]
    refused.api.client.get(link[link.index("/login") :])
    page = refused.api.client.get(f"/jobs/{job['id']}").text
    assert page.count(WORDS) >= 3, "the job's state, its session and its event"
    (session,) = people.ann.get(f"/jobs/{job['id']}/sessions").json()["items"]
    events = people.ann.get(f"/jobs/{job['id']}/events").json()["items"]
    told = [e["reason"] for e in events if e["kind"] == "checkpoint.not_stored"]
    assert (session["detail"], told) == (shown, [shown]), "one event, however often it is reported"
    assert "s3cret" not in str((job, session, events, page))
    refused.report(5)
    job = job_of(refused, people)
    assert (before["session"]["detail"], job["session"]["detail"], note(job)) == ("", "", "")


def test_the_last_words_of_a_lost_session_say_why_it_saved_nothing(refused, people, provider):
    """Guard: with the words of the launch for it, the page said "at its launch"."""
    refused.report(4, problem=WORDS)
    provider.liveness[refused.lease] = Liveness.ENDED
    reconcile(refused.api.app.context)
    with refused.api.app.context.uow() as tx:
        lease = tx.leases.get(refused.lease)
    assert (lease.end_reason, lease.detail) == (EndReason.LOST, f"the machine ended without a message; {WORDS}")


def test_a_machine_that_cannot_call_prints_why_nothing_is_saved(refused, people):
    said = Report.model_validate(refused.said("report", step=4, phase="save", problem=WORDS))
    worker_messages.apply_line(refused.api.app.context, refused.lease, said.as_line())
    assert job_of(refused, people)["session"]["detail"] == WORDS
