"""`trainhop accounts` as people type it, with Kaggle emulated: connecting, checking, agreeing, pausing, taking
leave."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Shell, environment, start_server
from tests.emulators.kaggle import KaggleEmulator, Person

SECRET = "KGAT_canary_of_alice"
NAME = "alice's Kaggle"


@pytest.fixture
def kaggle(tmp_path: Path) -> Iterator[KaggleEmulator]:
    with KaggleEmulator(tmp_path / "kaggle", [Person(name="alice1", token=SECRET)]) as emulator:
        yield emulator


@pytest.fixture
def shell(kaggle: KaggleEmulator, tmp_path: Path) -> Iterator[Shell]:
    data = tmp_path / "data"
    (tmp_path / "token").write_text(SECRET + "\n")
    process = start_server(data, "--slots", "0", TRAINHOP_KAGGLE_ENDPOINT=kaggle.endpoint)
    yield Shell(tmp_path, data, tmp_path)
    process.terminate()
    assert process.wait(60) == 0
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in data.rglob("*") if p.is_file())


def test_an_account_from_its_first_day_to_its_last(shell: Shell, kaggle: KaggleEmulator) -> None:
    shell("members", "add", "alice")
    alice = shell("tokens", "add", "alice").stdout.strip()
    add = ("accounts", "add", "kaggle", "--owner", "alice", "--username", "alice1", "--token-file")
    said = shell(*add, "token")
    assert "Its owner must allow jobs first" in said.stderr
    assert f"trainhop accounts consent {shlex.quote(NAME)}" in said.stderr.replace("\n", " ")
    assert SECRET not in said.stdout + said.stderr
    assert "Only one account per member and provider is allowed." in shell(*add, "token", code=1).stderr
    (account,) = [a for a in shell.json("accounts", "ls") if a["provider"] == "kaggle"]
    assert (account["name"], account["has_credentials"], account["consented_at"]) == ("alice's Kaggle", True, None)
    assert "needs consent" in shell("accounts", "ls").stdout
    assert "Only the owner" in shell("accounts", "consent", "alice's Kaggle", code=4).stderr
    agreed = shell("accounts", "consent", "alice's Kaggle", TRAINHOP_TOKEN=alice)
    assert "your jobs can now run on alice's Kaggle" in agreed.stdout
    checked = shell("accounts", "check", account["id"]).stdout
    assert "signed in at Kaggle as alice1; " in checked
    assert "of 30.0 GPU hours left this week" in checked
    made = shell("accounts", "code")
    assert made.stdout.startswith("trainhop join http://127.0.0.1:")
    assert "It works once" in made.stderr
    assert shell("accounts", "drain", NAME).stdout == f"paused {NAME}: 0 sessions will save and end\n"
    shell("accounts", "resume", NAME)
    kaggle.world.people["alice1"].revoked = True
    refused = shell("accounts", "check", account["id"], code=1)
    assert refused.stdout.strip()
    assert SECRET not in refused.stdout + refused.stderr
    assert "problem" in shell("accounts", "ls").stdout
    assert "nothing was stored" in shell("accounts", "token", account["id"], "token", code=2).stderr
    kaggle.world.people["alice1"].revoked = False
    assert "replaced the credentials" in shell("accounts", "token", account["id"], "token").stdout
    assert "open" in shell("accounts", "ls").stdout
    assert "paused" in shell("accounts", "pause", account["id"]).stdout
    assert "resumed" in shell("accounts", "resume", account["id"]).stdout
    shell("accounts", "rm", account["id"])
    assert not [a for a in shell.json("accounts", "ls") if a["provider"] == "kaggle"]


def test_credentials_come_from_a_file_or_stdin_and_are_looked_at(shell: Shell) -> None:
    command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main"]
    command += ["accounts", "add", "kaggle", "--username", "alice1", "--token-file", "-", "--json"]
    variables = environment(TRAINHOP_DATA_DIR=str(shell.data_dir))
    done = subprocess.run(command, input=SECRET, env=variables, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["consented_at"], "one's own token is consent"
    assert SECRET not in done.stdout + done.stderr
    shell("accounts", "rm", json.loads(done.stdout)["id"])
    (shell.folder / "empty").write_text("\n")
    (shell.folder / "lines").write_text(f"{SECRET}\n{SECRET}\n")
    (shell.folder / "bytes").write_bytes(b"\xff\xfe\x00")
    for file, words in {
        "missing": "No such file",
        "empty": "are empty",
        "lines": "line breaks",
        "bytes": "is not a text file",
    }.items():
        refused = shell("accounts", "add", "kaggle", "--token-file", file, code=2)
        assert words in refused.stderr
        assert SECRET not in refused.stdout + refused.stderr
    assert "needs its owner's credentials" in shell("accounts", "add", "kaggle", code=2).stderr


def test_a_pools_settings_are_changed_one_by_one(shell: Shell) -> None:
    said = shell("accounts", "change", "this-computer", "--set", "session_s=90")
    assert said.stdout.strip() == 'this-computer: {"slots": 0, "session_s": 90}'
    assert "must be at least 0" in shell("accounts", "change", "this-computer", "--set", "slots=-1", code=2).stderr
    (pool,) = shell.json("accounts", "ls")
    assert pool["config"] == {"slots": 0, "session_s": 90}
    unset = ("accounts", "change", "this-computer", "--unset")
    assert shell(*unset, "session_s").stdout.strip() == 'this-computer: {"slots": 0}'
    assert "did you mean 'slots'?" in shell(*unset, "slotz", code=2).stderr
    assert "--unset KEY" in shell("accounts", "change", "this-computer", code=2).stderr
