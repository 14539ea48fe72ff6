"""The demo job, started with one click: download the model, store the data and queue the job on this server."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError, TrainhopError
from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.cli import job_file
from orchestrator.entrypoints.dashboard.render import Viewer, by_script, piece
from orchestrator.entrypoints.demo.command import examples
from orchestrator.entrypoints.demo.model import MODEL, obtain
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, Server
from orchestrator.entrypoints.http.routes import PREFIX
from orchestrator.services import datasets, jobs
from orchestrator.services.setup import providers_here
from trainhop.errors import Error
from worker.shared.files import move_into_place
from worker.shared.installation import SERVER, install_line, missing_modules
from worker.shared.job_spec import JobSpec

HAND_OVER_AT = 0.4
"""Share of the demo's steps after which its session hands the job over."""

LOOK_EVERY_S = 1.0
NAME = MODEL.rpartition("/")[2]
PATIENCE_S = 3_600.0

router = APIRouter(include_in_schema=False)
api = APIRouter(prefix=PREFIX, tags=["jobs"], responses=PROBLEMS)
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class State:
    """The stage (`idle`, `working`, `failed` or `queued`), a message, and the job id once it is queued."""

    stage: str = "idle"
    words: str = ""
    problem: str = ""
    job: str | None = None


class Demo:
    """Creates one demo job at a time. A second request while it is being created has no effect."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._state = State()
        self._lock = threading.Lock()

    def state(self) -> State:
        """The current state."""
        return self._state

    def start(self, me: Actor) -> State:
        """Start, unless it is already in progress."""
        with self._lock:
            if self._state.stage != "working":
                self._state = State(stage="working", words="preparing")
                threading.Thread(target=self._run, args=(me,), name="demo", daemon=True).start()
        return self._state

    def _say(self, words: str) -> None:
        self._state = replace(self._state, words=words)

    def _run(self, me: Actor) -> None:
        try:
            job = self._make(me)
        except (Error, TrainhopError) as error:
            problem = " ".join(error.lines) if isinstance(error, Error) else str(error)
            self._state = State(stage="failed", problem=problem)
        except Exception as error:  # noqa: BLE001  shown on the page and in the log
            _log.exception("could not create the demo job")
            self._state = State(
                stage="failed", problem=f"The demo could not be started ({type(error).__name__}). See the server's log."
            )
        else:
            self._state = State(stage="queued", job=job)
            self._hand_over(me, job)

    def _make(self, me: Actor) -> str:
        if missing := missing_modules():
            line = install_line(*SERVER, "train", torch="torch" in missing)
            raise TrainhopError(f"Training on this computer needs {', '.join(missing)}. Install it with: {line}")
        here = providers_here(self._server.ctx)
        if not here:
            raise TrainhopError("No driver runs jobs on this computer. `trainhop accounts providers` shows the cause.")
        settings = self._server.app.settings
        if settings.offline and not (settings.models / NAME / "config.json").is_file():
            raise TrainhopError(
                f"This server is set to stay offline. Copy {MODEL} to {settings.models / NAME}, or start it without "
                "TRAINHOP_OFFLINE."
            )
        self._say("downloading the model (270 MB, once)")
        model = _kept(obtain(settings.models), settings.models)
        self._say("storing the data")
        file = examples() / "demo.yaml"
        spec = job_file.read(str(file))
        for entry in spec["datasets"]:
            data = examples() / Path(entry["path"]).name
            stored = datasets.add_dataset(self._server.ctx, me.member_id, data, data.name)
            entry["path"] = f"sha256:{stored.sha256}"
        self._say("queueing the job")
        spec |= {"base_model": str(model), "placement": {"providers": here}}
        return jobs.submit(self._server.ctx, me, JobSpec.model_validate(spec)).job.id

    def _hand_over(self, me: Actor, job_id: str) -> None:
        """Request one hand-off during the run, like the button does."""
        ctx, until = self._server.ctx, time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
            row = self._server.queries.job(job_id, ctx.clock.now())
            if row is None or JobState(row["state"]).is_final or row["handoffs"]:
                return
            if row["step"] >= HAND_OVER_AT * row["total_steps"] and row["session"] is not None:
                with suppress(ConflictError):
                    jobs.hand_over(ctx, me, job_id)
                    return


def _kept(found: Path, models: Path) -> Path:
    """The model's folder among the server's models, which jobs can use."""
    if found.is_relative_to(models):
        return found
    target = models / NAME
    aside = models / ".copying"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(found, aside)
    move_into_place(aside, target)
    return target


class DemoState(BaseModel):
    """The state of the demo. `job` is set once it is queued."""

    stage: str
    words: str
    problem: str
    job: str | None


@api.post("/demo", status_code=202, operation_id="start_demo", summary="Start the demo")
def start_demo(request: Request, me: CurrentUser) -> DemoState:
    """Downloads a small model if needed and queues a job that trains it on this computer."""
    return DemoState(**vars(request.app.state.demo.start(me)))


@api.get("/demo", operation_id="get_demo", summary="Get the state of the demo")
def get_demo(request: Request, _: CurrentUser) -> DemoState:
    """`stage` is `idle`, `working`, `failed` or `queued`."""
    return DemoState(**vars(request.app.state.demo.state()))


@router.post("/demo")
def start(request: Request, me: Viewer) -> Response:
    """Start the demo from the first page."""
    return _shown(request, request.app.state.demo.start(me))


@router.get("/demo")
def state(request: Request, _: Viewer) -> Response:
    """The state of the demo as a page fragment."""
    return _shown(request, request.app.state.demo.state())


def _shown(request: Request, state: State) -> Response:
    if not by_script(request):
        return RedirectResponse(f"/jobs/{state.job}" if state.job else "/", 303)
    headers = {"HX-Redirect": f"/jobs/{state.job}"} if state.job else None
    return piece("demo_state.html", demo=state, headers=headers)
