"""The session of a cell without a server: it takes the job in a shared place, trains, saves, and leaves it there."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from worker.__main__ import BEGAN
from worker.agent import hardware
from worker.agent.session import Session, log
from worker.agent.time_ledger import Ledger
from worker.notebook.place_uplink import PlaceUplink, header_of, put_whole, read_rows
from worker.shared.checkpoint_header import CheckpointError
from worker.shared.messages import Assignment, Grant, GrantKind, MetricRow, Sample
from worker.shared.place_job import RESULT, DataFile, PlaceJob, PlaceResult, data_name
from worker.shared.shared_places.chain import Chain, Holder
from worker.shared.shared_places.errors import OtherJobError, PlaceError, RefusedError
from worker.shared.shared_places.head import HEAD, Head, job_name, read_head
from worker.shared.shared_places.place import Place
from worker.shared.wire import Line, Wire

REFUSED = 2
"""Exit code: nothing was trained, and a person has to change something."""
EVENTS = "events.jsonl"


class Order(Wire):
    """What a cell asks its process for. `job` is its job file, None to go on with the job in the place.

    `folder` is that of the job file. `budget_s` counts from the start of the process. `writer` is this session's own
    name. Tokens are in the process's environment, never here.
    """

    address: str
    name: str = ""
    job: dict[str, Any] | None = None
    folder: str | None = None
    budget_s: float
    writer: str
    where: Line = ""


class WrongJobError(Exception):
    """The job file cannot be used. Each argument is one line."""


class Author(Protocol):
    """Knows the job file of a cell."""

    def resolved(self, home: Path) -> tuple[PlaceJob, Mapping[str, Path]]:
        """The job with everything pinned, and its data files by their sha256. Raises `WrongJobError`."""
        ...

    def differences(self, kept: PlaceJob) -> list[str]:
        """How the job file differs from the one in the place, in words."""
        ...


class Events:
    """What the cell shows, as lines of a file."""

    def __init__(self, home: Path) -> None:
        self._path = home / EVENTS

    def tell(self, **facts: Any) -> None:
        """Add an event. `say` is a line for the person."""
        with self._path.open("a") as file:
            file.write(json.dumps(facts) + "\n")


class _Stop:
    """Whether the cell was interrupted. Passed on to the session as soon as there is one."""

    def __init__(self) -> None:
        self.asked = False
        self.session: PlaceSession | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.session is not None:
            self.session.leave()


class PlaceSession(Session):
    """A session that needs no server. Saves come at the job's longest interval: each fills the place."""

    def __init__(self, assignment: Assignment, link: PlaceUplink, home: Path, events: Events) -> None:
        self._link, self._events = link, events
        apart_s = assignment.spec.checkpoint.max_interval_s
        super().__init__(assignment, link, home, Ledger(began=BEGAN), apart_s=apart_s)

    def leave(self) -> None:
        """Save and stop after this step."""
        self._request_stop("drained")

    def send(self, grant: Grant, path: Path) -> None:
        self._link.store(grant, path)

    def lose(self, why: str) -> None:
        """Stop without saving, because another session has the job."""
        self._end(why)

    def _end(self, why: str) -> None:
        if not self._over.is_set():  # later ones only follow from the first
            self._events.tell(lost=why)
        super()._end(why)

    def _report(self, metrics: tuple[MetricRow, ...], samples: tuple[Sample, ...] = (), **how: Any) -> None:
        self._link.note([*metrics, *samples])
        super()._report(metrics, samples, **how)


def work(place: Place, order: Order, author: Author | None, home: Path) -> int:
    """Go on with the job in the place, or begin it. Returns the exit code of the process."""
    events, stop = Events(home), _Stop()
    chain = Chain(place, writer=order.writer, where=order.where or hardware.probe().name)
    try:
        job, files = _job(chain, author, home, events)
        if stop.asked:
            return 0
        taken = chain.acquire(lambda holder: events.tell(wait=_words(holder)), lambda: stop.asked)
        if taken is None:
            return 0
        if taken.state == "finished":
            _tell_finished(place, job, events)
            return 0
    except (WrongJobError, PlaceError) as error:
        events.tell(refused="\n".join(map(str, error.args)))
        return REFUSED
    try:
        return _train(chain, job, taken, order, files, home, events, stop)
    finally:
        if chain.is_held:
            _release(chain)


def _release(chain: Chain) -> None:
    try:
        chain.release()
    except PlaceError as error:
        log(f"the job could not be released: {error}")


def _job(chain: Chain, author: Author | None, home: Path, events: Events) -> tuple[PlaceJob, Mapping[str, Path]]:
    """The job in the place. A new place gets it from the author, and so does one in which no step is saved yet."""
    place, text = chain.place, chain.place.read_doc(HEAD)
    if text is not None:
        kept = read_job(chain)
        other = author.differences(kept) if author is not None else []
        if not other:
            return kept, {}
        head = read_head(text)
        if head.checkpoint is not None or head.state != "released":
            raise WrongJobError(
                f"{place.address} has another job than this file. Use another place for this one, or restore the file:",
                *other,
            )
    if author is None:
        raise WrongJobError(f"There is no job in {place.address} yet, and no job file here. Give the job file.")
    job, files = author.resolved(home)
    for note in job.notes:
        events.tell(say=note)
    for entry in job.data:
        events.tell(say=f"Storing {entry.name or 'the data'} ({entry.size / 1e6:.1f} MB) in {place.address}.")
        put_whole(chain, data_name(entry.sha256), files[entry.sha256])
    written = job.model_dump_json().encode()
    if text is not None:
        _replace(chain, text, written, home)
        return job, files
    try:
        chain.open(written)
    except OtherJobError:  # another cell was faster
        return _job(chain, author, home, events)
    return job, files


def _replace(chain: Chain, text: bytes, written: bytes, home: Path) -> None:
    """Put another job in the place of one that nobody holds and that has no step yet."""
    sha256 = hashlib.sha256(written).hexdigest()
    source = home / "job.json"
    source.write_bytes(written)
    put_whole(chain, job_name(sha256), source)
    chain.place.swap_doc(HEAD, text, read_head(text).changed(job=sha256).encoded())


def read_job(chain: Chain) -> PlaceJob:
    """The job in a place. Raises `RefusedError` for one that this version cannot read."""
    try:
        return PlaceJob.model_validate_json(chain.job())
    except ValueError as error:
        raise RefusedError(
            f"The job in {chain.place.address} cannot be read. It may be of a newer version: update Trainhop here."
        ) from error


def _words(holder: Holder) -> str:
    return f"{holder}. This cell continues when it ends, or has been silent for another {holder.takeover_in_s:.0f} s"


def _tell_finished(place: Place, job: PlaceJob, events: Events) -> None:
    text = place.read_doc(RESULT)
    result = PlaceResult.model_validate_json(text) if text is not None else None
    step = result.step if result is not None else job.spec.total_steps
    events.tell(job=job.id, name=job.spec.name, total=job.spec.total_steps, step=step, finished=True)


def _train(
    chain: Chain,
    job: PlaceJob,
    head: Head,
    order: Order,
    files: Mapping[str, Path],
    home: Path,
    events: Events,
    stop: _Stop,
) -> int:
    try:
        grants = tuple(_data(chain, entry, files, home) for entry in job.data)
        resume, before = None, None
        if head.checkpoint is not None:
            path = home / "resume-from.safetensors"
            chain.fetch(head.checkpoint, path)
            before = header_of(path)
            resume = _grant(GrantKind.CHECKPOINT, path, head.checkpoint.sha256, head.checkpoint.size)
    except (PlaceError, CheckpointError) as error:
        events.tell(refused=str(error))
        return REFUSED
    rows = read_rows(chain, head.checkpoint) if head.checkpoint is not None else []
    losses = [row.values["loss"] for row in rows if isinstance(row, MetricRow) and "loss" in row.values]
    samples = [row.model_dump() for row in rows if isinstance(row, Sample)][-len(job.spec.sample_prompts) :]
    events.tell(
        job=job.id, name=job.spec.name, total=job.spec.total_steps, step=head.step, losses=losses, samples=samples
    )
    link = PlaceUplink(chain, job, before=before, rows=rows, saved=lambda step: events.tell(saved=step))
    assignment = job.assignment(
        fence=head.epoch,
        lease=f"lease-{order.writer}",
        seconds_left=order.budget_s - (time.monotonic() - BEGAN),
        datasets=grants,
        resume=resume,
        step=head.step,
    )
    session, ended = PlaceSession(assignment, link, home, events), threading.Event()
    stop.session = session
    if stop.asked:
        return 0
    threading.Thread(target=link.watch, args=(ended, session.lose), name="beats", daemon=True).start()
    try:
        return session.work()
    finally:
        ended.set()


def _data(chain: Chain, entry: DataFile, files: Mapping[str, Path], home: Path) -> Grant:
    """A data file on this machine. Its hash is checked when the session reads it."""
    path = files.get(entry.sha256)
    if path is None:
        path = home / f"data-{entry.sha256}"
        with path.open("wb") as file:
            file.writelines(chain.place.read(data_name(entry.sha256)))
    return _grant(GrantKind.DATASET, path, entry.sha256, entry.size)


def _grant(kind: GrantKind, path: Path, sha256: str, size: int) -> Grant:
    return Grant(key=path.name, kind=kind, path=str(path), sha256=sha256, size=size)
