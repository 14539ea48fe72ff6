"""The check of a Kaggle account over an emulated Kaggle: what it finds where all is well, and each fault by its
name."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.stores.google_drive.client import DriveClient
from orchestrator.adapters.stores.google_drive.login import read_login
from orchestrator.adapters.stores.google_drive.store import DriveStore
from orchestrator.domain.diagnosis import judged
from orchestrator.ports.providers import CheckOrder, CredentialsRefused, ProviderUnavailable, SupportsDiagnosis
from orchestrator.providers.kaggle import KaggleProvider
from orchestrator.providers.kaggle.client import Push
from orchestrator.providers.kaggle.diagnosis import Check, Limits, names
from orchestrator.services.diagnosis import upload_addresses
from orchestrator.testing.environments import driver_env, store_env
from tests.emulators.hub import HubEmulator
from tests.emulators.hub import checked as checked_repo
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.providers.kernels import kaggle_account
from worker.doctor import outcome
from worker.shared import causes
from worker.shared.messages import sign_line

FAST = Limits(
    limit_s=6.0,
    answer_s=120.0,
    over_s=20.0,
    ready_s=5.0,
    listed_s=0.5,
    probe_s=100.0,
    hub_s=20.0,
    poll_s=0.05,
    stamp_every_s=0.1,
    flood_bytes=64 << 10,
)
ALICE = kaggle_account("alice")


@pytest.fixture
def make(tmp_path):
    """`make(environment, **emulator)`: an emulated Kaggle and a driver of it whose checks are quick."""
    built: list[KaggleEmulator] = []

    def build(environment: dict[str, str] | None = None, **more: Any) -> tuple[KaggleEmulator, KaggleProvider]:
        people = [Person(name="alice", token="KGAT_alice")]
        found = {"OMP_NUM_THREADS": "1"} | (environment or {})
        warning_s = more.pop("warning_s", 0.0)
        emulator = KaggleEmulator(tmp_path / "emulator", people, environment=found, **more)
        emulator.sessions.warning_s = warning_s
        built.append(emulator)
        provider = KaggleProvider(driver_env(tmp_path / "kaggle", endpoint=emulator.endpoint), fresh_s=0.0)
        provider.limits = FAST
        return emulator, provider

    yield build
    for emulator in built:
        emulator.close()


def checked(provider: KaggleProvider, *probes: str, **more: Any) -> dict[str, dict[str, Any]]:
    """The judged probes of a check by name; nothing of it is left at Kaggle afterwards."""
    more = {"gpu": False} | more
    order = CheckOrder(id="check-1", token="a-check-token", probes=frozenset(probes), **more)
    found = provider.diagnose(ALICE, order, lambda _: None)
    provider.clear_check(ALICE, order.id)
    return {probe["name"]: probe for probe in judged([o.as_dict() for o in found.outcomes])}


def asked(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """How the probes ended that this check asked for."""
    return {name: probe["status"] for name, probe in found.items() if probe["status"] != "not asked"}


def broken(tmp_path: Path, package: str) -> dict[str, str]:
    """The environment of a machine on which importing that package fails."""
    folder = tmp_path / "broken" / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f'raise ImportError("this {package} does not fit this image")\n')
    return {"PYTHONPATH": str(folder.parent)}


def test_all_is_well_with_what_is_known_from_outside(make) -> None:
    kaggle, provider = make(warning_s=2.0)
    driver: object = provider
    assert isinstance(driver, SupportsDiagnosis)
    wanted = (outcome.TIME_LIMIT, outcome.CANCEL, outcome.LOG, outcome.INPUTS)
    found = checked(provider, *wanted)
    assert asked(found) == dict.fromkeys(wanted, "ok"), found
    ending = found[outcome.TIME_LIMIT]["data"]
    assert (ending["signal"], ending["ended_as"], ending["files_kept"]) == ("SIGTERM", "CANCEL_ACKNOWLEDGED", True)
    assert 0 < ending["signal_before_end_s"] < 4
    assert found[outcome.LOG]["data"]["kept_share"] == 1.0
    assert found[outcome.INPUTS]["data"]["layout"] == "nested"
    assert "only of a check in a notebook" in found[outcome.DRIVE_SIGN_IN]["words"]
    assert not kaggle.world.kernels
    assert not kaggle.world.datasets
    assert not any(s.said.get("machineShape") for s in kaggle.seen("SaveKernel"))  # no GPU quota is touched


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_is_well_with_the_training_set(make) -> None:
    _, provider = make()
    provider.limits = replace(FAST, answer_s=500.0, probe_s=400.0)
    wanted = (outcome.TRAINING, outcome.EQUAL_BYTES, outcome.ALL_REDUCE)
    found = checked(provider, *wanted)
    assert asked(found) == dict.fromkeys(wanted, "ok"), found
    assert len(found[outcome.TRAINING]["data"]["losses"]) == 4
    assert "the closest that a CPU supports" in found[outcome.EQUAL_BYTES]["words"]
    assert "gloo" in found[outcome.ALL_REDUCE]["words"]


# --- each probe broken, and named ---


def test_a_set_that_does_not_train(make, tmp_path) -> None:
    _, provider = make(broken(tmp_path, "peft"))
    found = checked(provider, outcome.TRAINING)
    assert asked(found) == {outcome.TRAINING: "failed"}
    assert "this peft does not fit this image" in found[outcome.TRAINING]["words"]
    assert found[outcome.TRAINING]["data"]["cause"] == causes.SMOKE


def test_bytes_that_cannot_be_compared(make, tmp_path) -> None:
    _, provider = make(broken(tmp_path, "bitsandbytes"))
    found = checked(provider, outcome.EQUAL_BYTES)
    assert asked(found) == {outcome.EQUAL_BYTES: "failed"}
    assert "this bitsandbytes does not fit this image" in found[outcome.EQUAL_BYTES]["words"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_machine_on_which_two_runs_differ(make, tmp_path) -> None:
    """What an adapter begins with is drawn from a checksum of seed and name; here each process has another one."""
    folder = tmp_path / "noise"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, zlib\n"
        "true = zlib.crc32\n"
        "def noisy(data, *more):\n"
        "    return true(data, *more) ^ (os.getpid() if bytes(data[:3]) == b'42 ' else 0)\n"
        "zlib.crc32 = noisy\n"
    )
    _, provider = make({"PYTHONPATH": str(folder)})
    provider.limits = replace(FAST, answer_s=500.0, probe_s=400.0)
    found = checked(provider, outcome.EQUAL_BYTES)
    assert asked(found) == {outcome.EQUAL_BYTES: "failed"}
    assert "two runs of the same steps gave different bytes" in found[outcome.EQUAL_BYTES]["words"]
    assert "may end in other bytes than an unbroken one" in found[outcome.EQUAL_BYTES]["remedy"]


def test_processes_that_do_not_find_each_other(make) -> None:
    _, provider = make({"GLOO_SOCKET_IFNAME": "none0"})
    found = checked(provider, outcome.ALL_REDUCE)
    assert asked(found) == {outcome.ALL_REDUCE: "failed"}
    assert "gloo" in found[outcome.ALL_REDUCE]["words"]


def test_files_that_are_not_kept_after_the_time_limit(make) -> None:
    """Guard: without the expectation `files_kept` in `domain.diagnosis` the probe was ok."""
    _, provider = make(outputs_after_kill=False)
    found = checked(provider, outcome.TIME_LIMIT)
    assert asked(found) == {outcome.TIME_LIMIT: "failed"}
    assert "its files cannot be downloaded afterwards" in found[outcome.TIME_LIMIT]["words"]
    assert "files are lost at the time limit: store checkpoints in Drive" in found[outcome.TIME_LIMIT]["remedy"]


def test_a_time_limit_that_is_not_obeyed(make) -> None:
    _, provider = make(time_factor=100.0)
    provider.limits = replace(FAST, limit_s=1.0, over_s=2.0)
    found = checked(provider, outcome.TIME_LIMIT)
    assert asked(found) == {outcome.TIME_LIMIT: "failed"}
    assert "a session with a limit of 1 s was still running" in found[outcome.TIME_LIMIT]["words"]


def test_a_cancel_that_is_refused(make) -> None:
    kaggle, provider = make()
    kaggle.rules.add("CancelKernelSession", status=403, reason="Permission 'kernelSessions.cancel' was denied", times=0)
    found = checked(provider, outcome.CANCEL)
    assert asked(found) == {outcome.CANCEL: "failed"}
    assert "Kaggle refused to cancel a session" in found[outcome.CANCEL]["words"]
    assert not kaggle.world.kernels


def test_a_session_that_does_not_know_its_id(make) -> None:
    _, provider = make({"KAGGLE_CONTAINER_NAME": "another-scheme"})
    found = checked(provider, outcome.CANCEL)
    assert "has no session id" in found[outcome.CANCEL]["words"]


def test_files_that_are_not_kept_after_a_cancel(make) -> None:
    kaggle, provider = make()
    kaggle.sessions.outputs_after_cancel = False
    found = checked(provider, outcome.CANCEL)
    assert asked(found) == {outcome.CANCEL: "failed"}
    assert "files are lost after a cancel" in found[outcome.CANCEL]["remedy"]


def test_a_log_that_is_cut(make) -> None:
    kaggle, provider = make()
    kaggle.world.kept_events = 40
    found = checked(provider, outcome.LOG)
    assert asked(found) == {outcome.LOG: "failed"}
    assert "long logs are truncated" in found[outcome.LOG]["remedy"]
    assert found[outcome.LOG]["data"]["kept_share"] < 0.9


def test_a_log_that_comes_at_the_end(make) -> None:
    kaggle, provider = make()
    provider.limits = replace(FAST, answer_s=8.0, over_s=2.0)
    kaggle.rules.add("logs/stream", status=404, reason="Not found", times=0)
    found = checked(provider, outcome.LOG)
    assert asked(found) == {outcome.LOG: "failed"}
    assert "the log of a running kernel could not be read" in found[outcome.LOG]["words"]


def test_a_hub_whose_xet_hangs(make) -> None:
    with HubEmulator(checked_repo(xet=True)) as hub:
        _, provider = make({"HF_ENDPOINT": hub.endpoint})
        provider.limits = replace(FAST, hub_s=8.0)
        found = checked(provider, outcome.HUB)
    assert asked(found) == {outcome.HUB: "failed"}
    assert found[outcome.HUB]["words"] == "by Xet: no data within 8 s"
    assert found[outcome.HUB]["data"]["http"]["bytes"] == 7000


def test_a_hub_that_gives_a_file_both_ways(make) -> None:
    with HubEmulator(checked_repo()) as hub:
        _, provider = make({"HF_ENDPOINT": hub.endpoint})
        found = checked(provider, outcome.HUB)
    assert asked(found) == {outcome.HUB: "ok"}, found


def test_a_machine_without_internet(make) -> None:
    _, provider = make({"HF_ENDPOINT": "http://127.0.0.1:9"})
    found = checked(provider, outcome.HUB)
    assert asked(found) == {outcome.HUB: "failed"}
    assert "by plain HTTP" in found[outcome.HUB]["words"]


@pytest.mark.parametrize("anonymous", [True, False])
def test_uploads_that_need_or_do_not_need_a_sign_in(make, drive, anonymous: bool) -> None:
    _, provider = make()
    client = DriveClient(read_login(json.dumps(drive.authorized_user()), drive.url), drive.url, on_trouble=print)
    store = DriveStore(store_env(), client=client)
    with contextlib.closing(store):
        addresses = upload_addresses(store, ["checks/1", "checks/2"])
    drive.anonymous = anonymous
    found = checked(provider, outcome.DRIVE_UPLOAD, uploads=tuple(addresses))
    assert asked(found) == {outcome.DRIVE_UPLOAD: "ok" if anonymous else "failed"}, found
    assert sorted(f.size for f in drive.files()) == ([1, (256 << 10) + 1] if anonymous else [])
    assert anonymous or "HTTP 401" in found[outcome.DRIVE_UPLOAD]["words"]


@pytest.mark.parametrize("layout", ["flat", "linked"])
def test_inputs_are_found_in_other_layouts(make, layout: str) -> None:
    kaggle, provider = make()
    kaggle.sessions.layout = layout
    found = checked(provider, outcome.INPUTS)
    assert asked(found) == {outcome.INPUTS: "ok"}
    data = found[outcome.INPUTS]["data"]
    assert (data["layout"], data["link"]) == ("flat" if layout == "flat" else "nested", layout == "linked")


def test_inputs_that_are_never_ready(make) -> None:
    kaggle, provider = make(processing_polls=10_000)
    provider.limits = replace(FAST, ready_s=0.5)
    found = checked(provider, outcome.INPUTS)
    assert asked(found) == {outcome.INPUTS: "failed"}
    assert "did not become ready" in found[outcome.INPUTS]["words"]
    assert not kaggle.world.datasets


# --- the check itself ---


def test_only_the_probes_themselves_take_a_gpu(make) -> None:
    kaggle, provider = make()
    found = checked(provider, outcome.INPUTS, outcome.CANCEL, gpu=True)
    assert set(asked(found).values()) == {"ok"}
    shapes = {s.said["slug"].rpartition("-")[2]: s.said.get("machineShape") for s in kaggle.seen("SaveKernel")}
    assert shapes == {"main": "NvidiaTeslaT4", "cancel": None}


def test_what_has_ended_is_told_at_once(make) -> None:
    _, provider = make()
    told: list[Any] = []
    order = CheckOrder(id="check-1", token="a-check-token", gpu=False, probes=frozenset({outcome.INPUTS}))
    found = provider.diagnose(ALICE, order, told.append)
    assert {o.name: o for o in told}[outcome.INPUTS] == {o.name: o for o in found.outcomes}[outcome.INPUTS]
    assert found.image
    assert {"python", "torch"} <= found.versions.keys()


def test_a_kernel_that_dies_is_told_with_its_last_words(make) -> None:
    _, provider = make({"PYTHONHOME": "/nowhere"})
    found = checked(provider, outcome.INPUTS)
    assert asked(found) == {outcome.INPUTS: "failed"}
    assert "the kernel ended before this probe did" in found[outcome.INPUTS]["words"]
    assert "(error)" in found[outcome.INPUTS]["words"]


def test_an_account_that_cannot_start_anything_says_so(make) -> None:
    kaggle, provider = make()
    kaggle.world.people["alice"].phone_verified = False
    with pytest.raises(CredentialsRefused, match="Verify its phone number"):
        checked(provider, outcome.INPUTS)
    order = CheckOrder(id="check-1", token="a-check-token", gpu=False)
    provider.clear_check(ALICE, order.id)
    assert not kaggle.world.datasets


def test_what_a_check_left_is_deleted_by_its_id_and_nothing_else(make) -> None:
    """Guard: with one delete that Kaggle did not answer, the other three were left before each was tried."""
    kaggle, provider = make()
    connection = provider._access.connect(ALICE)
    mine, others = names("check-1"), names("check-2")["main"]
    for slug in (mine["main"], mine["limit"], mine["cancel"], others):
        connection.push(
            "alice", Push(slug=slug, source="", machine_shape="", internet=False, datasets=(), timeout_s=60)
        )
    kaggle.rules.add("DeleteKernel", status=503)
    with pytest.raises(ProviderUnavailable):
        provider.clear_check(ALICE, "check-1")
    assert {slug for _, slug in kaggle.world.kernels} == {mine["main"], others}
    provider.clear_check(ALICE, "check-1")
    assert {slug for _, slug in kaggle.world.kernels} == {others}


def test_words_of_a_stranger_are_not_believed(make) -> None:
    """Only lines signed with the check's own token count. Guard: with `json.loads` of every marked line in place of
    `signed_message` the stranger's session number was taken for this one's."""
    _, provider = make()
    order = CheckOrder(id="check-1", token="a-check-token", gpu=False)
    check = Check(provider._access.connect(ALICE), "alice", order, FAST, lambda _: None)
    mine, theirs = (sign_line(token, '{"kind": "began", "session": 1}') for token in (order.token, "another"))
    assert check._understood(mine) == {"kind": "began", "session": 1}
    assert check._understood(theirs) is None
    assert check._understood(sign_line(order.token, "[1]")) is None
