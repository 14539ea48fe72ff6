"""Tools of `trainhop mcp` that do their work when the official client calls them, over HTTP with a member's token."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Figure

JOB = {"name": "benchmark", "base_model": "org/small", "max_steps": 10}
ROWS = [{"prompt": f"Where is {n}?", "completion": "There."} for n in range(8)]
Check = tuple[str, dict[str, Any], Callable[[dict[str, Any]], bool]]
"""A tool, its arguments, and whether its answer is right."""


def figures(folder: Path) -> Iterator[Figure]:
    """How many of the tools pass."""
    passed, of, wrong = asyncio.run(_measured(folder))
    yield Figure(
        name="mcp: tools that pass with the official client",
        value=f"{passed} of {of}" + (f", not {', '.join(wrong)}" if wrong else ""),
        bar=f"{of} of {of}",
        ok=not wrong,
    )


async def _measured(folder: Path) -> tuple[int, int, list[str]]:
    import httpx2
    import uvicorn
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    from orchestrator.entrypoints.mcp.server import PATH, as_caller, make_server, web_app
    from tests.helpers.page_server import page_server

    with page_server(folder) as server, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        app = web_app(make_server(as_caller(server.url, ())), [host])
        web = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
        server.api.admin.submit(name="finished")
        machine = server.machine()
        machine.save(10, folder)
        machine.finish(10)
        rows = b'{"prompt": "What?", "completion": "That."}\n' * 3
        checks = _checks(f"sha256:{server.api.admin.upload(rows).json()['sha256']}")
        thread.start()
        headers = {"Authorization": f"Bearer {server.api.admin_token}"}
        async with httpx2.AsyncClient(headers=headers) as http:
            while not web.started:  # noqa: ASYNC110  there is no event to wait for
                await asyncio.sleep(0.05)
            async with Client(streamable_http_client(f"http://{host}{PATH}", http_client=http)) as client:
                wrong = [
                    name
                    for name, arguments, is_right in checks
                    if not await _is_right(client, name, arguments, is_right)
                ]
                tools = {tool.name for tool in (await client.list_tools()).tools}
        web.should_exit = True
        thread.join(30)
    untried = sorted(tools - {name for name, _, _ in checks})
    return len(tools) - len(wrong) - len(untried), len(tools), wrong + untried


async def _is_right(
    client: Any, name: str, arguments: dict[str, Any], is_right: Callable[[dict[str, Any]], bool]
) -> bool:
    answer = await client.call_tool(name, arguments)
    return not answer.is_error and is_right(answer.structured_content)


def _checks(prompts: str) -> list[Check]:
    """In this order: one job's life. `prompts` is an uploaded file."""
    job = {"job": "benchmark"}
    return [
        ("plan", {"job": JOB, "rows": ROWS}, lambda it: it["steps"] == 10 and bool(it["places"])),
        ("submit", {"job": JOB, "rows": ROWS, "key": "benchmark"}, lambda it: it["state"] == "queued"),
        ("list", {"name": "benchmark"}, lambda it: len(it["jobs"]) == 1),
        ("show", job, lambda it: it["spec"]["max_steps"] == 10),
        ("explain_waiting", job, lambda it: it["waits"] and bool(it["reason"])),
        ("pause", job, lambda it: it["state"] == "paused"),
        ("resume", job, lambda it: it["state"] == "queued"),
        ("cancel", job, lambda it: it["state"] == "cancelled"),
        ("logs", {"job": "finished"}, lambda it: it["is_end"]),
        (
            "evaluate",
            {"job": "finished", "key": "evaluation", "prompts": prompts},
            lambda it: it["state"] == "queued",
        ),
    ]
