"""What a server does for a session, done by the session itself with a shared place.

The place's compare-and-swap decides who holds the job, as a server's fence does. A checkpoint passes the checks of the
server: of its parent, its step, its recipe and its tensors.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from worker.agent.transfers import NotTaken
from worker.agent.uplink import Refused, ServerAway, Stale
from worker.shared import adapter_archive
from worker.shared.checkpoint_file import sha256_file
from worker.shared.checkpoint_header import (
    CheckpointError,
    Header,
    check_continues,
    check_parameters,
    header_size,
    read_header,
)
from worker.shared.early_stopping import may_end_at
from worker.shared.manifest import Manifest, Recipe
from worker.shared.messages import (
    Action,
    Directive,
    Finish,
    Grant,
    GrantKind,
    MetricRow,
    Offer,
    OfferReply,
    Release,
    Report,
    Sample,
    Started,
)
from worker.shared.place_job import ADAPTER, RESULT, PlaceJob, PlaceResult, ResultFile, metrics_name
from worker.shared.shared_places.chain import Chain
from worker.shared.shared_places.errors import DamagedError, LostError, PlaceError
from worker.shared.shared_places.head import Head, Stored

MAX_ROWS = 200_000
"""Rows of curves that a place keeps of a job."""
_PREFIX_BYTES = 8


def header_of(path: Path) -> Header:
    """The header of a checkpoint on this machine. Raises `CheckpointError`."""
    with path.open("rb") as file:
        front = file.read(_PREFIX_BYTES)
        return read_header(front + file.read(header_size(front)), path.stat().st_size)


class PlaceUplink:
    """Implements `Uplink` over a chain that this session holds.

    `before` is the header of the checkpoint that it continues. `rows` are the curves and samples up to there. `saved`
    is called with each step that is saved.
    """

    def __init__(
        self,
        chain: Chain,
        job: PlaceJob,
        *,
        before: Header | None = None,
        rows: Sequence[MetricRow | Sample] = (),
        saved: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._chain, self._place, self._job = chain, chain.place, job
        self._before, self._rows, self._saved = before, list(rows), saved
        self._files: dict[str, ResultFile] = {}
        self._lost = ""

    # --- while it trains ---

    def watch(self, ended: threading.Event, lost: Callable[[str], None]) -> None:
        """Show that this session is alive until it has `ended`. Calls `lost` when another one has taken the job."""
        while not ended.wait(self._place.beat_every_s):
            try:
                self._chain.beat()
            except LostError as error:
                self._lost = str(error)
                lost(self._lost)
                return
            except PlaceError:
                continue  # its own retries are used up; the session trains on and saves later

    def note(self, rows: Sequence[MetricRow | Sample]) -> None:
        """Keep rows for the next checkpoint's file."""
        self._rows += rows
        del self._rows[:-MAX_ROWS]

    # --- Uplink ---

    def started(self, message: Started) -> None:
        """Nobody waits for it."""

    def report(self, message: Report) -> Directive:
        if self._lost:
            raise Stale(self._lost)
        return Directive(action=Action.CONTINUE)

    def offer(self, message: Offer) -> OfferReply:
        """A checkpoint is offered when `store` has made it the head."""
        head = self._chain.head
        is_head = head is not None and head.checkpoint is not None and head.checkpoint.sha256 == message.sha256
        return OfferReply(committed=is_head, refusal="" if is_head else "the shared place has another checkpoint")

    def release(self, message: Release) -> None:
        self._end(self._chain.release)

    def finish(self, message: Finish) -> None:
        if message.failure is not None or message.adapter is None:
            self._end(self._chain.release)
            return
        head, spec = self._held(), self._job.spec
        early = spec.early_stopping_patience is not None and may_end_at(spec, head.step)
        if head.step != message.step or not (head.step == spec.total_steps or early):
            raise Refused(f"only {head.step} of {spec.total_steps} steps are saved")
        sha256 = message.adapter.adapter_sha256
        self._end(lambda: self._leave_result(head, sha256))

    def grants(self, fence: int, kind: GrantKind, count: int, *, through_server: bool = False) -> list[Grant]:
        """Permissions that `store` needs no server for."""
        return [Grant(key=f"{kind}-{secrets.token_hex(8)}", kind=kind) for _ in range(count)]

    def _end(self, act: Callable[[], object]) -> None:
        try:
            act()
        except LostError as error:
            raise Stale(str(error)) from error
        except PlaceError as error:
            raise ServerAway(str(error)) from error

    def _leave_result(self, head: Head, sha256: str) -> None:
        metrics = f"metrics/{head.step:08d}-{head.epoch}-{secrets.token_hex(4)}.jsonl"
        self._put_rows(metrics, head.step)
        found = PlaceResult(
            job=self._job.id,
            step=head.step,
            adapter_sha256=sha256,
            files=self._files,
            metrics=metrics,
            nonce=secrets.token_hex(16),
        )
        self._chain.beat()  # nobody else writes the result as long as this session holds the job
        self._place.swap_doc(RESULT, self._place.read_doc(RESULT), found.model_dump_json(indent=1).encode())
        self._chain.finish()

    # --- files ---

    def store(self, grant: Grant, path: Path) -> None:
        """Put a file into the place. A checkpoint is the head when this returns, and read back."""
        try:
            self._advance(path) if grant.kind is GrantKind.CHECKPOINT else self._put_adapter(path)
        except LostError as error:
            raise Stale(str(error)) from error
        except CheckpointError as error:
            raise Refused(str(error)) from error
        except PlaceError as error:
            raise NotTaken(str(error)) from error

    def _held(self) -> Head:
        head = self._chain.head
        assert head is not None, "a session begins with the head"
        return head

    def _advance(self, path: Path) -> None:
        header, head = header_of(path), self._held()
        step = header.manifest.step
        if step == head.step and head.checkpoint is not None and sha256_file(path) == head.checkpoint.sha256:
            return  # an attempt without an answer has succeeded
        if refusal := self._refusal(header.manifest, head):
            raise Refused(refusal)
        check_parameters(header)
        if self._before is not None:
            check_continues(header, self._before)
        self._put_rows(metrics_name(step, head.epoch), step)
        self._chain.advance(step, path)
        self._before = header
        self._saved(step)
        with suppress(PlaceError):  # a lost job is noticed at the next save; old files cost only space
            self._prune(self._held())

    def _refusal(self, manifest: Manifest, head: Head) -> str:
        """Why this checkpoint cannot become the head, or nothing."""
        job, parent = self._job, head.checkpoint.sha256 if head.checkpoint is not None else None
        if (manifest.job, manifest.fence) != (job.id, head.epoch):
            return f"the manifest names job {manifest.job} fence {manifest.fence}, not {job.id} fence {head.epoch}"
        if manifest.parent != parent:
            return f"the checkpoint continues {manifest.parent or 'the start'}, but the head is {parent or 'the start'}"
        if not head.step < manifest.step <= job.spec.total_steps:
            return f"step {manifest.step} does not follow {head.step} within {job.spec.total_steps}"
        other = Recipe.of(job.spec).differences(manifest.recipe)
        return "; ".join(f"{name}: the job says {mine!r}, the checkpoint {theirs!r}" for name, mine, theirs in other)

    def _put_rows(self, name: str, step: int) -> None:
        lines = "".join(f"{row.model_dump_json()}\n" for row in list(self._rows) if row.step <= step)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "rows")
            source.write_text(lines)
            self._place.put(name, source)

    def _prune(self, head: Head) -> None:
        self._chain.prune()
        kept = {rows_of(stored) for stored in (head.checkpoint, head.parent) if stored is not None}
        old = [blob.name for blob in self._place.blobs() if blob.name.startswith("metrics/") and blob.name not in kept]
        if old:
            self._place.delete(old)

    def _put_adapter(self, archive: Path) -> None:
        self._chain.beat()  # a session that has lost the job writes nothing
        with tempfile.TemporaryDirectory(dir=archive.parent) as temporary:
            folder = Path(temporary, "adapter")
            adapter_archive.unpack(archive, folder)
            for path in sorted(file for file in folder.rglob("*") if file.is_file()):
                name = path.relative_to(folder).as_posix()
                self._files[name] = put_whole(self._chain, f"{ADAPTER}{name}", path)


def put_whole(chain: Chain, name: str, path: Path) -> ResultFile:
    """Put a file into the place and read it back. One that an earlier attempt has left damaged is put anew."""
    found = ResultFile(sha256=sha256_file(path), size=path.stat().st_size)
    for _ in range(2):
        chain.place.put(name, path)
        if chain.place.sha256(name) == found.sha256:
            return found
        chain.place.delete([name])
    raise DamagedError(f"{name} arrived damaged in {chain.place.address}")


def rows_of(stored: Stored) -> str:
    """The name of the file with the rows up to this checkpoint."""
    step, epoch, _ = Path(stored.name).name.split("-", 2)
    return metrics_name(int(step), int(epoch))


def read_rows(chain: Chain, stored: Stored) -> list[MetricRow | Sample]:
    """The rows up to a checkpoint. Empty if their file is not there: no step depends on them."""
    found: list[MetricRow | Sample] = []
    with suppress(PlaceError, ValueError):
        for line in b"".join(chain.place.read(rows_of(stored))).splitlines()[-MAX_ROWS:]:
            row = json.loads(line)
            found.append(MetricRow.model_validate(row) if "values" in row else Sample.model_validate(row))
    return found
