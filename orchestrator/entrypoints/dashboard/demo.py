"""From empty to a running job in one click: the demo's model is made ready, its data stored, its job queued, on this server."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel

from orchestrator.domain.errors import ConflictError, TrainhopError
from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.cli import job_file
from orchestrator.entrypoints.cli.client import CommandError
from orchestrator.entrypoints.dashboard.render import Viewer, by_script, piece
from orchestrator.entrypoints.demo.command import examples
from orchestrator.entrypoints.demo.model import MODEL, obtain
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, Server
from orchestrator.services import datasets, jobs
from orchestrator.services.jobs import Actor
from worker.shared.messages import JobSpec

HAND_OVER_AT = 0.4
"""Share of the demo's steps after which its session hands the job over, so that everybody sees it happen."""

LOOK_EVERY_S = 1.0
NAME = MODEL.rpartition("/")[2]
PATIENCE_S = 3_600.0

router = APIRouter(include_in_schema=False)
api = APIRouter(tags=["jobs"], responses=PROBLEMS)
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class State:
    """How far it is: `idle`, `working`, `failed` or `queued`, in words, with the job once there is one."""

    stage: str = "idle"
    words: str = ""
    problem: str = ""
    job: str | None = None


class Demo:
    """Makes one demo job at a time; asking while it is being made changes nothing."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._state = State()
        self._lock = threading.Lock()

    def state(self) -> State:
        """How far it is."""
        return self._state

    def start(self, me: Actor) -> State:
        """Begin, unless it is being made already."""
        with self._lock:
            if self._state.stage != "working":
                self._state = State(stage="working", words="getting ready")
                threading.Thread(target=self._run, args=(me,), name="demo", daemon=True).start()
        return self._state

    def _say(self, words: str) -> None:
        self._state = replace(self._state, words=words)

    def _run(self, me: Actor) -> None:
        try:
            job = self._make(me)
        except (CommandError, TrainhopError) as error:
            problem = " ".join(error.lines) if isinstance(error, CommandError) else str(error)
            self._state = State(stage="failed", problem=problem)
        except Exception as error:  # noqa: BLE001  shown on the page, and in the log
            _log.exception("the demo could not be made")
            self._state = State(
                stage="failed", problem=f"something went wrong ({type(error).__name__}); the log says what"
            )
        else:
            self._state = State(stage="queued", job=job)
            self._hand_over(me, job)

    def _make(self, me: Actor) -> str:
        missing = [name for name in ("torch", "transformers", "trl", "peft") if not find_spec(name)]
        if missing:
            raise TrainhopError(
                f"training on this computer needs {', '.join(missing)}: install torch as pytorch.org says, "
                "then pip install 'trainhop[server,train]'"
            )
        settings = self._server.app.settings
        if settings.offline and not (settings.models / NAME / "config.json").is_file():
            raise TrainhopError(
                f"this server is set to stay offline; put {MODEL} into {settings.models / NAME}, or start it without "
                "TRAINHOP_OFFLINE"
            )
        self._say("fetching the model, once (270 MB)")
        model = _kept(obtain(settings.models), settings.models)
        self._say("storing the data")
        file = examples() / "demo.yaml"
        spec = job_file.read(str(file))
        for entry in spec["datasets"]:
            data = examples() / Path(entry["path"]).name
            stored = datasets.add_dataset(self._server.ctx, me.member_id, data, data.name)
            entry["path"] = f"sha256:{stored.sha256}"
        self._say("queueing the job")
        spec |= {"base_model": str(model), "placement": {"providers": ["local"]}}
        return jobs.submit(self._server.ctx, me, JobSpec.model_validate(spec)).id

    def _hand_over(self, me: Actor, job_id: str) -> None:
        """Ask for one hand-over on the way, as a person could."""
        ctx, until = self._server.ctx, time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
            row = self._server.views.job(job_id, ctx.clock.now())
            if row is None or JobState(row["state"]).is_final or row["handoffs"]:
                return
            if row["step"] >= HAND_OVER_AT * row["total_steps"] and row["session"] is not None:
                with suppress(ConflictError):
                    jobs.hand_over(ctx, me, job_id)
                    return


def _kept(found: Path, models: Path) -> Path:
    """The model's folder among the server's own, where jobs may name it."""
    if found.is_relative_to(models):
        return found
    target = models / NAME
    aside = models / ".copying"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(found, aside)
    aside.rename(target)
    return target


class DemoState(BaseModel):
    """How far the demo's job is; `job` is set once it is queued."""

    stage: str
    words: str
    problem: str
    job: str | None


@api.post("/demo", status_code=202, operation_id="start_demo", summary="Queue the demo's job")
def start_demo(request: Request, me: CurrentUser) -> DemoState:
    """Fetches a small model if need be and queues a job that trains it on this computer."""
    return DemoState(**vars(request.app.state.demo.start(me)))


@api.get("/demo", operation_id="get_demo", summary="How far the demo is")
def get_demo(request: Request, _: CurrentUser) -> DemoState:
    """`stage` is `idle`, `working`, `failed` or `queued`."""
    return DemoState(**vars(request.app.state.demo.state()))


@router.post("/demo")
def start(request: Request, me: Viewer) -> Response:
    """The button of the first page."""
    return _shown(request, request.app.state.demo.start(me))


@router.get("/demo")
def state(request: Request, _: Viewer) -> Response:
    """The same place a moment later."""
    return _shown(request, request.app.state.demo.state())


def _shown(request: Request, state: State) -> Response:
    if not by_script(request):
        return RedirectResponse(f"/jobs/{state.job}" if state.job else "/", 303)
    headers = {"HX-Redirect": f"/jobs/{state.job}"} if state.job else None
    return piece("demo_state.html", demo=state, headers=headers)
