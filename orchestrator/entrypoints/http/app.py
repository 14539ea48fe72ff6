"""The web application: routers, middleware and problem documents around one wired server."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from orchestrator.adapters.database.dashboard_queries import PageViews
from orchestrator.adapters.database.queries import Views
from orchestrator.bootstrap import App
from orchestrator.config import Settings
from orchestrator.entrypoints.api import (
    checks,
    datasets,
    hub_token,
    jobs,
    members,
    notebooks,
    notifications,
    sessions,
    stores,
    workers,
)
from orchestrator.entrypoints.dashboard import site
from orchestrator.entrypoints.http import health, problems
from orchestrator.entrypoints.http.auth import Authenticator, is_known
from orchestrator.entrypoints.http.dependencies import Server
from orchestrator.entrypoints.http.event_stream import EventNotifier
from orchestrator.entrypoints.http.logins import Logins
from orchestrator.entrypoints.http.metrics import Metrics
from orchestrator.entrypoints.http.middleware import Gate, hosts
from orchestrator.entrypoints.http.rate_limit import RateLimit
from orchestrator.entrypoints.http.write_batcher import WriteBatcher
from worker.shared.messages import JobSpec

PREFIX = "/api/v1"
_TAGS = [
    {"name": "jobs", "description": "Fine-tuning runs."},
    {"name": "records", "description": "What a job leaves behind: sessions, checkpoints, metrics, samples."},
    {"name": "events", "description": "What happened, and what happens."},
    {"name": "datasets", "description": "Data files, kept once by their hash."},
    {"name": "accounts", "description": "Where machines come from."},
    {"name": "stores", "description": "Where checkpoints and adapters lie."},
    {"name": "people", "description": "Members and their tokens."},
    {"name": "notifications", "description": "Where people are told of what."},
    {"name": "worker", "description": "What machines call with their lease's token."},
    {"name": "health", "description": "Is it alive, can it work, how much does it do?"},
]


def make_app(app: App) -> FastAPI:
    """A FastAPI application over a wired server. Pages of a CDN are off: the content policy allows no foreign script."""
    api = FastAPI(
        title="Trainhop",
        version=version("trainhop"),
        description="Fine-tunes language models on machines that vanish, and hands the run over exactly.",
        docs_url=None,
        redoc_url=None,
        openapi_tags=_TAGS,
        # Looked for anew on every request otherwise, which costs a tenth of a report.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    views = Views(app.engine)
    api.state.server = Server(
        app=app,
        ctx=app.context,
        views=views,
        pages=PageViews(app.engine),
        logins=Logins(app.context),
        auth=Authenticator(app.context, views),
        clerk=WriteBatcher(app.context),
        guesses=RateLimit(),
        pulse=EventNotifier(views.last_event),
        tally=Metrics(views),
    )
    problems.install(api)
    # First, because routes are tried in order.
    api.router.routes.extend([*workers.quick_routes(PREFIX), jobs.quick_route(PREFIX)])
    people = (
        jobs,
        notebooks,
        sessions,
        datasets,
        members,
        hub_token,
        checks,
        notifications,
        stores,
    )
    for part in (workers, *people):
        api.include_router(part.router, prefix=PREFIX)
    api.include_router(health.router)
    site.install(api)
    _shut(api, app.settings)
    _describe(api)
    return api


def _shut(api: FastAPI, settings: Settings) -> None:
    """Put the gate around everything: what `add_middleware` adds, the answer to a bug does not pass."""
    build = api.build_middleware_stack

    def behind_the_gate() -> ASGIApp:
        return Gate(
            build(),
            allowed=hosts(settings),
            upload_bytes=settings.max_upload_bytes,
            refuse=site.refused,
            knows=is_known,
            public_url=settings.public_url,
        )

    api.build_middleware_stack = behind_the_gate


def _describe(api: FastAPI) -> None:
    """Add to the OpenAPI document what FastAPI cannot see: the job file, which is read by hand."""
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = generate()
            _, extra = models_json_schema([(JobSpec, "validation")], ref_template="#/components/schemas/{model}")
            document["components"]["schemas"] |= extra["$defs"]
            api.openapi_schema = document
        return api.openapi_schema

    api.openapi = openapi
