"""`trainhop hub` as people type it, against an emulated hub."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Shell, environment, start_server
from tests.emulators.hub import HubEmulator

TOKEN, OPERATORS = "hf_canary_of_the_admin", "hf_canary_of_the_operator"


@pytest.fixture
def hub() -> Iterator[HubEmulator]:
    with HubEmulator() as hub:
        hub.accounts |= {TOKEN: "admin-on-the-hub", OPERATORS: "operator"}
        yield hub
    assert not any(OPERATORS in (seen.authorization or "") for seen in hub.seen)


@pytest.fixture
def shell(hub: HubEmulator, tmp_path: Path) -> Iterator[Shell]:
    data = tmp_path / "data"
    (tmp_path / "token").write_text(TOKEN + "\n")
    on = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": OPERATORS, "TRAINHOP_HUB_ENDPOINT": hub.endpoint}
    process = start_server(data, "--slots", "0", **on)
    yield Shell(tmp_path, data, tmp_path)
    process.terminate()
    assert process.wait(60) == 0
    assert TOKEN.encode() not in b"".join(p.read_bytes() for p in data.rglob("*") if p.is_file())


def test_a_token_from_login_to_logout(shell: Shell, hub: HubEmulator) -> None:
    """Guard: with the server's own HF_TOKEN as a fallback, the unknown model was asked for with it."""
    assert "No token is stored" in shell("hub", "show").stdout
    said = shell("hub", "login", "--token-file", "token")
    assert said.stdout == "A token of admin-on-the-hub is stored, encrypted.\n"
    assert TOKEN not in said.stdout + said.stderr
    assert shell.json("hub", "show") == {"stored": True, "account": "admin-on-the-hub"}
    shell("hub", "logout")
    assert shell.json("hub", "show") == {"stored": False, "account": ""}
    command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "hub", "login"]
    for arguments, text, code in (((), TOKEN, 0), (("--token-file", "-"), "hf_made_up", 2)):
        done = subprocess.run(
            [*command, *arguments],
            input=text,
            env=environment(TRAINHOP_DATA_DIR=str(shell.data_dir)),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert text not in done.stdout + done.stderr
    assert "does not accept your token" in done.stderr.replace("\n", " ")
    assert shell.json("hub", "show")["account"] == "admin-on-the-hub"
    shell("hub", "logout")
    refused = shell("submit", shell.job_file(base_model="org/nobody"), code=2)
    assert "Check the id and revision" in refused.stderr.replace("\n", " ")
    assert hub.seen[-1].authorization is None
