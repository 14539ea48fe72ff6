"""The web application: routers, middleware and problem documents of one server."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp

from orchestrator.adapters.database.dashboard_queries import DashboardQueries
from orchestrator.adapters.database.openai_queries import OpenAIQueries
from orchestrator.adapters.database.queries import Queries
from orchestrator.bootstrap import App
from orchestrator.config import Settings
from orchestrator.entrypoints.api import (
    adapter_exports,
    audits,
    chats,
    checks,
    compared_jobs,
    comparisons,
    datasets,
    evaluations,
    hub_token,
    jobs,
    joined_machines,
    judges,
    members,
    model_search,
    models,
    notebooks,
    notes,
    notifications,
    providers,
    pushes,
    sessions,
    start_adapters,
    stores,
    tags,
    team,
    trackers,
    workers,
)
from orchestrator.entrypoints.dashboard import site
from orchestrator.entrypoints.http import health, openapi, problems
from orchestrator.entrypoints.http.auth import Authenticator, is_known
from orchestrator.entrypoints.http.dependencies import Server
from orchestrator.entrypoints.http.event_stream import EventNotifier
from orchestrator.entrypoints.http.logins import Logins
from orchestrator.entrypoints.http.machines import Machines
from orchestrator.entrypoints.http.methods import HeadRequests
from orchestrator.entrypoints.http.metrics import Metrics
from orchestrator.entrypoints.http.middleware import Gate, hosts
from orchestrator.entrypoints.http.rate_limit import RateLimit
from orchestrator.entrypoints.http.sign_ins import SignIns
from orchestrator.entrypoints.http.write_batcher import WriteBatcher
from orchestrator.entrypoints.openai import files as openai_files
from orchestrator.entrypoints.openai import jobs as openai_jobs
from orchestrator.entrypoints.openai.errors import OpenAIErrors

_TAGS = [
    {"name": "jobs", "description": "Fine-tuning runs."},
    {"name": "records", "description": "Records of jobs: sessions, checkpoints, metrics, samples."},
    {"name": "models", "description": "Candidates under a name, and which of them is promoted."},
    {"name": "events", "description": "Events of jobs, as lists and streams."},
    {"name": "datasets", "description": "Data files, stored by hash."},
    {"name": "comparisons", "description": "Blind comparisons of two models' answers by people."},
    {"name": "judge models", "description": "Models that compare answers, with your consent and within a budget."},
    {"name": "accounts", "description": "Accounts at providers and shared pools."},
    {"name": "stores", "description": "Where checkpoints and adapters are stored."},
    {"name": "people", "description": "Members and their tokens."},
    {"name": "trackers", "description": "Experiment trackers that the server writes curves to."},
    {"name": "notifications", "description": "Notification channels."},
    {"name": "OpenAI", "description": "Files and fine-tuning in the form of OpenAI's API, with its errors."},
    {"name": "worker", "description": "Calls of workers, with a lease token."},
    {"name": "health", "description": "Liveness, readiness and metrics of the server."},
]


def make_app(app: App) -> FastAPI:
    """A FastAPI application for one server. Its CDN pages are off: the content policy allows no foreign script."""
    api = FastAPI(
        title="Trainhop",
        version=version("trainhop"),
        description="Fine-tunes language models on free GPUs that time out, and resumes exactly.",
        openapi_url=None,  # `openapi.install` serves it
        docs_url=None,
        redoc_url=None,
        openapi_tags=_TAGS,
        # Otherwise it is looked up on each request, which costs a tenth of a report.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    queries = Queries(app.engine)
    api.state.server = Server(
        app=app,
        ctx=app.context,
        queries=queries,
        dashboard_queries=DashboardQueries(app.engine),
        openai_queries=OpenAIQueries(app.engine),
        logins=Logins(app.context),
        sign_ins=SignIns(app.context),
        machines=Machines(app.context),
        auth=Authenticator(app.context, queries),
        write_batcher=WriteBatcher(app.context),
        rate_limit=RateLimit(),
        event_notifier=EventNotifier(queries.last_event),
        metrics=Metrics(queries, app.rounds),
    )
    problems.install(api)
    # The quick routes are first, because routes are tried in order. `include_router` would build each route again, for
    # each server.
    api.router.routes.extend([*workers.quick_routes(), jobs.quick_route()])
    people = (
        jobs,
        adapter_exports,
        evaluations,
        chats,
        notebooks,
        sessions,
        models,
        model_search,
        pushes,
        audits,
        comparisons,
        judges,
        datasets,
        start_adapters,
        members,
        tags,
        notes,
        compared_jobs,
        team,
        providers,
        hub_token,
        trackers,
        checks,
        joined_machines,
        notifications,
        stores,
    )
    for part in (workers, *people, openai_files, openai_jobs):
        api.router.routes.extend(part.router.routes)
    health.install(api, api.state.server)
    site.install(api)
    openapi.install(api)
    _shut(api, app.settings)
    return api


def _shut(api: FastAPI, settings: Settings) -> None:
    """Wrap the whole application in the middleware. `add_middleware` does not cover responses to unexpected errors."""
    build = api.build_middleware_stack

    def behind_the_gate() -> ASGIApp:
        checked = Gate(
            HeadRequests(build(), api.routes),
            allowed=hosts(settings),
            upload_bytes=settings.max_upload_bytes,
            refuse=site.refused,
            knows=is_known,
            public_url=settings.public_url,
        )
        return OpenAIErrors(checked)

    api.build_middleware_stack = behind_the_gate
