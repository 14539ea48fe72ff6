"""A world on a simulated clock: the product's domain and services, a real SQLite database and a real store.

The network drops, repeats, delays and reorders messages, and loses replies. Providers refuse, do not answer, or lose
the reply to a launch. The store does not answer, or does what it was asked and then fails. Machines die. The server
dies between any two transactions or calls. Its computer's clock jumps by up to a year.
"""

from __future__ import annotations

import contextlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Engine

from orchestrator.adapters.steady_clock import SteadyClock
from orchestrator.domain.errors import ConflictError, StaleFenceError, TrainhopError, UnavailableError
from orchestrator.ports.providers import ProviderUnavailable
from orchestrator.ports.stores import StoreUnavailable
from orchestrator.ports.system import Limits
from orchestrator.services import clock_jumps, clones, jobs
from orchestrator.services.checkpoints import sweep
from orchestrator.services.context import Context
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.services.worker_messages import receive
from tests.helpers.promises import Promises
from tests.helpers.world import Worker, World
from worker.shared.messages import Finish, Offer, Release

BEGIN = 1_760_000_000.0
HOUR, DAY = 3_600.0, 86_400.0
YEAR = 365 * DAY
STEP_S = 16 * HOUR
TICK_S = 4 * HOUR
SESSION_S = 7 * DAY
LIMITS = Limits(lease_s=20 * HOUR, start_grace_s=2 * DAY, stop_grace_s=10 * HOUR, offer_ttl_s=10 * DAY, patience_s=1e9)
"""The product's limits, scaled so that a session of a week sends a dozen messages."""
MAX_IDLE_S = YEAR / 2
"""Longer than all open jobs stay paused."""
CHECK_EVERY = 25
SLOTS = 4
MAX_OPEN = 14
"""Jobs that have not ended."""


class ServerDied(BaseException):
    """Ends whatever the server was doing. No handler of the product catches it."""


class LostError(Exception):
    """The worker does not know whether its message arrived."""


class NetworkWorker(Worker):
    """A worker whose messages cross the simulated network."""

    def __init__(self, simulation: Simulation, lease: str) -> None:
        super().__init__(simulation, lease)
        self._simulation = simulation
        self.began = simulation.time
        self.pending: Any = None

    def send(self, message: Any) -> Any:
        """Send a message. It stays `pending` until there is a reply. Its file may have lost its tail.

        Not the file of one that is sent again: it may be committed, and the server did not promise to repair it.
        """
        is_new, self.pending = message is not self.pending, message
        if is_new and isinstance(message, Offer | Finish) and self._simulation.happens("file torn", 0.01):
            self._tear(message)
        reply = self._simulation.deliver(message)
        self.pending = None
        if isinstance(message, Offer) and reply.committed:
            self.parent = message.sha256
        if isinstance(message, Release | Finish):
            self.world.machines.end(self.lease)
        return reply

    def send_again(self) -> None:
        """Send the message that had no reply, or start again."""
        self.start() if self.assignment is None else self.send(self.pending)

    def _tear(self, message: Offer | Finish) -> None:
        key = message.key if isinstance(message, Offer) else message.adapter.key if message.adapter else ""
        file = self.world.store.path(key)
        if key and file.exists():
            file.write_bytes(file.read_bytes()[:-3])

    def offer_a_fork(self) -> None:
        """Offer a checkpoint that does not continue the head. It must be refused."""
        self.step += 1
        with contextlib.suppress(LostError, TrainhopError):
            reply = self._simulation.deliver(self.write(self.manifest(parent="0" * 64)))
            assert not reply.committed, "a checkpoint that does not continue the head was committed"
        self.step -= 1


class Simulation(World):
    """Members, jobs and machines, with everything that can go wrong drawn from one seed."""

    def __init__(self, seed: int, engine: Engine, folder: Path) -> None:
        self.random = random.Random(seed)
        self.time = self.jumped_s = 0.0
        self.lived_s = 0.0
        self.tried: Counter[str] = Counter()
        self.calm = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._until_death = 0
        self._up_at = 0.0
        self._open: list[str] = []
        super().__init__(engine, folder)
        self.machines.rooms = replace(self.machines.rooms, session_s=SESSION_S, slots=SLOTS)
        self.promises = Promises(self)
        self.consenting = {"alice"}
        self.set_consent("bob", agreed=False)
        self.watch.between = self._step_of_server
        for call in ("stat", "head", "put", "grant_upload", "keys", "delete"):
            self.store.before[call] = lambda *_: self._store_fails("store silent")
            self.store.after[call] = lambda *_: self._store_fails("store ambiguous")
        for call in ("capacity", "launch", "observe", "stop", "collect_outputs", "clean_up", "delete_log"):
            self.machines.before[call] = self._provider_fails

    # the world

    def start_server(self) -> Context:
        ctx = super().start_server()
        self.steady_clock = SteadyClock(
            self.folder / "clock.json",
            wall=lambda: BEGIN + self.time + self.jumped_s,
            elapsed=lambda: self.time,
            boot=lambda: "the only start",
        )
        self.ctx = replace(ctx, limits=LIMITS, clock=self.steady_clock)
        return self.ctx

    def make_worker(self, lease: str) -> Worker:
        return NetworkWorker(self, lease)

    def happens(self, what: str, odds: float) -> bool:
        """Whether this fault happens now."""
        if self.calm or self.random.random() >= odds:
            return False
        self.tried[what] += 1
        return True

    def _step_of_server(self) -> None:
        if self._until_death:
            self._until_death -= 1
            if not self._until_death:
                raise ServerDied

    def _store_fails(self, what: str) -> None:
        self._step_of_server()
        if self.happens(what, 0.01):
            raise StoreUnavailable(what)

    def _provider_fails(self, *_: object) -> None:
        self._step_of_server()
        if self.happens("provider silent", 0.03):
            raise ProviderUnavailable("no route")

    # time

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._events, (self.time + seconds, next(self._number), event))

    def run(self, years: float) -> None:
        """Live until machines have worked for so many years, then let faults stop and see every job end."""
        self.after(0.0, self._tick)
        self.after(DAY, self._people)
        worked, at = 0.0, 0.0
        for number in count():
            if self.lived_s >= years * YEAR:
                break
            self._next()
            if number % CHECK_EVERY == 0:
                self._check()
                if self.lived_s > worked:
                    worked, at = self.lived_s, self.time
                assert self.time - at < MAX_IDLE_S, "no machine has worked for half a year"
        self._come_to_rest()

    def _next(self) -> None:
        at, _, event = heapq.heappop(self._events)
        self.lived_s += (at - self.time) * sum(w.is_alive for w in self.workers)
        self.time = at
        event()

    def as_server(self, work: Callable[[], Any]) -> Any:
        """Something that the server does. It may die on the way, and is down for a while."""
        if self.time < self._up_at:
            raise LostError
        if self.happens("server died", 0.004):
            self._until_death = self.random.randint(1, 12)
        try:
            return work()
        except ServerDied:
            self._up_at = self.time + self.random.choice([60.0, HOUR, 2 * DAY])
            self.start_server()
            raise LostError from None
        finally:
            self._until_death = 0

    def _check(self) -> None:
        calm, self.calm = self.calm, True
        self.promises.check(self._open, self.consenting)
        self._no_account_has_more_machines_than_slots()
        self._open = [job for job in self._open if not self.job(job).state.is_final]
        self.calm = calm

    def _no_account_has_more_machines_than_slots(self) -> None:
        with self.ctx.uow() as tx:
            live = Counter(lease.account_id for lease in tx.leases.live())
        assert max(live.values(), default=0) <= SLOTS, "an account has more live sessions than slots"

    # the server and its people

    def _tick(self) -> None:
        self.after(TICK_S * self.random.uniform(0.5, 1.5), self._tick)
        if self.happens("clock jumped", 0.003):
            self.jumped_s += self.random.choice([-1, 1]) * self.random.choice([HOUR, DAY, YEAR])
        if self.happens("launch reply lost", 0.05):
            self.machines.lose_reply = True
        with contextlib.suppress(LostError, ProviderUnavailable):
            self.as_server(self._round)
        self.machines.lose_reply = False
        for worker in cast("list[NetworkWorker]", self.new_workers()):
            self.after(self.random.uniform(60, DAY / 2), lambda worker=worker: self._begin(worker))

    def _round(self) -> None:
        clock_jumps.follow(self.ctx, self.steady_clock)
        dispatch(self.ctx)
        reconcile(self.ctx)
        if self.random.random() < 0.1:
            sweep(self.ctx)

    def _people(self) -> None:
        if self.calm:  # who pauses or submits a job now could keep the world from coming to rest
            return
        self.after(self.random.uniform(0.5, 4) * DAY, self._people)
        with contextlib.suppress(LostError, TrainhopError, StoreUnavailable):
            self.as_server(self._someone)

    def _someone(self) -> None:
        if len(self._open) < MAX_OPEN:
            who = self.random.choice(["alice", "bob"])
            self._open.append(self.submit(who, self.random.randint(1, 40), priority=self.random.randint(-1, 0)))
        job = self.job(self.random.choice(self._open))
        if self.random.random() < 0.05:
            self.consenting.add("bob")
            self.set_consent("bob", agreed=True)
        if job.head is not None and len(self._open) < MAX_OPEN and self.random.random() < 0.1:
            actor = self.actors[job.member_id]
            self._open.append(clones.clone(self.ctx, actor, job.id, {}, checkpoint=job.head).id)
        act = self.random.choice([jobs.pause, jobs.resume, jobs.cancel, jobs.retry, jobs.resume, jobs.resume])
        if self.random.random() < 0.2:
            with contextlib.suppress(ConflictError):
                act(self.ctx, self.actors[job.member_id], job.id)

    # the network

    def deliver(self, message: Any) -> Any:
        """Bring a worker's message to the server, or not, or twice."""
        if self.happens("message dropped", 0.02):
            raise LostError
        if self.happens("message repeated later", 0.02):
            self.after(self.random.uniform(60, 12 * DAY), lambda: self._late(message))
        reply = self.as_server(lambda: receive(self.ctx, message))
        if self.happens("reply lost", 0.02):
            raise LostError
        return reply

    def _late(self, message: Any) -> None:
        with contextlib.suppress(LostError, TrainhopError):
            self.as_server(lambda: receive(self.ctx, message))

    # machines

    def _begin(self, worker: NetworkWorker) -> None:
        self._act(worker, worker.start)

    def _act(self, worker: NetworkWorker, act: Callable[[], Any]) -> None:
        """One act of a worker. An unanswered message is sent again, a stale worker leaves."""
        if not worker.is_alive:
            return
        if self.happens("machine died", 0.01):
            self.machines.end(worker.lease)
            return
        if self.happens("worker hung", 0.005):
            return
        if worker.assignment is not None and self.happens("fork offered", 0.01):
            worker.offer_a_fork()
        try:
            act()
        except (LostError, UnavailableError):
            self.after(self.random.uniform(60, DAY / 4), lambda: self._act(worker, worker.send_again))
            return
        except (StaleFenceError, ConflictError):
            self.machines.end(worker.lease)
            return
        except TrainhopError:
            self.tried["message refused"] += 1
            self.machines.end(worker.lease)
            return
        if worker.is_alive:
            self.after(STEP_S * self.random.uniform(0.2, 1.0), lambda: self._act(worker, lambda: self._work(worker)))

    def _work(self, worker: NetworkWorker) -> None:
        assert worker.assignment is not None
        total = worker.assignment.spec.total_steps
        if worker.step >= total and worker.parent is not None:
            worker.finish()
        elif self.time - worker.began > SESSION_S - STEP_S:
            worker.release()
        elif worker.report().action != "continue":
            worker.release("drained")
        else:
            worker.step += 1
            worker.save()
            if worker.step >= total:
                worker.finish()

    # the end

    def _come_to_rest(self) -> None:
        """Faults stop. Promise 10: every job that nobody paused ends. No machine is forgotten."""
        self.calm, self._up_at = True, 0.0
        self.start_server()
        self.consenting.add("bob")
        self.set_consent("bob", agreed=True)
        for job_id in self._open:
            job = self.job(job_id)
            with contextlib.suppress(ConflictError):
                jobs.resume(self.ctx, self.actors[job.member_id], job_id)
        for number in range(4_000):
            if number % CHECK_EVERY == 0 and all(self.job(j).state.is_final for j in self._open) and self._is_tidy():
                break
            self._next()
        else:
            states = Counter(str(self.job(job).state) for job in self._open)
            raise AssertionError(f"faults stopped, but jobs or machines did not end: {dict(states)}")
        self._check()

    def _is_tidy(self) -> bool:
        with self.ctx.uow() as tx:
            known = tx.leases.live() or tx.leases.uncollected()
        return not known and not any(worker.is_alive for worker in self.workers)
