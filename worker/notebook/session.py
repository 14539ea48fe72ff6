"""One notebook's session: claim, start the worker beside the kernel, watch it, and report how it ended."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter, ValidationError

import worker
from worker.notebook.connection import Connection, Next
from worker.notebook.errors import NotebookError
from worker.notebook.packages import needed, worker_folder
from worker.notebook.panel import Panel, Progress
from worker.shared import causes
from worker.shared.manifest import Hardware
from worker.shared.messages import LINE_MARK, Failure, Finish, Message, Release
from worker.shared.notebook_messages import Claimed, ClaimRequest
from worker.shared.package_folder import FOLDER, search_path
from worker.shared.places import here
from worker.shared.process import UNDELIVERED, last_line, tied
from worker.shared.wire import PROTOCOL_VERSION

LOOK_EVERY_S = 1.0
LAST_SEQ = 1_000_000_000
"""Higher than any sequence number of a worker."""
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
LOG = "output.log"


def work(code: str, connection: Connection) -> None:
    """See `worker.notebook.run`."""
    hardware = _probe()
    claimed = connection.claim(
        ClaimRequest(
            protocol=PROTOCOL_VERSION, code=code, nonce=secrets.token_hex(16), hardware=hardware, runs_in=here()
        )
    )
    panel = Panel(progress := Progress.of(claimed, hardware.name or hardware.device))
    home = Path(tempfile.mkdtemp(prefix="trainhop-"))
    try:
        progress.last_word = _run(connection, claimed, home, progress, panel)
    finally:
        panel.show(last=True)
        shutil.rmtree(home, ignore_errors=True)


def _probe() -> Hardware:
    """The hardware as a worker process sees it. Runs in a child process, so that the kernel holds no GPU memory."""
    if importlib.util.find_spec("torch") is None:
        raise NotebookError("This kernel has no torch. Choose another kernel, or install it with `pip install torch`.")
    done = subprocess.run(
        tied([sys.executable, "-m", "worker.agent.hardware"]),
        env=environment(None),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotebookError(f"The hardware of this machine could not be read: {last_line(done.stderr)}")
    return Hardware.model_validate_json(done.stdout.strip().splitlines()[-1])


def environment(folder: Path | None) -> dict[str, str]:
    """The kernel's environment with this worker, and its packages if installed, first on the path."""
    package, inherited = Path(worker.__file__).parents[1], os.environ.get("PYTHONPATH", "")
    path = search_path([package, *([folder] if folder else [])], inherited)
    variables = {"WORKER_MAY_INSTALL": "1"} if here() != "jupyter" else {}
    if folder is not None:
        variables[FOLDER] = str(folder)
    # Keeps the current folder, which may contain a worker.py, off the path of the worker's processes.
    return os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"} | variables


def _run(connection: Connection, claimed: Claimed, home: Path, progress: Progress, panel: Panel) -> str:
    """Prepare, start and watch the worker. Returns the text for the person. The job is released in any case."""
    outbox = Tail(connection.outbox(home))
    try:
        if names := needed():
            progress.doing = f"installing {', '.join(names)}"
            panel.show()
        child = _start(claimed, home, worker_folder())
    except NotebookError as error:
        _send_last_message(connection, claimed, "unfit", str(error), causes.INSTALL)
        return f"{str(error).removesuffix('.')}. The job is queued again."
    except KeyboardInterrupt:
        _send_last_message(connection, claimed, "drained", "interrupted before it started")
        return "Stopped before training started. The job is queued again."
    log = home / LOG
    interrupted, requested = watch(child, outbox, log, connection, progress, panel)
    code = child.returncode
    if not connection.flush(log):
        code = code or UNDELIVERED
    last = _with_server_reason(outbox.last, requested)
    return _summary(connection, claimed, code, last, last_output_line(log), interrupted)


def _start(claimed: Claimed, home: Path, packages: Path) -> subprocess.Popen[bytes]:
    ticket = home / "ticket.json"
    ticket.touch(mode=0o600)
    ticket.write_text(claimed.ticket.model_dump_json())
    with (home / LOG).open("wb") as log:
        # In its own session, so that an interrupt of the cell reaches only the kernel, which then stops the worker.
        return subprocess.Popen(
            [sys.executable, "-m", "worker.notebook.attended", str(ticket)],
            env=environment(packages),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def watch(
    child: subprocess.Popen[bytes], outbox: Tail, log: Path, connection: Polled, progress: Progress, panel: Panel
) -> tuple[bool, Next]:
    """Follow the worker to its end. Returns whether the person interrupted it, and what the server requested.

    A second interrupt kills the worker at once.
    """
    interrupted, requested = False, Next.GO_ON
    while True:
        try:
            with suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_EVERY_S)
            for message in outbox.fresh():
                progress.take(message)
            if interrupted:
                progress.doing = "interrupted: saving (interrupt again to stop at once)"
            panel.show()
            if child.returncode is not None:
                return interrupted, requested
            if (wanted := connection.poll(log)) is not Next.GO_ON:
                requested = wanted
                child.kill() if wanted is Next.STOP else child.terminate()
        except KeyboardInterrupt:
            if interrupted:
                child.kill()
            else:
                child.terminate()
            interrupted = True


class Polled(Protocol):
    """The part of a `Connection` that is called while the worker runs."""

    def poll(self, log: Path) -> Next:
        """See `Connection`."""
        ...


class Tail:
    """Reads the worker's stored messages as they appear. An incomplete last line is read later."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self.last: Message | None = None

    def fresh(self) -> Iterator[Message]:
        """Messages since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                with suppress(ValidationError):
                    self.last = _MESSAGE.validate_json(line)
                    yield self.last


def _with_server_reason(last: Message | None, requested: Next) -> Message | None:
    """Set the server's reason in the release of a worker that did not receive it."""
    reason = {Next.PAUSE: "paused", Next.CANCEL: "cancelled"}.get(requested)
    return last.model_copy(update={"reason": reason}) if isinstance(last, Release) and reason else last


def _summary(
    connection: Connection, claimed: Claimed, code: int, last: Message | None, log: str, interrupted: bool
) -> str:
    """How the session ended and what to do next. A lease that the worker did not release is released here."""
    job, again = claimed.job, f"To continue in a notebook, create a new one with `trainhop notebook {claimed.job}`"
    if code == UNDELIVERED:
        return (
            "The server did not receive the last messages. When it is running again, the job resumes from its last "
            "checkpoint. "
            f"{again}."
        )
    match last:
        case Finish(failure=None) if code == 0:
            fetch = f"trainhop adapter {job} --out my-adapter"
            steps = f"all {claimed.total_steps} steps are complete"
            if last.step < claimed.total_steps:
                steps = f"stopped early at step {last.step} of {claimed.total_steps}"
            return f"Succeeded: {steps}. Download the adapter with `{fetch}`."
        case Finish(failure=Failure() as failure):
            return f"Training failed: {failure.message}. See `trainhop show {job}`."
        case Release() if code == 0:
            return _release_summary(last, job, again)
        case _:
            pass
    if code == 3:
        return f"The lease of this session has ended, so it stopped ({log}). See `trainhop show {job}`."
    why = "it was interrupted" if interrupted else exit_reason(code, log)
    _send_last_message(connection, claimed, "drained" if interrupted else "failed", why)
    return f"The worker ended early: {why}. The job resumes from its last checkpoint. {again}."


def _release_summary(last: Release, job: str, again: str) -> str:
    saved = f"step {last.step} is saved and the job is queued again"
    match last.reason:
        case "deadline":
            return f"The time limit is reached: {saved}. {again}."
        case "drained":
            return f"Stopped: {saved}. {again}."
        case "paused":
            return f"Paused at step {last.step}. The checkpoint is saved. Resume with `trainhop resume {job}`."
        case "cancelled":
            return f"Cancelled at step {last.step}."
        case "unfit":
            return f"This machine cannot run the job ({last.detail}). The job is queued again."


def exit_reason(code: int, log: str) -> str:
    """How the worker ended. `log` is its last line."""
    if code == -9:
        return "it was killed, probably because this machine ran out of memory"
    return f"exit code {code} ({log})" if log else f"exit code {code}"


def _send_last_message(
    connection: Connection,
    claimed: Claimed,
    reason: Literal["unfit", "drained", "failed"],
    detail: str,
    cause: str = "",
) -> None:
    """Send the last message for a worker that cannot. With a `cause`, `detail` says what to do."""
    fields: dict[str, Any] = {
        "lease": claimed.ticket.lease,
        "fence": claimed.fence,
        "seq": LAST_SEQ,
        "step": claimed.step,
    }
    if reason == "failed":
        connection.send(claimed, Finish(**fields, failure=Failure(message=detail, permanent=False)))
    else:
        connection.send(claimed, Release(**fields, reason=reason, detail=detail, cause=cause, has_remedy=bool(cause)))


def last_output_line(log: Path) -> str:
    """The last line of the worker's output that is not a signed message."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((x.strip()[:300] for x in reversed(lines) if x.strip() and not x.startswith(LINE_MARK)), "")
