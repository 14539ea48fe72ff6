"""A job file may be somebody else's: what it names is not sent unseen, and how it is written breaks nothing."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.entrypoints.cli import job_file
from orchestrator.entrypoints.cli.client import Client
from tests.helpers import start_adapters
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


class Adapters(Uploads):
    """Also keeps what is in an archive, and knows a job."""

    def upload(self, path: str, file: Path, **query: Any) -> dict[str, str]:
        if path == "/adapters":
            with zipfile.ZipFile(file) as archive:
                self.names = (query["name"], archive.namelist())
        return super().upload(path, file)

    def pages(self, *_: Any) -> list[dict[str, str]]:
        return [{"name": "first", "id": "job-1"}]

    def get(self, path: str) -> dict[str, str]:
        return {"id": path.rpartition("/")[2]}


def test_the_folder_of_an_adapter_is_uploaded_like_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: without `may_send` a downloaded job file fetched the adapters of its reader."""
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    start_adapters.write(theirs / "own")
    (theirs / "own" / "optimizer.pt").write_bytes(b"not sent")
    start_adapters.write(mine / "private")
    (theirs / "rows.jsonl").write_text("{}")
    monkeypatch.chdir(mine)
    job = theirs / "job.yaml"

    def sent(given: str, *, yes: bool = False) -> tuple[Any, Adapters]:
        uploads = Adapters()
        job.write_text(SPEC.replace("PATH", "rows.jsonl") + f"lora_model_dir: {given}\n")
        spec = job_file.read(str(job))
        return job_file.send_data(cast("Client", uploads), str(job), spec, yes=yes)["lora_model_dir"], uploads

    named, uploads = sent("own")
    assert named == "sha256:" + "a" * 64
    assert uploads.names == ("own", [start_adapters.CONFIG, start_adapters.WEIGHTS])
    with pytest.raises(Error, match="the folder is outside the job file's folder"):
        sent("private")
    assert sent("private", yes=True)[1].names[0] == "private"
    assert [sent(given)[0] for given in ("first", "job-7", "org/adapter", "sha256:1")] == [
        "job-1",
        "job-7",
        "org/adapter",
        "sha256:1",
    ]
    with pytest.raises(Error, match=r"\./nowhere: the folder does not exist"):
        sent("./nowhere")
    (theirs / "own" / start_adapters.WEIGHTS).rename(theirs / "own" / "adapter_model.bin")
    with pytest.raises(Error, match="is a pickle, which is never read; save the adapter again"):
        sent("own")
