"""The whole product over an emulated Kaggle: a server that nobody can call, kernels that really train, and cuts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import Run, finished, job_file, read_result
from tests.emulators.drive import Drive
from tests.emulators.kaggle import KaggleEmulator, Kernel, Person
from worker.shared.messages import LINE_MARK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CANARY = "KGAT_canary_5eaf00d5"
PATIENCE_S = 120.0


@pytest.fixture
def kaggle(tmp_path: Path) -> Iterator[KaggleEmulator]:
    people = [Person(name="alice", token=CANARY)]
    with KaggleEmulator(tmp_path / "kaggle", people, environment={"OMP_NUM_THREADS": "1"}) as emulator:
        yield emulator


def _server(folder: Path, kaggle: KaggleEmulator, model: Path, **settings: Any) -> Any:
    """A server without machines of its own, pointed at the emulator."""
    return lab(
        folder,
        allowed_folders=json.dumps([str(model.parent)]),
        offline=True,
        local_slots=0,
        report_every_s=0.5,
        reconcile_s=0.5,
        kaggle_endpoint=kaggle.endpoint,
        **settings,
    )


def _connect(server: Lab) -> None:
    """Give the admin an account at Kaggle, as `trainhop accounts add` does."""
    asked = {"provider": "kaggle", "name": "alice-kaggle", "config": {"username": "alice"}, "credentials": CANARY}
    account = server.post("/accounts", asked)
    assert "signed in at Kaggle as alice" in json.dumps(server.post(f"/accounts/{account['id']}:check"))


def _wait(what: str, true: Callable[[], Any]) -> Any:
    return Lab.wait_for(true, what, PATIENCE_S, 0.05)


def _reached(kaggle: KaggleEmulator, step: int) -> Kernel | None:
    """A running kernel whose worker has printed this step."""
    for kernel in list(kaggle.world.kernels.values()):
        for event in reversed(kernel.events):
            if event["data"].startswith("step "):
                if kernel.is_live and int(event["data"].split()[1]) >= step:
                    return kernel
                break
    return None


def _outcomes(server: Lab, job: str) -> list[str]:
    sessions = sorted(server.get(f"/jobs/{job}/sessions")["items"], key=lambda s: s["id"])
    return [s["outcome"] for s in sessions]


def test_a_session_cut_off_with_its_files_goes_on_in_the_same_bytes(
    kaggle: KaggleEmulator, model_and_rows: tuple[Path, Path], unbroken: Run, tmp_path: Path
) -> None:
    """Nothing takes uploads here: the last resort is what lies in the kernel's output. The server is killed on the
    way."""
    with _server(tmp_path / "lab", kaggle, model_and_rows[0]) as server:
        _connect(server)
        job = server.post("/jobs", job_file(model_and_rows[0], server.upload(model_and_rows[1]), "lora"))["id"]
        first = _wait("step 20", lambda: _reached(kaggle, 20))
        server.kill()
        kaggle.kill(first.slug, outputs=True)
        server.up()
        second = _wait("another session", lambda: (k := _reached(kaggle, 1)) and k.slug != first.slug and k)
        assert len(second.datasets) == 2  # the data, and the checkpoint to go on from
        _wait("the job's end", lambda: finished(server, job))
        assert read_result(server, job, 0) == replace(unbroken, kills=0)
        assert _outcomes(server, job) == ["lost", "completed"]
        assert len(kaggle.seen("CreateDataset")) == 2
        # The kernel goes first, then the checkpoint that was staged for it.
        _wait("an empty desk", lambda: not kaggle.world.kernels)
        _wait("no staged checkpoint", lambda: not any("resume" in slug for _, slug in kaggle.world.datasets))
        newest = max(s["id"] for s in server.get(f"/jobs/{job}/sessions")["items"])
        log = server.client.get(f"/sessions/{newest}/log").text
        assert "step 60" in log
        assert LINE_MARK not in log  # what is said to the server is not for people
    _holds_no_secret(tmp_path, kaggle)


def test_checkpoints_in_drive_survive_a_session_that_keeps_nothing(
    kaggle: KaggleEmulator, model_and_rows: tuple[Path, Path], tmp_path: Path
) -> None:
    with (
        Drive(tmp_path / "drive") as drive,
        _server(tmp_path / "lab", kaggle, model_and_rows[0], drive_endpoint=drive.url) as server,
    ):
        _connect(server)
        server._checked(server.client.put("/stores/drive", json={"credentials": json.dumps(drive.authorized_user())}))
        changes = {"max_steps": 10_000, "placement": {"max_session_s": 300}}
        job = server.post("/jobs", job_file(model_and_rows[0], server.upload(model_and_rows[1]), "lora") | changes)[
            "id"
        ]
        _wait("a checkpoint in Drive", lambda: server.job(job)["head"])
        first = _wait("the kernel", lambda: _reached(kaggle, 1))
        assert first.internet
        kaggle.kill(first.slug, outputs=False)
        second = _wait("another session", lambda: (k := _reached(kaggle, 1)) and k.slug != first.slug and k)
        sessions = server.get(f"/jobs/{job}/sessions")["items"]
        old, new = sorted(sessions, key=lambda s: s["id"])
        assert old["outcome"] == "lost"
        _wait("the second session's word", lambda: server.get(f"/jobs/{job}/sessions")["items"][-1]["first_step"] > 0)
        server.post(f"/jobs/{job}:cancel")
        _wait("the end", lambda: server.job(job)["state"] == "cancelled")
        _wait("an empty desk", lambda: not kaggle.world.kernels)
        assert second.deleted
        assert new["account"] == "alice-kaggle"
    _holds_no_secret(tmp_path, kaggle)


def _holds_no_secret(folder: Path, kaggle: KaggleEmulator) -> None:
    """The account's token is in no file of the server's, and in nothing that was sent or run."""
    held = [p for p in folder.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    assert not held
    assert CANARY not in json.dumps([s.said for s in kaggle._desk.seen if s.request != "IntrospectToken"])
