"""A client of the server for programs: jobs, plans, data files and adapters."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from trainhop import download, job_file, polling
from trainhop.connection import Connection, find_job
from trainhop.errors import Error
from trainhop.records import Dataset, Job, Plan

MAX_LISTED = 10_000


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
    """

    def __init__(self, url: str | None = None, *, token: str | None = None) -> None:
        self._connection = Connection.find(url, token)
        self.jobs = Jobs(self._connection)
        self.datasets = Datasets(self._connection)

    @property
    def url(self) -> str:
        """The server's address."""
        return self._connection.url

    def plan(self, job: JobLike) -> Plan:
        """Where a job would run and for how long, without queueing it. Its data files are uploaded."""
        return Plan.of(self._connection.post("/jobs:plan", _body(self._connection, job)))

    def close(self) -> None:
        """Close the connections to the server."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Jobs:
    """`client.jobs`. A job is given by its `Job`, its id, its name, or at least the first four characters of its id."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def submit(self, job: JobLike) -> Job:
        """Queue a job once, even if a connection breaks. Its data files on this computer are uploaded."""
        body = _body(self._connection, job)
        return Job.of(self._connection.post("/jobs", body, key=str(uuid.uuid4())))

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
        ident, before = self._find(job)["id"], list[Job]()

        def show(data: dict[str, Any]) -> None:
            now = Job.of(data)
            if not before or (before[-1].state, before[-1].step) != (now.state, now.step):
                before[:] = [now]
                on_change(now)

        timing = polling.Timing(timeout_s=timeout_s)
        return Job.of(polling.until_final(lambda: self._connection.get(f"/jobs/{ident}"), show, timing=timing))

    def download_adapter(self, job: Job | str, folder: str | os.PathLike[str]) -> Path:
        """Create `folder` with a finished job's adapter, in PEFT's format. Every byte is checked against its hash."""
        out = Path(folder)
        download.save_adapter(self._connection, self._find(job), out)
        return out

    def _find(self, job: Job | str) -> dict[str, Any]:
        return find_job(self._connection, job.id if isinstance(job, Job) else job)

    def _change(self, job: Job | str, verb: str) -> Job:
        return Job.of(self._connection.post(f"/jobs/{self._find(job)['id']}:{verb}"))


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
        path = Path(file)
        named = {"columns": json.dumps(dict(columns))} if columns else {}
        try:
            return Dataset.of(self._connection.upload("/datasets", path, name=path.name, type=type, **named))
        except OSError as error:
            raise Error(f"{path}: {error.strerror}", reason="usage") from error


def _body(connection: Connection, job: JobLike) -> dict[str, Any]:
    """The job in the server's format, checked, with its data files uploaded."""
    folder, name = None, "job"
    if isinstance(job, (str, os.PathLike)):
        path = Path(job)
        folder, name, data = path.parent, str(path), job_file.read(path)
    elif isinstance(job, Mapping):
        data = dict(job)
    else:
        data = job.model_dump(mode="json", exclude_unset=True)
    return job_file.send_data(connection, name, job_file.check(name, data), folder=folder)
