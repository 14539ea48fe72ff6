"""Commands that messages tell to type: each one is understood, and reaches the server that the message is about."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from orchestrator.entrypoints.cli import output
from orchestrator.entrypoints.cli.main import app
from tests.cli.conftest import Shell
from tests.helpers.page_server import PageServer

ROOT = Path(__file__).parents[2]
FILLED_IN = "kaggle"
"""What stands for a value that a message has at run time. It also is an option of `doctor`."""


def _texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a module that are no docstrings."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else FILLED_IN for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | parts:
            yield node.value


def _hints() -> list[str]:
    files = [file for package in ("orchestrator", "trainhop", "worker") for file in (ROOT / package).rglob("*.py")]
    texts = (text for file in files for text in _texts(ast.parse(file.read_text())))
    return sorted({hint for text in texts for hint in re.findall(r"`(trainhop [^`{]*)`", text)})


def _understood(hint: str) -> None:
    """Raises what the command line raises for words that it does not understand. Nothing is run."""
    _, *words = shlex.split(hint)
    words = [word for word in words if word != "--help"]
    context = typer.main.get_command(app).make_context("trainhop", words)
    while hasattr(context.command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)  # pyright: ignore[reportAttributeAccessIssue]
        needs_more = "--help" in hint
        context = command.make_context(name, rest, parent=context, resilient_parsing=needs_more)


def test_every_hint_is_a_command_that_works_when_it_is_pasted() -> None:
    """Guard: with JOB and NAME in a hint, what was pasted asked for a job called JOB."""
    hints = _hints()
    assert len(hints) > 40, "the messages were not found"
    for hint in hints:
        assert not re.search(r"\b[A-Z]{3,}\b", hint), f"{hint} has a word to replace"
        _understood(hint)
    with pytest.raises(Exception, match="No such command"):
        _understood("trainhop nonsense")


def test_a_hint_repeats_the_options_that_select_the_server(server: PageServer) -> None:
    """Guard: without `in_hints`, a job submitted to another server was told to be followed on one's own."""
    asked = ["--server", server.url, "tokens", "add", "nobody"]
    result = CliRunner().invoke(app, asked, env={"TRAINHOP_TOKEN": server.api.admin_token})
    try:
        assert result.exit_code != 0
        hint = f"`trainhop --server {server.url} members ls`"
        assert output.pasteable(str(result.exception)).endswith(f"List them with {hint}.")
    finally:
        output.in_hints([])


def test_a_folder_in_use_says_where_its_server_runs(trainhop: Shell) -> None:
    """Guard: without `refuse_served` it was the port that was in use, and nobody said by what."""
    address = (trainhop.data_dir / "server.url").read_text().strip()
    said = trainhop("up", "--port", address.rpartition(":")[2], code=1).stderr
    hint = f"`trainhop --data-dir {trainhop.data_dir} open`"
    assert f"Another server already uses {trainhop.data_dir}. It runs at {address}: log in with {hint}." in said
    assert address in trainhop("--data-dir", str(trainhop.data_dir), "open").stdout


@pytest.mark.parametrize("command", [("use", "gdrive"), ("check", "gdrive")])
def test_a_store_that_there_is_not_is_said_to_be_unknown(typed, command: tuple[str, ...]) -> None:
    """Guard: without `kind` in `check_store`, one was told to set it up."""
    with pytest.raises(Exception, match="there is no kind of store called gdrive; known are drive, local"):
        typed("store", *command)
