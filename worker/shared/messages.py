"""The messages between server and worker: requests, reports, offers and grants.

Every model here is JSON on the wire. Readers ignore unknown fields, new fields are optional, and a different major
version is rejected with a message. So an older worker works with a newer server. Sizes are bytes, durations are
seconds, times are seconds since the Unix epoch in UTC, hashes are lower-case hex. Every field has a maximum: measured
numbers, texts and lists of a machine are cut to it, so that an honest message is never refused for its length.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, FailFast, Field

from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Fidelity, Hardware, Manifest
from worker.shared.results import ExportedAdapter, StoredAnswers, StoredExport
from worker.shared.signed_lines import LINE_MARK, signed
from worker.shared.wire import (
    PROTOCOL_VERSION,
    Bytes,
    Count,
    Id,
    Line,
    MaybeNumber,
    MaybeSeconds,
    MaybeSize,
    Seconds,
    Sha256,
    StepSeconds,
    Text,
    Versions,
    Wire,
    first_entries,
    last_entries,
)

MAX_ROWS = 4_000
"""Metric rows of one report. A worker merges at most 256 KiB of reports, which are fewer."""
MAX_NAMES = 64
"""Values of one metric row."""
MAX_POINTS = 20_000
"""Values of one report."""
MAX_SAMPLES = 64


class Reading(Wire):
    """One hardware reading of the machine."""

    cpu_percent: MaybeNumber = None
    rss_bytes: MaybeSize = None
    ram_used_bytes: MaybeSize = None
    disk_free_bytes: MaybeSize = None
    gpu_memory_bytes: MaybeSize = None
    gpu_percent: MaybeNumber = None


# --- grants ----------------------------------------------------------------------------------------------


GRANT_HEADER = "X-Grant"
"""The header of a request to the server that has the signature of a grant."""


MODEL_FOLDERS = ("model", "judge")
"""First part of the keys of a base model's files, and of a judge model's."""


class GrantKind(StrEnum):
    """The purpose of a granted file."""

    CHECKPOINT = "checkpoint"
    ADAPTER = "adapter"
    ANSWERS = "answers"
    EXPORT = "export"
    DATASET = "dataset"
    MODEL = "model"


class Grant(Wire):
    """Permission to read or write exactly one file, by path (same machine) or by URL with headers.

    A `resumable` URL is an upload session (see `worker.shared.resumable_upload`). Other URLs take one plain request.
    """

    key: str
    kind: GrantKind
    path: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    resumable: bool = False
    sha256: Sha256 | None = None
    size: int | None = None


# --- start -----------------------------------------------------------------------------------------------


class Ticket(Wire):
    """The input of a launched worker: server address, lease and token.

    `budget_s` is the session's wall-clock time. `assignment` is set for offline sessions.
    """

    lease: str
    token: str
    budget_s: float
    fence: Count | None = None
    server_url: str | None = None
    assignment: Assignment | None = None


class StartRequest(Wire):
    """The first call of a worker. `nonce` is created once per process, so that a repeated call gets the same answer."""

    protocol: Count
    nonce: Annotated[Text, Field(min_length=1, max_length=64)]
    hardware: Hardware
    versions: Versions = {}
    image: Annotated[Text, Field(max_length=64)] = ""
    """Name of the machine's image. Preinstalled packages change with it."""


class Origin(Wire):
    """The job and checkpoint that a clone starts from."""

    job: str
    fence: int
    step: int


class Assignment(Wire):
    """Everything that a worker needs to run a job. `origin` is set if it resumes from another job's checkpoint.

    `datasets` are the data files of the job, or the adapter's archive that an export or a chat begins with. `keep_dir`
    is a folder with files that the provider keeps after the session, for offline sessions.
    """

    protocol: int = PROTOCOL_VERSION
    job: str
    lease: str
    fence: int
    spec: JobSpec
    seconds_left: float
    report_every_s: float = 15.0
    mtbf_s: float = 21_600.0
    datasets: tuple[Grant, ...]
    resume: Grant | None = None
    resume_step: int = 0
    origin: Origin | None = None
    uploads: tuple[Grant, ...] = ()
    trust_remote_code: bool = False
    keep_dir: str | None = None
    model: tuple[Grant, ...] = ()
    """The files of a gated or private base model. Empty if the machine downloads the model itself."""
    judge: tuple[Grant, ...] = ()
    """The same for the judge model of an evaluation."""
    rendered_at: float | None = None
    """`JobSpec.rendered_at`. It is not in `spec`, because older workers train old jobs and refuse unknown keys."""

    @property
    def reads(self) -> tuple[Grant, ...]:
        """The grants for every file that the session reads."""
        return (*self.datasets, *self.model, *self.judge, *([self.resume] if self.resume is not None else []))

    @property
    def whole_spec(self) -> JobSpec:
        """The job as the server resolved it."""
        return self.spec.model_copy(update={"rendered_at": self.rendered_at})


# --- messages of a worker --------------------------------------------------------------------------------


class Phase(StrEnum):
    """The activities of a session, which are also the rows of its time ledger."""

    BOOT = "boot"
    DOWNLOAD = "download"
    LOAD = "load"
    RESTORE = "restore"
    TRAIN = "train"
    SAVE = "save"
    EVAL = "eval"
    EXPORT = "export"
    WAIT = "wait"


class MetricRow(Wire):
    """Named values at one optimiser step (the state after `step` updates)."""

    step: Count
    values: Annotated[dict[Annotated[Text, Field(max_length=64)], float], first_entries(MAX_NAMES)]


def _newest_points(rows: tuple[MetricRow, ...]) -> tuple[MetricRow, ...]:
    points = kept = 0
    for row in reversed(rows):
        points += len(row.values)
        if points > MAX_POINTS:
            break
        kept += 1
    return rows[len(rows) - kept :]


class Sample(Wire):
    """The model's answer to one of the job's `sample_prompts` at a step."""

    step: Count
    prompt: Text
    text: Text


Metrics = Annotated[tuple[MetricRow, ...], FailFast(), last_entries(MAX_ROWS), AfterValidator(_newest_points)]
Samples = Annotated[tuple[Sample, ...], FailFast(), last_entries(MAX_SAMPLES)]
Ledger = Annotated[dict[Phase, Seconds], first_entries(16)]


class _SessionMessage(Wire):
    lease: Id
    fence: Count
    seq: Count

    def as_line(self) -> str:
        """The message as one line of JSON."""
        return self.model_dump_json()


class Started(_SessionMessage):
    """First message of an offline session. Contains the `StartRequest`, since there is no reply."""

    kind: Literal["started"] = "started"
    request: StartRequest


class Report(_SessionMessage):
    """Progress, sent every `report_every_s`. It extends the lease.

    `problem` is why the newest file is not in the store yet. Empty once it is, and if nothing is wrong.
    """

    kind: Literal["report"] = "report"
    step: Count
    phase: Phase
    metrics: Metrics = ()
    samples: Samples = ()
    reading: Reading | None = None
    ledger: Ledger = {}
    seconds_per_step: StepSeconds = None
    seconds_left: MaybeSeconds = None
    fidelity: Fidelity | None = None
    backend: Annotated[Text, Field(max_length=32)] | None = None
    problem: Line = ""

    def as_line(self) -> str:
        """One line of JSON without default values, because there are thousands of reports."""
        return '{"kind":"report",' + self.model_dump_json(exclude_defaults=True).removeprefix("{")


def merged(reports: Sequence[Report]) -> Report:
    """Several reports as one: the state of the newest, with the metrics and samples of all."""
    newest = reports[-1]
    return newest.model_copy(
        update={
            "metrics": tuple(row for r in reports for row in r.metrics),
            "samples": tuple(sample for r in reports for sample in r.samples),
        }
    )


class Offer(_SessionMessage):
    """An uploaded checkpoint, with its grant and hash, that is to become the head."""

    kind: Literal["offer"] = "offer"
    key: Annotated[Text, Field(max_length=255)]
    sha256: Sha256
    size: Bytes
    manifest: Manifest


Cause = Annotated[Text, Field(max_length=32)]
"""The cause that kept a session from its first step (`worker.shared.causes`). Empty for any other end."""


class Release(_SessionMessage):
    """The end of a session before the job is complete. The job is queued. `head` is the last offered checkpoint.

    `has_remedy`: `detail` says what to do, so that the server adds no remedy of its own.
    """

    kind: Literal["release"] = "release"
    step: Count
    reason: Literal["deadline", "drained", "paused", "cancelled", "unfit"]
    detail: Text = ""
    cause: Cause = ""
    has_remedy: bool = False
    head: Sha256 | None = None
    ledger: Ledger = {}


class Failure(Wire):
    """Why a session failed. `permanent` means that another machine would fail too.

    `has_remedy`: `message` says what to do, so that the server adds no remedy of its own. `bad_checkpoint` is the
    checkpoint that did not load. The server verifies it by reading it back.
    """

    message: Text
    permanent: bool
    detail: Text = ""
    cause: Cause = ""
    has_remedy: bool = False
    bad_checkpoint: Sha256 | None = None


class Finish(_SessionMessage):
    """The final message of a session. `head` as in `Release`.

    Succeeded with an adapter, the answers of an evaluation, an export, or, after a chat, nothing. Or failed.
    `can_continue`: the worker would take another lease on this machine. The reply is then the ticket of one, if the
    server has one for it.
    """

    kind: Literal["finish"] = "finish"
    step: Count
    adapter: ExportedAdapter | None = None
    answers: StoredAnswers | None = None
    export: StoredExport | None = None
    failure: Failure | None = None
    head: Sha256 | None = None
    ledger: Ledger = {}
    can_continue: bool = False


Message = Annotated[Started | Report | Offer | Release | Finish, Field(discriminator="kind")]


def sign_line(token: str, message: str) -> str:
    """A message as one line of a session's output. See `worker.shared.signed_lines`."""
    return signed(token, message)


def signed_message(token: str, line: str) -> str | None:
    """The JSON of a line that was signed with this lease's token. None for all other output.

    Output of another writer before the mark on the same line is ignored.
    """
    _, mark, rest = line.strip().partition(LINE_MARK + " ")
    signature, _, message = rest.partition(" ")
    if not mark:
        return None
    wanted = hmac.new(token.encode(), message.encode(), hashlib.sha256).hexdigest()
    return message if hmac.compare_digest(wanted.encode(), signature.encode()) else None


# --- replies of the server -------------------------------------------------------------------------------


class Action(StrEnum):
    """The next action of a worker: continue, hand off after the current step, or stop at once."""

    CONTINUE = "continue"
    DRAIN = "drain"
    ABORT = "abort"


class Directive(Wire):
    """The reply to every report."""

    action: Action
    reason: str = ""


class OfferReply(Wire):
    """Whether the offered checkpoint became the job's head. `refusal` is the reason if not."""

    committed: bool
    refusal: str = ""


Ticket.model_rebuild()
