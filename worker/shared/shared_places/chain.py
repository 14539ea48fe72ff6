"""A run in a shared place: who holds it, and the chain of its checkpoints.

    chain = Chain(place, writer="3f2a…", where="Tesla T4")
    chain.open(job)                     the first HEAD of a new place
    head = chain.acquire()              waits while another session holds the run
    chain.fetch(head.checkpoint, path)
    chain.advance(step, path)           returns when the checkpoint is saved
    chain.release()

Safety comes from the compare-and-swap of HEAD alone: every write names the HEAD it replaces, so a session that lost the
run cannot change it. Waiting for a silent holder only avoids duplicate work. No clock is compared with another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from worker.shared.files import atomic_file
from worker.shared.shared_places.errors import (
    DamagedError,
    LostError,
    MissingError,
    OtherJobError,
    PlaceError,
    UnknownError,
)
from worker.shared.shared_places.head import (
    CHECKPOINTS,
    HEAD,
    Head,
    State,
    Stored,
    checkpoint_name,
    first_head,
    job_name,
    read_head,
)
from worker.shared.shared_places.place import Place
from worker.shared.shared_places.retries import Retries, persist

T = TypeVar("T")
DAMAGED_TRIES = 3
MAX_JOB_BYTES = 1 << 20
WATCHES = 10
"""How often HEAD is read during the time after which a silent holder's run is taken over."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Another session that holds the run, and after how many seconds without a sign of it the run is taken over."""

    head: Head
    silent_s: float
    takeover_in_s: float

    def __str__(self) -> str:
        where, since = self.head.where or "another session", self.head.since or "an unknown time"
        return f"{where} holds this run since {since}, at step {self.head.step}"


class Chain:
    """One session's view of a run. `writer` identifies the session, `where` describes its machine to people.

    Safe to use from several threads. Errors other than `LostError` leave the session's claim as it is.
    """

    def __init__(
        self,
        place: Place,
        *,
        writer: str,
        where: str = "",
        retries: Retries | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.place = place
        self._writer, self._where = writer, where
        self._retries = retries or Retries()
        self._clock, self._sleep, self._now = clock, sleep, now
        self._text: bytes | None = None
        self._epoch: int | None = None
        self._head_lock = threading.RLock()
        self._files_lock = threading.Lock()

    @property
    def head(self) -> Head | None:
        """HEAD as this session last read or wrote it."""
        return None if self._text is None else read_head(self._text)

    @property
    def is_held(self) -> bool:
        """Whether this session holds the run, as far as it knows."""
        return self._epoch is not None

    # --- begin ---

    def open(self, job: bytes) -> Head:
        """Put the job into a new place, or check that the place has this job. Raises `OtherJobError`."""
        if len(job) > MAX_JOB_BYTES:
            raise PlaceError(f"the job has {len(job):,} bytes, a shared place takes at most {MAX_JOB_BYTES:,}")
        sha256 = hashlib.sha256(job).hexdigest()
        text = self._persist(lambda: self.place.read_doc(HEAD))
        if text is None:
            self._put_job(job, sha256)
            with contextlib.suppress(LostError):  # another session was first; its job is compared below
                return self._swap(None, first_head(sha256, self._writer))
            text = self._persist(self._existing)
        found = self._remember(text)
        if found.job != sha256:
            raise OtherJobError(
                f"{self.place.address} contains the run of another job (sha256 {found.job[:12]}, this one is "
                f"{sha256[:12]}). Use another place for this job"
            )
        return found

    def job(self) -> bytes:
        """The text of the job in this place. Raises `DamagedError` if it has changed."""
        found = self._look()
        text = self._persist(lambda: b"".join(self.place.read(job_name(found.job), 0, MAX_JOB_BYTES)))
        if hashlib.sha256(text).hexdigest() != found.job:
            raise DamagedError(f"the job in {self.place.address} has changed")
        return text

    def acquire(
        self, told: Callable[[Holder], None] = lambda _: None, stop: Callable[[], bool] = lambda: False
    ) -> Head | None:
        """Take the run. Waits while another session shows signs of life, and reports it to `told` at each look.

        Returns None when `stop` asked to end the wait. A finished run is returned as it is and not taken.
        """
        seen, since = b"", self._clock()
        while not stop():
            found = self._look()
            text = self._text or b""
            if text != seen:
                seen, since = text, self._clock()
            if found.state == "finished":
                return found
            silent_s = self._clock() - since
            if found.state == "running" and found.writer != self._writer and silent_s < self.place.patience_s:
                told(Holder(head=found, silent_s=silent_s, takeover_in_s=self.place.patience_s - silent_s))
                self._sleep(self.place.patience_s / WATCHES)
                continue
            with contextlib.suppress(LostError):  # another session was faster, or HEAD was read from an old copy
                return self._take(found)
            self._sleep(self._retries.first_s)
        return None

    def _take(self, found: Head) -> Head:
        since = self._now().strftime("%Y-%m-%d %H:%M UTC")
        epoch = found.epoch + 1
        taken = found.changed(epoch=epoch, writer=self._writer, state="running", where=self._where, since=since)
        with self._head_lock:
            taken = self._swap(self._text, taken)
            self._epoch = epoch
            return taken

    # --- checkpoints ---

    def fetch(self, stored: Stored, target: Path) -> None:
        """Download a checkpoint. Raises `DamagedError` if its bytes are not those that were saved."""
        for _ in range(DAMAGED_TRIES - 1):
            with contextlib.suppress(DamagedError):  # maybe only in transit
                return self._persist(lambda: self._download(stored, target))
        return self._persist(lambda: self._download(stored, target))

    def _download(self, stored: Stored, target: Path) -> None:
        digest, size = hashlib.sha256(), 0
        with atomic_file(target) as file:
            for piece in self.place.read(stored.name, 0, stored.size):
                digest.update(piece)
                size += len(piece)
                file.write(piece)
            if (digest.hexdigest(), size) != (stored.sha256, stored.size):
                raise DamagedError(f"{stored.name} in {self.place.address} is damaged")

    def advance(self, step: int, file: Path) -> Head:
        """Save a checkpoint: store it, read it back, and make it the head. It is saved when this returns.

        Raises `LostError` if another session has taken the run. After any other error the checkpoint may be saved or
        not; another `advance` finds out.
        """
        with self._files_lock:
            epoch = self._held()
            with file.open("rb") as opened:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            name = self._store(file, epoch, step, sha256)
            stored = Stored(name=name, sha256=sha256, size=file.stat().st_size, step=step)

            def extended(head: Head) -> Head:
                is_there = head.checkpoint == stored  # by an earlier attempt whose answer was lost
                return head.changed() if is_there else head.changed(checkpoint=stored, parent=head.checkpoint)

            return self._move(extended)

    def _store(self, file: Path, epoch: int, step: int, sha256: str) -> str:
        """Store a checkpoint and read it back. Returns its name."""
        for _ in range(DAMAGED_TRIES):
            name = checkpoint_name(epoch, step)
            if self._put(name, file) == sha256:
                return name
        raise DamagedError(f"the checkpoint arrived damaged in {self.place.address} {DAMAGED_TRIES} times")

    def roll_back(self) -> Head:
        """Make the parent the head, because the head's checkpoint cannot be read. Without one the run starts again."""
        return self._move(lambda head: head.changed(checkpoint=head.parent, parent=None))

    def beat(self) -> Head:
        """Show that this session is alive. Raises `LostError`."""
        return self._move(lambda head: head.changed())

    def release(self) -> Head:
        """Leave the run to the next session."""
        return self._end("released")

    def finish(self) -> Head:
        """Mark the run as finished. No session continues it."""
        return self._end("finished")

    def _end(self, state: State) -> Head:
        with self._head_lock:
            head = self._move(lambda head: head.changed(state=state))
            self._epoch = None
            return head

    def prune(self) -> int:
        """Delete checkpoints other than the head's and its parent. Returns the number of bytes. Raises `LostError`.

        The files are listed before HEAD is written once more. What was there while this session still held the run
        cannot belong to a later one, however long this session sleeps before it deletes. A read of HEAD would not do:
        it may be old.
        """
        with self._files_lock:
            self._held()
            listed = [blob for blob in self._persist(self.place.blobs) if blob.name.startswith(CHECKPOINTS)]
            head = self.beat()
            kept = {stored.name for stored in (head.checkpoint, head.parent) if stored is not None}
            old = [blob for blob in listed if blob.name not in kept]
            if old:
                self._persist(lambda: self.place.delete([blob.name for blob in old]))
            return sum(blob.size for blob in old)

    # --- HEAD ---

    def _held(self) -> int:
        if self._epoch is None:
            raise LostError(f"this session does not hold the run in {self.place.address}")
        return self._epoch

    def _move(self, change: Callable[[Head], Head]) -> Head:
        """Replace this session's HEAD by the next one. Raises `LostError` if there is one of a later session."""
        with self._head_lock:
            return self._persist(lambda: self._moved(change))

    def _moved(self, change: Callable[[Head], Head]) -> Head:
        epoch, text = self._held(), self._text
        assert text is not None
        with contextlib.suppress(LostError):
            return self._swap(text, change(read_head(text)))
        # Lost to another session, or to an own write that had no answer.
        newest = self._persist(self._existing)
        found = read_head(newest)
        if found.epoch > epoch:
            self._epoch = None
            raise LostError(
                f"{found.where or 'another session'} has taken over the run in {self.place.address}, as number "
                f"{found.epoch}"
            )
        if found.epoch == epoch:
            self._text = newest
        raise UnknownError(f"{self.place.address} does not show its newest state")  # an old copy, or an own write

    def _swap(self, expected: bytes | None, new: Head) -> Head:
        """Write HEAD. After an answer that leaves it open, the nonce in HEAD tells whether it was written."""
        text = new.encoded()

        def attempt() -> Head:
            try:
                self.place.swap_doc(HEAD, expected, text)
            except (LostError, UnknownError) as error:
                if self.place.read_doc(HEAD) != text:
                    raise error from None
            return self._remember(text)

        return self._persist(attempt)

    def _look(self) -> Head:
        return self._remember(self._persist(self._existing))

    def _existing(self) -> bytes:
        text = self.place.read_doc(HEAD)
        if text is None:  # it was there: a read that comes from an old copy, or a person deleted it
            raise UnknownError(f"{HEAD} is missing in {self.place.address}")
        return text

    def _remember(self, text: bytes) -> Head:
        self._text = text
        return read_head(text)

    def _persist(self, act: Callable[[], T]) -> T:
        return persist(act, self._retries, clock=self._clock, sleep=self._sleep)

    def _put(self, name: str, source: Path) -> str:
        """Store a file. Returns the digest of what is stored."""

        def read_back() -> str:
            try:
                return self.place.sha256(name)
            except MissingError:  # it is not shown yet
                raise UnknownError(f"{self.place.address} does not show {name}") from None

        self._persist(lambda: self.place.put(name, source))
        return self._persist(read_back)

    def _put_job(self, job: bytes, sha256: str) -> None:
        name = job_name(sha256)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "job"
            source.write_bytes(job)
            for _ in range(DAMAGED_TRIES):
                if self._put(name, source) == sha256:
                    return
                self._persist(lambda: self.place.delete([name]))
        raise DamagedError(f"the job arrived damaged in {self.place.address} {DAMAGED_TRIES} times")
