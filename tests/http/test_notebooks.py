"""Notebooks as the server sees them: made by a job's owner, claimed once, told in words what is in the way."""

import ast
import hashlib
import json

import nbformat
import pytest

from orchestrator.services.dispatch import dispatch
from orchestrator.services.notebooks import CODE_LASTS_S, INSTALL_S
from orchestrator.services.reconcile import reconcile
from tests.http.http_client import Machine
from worker.shared import wheel as bundle
from worker.shared.wire import PROTOCOL_VERSION

GIB = 2**30
T4 = {"device": "cuda", "name": "Tesla T4", "memory_bytes": 15 * GIB, "compute_capability": [7, 5]}


def made(caller, job):
    answer = caller.post(f"/jobs/{job['id']}:notebook")
    assert answer.status_code == 201, answer.text
    return answer.json()


def code_in(notebook):
    tree = ast.parse(notebook["cells"][1]["source"])
    pairs = next(s for s in ast.walk(tree) if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Tuple))
    return ast.literal_eval(pairs.value)[1]


def claim(api, code, *, nonce="run-1", hardware=T4, **more):
    asked = {"protocol": PROTOCOL_VERSION, "code": code, "nonce": nonce, "hardware": hardware} | more
    return api.client.post("/api/v1/claims", json=asked)


def refused(answer, status, *words):
    assert answer.status_code == status, answer.text
    said = answer.json()["detail"]
    assert all(word in said for word in words), said
    assert "\n" not in said


def machine_of(api, answer):
    assert answer.status_code == 200, answer.text
    ticket = answer.json()["ticket"]
    return Machine(api, ticket["lease"], ticket["token"])


@pytest.fixture
def job(people):
    return people.ann.submit(name='rail <b>\'"\\{talk}"')


def test_a_notebook_is_valid_runs_for_any_job_name_and_holds_no_credential(api1, people, job):
    answer = made(people.ann, job)
    notebook = nbformat.from_dict(answer["notebook"])
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code"]
    assert (notebook.metadata.accelerator, notebook.metadata.colab.gpuType) == ("GPU", "T4")
    compile(notebook.cells[1].source, "cell", "exec")
    assert answer["file_name"] == "rail-b-talk.ipynb"
    assert people.ann.token not in (text := json.dumps(answer))
    assert "thl_" not in text
    assert "own computer" in answer["note"]


def test_a_code_becomes_one_lease_on_its_owners_account(api, people, job):
    """Guard: with the two runs' nonces not compared, the second tab was given the first one's lease."""
    code = code_in(made(people.ann, job)["notebook"])
    first = claim(api, code)
    machine = machine_of(api, first)
    assert (first.json()["job"], first.json()["step"], first.json()["total_steps"]) == (job["id"], 0, 10)
    assert claim(api, code).json() == first.json(), "an answer that was lost on the way is given again"
    refused(claim(api, code, nonce="second tab"), 409, "used", "its session is still running", "trainhop notebook")
    assert machine.start().status_code == 200
    refused(claim(api, code), 409, "used")
    shown = people.ann.get(f"/jobs/{job['id']}").json()
    assert shown["state"] == "running"
    assert (shown["session"]["provider"], shown["session"]["account"]) == ("colab", "ann-notebook")
    accounts = {a["name"]: a for a in people.ann.get("/accounts").json()["items"]}
    assert accounts["ann-notebook"]["member_id"] == people.ann.get("/me").json()["id"]
    assert "ann-notebook" not in {a["name"] for a in people.bob.get("/accounts").json()["items"]}


def test_a_notebooks_lease_saves_hands_over_and_finishes_like_any(api, people, job, provider, tmp_path):
    machine = machine_of(api, claim(api, code_in(made(people.ann, job)["notebook"])))
    machine.start()
    assert machine.assignment["uploads"][0]["url"].startswith("http")
    machine.save(4, tmp_path)
    assert machine.say("release", machine.said("release", step=4, reason="deadline")).status_code == 204
    elsewhere = Machine.launched(api, provider)
    elsewhere.start()
    assert elsewhere.assignment["resume_step"] == 4
    assert machine.report(5).status_code == 409
    elsewhere.say("release", elsewhere.said("release", step=4, reason="drained"))
    again = machine_of(api, claim(api, code_in(made(people.ann, job)["notebook"])))
    again.start()
    assert (again.fence, again.assignment["resume_step"]) == (3, 4)
    again.save(10, tmp_path)
    assert again.finish(10).status_code == 204
    assert people.ann.get(f"/jobs/{job['id']}").json()["state"] == "succeeded"
    refused(people.ann.post(f"/jobs/{job['id']}:notebook"), 409, "already succeeded", "trainhop adapter")


def test_only_the_owner_makes_a_notebook(api, people, job):
    """Guard: without the owner's check an admin's notebook trained Ann's job on Ann's account."""
    assert people.bob.post(f"/jobs/{job['id']}:notebook").status_code == 404
    refused(people.admin.post(f"/jobs/{job['id']}:notebook"), 403, "owner")


def test_a_code_of_another_job_is_good_for_that_job_alone(api, people, job):
    other = people.bob.submit()
    answer = claim(api, code_in(made(people.bob, other)["notebook"]))
    assert answer.json()["job"] == other["id"]
    assert people.ann.get(f"/jobs/{job['id']}").json()["state"] == "queued"


def test_a_notebook_run_a_week_later_is_told_so(api, people, job, clock):
    """Guard: without the comparison the old code was still worth a lease."""
    code = code_in(made(people.ann, job)["notebook"])
    clock.tick(CODE_LASTS_S - 1)
    refused(claim(api, code, hardware={"device": "cpu"}, runs_in="colab"), 422, "no GPU", "Change runtime type")
    clock.tick(6 * 86_400 + 2)
    refused(claim(api, code), 409, "7 days old", "24 hours", f"trainhop notebook {job['id']}")
    assert people.ann.get(f"/jobs/{job['id']}").json()["state"] == "queued"


@pytest.mark.parametrize(
    ("hardware", "place", "words"),
    [
        ({"device": "cpu", "ram_bytes": 12 * GIB}, "colab", ("no GPU", "Runtime > Change runtime type")),
        ({"device": "cpu", "ram_bytes": 12 * GIB}, "kaggle", ("no GPU", "Accelerator")),
        ({"device": "cuda", "memory_bytes": 4 * GIB}, "colab", ("28.7 GiB", "4.0")),
        ({"device": "cpu", "ram_bytes": 4 * GIB}, "jupyter", ("28.7 GiB", "4.0")),
    ],
)
def test_a_machine_that_does_not_fit_costs_nothing(api1, people, clock, hardware, place, words):
    """Guard: without the check the job went to a machine that gave it back minutes later, and the code was gone."""
    job = people.ann.submit()
    with api1.app.context.uow() as tx:
        stored = tx.jobs.get(job["id"])
        stored.gpu_bytes = stored.host_bytes = int(28.7 * GIB)
        tx.jobs.save(stored)
    code = code_in(made(people.ann, job)["notebook"])
    refused(claim(api1, code, hardware=hardware, runs_in=place), 422, *words)
    assert people.ann.get(f"/jobs/{job['id']}").json()["state"] == "queued"
    assert claim(api1, code, hardware=T4 | {"memory_bytes": 40 * GIB}, runs_in=place).status_code == 200


def test_a_cpu_is_enough_in_jupyter_for_a_job_that_fits(api1, people, job):
    code = code_in(made(people.ann, job)["notebook"])
    assert claim(api1, code, hardware={"device": "cpu", "ram_bytes": 8 * GIB}).status_code == 200


def test_a_job_at_work_elsewhere_is_left_alone(api, people, job, provider, clock):
    """Guard: without the check the claim ran into an assertion and answered 500."""
    code = code_in(made(people.ann, job)["notebook"])
    machine = Machine.launched(api, provider)
    machine.start()
    machine.report(3)
    clock.tick(600)
    refused(claim(api, code), 409, "this-computer, test cpu", "10 minutes", "step 3 of 10", "Run this cell again then.")
    machine.say("release", machine.said("release", step=3, reason="drained"))
    assert claim(api, code).status_code == 200


def test_paused_cancelled_and_placed_elsewhere_are_told_apart(api1, people, job):
    code = code_in(made(people.ann, job)["notebook"])
    people.ann.post(f"/jobs/{job['id']}:pause")
    refused(claim(api1, code), 409, "paused", "trainhop resume")
    people.ann.post(f"/jobs/{job['id']}:cancel")
    refused(claim(api1, code), 409, "cancelled", "trainhop retry")
    placed = people.ann.submit(placement={"providers": ["local"]})
    refused(claim(api1, code_in(made(people.ann, placed)["notebook"])), 422, "asks for local")


def test_a_tab_that_was_closed_gives_the_job_back(api, people, job, clock):
    """Guard: with liveness RUNNING in place of UNSEEN the job stayed leased to a closed tab for eleven hours."""
    machine = machine_of(api, claim(api, code_in(made(people.ann, job)["notebook"])))
    clock.tick(INSTALL_S - 1)
    reconcile(api.app.context)
    assert machine.start().status_code == 200, "packages may take minutes to install"
    clock.tick(api.app.context.limits.lease_s - 1)
    reconcile(api.app.context)
    assert machine.report(1).status_code == 200
    clock.tick(api.app.context.limits.lease_s + 1)
    reconcile(api.app.context)
    assert people.ann.get(f"/jobs/{job['id']}").json()["state"] == "queued"
    assert machine.report(2).status_code == 409


def test_the_scheduler_never_starts_a_notebook_and_says_who_does(api1, people):
    people.ann.submit()
    job = people.ann.submit(placement={"providers": ["colab"]})
    made(people.ann, job)
    dispatch(api1.app.context)
    shown = people.ann.get(f"/jobs/{job['id']}").json()
    assert shown["state"] == "queued"
    assert "open a notebook instead: trainhop notebook" in shown["waiting"]["reason"]


def test_codes_cannot_be_guessed_at_leisure(api1, people, job):
    """Guard: without `RateLimit` the hundredth guess was answered like the first."""
    code = code_in(made(people.ann, job)["notebook"])
    for number in range(10):
        refused(claim(api1, f"thc_{number}"), 404, "does not know")
    answer = claim(api1, code)
    refused(answer, 429, "Too many wrong codes", "Try again in")
    assert 0 < int(answer.headers["retry-after"]) <= 60


def test_a_notebook_of_another_protocol_is_refused_in_words(api1, people, job):
    code = code_in(made(people.ann, job)["notebook"])
    refused(claim(api1, code, protocol=PROTOCOL_VERSION + 1), 422, "Create a new one")


def test_the_worker_is_served_to_whoever_knows_its_hash(api1):
    wheel = bundle.build(adapters=True)  # any job may be run in a notebook
    answer = api1.client.get(f"/api/v1/worker/{wheel.sha256}/{wheel.name}")
    assert hashlib.sha256(answer.content).hexdigest() == wheel.sha256
    refused(api1.client.get(f"/api/v1/worker/{'0' * 64}/{wheel.name}"), 404, "another version")


def test_without_a_drive_there_is_no_notebook_for_one(api, people, job):
    refused(people.ann.post(f"/jobs/{job['id']}:notebook?reach=drive"), 409, "trainhop store use drive")
    with api.app.context.uow() as tx:
        assert tx.codes.with_mailbox() == []


def test_an_account_of_notebooks_takes_credentials_and_still_counts_them(api, people, job):
    """Guard: with the account's own room asked for in `claims.claim`, no notebook began where Colab did not answer."""
    code = code_in(made(people.ann, job)["notebook"])
    (before,) = [a for a in people.ann.get("/accounts").json()["items"] if a["provider"] == "colab"]
    asked = {"provider": "colab", "credentials": '{"client_id": "a"}'}  # without Colab's client nothing tries them
    after = people.ann.post("/accounts", asked)
    assert after.status_code == 201, after.text
    assert (after.json()["id"], after.json()["name"], after.json()["has_credentials"]) == (
        before["id"],
        before["name"],
        True,
    )
    assert people.ann.post("/accounts", asked).status_code == 409
    assert people.ann.call("PATCH", f"/accounts/{before['id']}", json={"config": {"mode": "cli"}}).status_code == 200
    machine_of(api, claim(api, code))


def test_credentials_that_an_admin_enters_need_the_owners_consent(api1, people, job):
    """Guard: with the consent of opening a notebook kept, machines were started for Ann whom nobody had asked."""
    made(people.ann, job)
    asked = {"provider": "colab", "owner": "ann", "credentials": "{}"}
    assert people.admin.post("/accounts", asked).json()["consented_at"] is None
