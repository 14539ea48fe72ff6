"""`trainhop doctor --kaggle`, `--drive` and `--colab` as people type them, against a real server and emulated
services."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Shell, end, start_server
from tests.emulators.drive import Drive
from tests.emulators.hub import HubEmulator
from tests.emulators.hub import checked as checked_repo
from tests.emulators.kaggle import KaggleEmulator, Person
from worker.doctor.outcome import PROBES

CANARY = "KGAT_canary_c0ffee77"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def hub() -> Iterator[HubEmulator]:
    with HubEmulator(checked_repo()) as hub:
        yield hub


@pytest.fixture
def kaggle(tmp_path: Path, hub: HubEmulator) -> Iterator[KaggleEmulator]:
    environment = {"OMP_NUM_THREADS": "1", "HF_ENDPOINT": hub.endpoint}
    people = [Person(name="alicia", token=CANARY)]
    with KaggleEmulator(tmp_path / "kaggle", people, environment=environment) as emulator:
        yield emulator


@pytest.fixture
def trainhop(tmp_path: Path, kaggle: KaggleEmulator, drive: Drive) -> Iterator[Shell]:
    """A command line whose server has an account at Kaggle and a store in Drive."""
    data_dir = tmp_path / "data"
    endpoints = {"TRAINHOP_KAGGLE_ENDPOINT": kaggle.endpoint, "TRAINHOP_DRIVE_ENDPOINT": drive.url}
    process = start_server(data_dir, "--slots", "0", **endpoints)
    shell = Shell(tmp_path, data_dir, tmp_path, patience_s=400.0)
    (tmp_path / "token").write_text(CANARY)
    shell("accounts", "add", "kaggle", "my-kaggle", "--username", "alicia", "--token-file", str(tmp_path / "token"))
    (tmp_path / "google.json").write_text(json.dumps(drive.authorized_user()))
    shell("store", "use", "drive", "--authorized-user", str(tmp_path / "google.json"))
    yield shell
    end(process, data_dir)


def test_a_healthy_account_and_one_that_cannot_train(trainhop: Shell, kaggle: KaggleEmulator, tmp_path: Path) -> None:
    done = trainhop("doctor", "--kaggle", "--out", "report.json")
    lines = [line for line in done.stdout.splitlines() if not line.lstrip().startswith("->")]
    assert sorted(line.split()[1] for line in lines) == sorted(PROBES), done.stdout
    assert {line.split()[0] for line in lines} == {"ok", "-"}
    assert [line.split()[1] for line in lines if line.startswith("-")] == ["drive_sign_in"]
    assert "all probes passed" in done.stderr
    report = (tmp_path / "report.json").read_text()
    assert [p["name"] for p in json.loads(report)["probes"]] == list(PROBES)
    for secret in (CANARY, "alicia", "my-kaggle", "127.0.0.1", "trainhop-check"):
        assert secret not in report, secret
    assert not kaggle.world.kernels
    assert not kaggle.world.datasets

    broken = tmp_path / "broken" / "datasets"  # imported before all others
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text('raise ImportError("an old torchao at http://10.1.2.3/")\n')
    kaggle.sessions.environment = {**kaggle.sessions.environment, "PYTHONPATH": str(broken.parent)}
    kaggle.sessions.outputs_after_kill = False
    failed = json.loads(trainhop("doctor", "--kaggle", "--json", code=1).stdout)
    found = {p["name"]: p for p in failed["probes"]}
    assert {name for name, p in found.items() if p["status"] == "failed"} == {"training", "equal_bytes", "time_limit"}
    assert "an old torchao at ***" in found["training"]["words"]
    assert "store checkpoints in Drive" in found["time_limit"]["remedy"]
    (account,) = [a for a in trainhop.json("accounts", "ls") if a["provider"] == "kaggle"]
    assert "failed: training works on this image" in account["diagnosis"]


def test_a_gpu_is_taken_only_with_consent(trainhop: Shell, kaggle: KaggleEmulator) -> None:
    """Guard: without `_agree` in `checks.kaggle` the check began, and its kernels ran."""
    refused = trainhop("doctor", "--kaggle", "--gpu", code=2)
    assert "weekly GPU hours" in refused.stderr
    assert "--yes" in refused.stderr
    assert not kaggle.seen("SaveKernel")
    assert "need --check PROVIDER" in trainhop("doctor", "--gpu", code=2).stderr
    assert "There is no Kaggle account" in trainhop("doctor", "--kaggle", "--account", "other", code=3).stderr


def test_an_upload_session_of_the_drive(trainhop: Shell, drive: Drive) -> None:
    assert trainhop("doctor", "--drive").stdout.startswith("ok    drive_upload")
    assert drive.files() == []
    drive.anonymous = False
    said = trainhop("doctor", "--drive", code=1).stdout
    assert said.startswith("fail  drive_upload")
    assert "HTTP 401" in said
    assert "cannot upload checkpoints to Google Drive" in said
    assert drive.files() == []
