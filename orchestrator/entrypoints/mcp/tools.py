"""The tools. Each calls the server as the person or program whose token was given, so it may do what that token may."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp.types import ToolAnnotations
from pydantic import Field

import trainhop
from orchestrator.entrypoints.mcp.results import (
    JobDetails,
    JobList,
    JobResult,
    LogResult,
    PlanResult,
    WaitingResult,
)
from trainhop import job_file

MAX_FILE = 262_144
"""Characters of a job file."""
MAX_ROWS, MAX_ROWS_TEXT = 2_000, 1 << 20
"""Inline rows, and their characters as JSON."""
MAX_LOG, USUAL_LOG = 65_536, 8_192
"""Bytes of a session's output in one answer."""
MAX_LOG_PIECES = 64
"""Pieces of 1 MiB that are read to find the end of a session's output."""
MAX_RECENT = 10
"""Sessions and evaluations of a job that are shown."""
INLINE = "rows"
"""The path of a dataset in a job file that stands for the inline rows."""
NOTHING = {
    "queued": "Nothing keeps it from starting. It starts when the scheduler looks next, within seconds.",
    "paused": "It is paused. Resume it to queue it again.",
}
"""Reasons of jobs for which the server names none."""

Connect = Callable[[Context], AbstractContextManager[trainhop.Client]]
"""A client with the token of the call."""
Ident = Annotated[str, Field(min_length=1, max_length=200, description="A job's id or name.")]
JobFile = Annotated[
    str | dict[str, Any],
    Field(
        description="The job file, as YAML text or as an object: base_model, datasets, num_epochs or max_steps, "
        "learning_rate, lora_r ... The path of a dataset is `sha256:HEX` of an uploaded file, a Hugging Face dataset, "
        f"a file in an allowed folder, or `{INLINE}` for the argument `rows`."
    ),
]
Rows = Annotated[
    list[dict[str, Any]] | None,
    Field(
        max_length=MAX_ROWS,
        description='Training rows, in place of a file: {"prompt": ..., "completion": ...}, {"messages": [...]} '
        'or {"text": ...}.',
    ),
]
Key = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        description="A text of your choice. A repeated call with the same key returns the same job and starts nothing.",
    ),
]
Sha256 = Annotated[str | None, Field(pattern=r"^sha256:[0-9a-f]{64}$", description="An uploaded file, `sha256:HEX`.")]

Benchmarks = Annotated[list[str] | None, Field(max_length=20, description="Names, such as arc_easy.")]


class Refused(trainhop.Error):
    """The arguments of a call are refused, with a sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, reason="usage")


class Tools:
    """The tools as methods. `connect` gives a client for a call."""

    def __init__(self, connect: Connect, *, read_only: bool = False) -> None:
        self._connect, self._read_only = connect, read_only

    def plan(self, context: Context, job: JobFile, rows: Rows = None) -> PlanResult:
        """Tell where a job would run, for how long and in how many sessions. Nothing is queued."""
        if self._read_only and rows is not None:
            raise Refused("Rows would be uploaded, and this server is read-only. Name an uploaded file.")
        with self._connect(context) as client:
            return PlanResult.of(client.plan(_job(client, job, rows)))

    def submit(self, context: Context, job: JobFile, key: Key, rows: Rows = None) -> JobResult:
        """Queue a fine-tuning job. It uses hours of the person's accounts, so plan it first."""
        with self._connect(context) as client:
            return JobResult.of(client.jobs.submit(_job(client, job, rows), key=key))

    def list(
        self,
        context: Context,
        state: Annotated[str | None, Field(max_length=20, description="Only jobs in this state.")] = None,
        name: Annotated[
            str | None, Field(max_length=200, description="Only jobs with this text in their name.")
        ] = None,
        limit: Annotated[int, Field(ge=1, le=100)] = 20,
    ) -> JobList:
        """List jobs, newest first, each with its state, step and loss."""
        with self._connect(context) as client:
            return JobList(jobs=[JobResult.of(each) for each in client.jobs.list(state=state, name=name, limit=limit)])

    def show(self, context: Context, job: Ident) -> JobDetails:
        """Show a job with its job file, its newest sessions, and its evaluations with their reports."""
        with self._connect(context) as client:
            found = client.jobs.get(job)
            sessions = client.jobs.sessions(found)[-MAX_RECENT:]
            return JobDetails.in_full(found, [*sessions], [*client.jobs.evaluations(found)[:MAX_RECENT]])

    def logs(
        self,
        context: Context,
        job: Ident,
        session: Annotated[str | None, Field(max_length=64, description="A session's id. Default: the newest.")] = None,
        offset: Annotated[int | None, Field(ge=0, le=2**40, description="First byte. Default: the last ones.")] = None,
        max_bytes: Annotated[int, Field(ge=64, le=MAX_LOG)] = USUAL_LOG,
    ) -> LogResult:
        """Read an excerpt of the output of a job's session, by default its end."""
        with self._connect(context) as client:
            sessions = [each.id for each in client.jobs.sessions(job)]
            chosen = session or (sessions[-1] if sessions else "")
            if chosen not in sessions:
                raise Refused(f"The job has no session {session}." if session else "The job has no session yet.")
            found = _tail(client, chosen, max_bytes) if offset is None else _piece(client, chosen, offset, max_bytes)
        return LogResult.model_validate(found, from_attributes=True)

    def explain_waiting(self, context: Context, job: Ident) -> WaitingResult:
        """Explain why a job does not run yet, and until when, if that is known."""
        with self._connect(context) as client:
            found = client.jobs.get(job)
        waits = found.state in {"queued", "starting", "paused"}
        reason = (found.waiting or found.message or NOTHING.get(found.state, "")) if waits else ""
        return WaitingResult(state=found.state, waits=waits, reason=reason, until=found.waiting_until)

    def pause(self, context: Context, job: Ident) -> JobResult:
        """Pause a job. A running one saves a checkpoint after the current step. `resume` continues it."""
        with self._connect(context) as client:
            return JobResult.of(client.jobs.pause(job))

    def resume(self, context: Context, job: Ident) -> JobResult:
        """Resume a paused job from its last checkpoint."""
        with self._connect(context) as client:
            return JobResult.of(client.jobs.resume(job))

    def cancel(self, context: Context, job: Ident) -> JobResult:
        """End a job. Its last checkpoint is kept. To continue later, use `pause`."""
        with self._connect(context) as client:
            return JobResult.of(client.jobs.cancel(job))

    def evaluate(
        self,
        context: Context,
        job: Ident,
        key: Key,
        prompts: Sha256 = None,
        tasks: Sha256 = None,
        benchmarks: Benchmarks = None,
        max_prompts: Annotated[int, Field(ge=1, le=500)] = 100,
        max_new_tokens: Annotated[int, Field(ge=1, le=4_096)] = 256,
    ) -> JobResult:
        """Queue a job that lets the base model and the adapter answer prompts. `show` has its report later."""
        settings: dict[str, Any] = {"max_prompts": max_prompts, "max_new_tokens": max_new_tokens}
        files = {"prompts": prompts, "tasks": tasks}
        settings |= {name: {"path": path} for name, path in files.items() if path is not None}
        settings |= {"benchmarks": benchmarks} if benchmarks else {}
        with self._connect(context) as client:
            return JobResult.of(client.jobs.evaluate(job, settings, key=key))


READING = ToolAnnotations(read_only_hint=True, open_world_hint=False)
CHANGING = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
ENDING = CHANGING.model_copy(update={"destructive_hint": True})
STARTING = CHANGING.model_copy(update={"open_world_hint": True})
"""Machines of providers begin to work."""

ANNOTATIONS = {
    "plan": CHANGING,  # it uploads rows and files
    "submit": STARTING,
    "list": READING,
    "show": READING,
    "logs": READING,
    "explain_waiting": READING,
    "pause": CHANGING,
    "resume": STARTING,
    "cancel": ENDING,
    "evaluate": STARTING,
}


def all_tools(connect: Connect, *, read_only: bool) -> Iterator[Tool]:
    """The tools of the server. With `read_only`, only those that change nothing."""
    tools = Tools(connect, read_only=read_only)
    for name, hints in (ANNOTATIONS | ({"plan": READING} if read_only else {})).items():
        if read_only and not hints.read_only_hint:
            continue
        tool = Tool.from_function(getattr(tools, name), name, annotations=hints, structured_output=True)
        tool.parameters["additionalProperties"] = False  # `server.py` refuses other arguments
        yield tool


def _job(client: trainhop.Client, given: str | Mapping[str, Any], rows: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The job file's keys. Inline rows are uploaded first."""
    size = len(given) if isinstance(given, str) else len(json.dumps(given))
    if size > MAX_FILE:
        raise Refused(f"The job file has {size:,} characters, and at most {MAX_FILE:,} are read.")
    keys = job_file.parse("job", given) if isinstance(given, str) else dict(given)
    if rows is None:
        return keys
    size = len(json.dumps(rows))
    if size > MAX_ROWS_TEXT:
        raise Refused(f"The rows have {size:,} characters, and at most {MAX_ROWS_TEXT:,} are read. Upload a file.")
    datasets: Any = keys.setdefault("datasets", [{"path": INLINE}])
    job_file.check("job", keys)  # before anything is uploaded
    named = [each for each in datasets if isinstance(each, Mapping) and each.get("path") == INLINE]
    if len(named) != 1:
        raise Refused(f"Exactly one dataset of the job file needs the path `{INLINE}`, which means the rows.")
    how = {key: named[0][key] for key in named[0].keys() & {"type"}}
    columns = {key: value for key, value in named[0].items() if key.startswith(("field", "message_", "roles"))}
    sent = client.datasets.upload_rows(rows, columns=columns or None, **how)
    uploaded = {key: value for key, value in named[0].items() if key not in columns} | {"path": sent.path}
    return keys | {"datasets": [uploaded if each is named[0] else each for each in datasets]}


def _piece(client: trainhop.Client, session: str, offset: int, size: int) -> trainhop.Output:
    return client.jobs.output(session, offset=offset, limit=size)


def _tail(client: trainhop.Client, session: str, size: int) -> trainhop.Output:
    """The last `size` bytes. Of an output that is too large to be read to its end, the last ones that were read."""
    found = client.jobs.output(session, limit=1 << 20)
    for _ in range(MAX_LOG_PIECES):
        if found.is_end:
            break
        found = client.jobs.output(session, offset=found.next_offset, limit=1 << 20)
    begin = max(found.next_offset - size, 0)
    return replace(client.jobs.output(session, offset=begin, limit=size), is_end=found.is_end)
