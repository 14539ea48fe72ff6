"""The whole product with real processes: a server, workers that train, and SIGKILL."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load as load_tensors

from benchmarks.exact_resume import cut_at_random
from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import finished, job_file
from orchestrator.services.assignments import UPLOADS_IN_ADVANCE
from tests.emulators.drive import Drive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def server(tmp_path: Path, model_and_rows: tuple[Path, Path], drive: Drive) -> Iterator[Lab]:
    settings = {"allowed_folders": json.dumps([str(model_and_rows[0].parent)]), "offline": True, "report_every_s": 1}
    with lab(tmp_path / "lab", **settings, reconcile_s=0.5, drive_endpoint=drive.url) as running:
        pool = running.get("/accounts")["items"][0]["id"]
        running.patch(f"/accounts/{pool}", {"config": {"env": {"OMP_NUM_THREADS": "1"}}})
        yield running


def submit(server: Lab, model_and_rows: tuple[Path, Path], **changes: Any) -> str:
    file = job_file(model_and_rows[0], server.upload(model_and_rows[1]), "lora") | changes
    return server.post("/jobs", file)["id"]


def at_step(server: Lab, step: int) -> str:
    """The lease whose worker has just got there."""

    def look() -> str | None:
        return next((lease for lease in server.workers() if server.last_step(lease) >= step), None)

    return server.wait_for(look, f"step {step}", 120)


def pause(server: Lab, job: str) -> None:
    """Afterwards nothing is under way: unlike a stopped process, whose last commit may still be arriving."""
    server.post(f"/jobs/{job}:pause")
    server.wait_for(lambda: server.job(job)["state"] == "paused", "the pause", 60)


def test_the_server_may_be_off_for_a_whole_session(server: Lab, model_and_rows: tuple[Path, Path]) -> None:
    """Promise 8: what a worker wrote down while nobody listened is adopted when the server returns.

    Seen failing without `reconcile._adopt`: the job went back to the queue and trained its steps again; and, once the
    uploads granted in advance were used up, without `uploads.SPARE_GRANTS`: the last checkpoint had no place to go to.
    """
    job = submit(
        server, model_and_rows, max_steps=100, checkpoint={"max_interval_s": 0.3}, placement={"max_session_s": 60}
    )
    lease = at_step(server, 5)
    server.wait_for(lambda: len(server.get(f"/jobs/{job}/checkpoints")["items"]) > UPLOADS_IN_ADVANCE, "saves", 120)
    server.kill()
    server.wait_for(lambda: lease not in server.workers(), "the session's end", 120)
    assert server.last_step(lease) == 100
    server.up()
    server.wait_for(lambda: finished(server, job), "the job's end", 60, 0.1)
    sessions = server.get(f"/jobs/{job}/sessions")["items"]
    assert [(s["outcome"], s["last_step"]) for s in sessions] == [("completed", 100)]
    archive = zipfile.ZipFile(io.BytesIO(server.client.get(f"/jobs/{job}/adapter").content))
    assert load_tensors(archive.read("adapter_model.safetensors"))


def test_pause_and_resume_lose_nothing(server: Lab, model_and_rows: tuple[Path, Path]) -> None:
    job = submit(server, model_and_rows, max_steps=2_000)
    at_step(server, 10)
    pause(server, job)
    shown = server.job(job)
    (session,) = server.get(f"/jobs/{job}/sessions")["items"]
    assert session["outcome"] == "paused"
    assert shown["head"]["step"] == session["last_step"] >= 10
    server.post(f"/jobs/{job}:resume")
    at_step(server, shown["head"]["step"] + 1)
    server.post(f"/jobs/{job}:cancel")
    server.wait_for(lambda: server.job(job)["state"] == "cancelled", "the end", 60)
    assert server.job(job)["steps_repeated"] == 0


def test_a_budget_that_is_nearly_over_is_a_hand_off(server: Lab, model_and_rows: tuple[Path, Path]) -> None:
    job = submit(server, model_and_rows, max_steps=100_000, placement={"max_session_s": 20})
    at_step(server, 1)
    server.wait_for(lambda: server.job(job)["handoffs"] >= 1, "the hand-off", 90)
    server.post(f"/jobs/{job}:cancel")
    first = server.get(f"/jobs/{job}/sessions")["items"]
    session = min(first, key=lambda s: s["started_at"])
    assert session["outcome"] == "handed_off"
    assert session["seconds"] < 20 + 2
    assert server.job(job)["head"]["step"] >= session["last_step"] > 0


def test_a_worker_that_dies_at_once_every_time_ends_in_words(server: Lab, model_and_rows: tuple[Path, Path]) -> None:
    """Promise 10, the hard way: weights of which only the header is whole, which is all that is read at submit. Seen
    failing without the look at the file's size: four sessions, and then the library's words."""
    model = shutil.copytree(model_and_rows[0], model_and_rows[0].parent / "half")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    job = submit(server, (model, model_and_rows[1]))
    server.wait_for(lambda: server.job(job)["state"] == "failed", "the failure", 90)
    assert "the weight file model.safetensors is cut off" in server.job(job)["message"]
    (session,) = server.get(f"/jobs/{job}/sessions")["items"]
    log = server.client.get(f"/sessions/{session['id']}/log").text
    assert "model.safetensors" in log


def test_a_damaged_checkpoint_is_found_and_the_one_before_is_used(
    server: Lab, model_and_rows: tuple[Path, Path]
) -> None:
    """Promise 3. Seen failing without `heads.fall_back`: the job failed four times on the same bytes and gave up."""
    job = submit(server, model_and_rows)
    at_step(server, 20)
    server.wait_for(lambda: len(_committed(server, job)) >= 2, "two checkpoints", 30)
    pause(server, job)
    head = server.job(job)["head"]
    stored = next(p for p in (server.data / "store" / "jobs" / job).rglob("*.safetensors") if _sha(p) == head["sha256"])
    damaged = bytearray(stored.read_bytes())
    damaged[-10] ^= 1
    stored.write_bytes(bytes(damaged))
    server.post(f"/jobs/{job}:resume")
    server.wait_for(lambda: finished(server, job), "the job's end", 180, 0.1)
    states = {c["sha256"]: c["state"] for c in server.get(f"/jobs/{job}/checkpoints")["items"]}
    assert states[head["sha256"]] == "corrupt"


def test_a_clone_from_a_checkpoint_ends_in_the_bytes_of_the_original(
    server: Lab, model_and_rows: tuple[Path, Path]
) -> None:
    """The clone starts when the file that it begins with is no longer among the original's. Seen failing without the
    clone's own row (nothing to begin with), and with a schedule or an order of samples begun anew.
    """
    job = submit(server, model_and_rows, checkpoint={"max_interval_s": 0.3, "keep": 1})
    at_step(server, 10)
    pause(server, job)
    begin = max(_committed(server, job), key=lambda checkpoint: checkpoint["step"])
    made = server.post(f"/jobs/{job}:clone?from={begin['sha256']}", {"placement": {"max_session_s": 600}})
    assert (made["first_step"], made["head"]["step"]) == (begin["step"], begin["step"])
    server.post(f"/jobs/{job}:resume")
    for ident in (job, made["id"]):
        server.wait_for(lambda ident=ident: finished(server, ident), "the end", 180, 0.1)
    states = {c["sha256"]: c["state"] for c in server.get(f"/jobs/{job}/checkpoints")["items"]}
    assert states[begin["sha256"]] == "pruned"
    (session,) = server.get(f"/jobs/{made['id']}/sessions")["items"]
    assert (session["first_step"], session["fidelity"]) == (begin["step"], "exact")
    assert server.job(made["id"])["adapter"]["sha256"] == server.job(job)["adapter"]["sha256"]


def _committed(server: Lab, job: str) -> list[Any]:
    return [c for c in server.get(f"/jobs/{job}/checkpoints")["items"] if c["state"] == "committed"]


def _sha(path: Path) -> str:
    from worker.shared.checkpoint_file import sha256_file

    return sha256_file(path)


def test_a_store_that_wants_a_sign_in_gets_its_files_through_the_server(
    server: Lab, model_and_rows: tuple[Path, Path], drive: Drive
) -> None:
    """Seen failing without `Uploads.send`, which counts refusals: the job stayed `running` after its last step."""
    server.put("/stores/drive", {"credentials": json.dumps(drive.authorized_user())})
    drive.anonymous = False
    job = submit(server, model_and_rows, max_steps=10)
    server.wait_for(lambda: finished(server, job), "the job's end", 120, 0.1)
    (session,) = server.get(f"/jobs/{job}/sessions")["items"]
    assert (session["outcome"], session["last_step"], session["detail"]) == ("completed", 10, "")
    (told,) = [e for e in server.get(f"/jobs/{job}/events")["items"] if e["kind"] == "checkpoint.not_stored"]
    assert "is not in the store yet: upload of jobs/" in told["reason"]
    assert told["reason"].endswith("HTTP 401 authError")
    archive = zipfile.ZipFile(io.BytesIO(server.client.get(f"/jobs/{job}/adapter").content))
    assert load_tensors(archive.read("adapter_model.safetensors"))
    assert any(file.title.endswith(".safetensors") for file in drive.files())
    uploads = {line.partition("upload_id=")[2] for line in drive.requests if "upload_id=" in line}
    log = (server.data / "sessions" / session["id"] / "output.log").read_text()
    assert uploads
    assert not [ident for ident in uploads if ident in log or ident in told["reason"]]


def test_random_cuts_leave_no_job_stuck(server: Lab, model_and_rows: tuple[Path, Path]) -> None:
    """Several jobs under random kills of workers and server; every one of them ends."""
    jobs = [submit(server, model_and_rows, max_steps=60, name=f"n{i}") for i in range(2)]
    cut_at_random(server, jobs[0], 3, random.Random(3))
    for job in jobs:
        server.wait_for(lambda job=job: finished(server, job), "the end", 180, 0.1)
