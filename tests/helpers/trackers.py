"""A tracker on paper, which refuses a step that it has, and a job whose sessions are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.domain.tracking import Point, TrackedRun, TrackerLogin
from orchestrator.ports.tracking import OpenRun, RunRequest, TrackerError
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.services.reporting import LOOK_AGAIN_S, ReportingContext, work
from tests.helpers.world import Worker, World


class KilledError(BaseException):
    """The server was killed here."""


@dataclass
class PaperRun:
    """A run at the tracker: its points, the states that it was told, and the last request for it."""

    request: RunRequest
    points: list[Point] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        return [point.step for point in self.points]


@dataclass
class PaperTrackers:
    """Implements `ports.tracking.Trackers`. `faults` are those of the next calls.

    They are `down` (at the start), `half` (half of the steps arrive), `late` (all arrive, but the answer does not), and
    `killed` (all arrive, and the server is killed).
    """

    world: World
    runs: dict[tuple[str, str], PaperRun] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    problem: str = ""
    forgotten: list[str] = field(default_factory=list)

    def fault(self, tracker: str, login: TrackerLogin | None) -> str:
        self.world.watch.check()
        return self.problem

    def forget(self, run_id: str) -> None:
        self.forgotten.append(run_id)

    def file_of(self, run_id: str) -> Path | None:
        return None

    @contextmanager
    def open(self, request: RunRequest) -> Iterator[OpenRun]:
        self.world.watch.check()
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "down":
            raise TrackerError("It does not answer.")
        run = self.runs.setdefault((request.tracker, request.run_id), PaperRun(request))
        run.request = request
        yield _Open(self.world, run, fault, run.steps[-1] if run.steps else -1)


@dataclass
class _Open:
    world: World
    run: PaperRun
    fault: str
    last_step: int

    def write(self, points: Sequence[Point], state: str) -> str:
        self.world.watch.check()
        arriving = list(points)[: len(points) // 2 if self.fault == "half" else None]
        steps = self.run.steps + [point.step for point in arriving]
        assert steps == sorted(set(steps)), "a step was written twice"
        self.run.points += arriving
        if self.fault == "killed":
            raise KilledError
        if self.fault:
            raise TrackerError("It stopped.")
        self.run.states.append(state)
        return f"https://tracker.example/{self.run.request.run_id}"


@dataclass
class Journey:
    """A job of alice's that reports, its sessions, and the server's looks."""

    world: World
    trackers: PaperTrackers
    job: str

    @classmethod
    def of(cls, world: World, steps: int = 12, report_to: object = "wandb", **spec: object) -> Journey:
        trackers = PaperTrackers(world)
        world.ctx = replace(world.ctx, trackers=trackers)
        return cls(world, trackers, world.submit("alice", steps, report_to=report_to, **spec))

    def begin(self) -> Worker:
        """The next session of the job."""
        dispatch(self.world.ctx)
        (worker,) = self.world.new_workers()
        worker.start()
        return worker

    def train(self, worker: Worker, to: int, *, saves: bool = True) -> None:
        """Report every step up to this one, and save it."""
        while worker.step < to:
            worker.step += 1
            worker.report()
        if saves:
            assert worker.save().committed

    def lose(self, worker: Worker) -> None:
        """The machine is gone, and the server notices."""
        self.world.machines.end(worker.lease)
        self.world.clock.tick(300.0)
        reconcile(self.world.ctx)

    def look(self, tracker: str = "wandb", *, times: int = 1) -> TrackedRun:
        """The server writes what is new, when it may."""
        context = ReportingContext(ctx=self.world.ctx, trackers=self.world.ctx.trackers or self.trackers)
        for _ in range(times):
            self.world.clock.tick(max(LOOK_AGAIN_S, self.run(tracker).not_before - self.world.clock.now()))
            work(context, self.job, tracker)
        return self.run(tracker)

    def run(self, tracker: str = "wandb") -> TrackedRun:
        """The run as the server knows it."""
        with self.world.ctx.uow() as tx:
            return next(run for run in tx.tracking.of_job(self.job) if run.tracker == tracker)

    def steps(self, tracker: str = "wandb") -> list[int]:
        """What the tracker has."""
        found = self.trackers.runs.get((tracker, self.job))
        return found.steps if found is not None else []

    def finish(self, worker: Worker) -> None:
        """The job ends well."""
        worker.finish()
        reconcile(self.world.ctx)
