"""What the command line says where no server has a part in it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from orchestrator.entrypoints.cli import job_file, main
from orchestrator.entrypoints.cli.client import CommandError, Exit, exit_code
from orchestrator.entrypoints.cli.output import table
from orchestrator.entrypoints.cli.phrases import chosen_checkpoint
from tests.cli.conftest import Shell
from trainhop.errors import Error


def checkpoint(step: int, state: str) -> dict[str, Any]:
    return {"step": step, "state": state, "sha256": f"{step:064x}"}


def test_a_checkpoint_that_is_not_kept_is_said_to_have_been_there() -> None:
    """Guard: without `_no_checkpoint` somebody who had seen it in the list was told that there is none."""
    found = [checkpoint(1, "pruned"), checkpoint(2, "committed"), checkpoint(3, "committed")]
    with pytest.raises(CommandError, match=r"step 1 was deleted\. Available steps: 2, 3\.") as caught:
        chosen_checkpoint(found, "1", "--from")
    assert exit_code(caught.value) is Exit.NOT_FOUND
    with pytest.raises(CommandError, match=r"step 1 was deleted\. This job has no checkpoint files\."):
        chosen_checkpoint(found[:1], "1", "--from")
    with pytest.raises(CommandError, match="This job has no checkpoint 4"):
        chosen_checkpoint(found, "4", "--from")


def test_a_file_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Guard: without `OSError` in `main` this was a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        main.main((tmp_path / "file" / "out").mkdir)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"{tmp_path / 'file' / 'out'}: Not a directory\n"


@pytest.mark.parametrize("token", ["tökén", "a\nb"])
def test_a_token_that_can_be_none_is_refused_in_words(elsewhere: Shell, token: str) -> None:
    """Guard: without the look in `connect` the first was a traceback, the second a server that does not answer."""
    said = elsewhere("--server", "http://127.0.0.1:9", "ls", code=4, TRAINHOP_TOKEN=token).stderr
    assert "Set TRAINHOP_TOKEN to a valid token" in said


@pytest.mark.parametrize(
    ("message", "problems", "lines"),
    [
        ("/a~1b: wrong", [("/a~1b", "wrong")], ["a/b: wrong"]),
        ("/a: x; /b: y", [("/a", "x"), ("/b", "y")], ["a: x", "b: y"]),
        ("f.jsonl: line 1: bad", [("/", "line 1: bad")], ["f.jsonl: line 1: bad"]),
        ("does not fit", [("/base_model", "needs 9 GiB")], ["does not fit", "base_model: needs 9 GiB"]),
        ("no", [], ["no"]),
    ],
)
def test_nothing_is_said_twice(message: str, problems: list[tuple[str, str]], lines: list[str]) -> None:
    """Guard: without the comparison the server's summary stood before the same words."""
    assert list(Error.refused(422, message, problems).lines) == lines


def test_a_job_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Guard: read as plain UTF-8, JSON from some editors was `Unexpected UTF-8 BOM`."""
    for name in ("job.json", "job.yaml"):
        (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"max_steps": 1}')
        assert job_file.read(str(tmp_path / name)) == {"max_steps": 1}


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Guard: without `Strict` the last one won, and the first was as if it had never been written."""
    path = tmp_path / "job.yaml"
    path.write_text("seed: 1\ncheckpoint:\n  keep: 1\n  keep: 2\n")
    with pytest.raises(Error, match=r"job\.yaml:4:3: duplicate key 'keep'"):
        job_file.read(str(path))
    path.write_text("a: &a {keep: 1, x: 2}\nb: &b {<<: *a, keep: 2}\nc: {<<: *b, x: 3}\n")
    assert job_file.read(str(path))["c"] == {"keep": 2, "x": 3}


def test_a_day_that_no_calendar_has_is_one_line(tmp_path: Path) -> None:
    """Guard: without `ValueError` this was a traceback."""
    path = tmp_path / "job.yaml"
    path.write_text("deadline: 2026-13-45\n")
    with pytest.raises(Error, match="month must be in"):
        job_file.read(str(path))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_long_names_and_notes_are_cut_in_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: without `_NAMES` one long member left no room for the other columns; without `_cut` one long note took
    ten lines. A program reads the whole text."""
    monkeypatch.setenv("COLUMNS", "220")
    row = ("job-1", "n" * 100, "m" * 100, "why " * 100)
    shown: list[str] = []
    table(("ID", "NAME", "MEMBER", "NOTE"), [row], shown.append)
    assert shown[0].splitlines()[1].split() == ["job-1", "n" * 100, "m" * 100, *["why"] * 100]
    monkeypatch.setattr("sys.stdout", _Terminal())  # a terminal that can be read
    table(("ID", "NAME", "MEMBER", "NOTE"), [row], shown.append)
    _, name, member, *note = shown[1].splitlines()[1].split()
    assert (name, member) == ("n" * 31 + "…", "m" * 31 + "…")
    assert note == ["why"] * 29 + ["why…"]
    assert len(shown[1].splitlines()) == 2
