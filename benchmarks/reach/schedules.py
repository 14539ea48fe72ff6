"""Random schedules of sessions that share a place: no checkpoint that was said to be saved may be lost.

Each schedule has two to four sessions with the product's own `Chain` on a model of one kind of place. Sessions save,
show life, prune, hand over, die, stand still for an hour and wake up. Requests are refused, cut, carried out without an
answer, or carried out long after their caller gave up; reads are old. At the end a session without faults finishes the
run. Counted are

forks          a HEAD that does not continue the one before it, or an epoch with two sessions
lost           checkpoints that were said to be saved and are neither the last one nor its ancestor, and a head or
               parent that is not stored with its right bytes
false_losses   sessions that were told they lost the run while HEAD was still theirs
unfinished     runs that the last session could not finish
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.reach.models import MODELS, Model
from benchmarks.reach.simulation import CALM, Odds, Simulation
from benchmarks.report import Figure
from worker.shared.shared_places import Chain, LostError, PlaceError, Retries
from worker.shared.shared_places.head import Head, read_head

SCHEDULES = 1000
"""For each kind of place."""
STEPS = 8
JOB = b'{"name": "a job"}'
SESSIONS_S = 20_000.0
"""No session of the first ones begins something new after this time."""


@dataclass
class Run:
    """What the sessions of one schedule were told."""

    simulation: Simulation
    model: Model
    folder: Path
    parents: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    saved: list[str] = field(default_factory=list)
    takeovers: int = 0
    false_losses: int = 0
    is_over: bool = False

    def session(self, name: str) -> None:
        """A machine that continues the run as often as it can."""
        began = self.simulation.now
        for number in range(6):
            if self.simulation.now - began > SESSIONS_S or self.is_over:
                return
            try:
                chain = self._chain(f"{name}.{number}")
                chain.open(JOB)
                self._continue(chain, lambda: self.simulation.now - began > SESSIONS_S)
            except PlaceError:  # the process ends, and a person starts it again
                self.simulation.sleep(self.simulation.dice.uniform(1, 100))

    def _chain(self, writer: str) -> Chain:
        simulation = self.simulation
        retries = Retries(first_s=1, longest_s=30, within_s=300)
        return Chain(self.model.open(), writer=writer, retries=retries, clock=simulation.clock, sleep=simulation.sleep)

    def _continue(self, chain: Chain, stop: object) -> None:
        head = chain.acquire(stop=stop)  # pyright: ignore[reportArgumentType]
        if head is None or head.state == "finished":
            return
        self.takeovers += head.epoch > 1
        try:
            self._train(chain, head)
        except LostError:
            newest = read_head(self.model.heads[-1])
            self.false_losses += newest.epoch <= head.epoch
            raise

    def _train(self, chain: Chain, head: Head) -> None:
        dice, step, parent = self.simulation.dice, head.step, head.checkpoint
        if parent is not None:
            chain.fetch(parent, self.folder / f"{head.writer}.fetched")
        while step < STEPS:
            self.simulation.sleep(dice.uniform(1, 200))
            step += 1
            file = self.folder / f"{head.writer}.file"
            content = json.dumps({"parent": parent and parent.sha256, "step": step, "epoch": head.epoch}).encode()
            file.write_bytes(content)
            self.parents[hashlib.sha256(content).hexdigest()] = parent and parent.sha256
            parent = chain.advance(step, file).checkpoint
            assert parent is not None
            self.saved.append(parent.sha256)
            if dice.random() < 0.3:
                chain.prune()
            if dice.random() < 0.2:
                chain.beat()
            if dice.random() < 0.15:
                chain.release()
                return
        chain.finish()
        self.is_over = True

    # --- afterwards ---

    def counts(self) -> dict[str, int]:
        heads = [read_head(text) for text in self.model.heads]
        return {
            "forks": _forks(heads),
            "lost": self._lost(heads[-1]),
            "false_losses": self.false_losses,
            "unfinished": int(heads[-1].state != "finished" or heads[-1].step != STEPS),
            "saved": len(self.saved),
            "takeovers": self.takeovers,
            "faults": self.simulation.faults,
        }

    def _lost(self, last: Head) -> int:
        chain: set[str | None] = set()
        at = last.checkpoint and last.checkpoint.sha256
        while at is not None:
            chain.add(at)
            at = self.parents[at]
        missing = 0
        for stored in (last.checkpoint, last.parent):
            content = self.model.content(stored.name) if stored is not None else None
            missing += content is None or hashlib.sha256(content).hexdigest() != (stored and stored.sha256)
        return missing + sum(sha256 not in chain for sha256 in self.saved)


def _forks(heads: list[Head]) -> int:
    found = heads[0].epoch != 0 or heads[0].checkpoint is not None
    for before, after in itertools.pairwise(heads):
        is_taken = after.epoch == before.epoch + 1 and after.checkpoint == before.checkpoint
        is_same = (after.epoch, after.writer) == (before.epoch, before.writer)
        is_next = before.checkpoint in (after.checkpoint, after.parent)
        found += not (is_taken or (is_same and is_next and before.epoch > 0))
    return int(found)


def run(kind: str, seed: int, odds: Odds | None = None) -> dict[str, int]:
    """One schedule."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as temporary:
        simulation = Simulation(seed, odds)
        folder = Path(temporary)
        story = Run(simulation, MODELS[kind](simulation, folder / "place"), folder)
        for number in range(simulation.dice.randint(2, 4)):
            simulation.start(lambda name=f"s{number}": story.session(name), simulation.dice.uniform(0, 300))
        simulation.run()
        simulation.odds = CALM
        simulation.start(lambda: story.session("last"))
        simulation.run()
        return story.counts()


def figures(_folder: Path, schedules: int = SCHEDULES) -> Iterator[Figure]:
    """The counts over all schedules, for each kind of place."""
    for kind in MODELS:
        total: dict[str, int] = {}
        for seed in range(schedules):
            for name, count in run(kind, seed).items():
                total[name] = total.get(name, 0) + count
        yield Figure(name=f"{kind}: schedules", value=schedules, bar=f">= {SCHEDULES}", ok=schedules >= SCHEDULES)
        for name in ("forks", "lost", "false_losses", "unfinished"):
            yield Figure(name=f"{kind}: {name}", value=total[name], bar="0", ok=total[name] == 0)
        for name in ("saved", "takeovers", "faults"):
            yield Figure(name=f"{kind}: {name}", value=total[name], bar="> 0", ok=total[name] > 0)
