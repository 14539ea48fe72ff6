"""The OpenAPI document: what FastAPI generates, completed and corrected to what is really sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic.json_schema import models_json_schema

from orchestrator.entrypoints.http.problems import MEDIA_TYPE
from orchestrator.entrypoints.openai.errors import PREFIX as OPENAI
from orchestrator.entrypoints.openai.errors import STATUS
from trainhop.job_file import SCHEMA, SCHEMA_PATH
from worker.shared.job_spec import JobSpec

PATH = "/openapi.json"
_EVENTS = "text/event-stream"


def install(api: FastAPI) -> None:
    """Serve the document, and the schema of the job file.

    FastAPI's own route generates it on the event loop, which takes half a second.
    """
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _completed(generate())
        return api.openapi_schema

    def document(_: Request) -> JSONResponse:
        return JSONResponse(openapi())

    api.openapi = openapi
    # FastAPI would keep a function of its own routes, and with it this server, for as long as the process runs.
    api.add_route(PATH, document, include_in_schema=False)
    api.add_route(SCHEMA_PATH, _job_file, include_in_schema=False)


def _job_file(_: Request) -> FileResponse:
    return FileResponse(SCHEMA, media_type="application/schema+json")


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    # FastAPI does not see the job file, because it is parsed by hand.
    _, extra = models_json_schema([(JobSpec, "validation")], ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= extra["$defs"]
    for path, methods in document["paths"].items():
        if path.startswith(f"{OPENAI}/"):
            for operation in methods.values():
                found = operation["responses"]
                found |= {str(new): found.pop(str(old)) for old, new in STATUS.items() if str(old) in found}
    for status, response in _responses(document):
        content = response.get("content", {})
        if int(status) >= 400 and content:  # FastAPI documents errors with the media type of the answer
            response["content"] = {MEDIA_TYPE: next(iter(content.values()))}
        elif _EVENTS in content:  # the schema of one event needs a newer version of the format
            content[_EVENTS] = {"schema": {"type": "string", "description": "Server-sent events."}}
    return document


def _responses(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The answers of the operations whose errors are problem documents."""
    for path, methods in document["paths"].items():
        for operation in () if path.startswith(f"{OPENAI}/") else methods.values():
            yield from operation["responses"].items()
