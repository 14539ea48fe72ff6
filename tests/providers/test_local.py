"""Worker processes on this computer: what they are given, and how their end is put into words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.domain.accounts import Account
from orchestrator.ports.providers import Handle, LaunchRequest, Liveness, Provider
from orchestrator.providers.local import LocalProvider
from orchestrator.testing.environments import driver_env

POOL = Account(id="account-1", provider="local", member_id=None, name="pool", config={}, created_at=0.0)


def launched(app: App, pool: Account = POOL) -> tuple[Provider, Handle]:
    local = app.context.providers.get("local")
    request = LaunchRequest(
        lease_id="lease-1",
        job_id="job-1",
        account=pool,
        token="a-token",
        server_url="http://127.0.0.1:1",
        budget_s=60.0,
    )
    return local, Handle(lease_id="lease-1", account=pool, external_id=local.launch(request))


def ended(app: App, local: Provider, handle: Handle, number: int) -> str:
    os.kill(int(handle.external_id or ""), number)
    assert app.news.wait(30)
    (seen,) = local.observe([handle])
    assert seen.liveness is Liveness.ENDED
    return seen.detail


def environment_of(handle: Handle) -> list[str]:
    """`NAME=VALUE` of a worker. It is empty for a moment while the process turns into the worker."""
    file, pause = Path(f"/proc/{handle.external_id}/environ"), threading.Event()
    for _ in range(600):
        if entries := [entry for entry in file.read_text().split("\0") if "=" in entry]:
            return entries
        pause.wait(0.05)
    raise AssertionError("the worker has no environment")


def test_a_computer_without_torch_says_what_it_lacks(tmp_path: Path) -> None:
    """Guard: without `closed_reason` jobs are started here three times, to fail at an import."""
    there = LocalProvider(driver_env(tmp_path), missing=lambda: ["torch", "trl"]).capacity(POOL)
    assert (there.slots, there.closed_reason) == (
        0,
        "this computer cannot train without torch, trl; `trainhop doctor` says how to install it",
    )
    here = LocalProvider(driver_env(tmp_path), missing=list).capacity(POOL)
    assert (here.slots, here.closed_reason) == (1, "")


@pytest.mark.parametrize("offline", [True, False])
def test_an_offline_servers_workers_are_offline_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    """Guard: without `offline` in what the driver is handed, workers of an offline server asked the hub."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    app = build(Settings(data_dir=tmp_path, offline=offline))
    local, handle = launched(app)
    assert ("HF_HUB_OFFLINE=1" in environment_of(handle)) is offline
    assert ended(app, local, handle, signal.SIGKILL) == "the process was killed by SIGKILL"
    app.close()


def test_a_signal_without_a_name_ends_a_process_like_any_other(tmp_path: Path) -> None:
    """Guard: named by `Signals` alone it was an error, and all sessions of this computer seemed to live on for ever."""
    app = build(Settings(data_dir=tmp_path))
    local, handle = launched(app)
    assert ended(app, local, handle, signal.SIGRTMIN + 1) == f"the process was killed by signal {signal.SIGRTMIN + 1}"
    app.close()


@pytest.mark.parametrize(("number", "failed"), [(signal.SIGKILL, False), (signal.SIGTERM, False), (None, True)])
def test_an_error_of_its_own_is_no_kill(tmp_path: Path, number: int | None, failed: bool) -> None:
    """Guards: with every exit code a failure, a worker that was killed at random stopped its job at the third time;
    without the output's last line nobody saw which error it was.
    """
    app = build(Settings(data_dir=tmp_path))
    broken = tmp_path / "broken/worker/__init__.py"
    broken.parent.mkdir(parents=True)
    broken.write_text("raise ImportError('half of it is missing')")
    pool = replace(POOL, config={} if number else {"env": {"PYTHONPATH": str(tmp_path / "broken")}})
    local, handle = launched(app, pool)
    if number:
        os.kill(int(handle.external_id or ""), number)
    assert app.news.wait(30)
    (seen,) = local.observe([handle])
    assert (seen.liveness, seen.failed) == (Liveness.ENDED, failed)
    words = "the process ended with exit code 1: ImportError: half of it is missing"
    assert (seen.detail == words) is failed
    app.close()


def test_workers_do_not_ask_the_hub_with_the_operators_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any member's job may run here. Guard: with the environment passed on as it is, every one of them had the
    token."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_operator")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_of_the_operator")
    (tmp_path / "home" / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "home" / ".cache" / "huggingface" / "token").write_text("hf_of_the_operator")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HOME", raising=False)
    app = build(Settings(data_dir=tmp_path / "data", hub_endpoint="http://127.0.0.1:9"))
    local, handle = launched(app)
    given = dict(entry.split("=", 1) for entry in environment_of(handle))
    assert ended(app, local, handle, signal.SIGKILL)
    app.close()
    assert "hf_of_the_operator" not in given.values()
    assert given["HF_ENDPOINT"] == "http://127.0.0.1:9"
    asked = "import huggingface_hub; print(huggingface_hub.get_token())"
    found = subprocess.run([sys.executable, "-c", asked], env=given, capture_output=True, text=True, check=True)
    assert found.stdout == "None\n"
