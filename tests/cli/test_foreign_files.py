"""A job file may be somebody else's: what it names is not sent unseen, and how it is written breaks nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.entrypoints.cli import job_file
from orchestrator.entrypoints.cli.client import Client
from trainhop.errors import Error

SPEC = "base_model: m\nmax_steps: 1\ndatasets: [{path: PATH}]\n"


class Uploads:
    """Stands for the connection: remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[Path] = []

    def upload(self, _: str, file: Path, **__: Any) -> dict[str, str]:
        self.sent.append(file.resolve())
        return {"sha256": "a" * 64}


def send(path: Path, named: str, *changes: str, yes: bool = False) -> list[Path]:
    uploads = Uploads()
    path.write_text(SPEC.replace("PATH", named))
    job_file.send_data(cast("Client", uploads), str(path), job_file.read(str(path), changes), changes, yes=yes)
    return uploads.sent


def test_a_file_outside_the_job_files_folder_is_not_sent_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: without `may_send` a downloaded job file fetched any file that its reader can read."""
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    theirs.mkdir()
    mine.mkdir()
    secret = mine / "id_rsa"
    secret.write_text("key")
    (theirs / "rows.jsonl").write_text("{}")
    (theirs / "link.jsonl").symlink_to(secret)
    job = theirs / "job.yaml"
    monkeypatch.chdir(mine)
    assert send(job, "rows.jsonl") == [(theirs / "rows.jsonl").resolve()]
    for named in (str(secret), "../mine/id_rsa", "id_rsa", "link.jsonl"):
        with pytest.raises(Error, match=r"outside the job file's folder, so it was not sent\. Repeat with --yes"):
            send(job, named)
        assert send(job, named, yes=True) == [secret.resolve()]
    assert send(job, "rows.jsonl", f"datasets.0.path={secret}") == [secret.resolve()], "the user has named it"


@pytest.mark.parametrize("name", ["job.yaml", "job.json"])
@pytest.mark.parametrize(("text", "words"), [("[" * 20_000, "nested too deeply"), ("1" * 5_000, "digits|mapping")])
def test_a_strange_file_is_a_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    """Guard: without `RecursionError` the reader saw a traceback of a thousand lines."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(Error, match=words) as caught:
        job_file.read(str(path))
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize("text", ["[" * 20_000, "{" * 20_000, "- " * 20_000])
def test_a_deep_change_is_a_sentence(text: str) -> None:
    with pytest.raises(Error, match="nested too deeply"):
        job_file.assignments([f"a={text}"])
