"""`trainhop push` as people type it: a server, the process that pushes, and an emulated hub."""

from __future__ import annotations

import pytest

from orchestrator.adapters.database.unit_of_work import make_engine, make_unit_of_work
from orchestrator.adapters.stores.local import LocalStore
from orchestrator.testing.environments import store_env
from tests.cli.conftest import Shell
from tests.emulators.hub import HubEmulator, Repo
from tests.helpers.pushes import add_finished_job

JOB, REPO = "job-finished0001", "admin-on-the-hub/trail-guide"


@pytest.fixture
def shell(hub_shell: Shell) -> Shell:
    data = hub_shell.data_dir
    engine = make_engine(f"sqlite:///{data / 'trainhop.db'}")
    add_finished_job(make_unit_of_work(engine), LocalStore(store_env(data / "store")), JOB, hub_shell.folder)
    engine.dispose()
    return hub_shell


def test_an_adapter_is_pushed_followed_and_shown(shell: Shell, hub: HubEmulator) -> None:
    """Guard: without `push_due` in the scheduler, nothing was sent."""
    assert "trainhop hub login" in shell("push", JOB, "--to", REPO, code=2).stderr.replace("\n", " ")
    shell("hub", "login", "--token-file", "token")
    assert "Name the repository" in shell("push", JOB, code=2).stderr
    hub.rules.add("POST .*/commit/main", status=503, done=True, headers={"Retry-After": "1"})
    hub.rules.add("GET .*/commits/main", status=503, skip=1, headers={"Retry-After": "1"})
    done = shell("push", JOB, "--to", REPO)
    commit = hub.repos["model", REPO].commit
    assert done.stdout.split() == ["pushed", "to", f"https://huggingface.co/{REPO},", "commit", commit]
    assert "Hugging Face is busy (HTTP 503). Trying again." in done.stderr
    assert len(hub.writes.commits(REPO)) == 1
    assert f"pushed to https://huggingface.co/{REPO}" in " ".join(shell("show", JOB).stdout.split())
    again = shell.json("push", JOB)
    assert (again["state"], again["commit"], again["made_commit"]) == ("pushed", commit, False)
    hub.writes.add(Repo(id="admin-on-the-hub/open", files={"README.md": b"mine"}), "admin-on-the-hub")
    refused = shell("push", JOB, "--to", "admin-on-the-hub/open", code=1)
    assert "is public. Push with --public" in " ".join(refused.stderr.split())
    assert shell.json("show", JOB)["pushes"][0]["state"] == "failed"
