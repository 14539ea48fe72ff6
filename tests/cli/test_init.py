"""`trainhop init`: with options, and typed at a terminal; and `trainhop up` that opens the browser."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from orchestrator.entrypoints.cli.client import CommandError
from orchestrator.entrypoints.cli.desktop import has_desktop
from tests.cli.conftest import ROWS, Shell, end, environment, start_server
from tests.emulators.hub import HubEmulator, Repo
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.helpers.page_server import PageServer
from tests.helpers.waiting import wait_for
from trainhop.errors import Error
from worker.shared.job_spec import JobSpec

TOKEN = "canary-of-the-account"


def test_options_answer_every_question(server: PageServer, typed: Callable[..., Result], tmp_path: Path) -> None:
    """The account is connected, and the file is a job file with comments.

    Guard: without the look at the file that exists, a second `init` replaced what a person had written.
    """
    file = tmp_path / "job.yaml"
    options = ("--model", "/models/My Model", "--data", "rows: 1.jsonl", "--store", "keep")
    done = typed("init", str(file), *options, "--account", "cloud", "--token-file", "-", stdin=TOKEN)
    assert done.stdout.strip() == str(file)
    assert "signed in as somebody" in done.stderr
    assert f"trainhop plan {file}" in done.stderr
    spec = yaml.safe_load(file.read_text())
    first = file.read_text().partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={server.url}/schemas/job.json"
    assert server.client.get(first.partition(server.url)[2]).is_success
    assert JobSpec.model_validate(spec).base_model == "/models/My Model"
    assert (spec["name"], spec["datasets"][0]["path"], spec["adapter"]) == ("my model", "rows: 1.jsonl", "lora")
    assert "# Rank of the adapter" in file.read_text()
    (account,) = [a for a in server.api.admin.get("/accounts").json()["items"] if a["provider"] == "cloud"]
    assert account["consented_at"]
    with pytest.raises(CommandError, match="--force"):
        typed("init", str(file), *options)
    typed("init", str(file), *options, "--force", "--account", "cloud")


def test_what_is_missing_or_refused_is_said_and_no_file_is_written(
    server: PageServer, typed: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    given = ("--model", "org/m", "--data", "rows.jsonl")
    for words, fault in (
        (("--model", "org/m"), "--model and --data are needed"),
        ((*given, "--account", "nowhere"), "nowhere is none of"),
        ((*given, "--account", "cloud"), "--token-file is missing"),
        ((*given, "--store", "nowhere"), "no kind of store called nowhere"),
    ):
        with pytest.raises(Error, match=fault):
            typed("init", str(file), *words)
    assert not file.exists()


def test_a_person_is_asked_at_a_terminal(hub: HubEmulator, tmp_path: Path) -> None:
    """Account, store, a search, data that is not there and then is."""
    hub.add(Repo(id="org/Guide-7B", files={}, parameters=7_600_000_000, licence="mit"))
    (tmp_path / "rows.jsonl").write_text(ROWS)
    data, people = tmp_path / "data", [Person(name="alice1", token=TOKEN)]
    with KaggleEmulator(tmp_path / "kaggle", people) as kaggle:
        emulators = {"TRAINHOP_HUB_ENDPOINT": hub.endpoint, "TRAINHOP_KAGGLE_ENDPOINT": kaggle.endpoint}
        process = start_server(data, "--slots", "0", HF_HUB_OFFLINE="0", **emulators)
        answers = ["kaggle", TOKEN, "keep", "guide", "1", "no.jsonl", "rows.jsonl"]
        said = _typed_at_a_terminal(tmp_path, environment(TRAINHOP_DATA_DIR=str(data)), answers)
        end(process, data)
    assert "signed in at Kaggle as alice1" in said
    assert TOKEN not in said
    assert "org/Guide-7B: 7.6 B, mit, open" in " ".join(said.split())
    assert "no.jsonl is not a file" in said
    spec = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert (spec["base_model"], spec["adapter"], spec["global_batch_size"]) == ("org/Guide-7B", "qlora", 16)


QUESTIONS = (b"Credentials: ", b"]: ")
"""What a question ends with. The space after `Credentials:` is written once the answer is no longer shown."""


def _typed_at_a_terminal(folder: Path, variables: dict[str, str], answers: list[str]) -> str:
    """What `trainhop init` says to a person who gives these answers, each as soon as it is asked."""
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "init"]
    process = subprocess.Popen(command, cwd=folder, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        for answer in answers:
            new = b""
            while not new.endswith(QUESTIONS):
                new += _heard(terminal)
                assert process.poll() is None, said + new
            os.write(terminal, f"{answer}\n".encode())
            said += new
        while process.poll() is None:
            said += _heard(terminal)
        said += _heard(terminal)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert process.returncode == 0, said
    return said.decode()


def _heard(terminal: int) -> bytes:
    """What has come within a moment, perhaps a part of a character."""
    if not select.select([terminal], [], [], 0.2)[0]:
        return b""
    try:
        return os.read(terminal, 4096)
    except OSError:  # the process has closed its side
        return b""


@pytest.mark.parametrize(
    ("variables", "platform", "expected"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "a b c d"}, "linux", False),
        ({}, "darwin", True),
        ({"SSH_TTY": "/dev/pts/1"}, "darwin", False),
        ({}, "win32", True),
    ],
)
def test_where_a_person_sits(variables: dict[str, str], platform: str, expected: bool) -> None:
    assert has_desktop(variables, platform) is expected


def test_up_opens_the_browser(elsewhere: Shell, tmp_path: Path) -> None:
    """With the link that logs in; the log of a server does not hold it."""
    opened, script = tmp_path / "opened", tmp_path / "browser"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > "{opened}.part" && mv "{opened}.part" "{opened}"\n')
    script.chmod(0o700)
    log, data = tmp_path / "log", tmp_path / "data"
    command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "up", "--port", "0", "--slots", "0"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--browser", "--data-dir", str(data)],
            env=environment(BROWSER=f"{script} %s"),
            stdout=stream,
            stderr=stream,
        )
    try:
        wait_for(opened.exists, "the browser")
        assert opened.read_text().startswith((data / "server.url").read_text().strip() + "/login/")
        assert b"/login/" not in log.read_bytes()
    finally:
        end(process, data)
