"""`trainhop backup` of a running server and `trainhop restore`, as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.entrypoints.cli.client import CommandError
from orchestrator.entrypoints.cli.main import app
from tests.cli.conftest import Shell, end, start_server


def test_a_running_server_is_backed_up_and_restored(trainhop: Shell, tmp_path: Path) -> None:
    job = trainhop("submit", trainhop.job_file()).stdout.split()[0]
    said = trainhop("backup", "here.tar")
    assert said.stdout.startswith("wrote here.tar: ")
    assert said.stderr == "The file has the keys of this server. Keep it private.\n"
    new = tmp_path / "new"
    told = trainhop("restore", "here.tar", "--data-dir", str(new))
    assert f"restored {new}, a copy of {trainhop.data_dir} on " in told.stdout
    assert f"trainhop up --data-dir {new} --moved" in told.stderr
    assert "was copied from" in trainhop("up", "--port", "0", "--data-dir", str(new), code=1).stderr
    running = "which a server on this computer uses"
    assert running in trainhop("up", "--port", "0", "--data-dir", str(new), "--moved", code=1).stderr
    process = start_server(new, "--as-copy")
    shell = Shell(tmp_path, new, tmp_path)
    assert shell.json("show", job)["state"] == "paused"
    end(process, new)


def test_what_cannot_be_backed_up_or_restored_is_one_sentence(tmp_path: Path) -> None:
    for words, told in (
        (("backup", "a.tar"), "No server has used the folder"),
        (("restore", "none.tar"), "none.tar: No such file or directory"),
    ):
        on = {"TRAINHOP_DATA_DIR": str(tmp_path / "data")}
        result = CliRunner().invoke(app, [*words], env=on)
        assert isinstance(result.exception, CommandError)
        (line,) = result.exception.lines
        assert told in line
    assert list(tmp_path.iterdir()) == []


def test_programs_read_what_was_written(trainhop: Shell, tmp_path: Path) -> None:
    written = trainhop.json("backup", "here.tar")
    assert (written["missing"], written["changed"]) == ([], [])
    assert written["size"] == (tmp_path / "here.tar").stat().st_size
    shell = Shell(tmp_path, tmp_path / "new", tmp_path)
    restored = json.loads(shell("restore", "here.tar", "--json").stdout)
    assert restored == {"folder": str(tmp_path / "new"), "about": written["about"]}


@pytest.mark.parametrize("key", ["", "k" * 43 + "="])
def test_a_key_outside_the_folder_is_to_be_kept_too(trainhop: Shell, key: str) -> None:
    said = trainhop("backup", "here.tar", TRAINHOP_VAULT_KEY=key).stderr
    assert ("keep that too" in said) is bool(key)
