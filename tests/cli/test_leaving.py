"""`trainhop datasets` and `members rm` as people type them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Shell, end, start_server


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    data = tmp_path / "data"
    process = start_server(data, "--slots", "0", TRAINHOP_ALLOWED_FOLDERS=json.dumps([str(tmp_path)]))
    yield Shell(tmp_path, data, tmp_path)
    end(process, data)


def test_data_files_are_listed_and_removed(shell: Shell) -> None:
    (shell.folder / "tiny").mkdir()
    (shell.folder / "tiny" / "config.json").write_text("{}")
    job = shell("submit", shell.job_file()).stdout.strip()
    (file,) = shell.json("datasets", "ls")
    assert (file["name"], file["member"], file["rows"]) == ("rows.jsonl", "admin", 2)
    listed = shell("datasets", "ls").stdout
    assert file["sha256"][:16] in listed
    assert "rows.jsonl" in listed
    assert "uses this file" in shell("datasets", "rm", file["sha256"][:8], code=1).stderr
    shell("cancel", job)
    assert "four characters" in shell("datasets", "rm", "xyz", code=2).stderr
    assert "no data file" in shell("datasets", "rm", "0" * 12, code=3).stderr
    assert "removed" in shell("datasets", "rm", f"sha256:{file['sha256'][:8]}").stderr
    assert shell.json("datasets", "ls") == []
    assert "Upload it again" in shell("retry", job, code=1).stderr


def test_a_member_is_removed_by_name(shell: Shell) -> None:
    shell("members", "add", "alice")
    token = shell("tokens", "add", "alice").stdout.strip()
    assert "Ask another admin" in shell("members", "rm", "admin", code=1).stderr
    assert "removed alice" in shell("members", "rm", "alice").stderr
    assert [m["name"] for m in shell.json("members", "ls")] == ["admin"]
    shell("ls", code=4, TRAINHOP_TOKEN=token)
