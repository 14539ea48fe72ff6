"""One session: claim the lease, fetch, train, report, save, and leave in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import stamina

from worker.agent import hardware, inputs, offline
from worker.agent.deadline import Budget, Cadence
from worker.agent.endings import ending_of
from worker.agent.limits import Ending, Limits, Part, Watch, ended_after
from worker.agent.offline import KeepFolder
from worker.agent.outbox import Outbox
from worker.agent.progress import Progress
from worker.agent.saver import Kept, Saver, bring_home
from worker.agent.time_ledger import Ledger
from worker.agent.uplink import HttpUplink, Refused, ServerAway, StdoutUplink, Uplink, UplinkError
from worker.agent.upload_grants import Uploads
from worker.shared import causes
from worker.shared.checkpoint_file import sha256_file
from worker.shared.messages import (
    Action,
    Assignment,
    Directive,
    ExportedAdapter,
    Failure,
    Fidelity,
    Finish,
    Grant,
    GrantKind,
    Manifest,
    MetricRow,
    Offer,
    Phase,
    Release,
    Report,
    Sample,
    Started,
    Ticket,
)
from worker.shared.process import UNDELIVERED
from worker.training.interface import Decision, Snapshot, Trained

GOODBYE_S = 10.0
"""Kept for the last messages, and given to them even when the budget is over."""
EARLY_GOODBYE_S = 300.0
"""For the last word of a session that did nothing, while the server is away."""


def run(ticket: Ticket, home: Path, *, began: float, limits: Limits | None = None) -> int:
    """Work off one lease in the folder `home`; returns the process's exit code. `began` is a monotonic time."""
    ledger = Ledger(began=began)
    if (assignment := offline.assignment_of(ticket, began)) is not None:
        keep = KeepFolder(Path(assignment.keep_dir or home / "keep"), assignment)
        return Session(assignment, StdoutUplink(ticket), home, ledger, keep, limits).work()
    uplink = HttpUplink(ticket)
    try:
        assignment = _start(uplink, ticket, limits or Limits())
    except UplinkError as error:
        _log(f"cannot start: {error}")
        return 1
    return Session(assignment, uplink, home, ledger, limits=limits).work()


def _start(uplink: HttpUplink, ticket: Ticket, limits: Limits) -> Assignment:
    with ended_after(
        limits.imports_s
    ):  # a look at the machine imports torch, and nothing can be said under a lease yet
        request = offline.start_request()
    for attempt in stamina.retry_context(on=ServerAway, attempts=None, timeout=ticket.budget_s, wait_max=15.0):
        with attempt:
            return uplink.start(request)
    raise ServerAway("the server did not answer while this session lasted")


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Session:
    """The hooks of the trainer and the counter of the saver, around one assignment.

    `keep` is given where the server cannot be called. Once a file had to be kept there, `_holding` says that nothing but
    reports is said aloud any more: what was kept counts only when it has been handed over.
    """

    def __init__(
        self,
        assignment: Assignment,
        uplink: Uplink,
        home: Path,
        ledger: Ledger,
        keep: KeepFolder | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._assignment, self._uplink, self._home, self._ledger = assignment, uplink, home, ledger
        self._keep, self._holding = keep, False
        self._budget, self._limits = Budget(assignment.seconds_left), limits or Limits()
        self._watch = Watch(
            self._limits, self._budget, leave=self._leave_early, signalled=lambda: self._depart("drained")
        )
        self._cadence = Cadence(
            assignment.mtbf_s,
            assignment.spec.checkpoint.max_interval_s,
            min_interval_s=offline.least_interval_s(assignment.seconds_left, assignment.uploads) if keep else 0.0,
        )
        self._uploads = Uploads(assignment.uploads, lambda kind, count: uplink.grants(assignment.fence, kind, count))
        self._leave: str = ""
        self._over = threading.Event()
        self._why_over = ""
        self._progress = Progress(assignment.resume_step)
        self._last_complaint = ""
        self._saver = Saver(
            home / "spool", assignment.resume.sha256 if assignment.resume else None, self._budget, self._cadence, self
        )
        self._outbox = Outbox(
            uplink,
            keep.outbox if keep else home / "outbox.jsonl",
            assignment.report_every_s,
            beat=self._beat,
            on_directive=self._obey,
            on_offer=self._saver.answered,
            on_stale=self._end,
            complain=self.complain,
        )

    # --- the course of a session ---

    def work(self) -> int:
        """Do as much of the job as fits; returns the exit code: 0 said goodbye or finished, 1 failed, 3 lease over, 4 unheard."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._depart("drained"))
        _log(
            f"job {self._assignment.job} lease {self._assignment.lease} fence {self._assignment.fence}: "
            f"from step {self._progress.step}, {self._budget.left:.0f} s"
        )
        self._outbox.open()
        self._watch.start()
        try:
            if self._keep is not None:
                self._begin_alone()
            return self._train()
        except Exception as error:  # noqa: BLE001  whatever it is, the server and the owner are told
            ending = ending_of(error, self._assignment.resume)
        return self._last_word(self._release(ending), 0) if isinstance(ending, Ending) else self._fail(ending)

    def _begin_alone(self) -> None:
        self.begins(Part.IMPORTS)
        request = offline.start_request()
        self.begins(Part.DATA)
        lease, fence = self._assignment.lease, self._assignment.fence
        self._outbox.say(lambda seq: Started(lease=lease, fence=fence, seq=seq, request=request), urgent=True)
        if not offline.uploads_work(self._assignment.uploads):
            self._hold("nothing can be uploaded from this machine")

    def _hold(self, why: str) -> None:
        if not self._holding:
            _log(f"{why}: checkpoints stay here until the provider hands them over")
        self._holding = True
        self._outbox.hold()

    def _train(self) -> int:
        from worker.training import smoke  # seconds of imports: the server already knows that we are at work

        self.begins(Part.IMPORTS)
        _log(f"the training libraries work here: {smoke.check(self._assignment.spec)}")
        self.phase(Phase.DOWNLOAD)
        job = inputs.everything(self._assignment, self._home, self._limits, begins=self.begins, say=self.complain)
        self._beat(urgent=True)
        self.phase(Phase.LOAD)
        self.begins(Part.IMPORTS)
        from worker.training import train

        trained = train.train(job, self)
        self._watch.passed()
        if self._over.is_set():
            _log(f"stopping: {self._why_over}")
            return 3
        self.phase(Phase.WAIT)
        if trained.complete:
            return self._deliver(trained)
        self._saver.settle(max(GOODBYE_S, self._budget.left - GOODBYE_S))
        return self._goodbye(self._leave or "deadline", self._saver.problem)

    def _deliver(self, trained: Trained) -> int:
        """The last step is done: bring checkpoint and adapter home, then finish.

        A server that stays away finds the offer and the finish in the outbox, in this order.
        """
        if not self._saver.settle(max(GOODBYE_S, self._budget.left - GOODBYE_S)) and self._saver.problem:
            return self._fail(Failure(message=self._saver.problem, permanent=False))
        assert trained.adapter_zip is not None
        assert trained.adapter_sha256 is not None
        sha256, size = sha256_file(trained.adapter_zip), trained.adapter_zip.stat().st_size
        key = self._adapter_home(trained.adapter_zip)
        adapter = ExportedAdapter(key=key, sha256=sha256, size=size, adapter_sha256=trained.adapter_sha256)
        finish = self._said(Finish, step=trained.step, adapter=adapter, head=self._saver.head)
        return self._last_word(finish, 0)

    def _adapter_home(self, path: Path) -> str:
        """Bring the adapter where it belongs; returns its key."""
        try:
            patience_s = max(GOODBYE_S, self._budget.left - GOODBYE_S)
            return bring_home(path, lambda: self._upload_grant(GrantKind.ADAPTER), patience_s)
        except (UplinkError, OSError) as error:
            kept = self.keep(path, str(error))
            if kept is None:
                raise
            return kept.key

    def _goodbye(self, reason: str, detail: str = "", cause: str = "") -> int:
        return self._last_word(self._release(Ending(reason, detail, cause)), 0)

    def _release(self, ending: Ending) -> Callable[[int], Any]:
        _log(f"goodbye at step {self._progress.step}: {ending.reason} {ending.detail}")
        return self._said(
            Release,
            step=self._progress.step,
            reason=ending.reason,
            detail=ending.detail,
            cause=ending.cause,
            head=self._saver.head,
        )

    def _fail(self, failure: Failure) -> int:
        if self._over.is_set():
            _log(f"stopping: {self._why_over}")
            return 3
        _log(f"failed: {failure.message}\n{failure.detail}".rstrip())
        return self._last_word(self._said(Finish, step=self._progress.step, failure=failure, head=self._saver.head), 1)

    def _leave_early(self, ending: Ending) -> int:
        """Say goodbye on the watch's thread, before the first step; returns the exit code."""
        if self._over.is_set():
            _log(f"stopping: {self._why_over}")
            return 3
        return self._deliver_word(self._release(ending), 0, EARLY_GOODBYE_S if ending.cause else GOODBYE_S)

    def _last_word(self, make: Callable[[int], Any], code: int) -> int:
        self._watch.passed()
        return self._deliver_word(make, code, self._budget.left if self._progress.made else EARLY_GOODBYE_S)

    def _deliver_word(self, make: Callable[[int], Any], code: int, patience_s: float) -> int:
        self._outbox.say(make, urgent=True)
        if not self._outbox.close(max(GOODBYE_S, min(patience_s, self._budget.left))):
            _log("the server is still away; it will find the last messages here")
            code = code or UNDELIVERED
        self._saver.stop()
        return 3 if self._over.is_set() else code

    def _said(self, kind: Any, **fields: Any) -> Callable[[int], Any]:
        ledger = self._ledger.seconds()
        return lambda seq: kind(
            lease=self._assignment.lease, fence=self._assignment.fence, seq=seq, ledger=ledger, **fields
        )

    # --- what the server says ---

    def _obey(self, directive: Directive) -> None:
        if directive.action is Action.DRAIN:
            self._depart("paused" if directive.reason == "paused" else "drained")
        elif directive.action is Action.ABORT:
            self._depart("cancelled")

    def _depart(self, reason: str) -> None:
        self._leave = self._leave or reason
        self._watch.ask(Ending(self._leave))

    def _end(self, why: str) -> None:
        self._why_over = why
        self._over.set()
        self._saver.stop()
        self._watch.ask(Ending("cancelled", why))

    # --- what the saver asks ---

    def grant(self) -> Grant:
        return self._upload_grant(GrantKind.CHECKPOINT)

    def _upload_grant(self, kind: GrantKind) -> Grant:
        if self._holding:
            raise Refused("checkpoints stay on this machine")
        return self._uploads.take(kind)

    def offer(self, *, key: str, sha256: str, size: int, manifest: Manifest) -> Offer:
        lease, fence = self._assignment.lease, self._assignment.fence
        said = self._outbox.say(
            lambda seq: Offer(lease=lease, fence=fence, seq=seq, key=key, sha256=sha256, size=size, manifest=manifest),
            urgent=True,
        )
        assert isinstance(said, Offer)
        return said

    def keep(self, path: Path, why: str) -> Kept | None:
        if self._keep is None:
            return None
        self._hold(why)
        return self._keep.take(path)

    def withdraw(self, offer: Offer) -> None:
        self._outbox.withdraw(offer)

    def refused(self, why: str) -> None:
        self._end(why)

    def complain(self, text: str) -> None:
        if text != self._last_complaint:
            _log(text)
        self._last_complaint = text

    # --- what the trainer tells ---

    def phase(self, phase: Phase) -> None:
        before = self._ledger.phase
        took = self._ledger.enter(phase)
        if before is Phase.SAVE:
            self._cadence.stalled(took)

    def begins(self, part: Part) -> None:
        self._watch.begins(part)

    def lost(self, words: str) -> None:
        if not self._watch.ask(Ending("unfit", words, causes.GPUS)):
            _log(words)
            os._exit(1)  # to the server that is a lost session, and the job goes on from its last checkpoint

    def restored(self, step: int, fidelity: Fidelity, backend: str) -> None:
        self.begins(Part.FIRST_STEP)
        self._progress.restored(step, fidelity, backend)
        _log(f"ready at step {step} ({backend}, {fidelity})")
        self._beat(urgent=True)

    def step_done(self, step: int, values: Mapping[str, float], seconds: float) -> Decision:
        if not self._progress.made:
            self._watch.passed()
        self._budget.stepped(self._progress.stepped(step, seconds))
        rate = values.get("tokens", 0.0) / seconds if seconds else 0.0
        self._report((MetricRow(step=step, values={**values, "tokens_per_s": rate, "step_seconds": seconds}),))
        print(f"step {step} loss {values.get('loss', float('nan')):.4f} {seconds:.2f} s", flush=True)
        return self._decide()

    def _decide(self) -> Decision:
        if self._over.is_set() or self._leave == "cancelled":
            return Decision.STOP
        if self._leave or self._budget.is_nearly_over:
            return Decision.SAVE_AND_STOP
        if self._cadence.is_due and not self._saver.is_busy:
            self._cadence.begun()
            return Decision.SAVE
        return Decision.CONTINUE

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        self._report((MetricRow(step=step, values=dict(values)),))

    def sampled(self, samples: tuple[Sample, ...]) -> None:
        for sample in samples:  # each on its own: the outbox sends as many together as fit
            self._report((), (sample,))

    def save(self, snapshot: Snapshot) -> None:
        self._saver.take(snapshot)

    def _beat(self, *, urgent: bool = False) -> None:
        self._report((), reading=True, urgent=urgent)

    def _report(
        self,
        metrics: tuple[MetricRow, ...],
        samples: tuple[Sample, ...] = (),
        *,
        reading: bool = False,
        urgent: bool = False,
    ) -> None:
        look = hardware.reading() if reading else None
        fields = self._said(
            Report,
            **self._progress.told(),
            phase=self._ledger.phase,
            metrics=metrics,
            samples=samples,
            reading=look,
            seconds_left=self._budget.left,
        )
        self._outbox.say(fields, urgent=urgent)
