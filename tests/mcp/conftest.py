"""A server with a finished job, and agents that call its tools with the official client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, types

import trainhop
from orchestrator.entrypoints.mcp.server import as_one, make_server
from tests.helpers.page_server import PageServer
from tests.trainhop.conftest import with_a_finished_job


def call(server: Any, *calls: tuple[str, dict[str, Any]]) -> list[types.CallToolResult]:
    """The answers to the calls of one agent."""

    async def run() -> list[types.CallToolResult]:
        async with Client(server) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(run())


def listed(server: Any) -> list[types.Tool]:
    async def run() -> list[types.Tool]:
        async with Client(server) as client:
            return (await client.list_tools()).tools

    return asyncio.run(run())


@dataclass(frozen=True)
class Agent:
    """Calls tools in this process with a token."""

    url: str
    token: str
    folders: Sequence[Path] = ()
    read_only: bool = False

    def __call__(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """The structured answer."""
        answer = self.answer(name, **arguments)
        assert not answer.is_error, answer.content
        assert answer.structured_content is not None
        return answer.structured_content

    def refused(self, name: str, /, **arguments: Any) -> str:
        """The sentence of an error."""
        answer = self.answer(name, **arguments)
        assert answer.is_error, answer.structured_content
        return sentence(answer)

    def answer(self, name: str, /, **arguments: Any) -> types.CallToolResult:
        with trainhop.Client(self.url, token=self.token, folders=self.folders) as client:
            return call(make_server(as_one(client), read_only=self.read_only), (name, arguments))[0]


def sentence(answer: types.CallToolResult) -> str:
    (content,) = answer.content
    assert isinstance(content, types.TextContent)
    assert "\n" not in content.text
    assert "Traceback" not in content.text
    return content.text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    with with_a_finished_job(tmp_path_factory) as running:
        yield running


@pytest.fixture
def agent(server: PageServer) -> Agent:
    return Agent(server.url, server.api.admin_token)
