"""A client of the server for programs: jobs, plans, data files and adapters."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from trainhop import download, job_file, polling, watching
from trainhop.connection import Connection, find_job, segment
from trainhop.errors import Error
from trainhop.records import Curve, Dataset, Event, Job, Output, Plan, Session, Step

MAX_LISTED = 10_000
MAX_OUTPUT = 1 << 20
"""Bytes of a session's output in one call."""


class _Model(Protocol):
    """The part of a `JobSpec` that a client needs."""

    def model_dump(self, *, mode: str, exclude_unset: bool) -> dict[str, Any]: ...


JobLike = Mapping[str, Any] | str | os.PathLike[str] | _Model
"""A job file's keys, the path of a job file (YAML or JSON), or a `JobSpec`."""


class Client:
    """Calls one server as one member.

    Without arguments it uses the server of the command line: `TRAINHOP_SERVER_URL` and `TRAINHOP_TOKEN`, else the
    server that `trainhop up` runs on this computer, with the address and the token in its data folder. Every method
    raises `trainhop.Error` with the server's message. It may be used as a context manager.

    With `folders`, only files in these folders are uploaded with a job. Other files count as missing.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        folders: Sequence[str | os.PathLike[str]] | None = None,
    ) -> None:
        self.connection = Connection.find(url, token)
        self._folders = None if folders is None else [Path(folder) for folder in folders]
        self.jobs = Jobs(self.connection, self._folders)
        self.datasets = Datasets(self.connection)

    @property
    def url(self) -> str:
        """The server's address."""
        return self.connection.url

    def plan(self, job: JobLike) -> Plan:
        """Where a job would run and for how long, without queueing it. Its data files are uploaded."""
        return Plan.of(self.connection.post("/jobs:plan", _body(self.connection, job, self._folders)))

    def close(self) -> None:
        """Close the connections to the server."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Jobs:
    """`client.jobs`. A job is given by its `Job`, its id, its name, or at least the first four characters of its id."""

    def __init__(self, connection: Connection, folders: Sequence[Path] | None = None) -> None:
        self._connection, self._folders = connection, folders

    def submit(self, job: JobLike, *, key: str | None = None) -> Job:
        """Queue a job once, even if a connection breaks. Its data files on this computer are uploaded.

        With an idempotency `key` of yours, a repeated call returns the job of the first one.
        """
        body = _body(self._connection, job, self._folders)
        return Job.of(self._connection.post("/jobs", body, key=key or str(uuid.uuid4())))

    def evaluate(self, job: Job | str, settings: Mapping[str, Any] | None = None, *, key: str | None = None) -> Job:
        """Queue a job that answers prompts with the base model and with the adapter of `job`.

        `settings` has the keys of `evaluate` in a job file. Its data files on this computer are uploaded.
        """
        path = f"/jobs/{self._find(job)['id']}:evaluate"
        spec: dict[str, Any] = {"datasets": [], "evaluate": dict(settings or {})}
        body = job_file.send_data(self._connection, "evaluation", spec, within=self._folders)["evaluate"]
        return Job.of(self._connection.post(path, body, key=key or str(uuid.uuid4())))

    def evaluations(self, job: Job | str) -> tuple[Mapping[str, Any], ...]:
        """The job's evaluations with their reports, newest first, as the server describes them."""
        return tuple(self._connection.get(f"/jobs/{self._find(job)['id']}/evaluations")["items"])

    def list(self, *, state: str | None = None, name: str | None = None, limit: int = 50) -> tuple[Job, ...]:
        """Up to `limit` jobs (at most 10,000), newest first: your own, or everyone's for an admin.

        `name` selects jobs with this text in their name.
        """
        found = self._connection.pages("/jobs", min(limit, MAX_LISTED), state=state, name=name)
        return tuple(Job.of(each) for each in found)

    def get(self, job: Job | str) -> Job:
        """The job as it is now."""
        return Job.of(self._find(job))

    def pause(self, job: Job | str) -> Job:
        """Stop the job at the end of its next step, with everything saved."""
        return self._change(job, "pause")

    def resume(self, job: Job | str) -> Job:
        """Resume a paused job."""
        return self._change(job, "resume")

    def cancel(self, job: Job | str) -> Job:
        """End the job."""
        return self._change(job, "cancel")

    def wait(
        self, job: Job | str, *, timeout_s: float | None = None, on_change: Callable[[Job], object] = lambda _job: None
    ) -> Job:
        """Wait until the job has ended, and return it: its `state` is `succeeded`, `failed` or `cancelled`.

        It polls the server every second. `on_change` is called for each new state or step. Raises `Error` with the
        reason `timeout` if the job takes longer than `timeout_s`, and `unreachable` if the server is away for ten
        minutes.
        """
        now: Job | None = None
        for found in watching.changes(self._connection, self._find(job)["id"], timeout_s):
            if found is None:
                time.sleep(polling.PERIOD_S)
            else:
                now = found
                on_change(now)
        assert now is not None
        return now

    def watch(self, job: Job | str) -> Iterator[Event | Step]:
        """The job's events, and the values of its steps, from the first to the end of the job, as they come.

        Each comes once, also after a restart of the server, and also where a step is repeated after a lost session. It
        polls the server every second. Raises `Error` with the reason `unreachable` if the server is away for ten
        minutes.
        """
        for found in watching.updates(self._connection, self._find(job)["id"]):
            if found is None:
                time.sleep(polling.PERIOD_S)
            else:
                yield found

    def curve(self, job: Job | str, *, name: str | None = None) -> Curve:
        """What the job has measured so far, or only the values with a `name`: at most 100,000 values."""
        rows = self._connection.get(f"/jobs/{self._find(job)['id']}/metrics", name=name)["items"]
        return Curve(steps=watching.by_step(rows))

    def sessions(self, job: Job | str) -> tuple[Session, ...]:
        """All attempts to run the job, oldest first."""
        found = self._connection.get(f"/jobs/{self._find(job)['id']}/sessions")["items"]
        return tuple(Session.of(each) for each in found)

    def output(self, session: Session | str, *, offset: int = 0, limit: int = 1 << 16) -> Output:
        """Up to `limit` bytes (16 to 1,048,576) of a session's output from a byte `offset`."""
        ident = session.id if isinstance(session, Session) else session
        path = f"/sessions/{segment(ident)}/log"
        text, headers = self._connection.text(path, offset=offset, limit=limit)
        after = int(headers.get("x-next-offset", offset + len(text)))
        is_end = after - offset < limit - 4  # an incomplete character at the end belongs to the next piece
        return Output(
            session=ident, text=text.decode(errors="replace"), offset=offset, next_offset=after, is_end=is_end
        )

    def download_adapter(self, job: Job | str, folder: str | os.PathLike[str]) -> Path:
        """Create `folder` with a finished job's adapter, in PEFT's format. Every byte is checked against its hash."""
        out = Path(folder)
        download.save_adapter(self._connection, self._find(job), out)
        return out

    def _find(self, job: Job | str) -> dict[str, Any]:
        return find_job(self._connection, named(job))

    def _change(self, job: Job | str, verb: str) -> Job:
        return Job.of(self._connection.post(f"/jobs/{self._find(job)['id']}:{verb}"))


def named(job: Job | str) -> str:
    """What names the job in calls."""
    return job.id if isinstance(job, Job) else job


class Datasets:
    """`client.datasets`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def upload(
        self,
        file: str | os.PathLike[str],
        *,
        type: str = "auto",  # noqa: A002  a job file's word
        columns: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Upload a data file (JSONL, CSV, Parquet). The server checks every row. `type` says how its rows are read.

        `columns` are names of columns, as in a job file: `{"field_messages": "turns"}`.
        """
        return self._upload(Path(file), Path(file).name, type, columns)

    def upload_rows(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        name: str = "rows.jsonl",
        type: str = "auto",  # noqa: A002  a job file's word
        columns: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Upload rows of this program as the data file `name`."""
        lines = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
        return self._upload(lines.encode(), name, type, columns)

    def _upload(self, data: Path | bytes, name: str, kind: str, columns: Mapping[str, Any] | None) -> Dataset:
        named = {"columns": json.dumps(dict(columns))} if columns else {}
        try:
            return Dataset.of(self._connection.upload("/datasets", data, name=name, type=kind, **named))
        except OSError as error:
            raise Error(f"{data}: {error.strerror}", reason="usage") from error


def _body(connection: Connection, job: JobLike, folders: Sequence[Path] | None) -> dict[str, Any]:
    """The job in the server's format, checked, with its data files uploaded."""
    folder, name = None, "job"
    if isinstance(job, (str, os.PathLike)):
        path = Path(job)
        folder, name, data = path.parent, str(path), job_file.read(path)
    elif isinstance(job, Mapping):
        data = dict(job)
    else:
        data = job.model_dump(mode="json", exclude_unset=True)
    return job_file.send_data(connection, name, job_file.check(name, data), folder=folder, within=folders)
