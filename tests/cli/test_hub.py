"""`trainhop hub` as people type it, against an emulated hub."""

from __future__ import annotations

import subprocess
import sys

from tests.cli.conftest import HUB_TOKEN, Shell, environment
from tests.emulators.hub import HubEmulator


def test_a_token_from_login_to_logout(hub_shell: Shell, hub: HubEmulator) -> None:
    """Guard: with the server's own HF_TOKEN as a fallback, the unknown model was asked for with it."""
    assert "No token is stored" in hub_shell("hub", "show").stdout
    said = hub_shell("hub", "login", "--token-file", "token")
    assert said.stdout == "A token of admin-on-the-hub is stored, encrypted.\n"
    assert HUB_TOKEN not in said.stdout + said.stderr
    assert hub_shell.json("hub", "show") == {"stored": True, "account": "admin-on-the-hub"}
    hub_shell("hub", "logout")
    assert hub_shell.json("hub", "show") == {"stored": False, "account": ""}
    command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "hub", "login"]
    for arguments, text, code in (((), HUB_TOKEN, 0), (("--token-file", "-"), "hf_made_up", 2)):
        done = subprocess.run(
            [*command, *arguments],
            input=text,
            env=environment(TRAINHOP_DATA_DIR=str(hub_shell.data_dir)),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert text not in done.stdout + done.stderr
    assert "does not accept your token" in done.stderr.replace("\n", " ")
    assert hub_shell.json("hub", "show")["account"] == "admin-on-the-hub"
    hub_shell("hub", "logout")
    refused = hub_shell("submit", hub_shell.job_file(base_model="org/nobody"), code=2)
    assert "Check the id and revision" in refused.stderr.replace("\n", " ")
    assert hub.seen[-1].authorization is None
