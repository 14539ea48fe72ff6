"""What happens to a job, each thing once: events, and the values of steps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from trainhop import polling
from trainhop.connection import Connection
from trainhop.polling import FINAL, Timing
from trainhop.records import Event, Job, Step

SERIES = ("loss", "eval_loss")
"""The values that are watched. The others are in the curve."""
EVENTS = 1_000
"""Events that the server returns in one page."""


def by_step(rows: Iterable[Mapping[str, Any]]) -> tuple[Step, ...]:
    """The server's metrics, with all values of a step together, by step."""
    found: dict[int, dict[str, float | None]] = {}
    for row in rows:
        found.setdefault(row["step"], {})[row["name"]] = row["value"]
    return tuple(Step(step=step, values=values) for step, values in sorted(found.items()))


def changes(connection: Connection, job_id: str, timeout_s: float | None = None) -> Generator[Job | None]:
    """The job at each new state or step until it has ended, and None where the caller is to sleep for a second."""
    before: tuple[str, int] | None = None
    timing = Timing(timeout_s=timeout_s)

    def look() -> Job:
        return Job.of(connection.get(f"/jobs/{job_id}"))

    for now in polling.rounds(look, lambda job: job.ended, timing=timing):
        if now is None:
            yield None
        elif (now.state, now.step) != before:
            before = now.state, now.step
            yield now


def updates(
    connection: Connection,
    job_id: str,
    note: Callable[[str], object] = lambda _words: None,
    timing: Timing | None = None,
) -> Generator[Event | Step | None]:
    """Events and steps until the job has ended, and None where the caller is to sleep for a second."""
    seen = _Seen(connection, f"/jobs/{job_id}")
    for found in polling.rounds(seen.look, lambda found: found[0], note, timing):
        if found is None:
            yield None
        else:
            yield from found[1]


class _Seen:
    """How far a watch has come. It only moves on once a look has found everything."""

    def __init__(self, connection: Connection, path: str) -> None:
        self._connection, self._path = connection, path
        self._event, self._steps = 0, dict.fromkeys(SERIES, 0)

    def look(self) -> tuple[bool, list[Event | Step]]:
        """Whether the job has ended, and what is new."""
        # The job comes first: what an ended job has done is complete afterwards.
        is_last = self._connection.get(self._path)["state"] in FINAL
        events, event = self._new_events()
        rows: list[Mapping[str, Any]] = []
        steps = dict(self._steps)
        for name, last in self._steps.items():
            new = self._connection.get(f"{self._path}/metrics", name=name, from_step=last + 1)["items"]
            steps[name] = max([last, *(row["step"] for row in new)])
            rows += new
        self._event, self._steps = event, steps
        return is_last, [*events, *by_step(rows)]

    def _new_events(self) -> tuple[list[Event], int]:
        found, last = list[Event](), self._event
        while True:
            page = self._connection.get(f"{self._path}/events", after=last, limit=EVENTS)["items"]
            found += [Event.of(each) for each in page]
            last = found[-1].id if found else last
            if len(page) < EVENTS:
                return found, last
