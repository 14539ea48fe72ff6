"""The tools over stdio, as a process that an agent starts, and over HTTP with the caller's token."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from typer.testing import CliRunner

from orchestrator.entrypoints.cli.main import app
from orchestrator.entrypoints.mcp.server import PATH, as_caller, make_server, web_app
from tests.helpers.page_server import PageServer
from tests.helpers.waiting import wait_for
from tests.http.http_client import People
from tests.mcp.conftest import call, listed, sentence
from tests.mcp.test_tools import INLINE, JOB
from trainhop.errors import Error

REQUEST = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
FORMS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


def test_a_process_speaks_over_stdio_and_logs_to_stderr(server: PageServer, tmp_path: Path) -> None:
    """Guard: one line of a log on stdout would end the conversation."""
    log = tmp_path / "stderr"
    words = ["-m", "orchestrator.entrypoints.cli.main", "mcp"]
    variables = {"TRAINHOP_SERVER_URL": server.url, "TRAINHOP_TOKEN": server.api.admin_token}
    process = StdioServerParameters(command=sys.executable, args=words, env=variables, cwd=tmp_path)

    async def talk():
        with log.open("w") as errors:
            async with Client(stdio_client(process, errlog=errors)) as client:
                tools = (await client.list_tools()).tools
                made = await client.call_tool("submit", {"job": JOB, "rows": INLINE, "key": "stdio"})
                return tools, made, await client.call_tool("show", {"job": "nothing"})

    tools, made, unknown = asyncio.run(talk())
    assert len(tools) == 10
    assert made.structured_content is not None
    assert made.structured_content["state"] == "queued"
    assert "There is no job" in sentence(unknown)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def tools_url(server: PageServer) -> Iterator[str]:
    """The tools over HTTP on a port of their own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        made = make_server(as_caller(server.url, ()))
        web = uvicorn.Server(uvicorn.Config(web_app(made, [f"127.0.0.1:{port}"]), log_level="warning"))
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: web.started, "the tools")
        yield f"http://127.0.0.1:{port}{PATH}"
        web.should_exit = True
        thread.join(30)


@contextlib.asynccontextmanager
async def over_http(url: str, token: str):
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers) as http, streamable_http_client(url, http_client=http) as streams:
        yield streams


def test_a_caller_acts_with_its_own_token(server: PageServer, tools_url: str, tmp_path: Path, monkeypatch) -> None:
    """Guards: with the token of this computer's owner every caller was an admin; a session kept the first token."""
    monkeypatch.setenv("TRAINHOP_TOKEN", server.api.admin_token)
    people = People.of(server.api)
    hers = people.ann.submit(name="hers")["id"]
    assert len(listed(over_http(tools_url, people.ann.token))) == 10
    mine, theirs = (
        call(over_http(tools_url, who.token), ("cancel", {"job": hers}))[0] for who in (people.bob, people.ann)
    )
    assert "There is no job" in sentence(mine)
    assert theirs.structured_content is not None
    assert theirs.structured_content["state"] == "cancelled"
    assert "token" in sentence(call(over_http(tools_url, "wrong"), ("list", {}))[0])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Basic YTpi"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer x", "Host": "rebound.example"}, 421),
        ({"Authorization": "Bearer x", "Origin": "https://evil.example"}, 403),
        ({"Authorization": "Bearer x", "Content-Type": "text/plain"}, 400),
    ],
)
def test_a_page_or_a_stranger_reaches_no_tool(tools_url: str, headers: dict[str, str], status: int) -> None:
    """Guards: DNS rebinding gave a web page the tools; a call without a token was the owner's."""
    answer = httpx2.post(tools_url, json=REQUEST, headers=FORMS | headers)
    assert answer.status_code == status, answer.text


def test_a_large_request_is_refused(tools_url: str) -> None:
    answer = httpx2.post(tools_url, content=b"[" * 3_000_000, headers=FORMS | {"Authorization": "Bearer x"})
    assert answer.status_code == 413


def test_no_token_is_never_that_of_this_computer(server: PageServer, monkeypatch) -> None:
    """Guard: without its own look the client would take the admin's token of the data folder."""
    monkeypatch.setenv("TRAINHOP_TOKEN", server.api.admin_token)
    assert "has no token" in sentence(call(make_server(as_caller(server.url, ())), ("list", {}))[0])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--http", "here"], "expected HOST:PORT"),
        (["--http", "0.0.0.0:8000"], "--allow-host"),
        (["--allow-folder", "no-such-folder"], "is not a folder"),
        ([], "No server is running"),
    ],
)
def test_a_wrong_option_is_explained(words: list[str], told: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["mcp", *words], env={"TRAINHOP_DATA_DIR": str(tmp_path), "TRAINHOP_TOKEN": ""})
    assert isinstance(done.exception, Error)
    assert told in str(done.exception)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch) -> None:
    """Guard: the extra is optional, and a traceback is no answer."""
    for name in [name for name in sys.modules if name.startswith("orchestrator.entrypoints.mcp.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    monkeypatch.delattr("orchestrator.entrypoints.mcp.server", raising=False)
    done = CliRunner().invoke(app, ["mcp"], env={"TRAINHOP_DATA_DIR": str(tmp_path)})
    assert isinstance(done.exception, Error)
    assert "trainhop mcp` needs the package mcp" in str(done.exception)
    assert "mcp]" in str(done.exception)


def test_the_command_line_starts_without_the_package() -> None:
    """Guard: imported at the top, it would cost every command more than a second."""
    import subprocess

    code = "import sys, orchestrator.entrypoints.cli.main; print({m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'typer'" in loaded
    assert not [name for name in ("'mcp'", "'pydantic'", "'httpx'", "'pandas'") if name in loaded]
