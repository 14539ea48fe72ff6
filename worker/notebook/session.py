"""One notebook's session: claim, start the worker beside the kernel, watch it, and say how it ended."""

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
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

import worker
from worker.notebook.errors import NotebookError
from worker.notebook.packages import needed, worker_folder
from worker.notebook.panel import Panel, Progress
from worker.notebook.reach import Next, Reach
from worker.shared import causes
from worker.shared.messages import LINE_MARK, PROTOCOL_VERSION, Failure, Finish, Hardware, Message, Release
from worker.shared.notebook_messages import Claimed, ClaimRequest
from worker.shared.package_folder import FOLDER, search_path
from worker.shared.process import UNDELIVERED

LOOK_EVERY_S = 1.0
LAST_SEQ = 1_000_000_000
"""Above every number that a worker gets to."""
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
LOG = "output.log"


def work(code: str, reach: Reach) -> None:
    """See `worker.notebook.run`."""
    hardware = _probe()
    claimed = reach.claim(
        ClaimRequest(
            protocol=PROTOCOL_VERSION, code=code, nonce=secrets.token_hex(16), hardware=hardware, runs_in=_place()
        )
    )
    panel = Panel(progress := Progress.of(claimed, hardware.name or hardware.device))
    home = Path(tempfile.mkdtemp(prefix="trainhop-"))
    try:
        progress.last_word = _run(reach, claimed, home, progress, panel)
    finally:
        panel.show(last=True)
        shutil.rmtree(home, ignore_errors=True)


def _probe() -> Hardware:
    """The machine as a worker process sees it. In a process of its own: the kernel must not hold memory of the GPU."""
    if importlib.util.find_spec("torch") is None:
        raise NotebookError("this kernel has no torch: choose one that has, or install it with `pip install torch`")
    code = "from worker.agent.hardware import probe; print(probe().model_dump_json())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=_environment(None), capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NotebookError(f"this machine could not be looked at: {why}")
    return Hardware.model_validate_json(done.stdout.strip().splitlines()[-1])


def _environment(folder: Path | None) -> dict[str, str]:
    """The kernel's, with this very worker in front, and its packages where there are any yet."""
    here, inherited = Path(worker.__file__).parents[1], os.environ.get("PYTHONPATH", "")
    path = search_path([here, *([folder] if folder else [])], inherited)
    ours = {"WORKER_MAY_INSTALL": "1"} if _place() != "jupyter" else {}
    if folder is not None:
        ours[FOLDER] = str(folder)
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | ours


def _place() -> Literal["colab", "kaggle", "jupyter"]:
    if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules:
        return "colab"
    return "kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else "jupyter"


def _run(reach: Reach, claimed: Claimed, home: Path, progress: Progress, panel: Panel) -> str:
    """Prepare, start and watch the worker; returns what to tell its person. Whatever happens, the job is given back."""
    outbox = Tail(reach.outbox(home))
    try:
        if names := needed():
            progress.doing = f"bringing {', '.join(names)}"
            panel.show()
        child = _start(claimed, home, worker_folder())
    except NotebookError as error:
        _give_back(reach, claimed, "unfit", str(error), causes.INSTALL)
        return f"{error}; the job is back in the queue."
    except KeyboardInterrupt:
        _give_back(reach, claimed, "drained", "interrupted before it began")
        return "Stopped before training began; the job is back in the queue."
    log = home / LOG
    interrupted, asked = _watch(child, outbox, log, reach, progress, panel)
    code = child.returncode
    if not reach.settle(log):
        code = code or UNDELIVERED
    last = _as_asked(outbox.last, asked)
    return _summary(reach, claimed, code, last, _last_words(log), interrupted)


def _start(claimed: Claimed, home: Path, packages: Path) -> subprocess.Popen[bytes]:
    ticket = home / "ticket.json"
    ticket.touch(mode=0o600)
    ticket.write_text(claimed.ticket.model_dump_json())
    with (home / LOG).open("wb") as log:
        # A session of its own: an interrupt of the cell reaches the kernel alone, which then asks the worker to leave.
        return subprocess.Popen(
            [sys.executable, "-m", "worker.notebook.attended", str(ticket)],
            env=_environment(packages),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _watch(
    child: subprocess.Popen[bytes], outbox: Tail, log: Path, reach: Reach, progress: Progress, panel: Panel
) -> tuple[bool, Next]:
    """Follow the worker to its end; returns whether its person interrupted it, and what the server asked by this way.

    The second interrupt does not wait.
    """
    interrupted, asked = False, Next.GO_ON
    while True:
        try:
            with suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_EVERY_S)
            for message in outbox.fresh():
                progress.take(message)
            if interrupted:
                progress.doing = "interrupted: saving and handing back (interrupt again to stop at once)"
            panel.show()
            if child.returncode is not None:
                return interrupted, asked
            if (wanted := reach.tend(log)) is not Next.GO_ON:
                asked = wanted
                child.kill() if wanted is Next.STOP else child.terminate()
        except KeyboardInterrupt:
            if interrupted:
                child.kill()
            else:
                child.terminate()
            interrupted = True


class Tail:
    """Reads what the worker writes down for the server, as it appears; a torn last line waits for its end."""

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


def _as_asked(last: Message | None, asked: Next) -> Message | None:
    """A worker that was told to leave says goodbye without knowing why."""
    reason = {Next.PAUSE: "paused", Next.CANCEL: "cancelled"}.get(asked)
    return last.model_copy(update={"reason": reason}) if isinstance(last, Release) and reason else last


def _summary(reach: Reach, claimed: Claimed, code: int, last: Message | None, log: str, interrupted: bool) -> str:
    """One sentence on how it ended and one on what to do next; a worker that said no goodbye is spoken for."""
    job, again = claimed.job, f"to go on in a notebook, make a new one with `trainhop notebook {claimed.job}`"
    if code == UNDELIVERED:
        return (
            "The server did not hear the last messages; the job goes on from its last checkpoint when the server is back: "
            f"{again}."
        )
    match last:
        case Finish(failure=None) if code == 0:
            return f"Done: all {claimed.total_steps} steps are trained; fetch the adapter with `trainhop adapter {job} --out my-adapter`."
        case Finish(failure=Failure() as failure):
            return f"Training failed: {failure.message}; `trainhop show {job}` says what happens next."
        case Release() if code == 0:
            return _goodbye(last, job, again)
        case _:
            pass
    if code == 3:
        return f"This session's lease is over, so it stopped ({log}); `trainhop show {job}` says where the job is."
    why = "it was stopped by hand" if interrupted else _death(code, log)
    _give_back(reach, claimed, "drained" if interrupted else "failed", why)
    return f"The worker ended early: {why}; the job goes on from its last checkpoint, and {again}."


def _goodbye(last: Release, job: str, again: str) -> str:
    saved = f"step {last.step} is saved and the job is back in the queue"
    match last.reason:
        case "deadline":
            return f"The time is up: {saved}; {again}."
        case "drained":
            return f"Stopped: {saved}; {again}."
        case "paused":
            return f"Paused at step {last.step}, everything is saved; let it go on with `trainhop resume {job}`."
        case "cancelled":
            return f"Cancelled at step {last.step}."
        case "unfit":
            return f"This machine cannot run the job ({last.detail}); the job is back in the queue."


def _death(code: int, log: str) -> str:
    if code == -9:
        return "it was killed, most likely because this machine ran out of memory"
    return f"exit code {code} ({log})" if log else f"exit code {code}"


def _give_back(
    reach: Reach, claimed: Claimed, reason: Literal["unfit", "drained", "failed"], detail: str, cause: str = ""
) -> None:
    """Speak for a worker that cannot."""
    said: dict[str, Any] = {
        "lease": claimed.ticket.lease,
        "fence": claimed.fence,
        "seq": LAST_SEQ,
        "step": claimed.step,
    }
    if reason == "failed":
        reach.say(claimed, Finish(**said, failure=Failure(message=detail, permanent=False)))
    else:
        reach.say(claimed, Release(**said, reason=reason, detail=detail, cause=cause))


def _last_words(log: Path) -> str:
    """The last line of the worker's output that is meant for people."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((x.strip()[:300] for x in reversed(lines) if x.strip() and not x.startswith(LINE_MARK)), "")
