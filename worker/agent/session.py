"""One session: fetch the inputs, train, report, save, and leave in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from worker.agent import hardware, inputs, offline, work
from worker.agent.deadline import Budget, Cadence
from worker.agent.endings import ending_of
from worker.agent.limits import Ending, Limits, Part, Watch
from worker.agent.offline import KeepFolder
from worker.agent.outbox import Outbox
from worker.agent.progress import Progress
from worker.agent.saver import Kept, Saver, upload_with_retry
from worker.agent.time_ledger import Ledger
from worker.agent.uplink import Refused, Uplink, UplinkError
from worker.agent.upload_grants import Uploads
from worker.shared import causes
from worker.shared.manifest import Fidelity, Manifest
from worker.shared.messages import (
    Action,
    Assignment,
    Directive,
    Failure,
    Finish,
    Grant,
    GrantKind,
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
"""Seconds reserved for the last messages, even after the budget is used up."""
EARLY_GOODBYE_S = 300.0
"""Seconds to wait for an unreachable server with the last message of a session that did no step."""


def log(text: str) -> None:
    """Write a line with the time to the session's log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Session:
    """Implements the trainer's hooks and the saver's `Counter` for one assignment.

    With `can_continue` it asks for another lease after the last step. `apart_s` are the least seconds between saves of
    an online session. `keep` is set in an offline session. `_holding`
    is true once a file had to be kept there. From then on only reports are sent, because a kept checkpoint counts only
    after the provider has handed it over.
    """

    def __init__(
        self,
        assignment: Assignment,
        uplink: Uplink,
        home: Path,
        ledger: Ledger,
        keep: KeepFolder | None = None,
        limits: Limits | None = None,
        *,
        can_continue: bool = False,
        apart_s: float = 0.0,
    ) -> None:
        self._can_continue = can_continue and assignment.spec.evaluation is None
        self._assignment, self._uplink, self._home, self._ledger = assignment, uplink, home, ledger
        self._keep, self._holding = keep, False
        self._budget, self._limits = Budget(assignment.seconds_left), limits or Limits()
        self._watch = Watch(
            self._limits, self._budget, leave=self._leave_early, signalled=lambda: self._request_stop("drained")
        )
        self._cadence = Cadence(
            assignment.mtbf_s,
            assignment.spec.checkpoint.max_interval_s,
            min_interval_s=offline.min_interval_s(assignment.seconds_left, assignment.uploads) if keep else apart_s,
        )
        self._uploads = Uploads(
            assignment.uploads,
            lambda kind, count: uplink.grants(assignment.fence, kind, count),
            None if keep else lambda kind: uplink.grants(assignment.fence, kind, 1, through_server=True)[0],
        )
        self._leave: str = ""
        self._over = threading.Event()
        self._why_over = ""
        self._progress = Progress(assignment.resume_step)
        self._last_warning = ""
        self._saver = Saver(
            home / "spool", assignment.resume.sha256 if assignment.resume else None, self._budget, self._cadence, self
        )
        self._outbox = Outbox(
            uplink,
            keep.outbox if keep else home / "outbox.jsonl",
            assignment.report_every_s,
            beat=self._beat,
            on_directive=self._on_directive,
            on_offer=self._saver.on_reply,
            on_stale=self._end,
            warn=self.warn,
        )

    @property
    def next(self) -> Ticket | None:
        """The ticket of the lease with which this session continues, once `work` has returned.

        None after a request to stop, because the next process would not know of it.
        """
        return None if self._leave else self._outbox.next

    # --- the session from start to end ---

    def work(self) -> int:
        """Do as much of the job as fits into the budget. Returns the exit code.

        0: released or finished. 1: failed. 3: the lease is over. 4: the last messages were not delivered.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._request_stop("drained"))
        log(
            f"job {self._assignment.job} lease {self._assignment.lease} fence {self._assignment.fence}: "
            f"from step {self._progress.step}, {self._budget.left:.0f} s"
        )
        self._outbox.open()
        self._watch.start()
        try:
            if self._keep is not None:
                self._start_offline()
            return self._train()
        except Exception as error:  # noqa: BLE001  any error is reported to the server and the owner
            ending = ending_of(error, self._assignment.resume)
        return self._send_last(self._release(ending), 0) if isinstance(ending, Ending) else self._fail(ending)

    def _start_offline(self) -> None:
        self.begins(Part.IMPORTS)
        request = offline.start_request()
        self.begins(Part.DATA)
        lease, fence = self._assignment.lease, self._assignment.fence
        self._outbox.add(lambda seq: Started(lease=lease, fence=fence, seq=seq, request=request), urgent=True)
        if not offline.can_upload(self._assignment.uploads):
            self._hold("nothing can be uploaded from this machine")

    def _hold(self, why: str) -> None:
        if not self._holding:
            words = f"{why}: checkpoints stay on this machine until the server collects them"
            log(words)
            if self._assignment.uploads:  # a store that takes no uploads is no problem
                self._progress.record_problem(words)
        self._holding = True
        self._outbox.hold()

    def _train(self) -> int:
        self.begins(Part.IMPORTS)
        work.try_machine(self._assignment.spec, log)  # takes seconds, so it comes after the first message
        self.phase(Phase.DOWNLOAD)
        job = inputs.fetch_inputs(self._assignment, self._home, self._limits, begins=self.begins, say=self.warn)
        self._beat(urgent=True)
        self.phase(Phase.LOAD)
        self.begins(Part.IMPORTS)
        trained = work.do(job, self, self._home_of, self._uplink, self._budget)
        self._watch.passed()
        if self._over.is_set():
            log(f"stopping: {self._why_over}")
            return 3
        self.phase(Phase.WAIT)
        if trained.complete:
            return self._deliver(trained)
        saved = self._saver.wait_until_saved(max(GOODBYE_S, self._budget.left - GOODBYE_S))
        detail = self._saver.problem or ("" if saved else self._progress.problem)
        return self._release_and_exit(self._leave or "deadline", detail)

    def _deliver(self, trained: Trained) -> int:
        """After the last step: upload the checkpoint and the adapter or the answers, then finish.

        If the server is unreachable, the outbox holds the offer and the finish in this order.
        """
        if not self._saver.wait_until_saved(max(GOODBYE_S, self._budget.left - GOODBYE_S)) and self._saver.problem:
            return self._fail(Failure(message=self._saver.problem, permanent=False))
        result = work.stored(trained, self._home_of)
        result |= {"head": self._saver.head, "can_continue": self._can_continue and not self._leave}
        finish = self._message_factory(Finish, step=trained.step, **result)
        return self._send_last(finish, 0, self._budget.left)

    def _home_of(self, path: Path, kind: GrantKind) -> str:
        """Upload the result of the job, or keep it for the provider. Returns its key."""
        try:
            patience_s = max(GOODBYE_S, self._budget.left - GOODBYE_S)
            take = partial(self._upload_grant, kind)
            return upload_with_retry(path, take, self.send, self.unsaved, patience_s)
        except (UplinkError, OSError) as error:
            kept = self.keep(path, str(error))
            if kept is None:
                raise
            return kept.key

    def _release_and_exit(self, reason: str, detail: str = "", cause: str = "") -> int:
        return self._send_last(self._release(Ending(reason, detail, cause)), 0)

    def _release(self, ending: Ending) -> Callable[[int], Any]:
        log(f"released at step {self._progress.step}: {ending.reason} {ending.detail}")
        return self._message_factory(
            Release,
            step=self._progress.step,
            reason=ending.reason,
            detail=ending.detail,
            cause=ending.cause,
            has_remedy=ending.has_remedy,
            head=self._saver.head,
        )

    def _fail(self, failure: Failure) -> int:
        if self._over.is_set():
            log(f"stopping: {self._why_over}")
            return 3
        log(f"failed: {failure.message}\n{failure.detail}".rstrip())
        return self._send_last(
            self._message_factory(Finish, step=self._progress.step, failure=failure, head=self._saver.head), 1
        )

    def _leave_early(self, ending: Ending) -> int:
        """Release the lease before the first step, on the watch's thread. Returns the exit code."""
        if self._over.is_set():
            log(f"stopping: {self._why_over}")
            return 3
        return self._send_and_close(self._release(ending), 0, EARLY_GOODBYE_S if ending.cause else GOODBYE_S)

    def _send_last(self, make: Callable[[int], Any], code: int, patience_s: float = EARLY_GOODBYE_S) -> int:
        self._watch.passed()
        return self._send_and_close(make, code, self._budget.left if self._progress.steps_done else patience_s)

    def _send_and_close(self, make: Callable[[int], Any], code: int, patience_s: float) -> int:
        self._outbox.add(make, urgent=True)
        if not self._outbox.close(max(GOODBYE_S, min(patience_s, self._budget.left))):
            log("the server still does not answer; it will collect the last messages from this machine")
            code = code or UNDELIVERED
        self._saver.stop()
        return 3 if self._over.is_set() else code

    def _message_factory(self, kind: Any, **fields: Any) -> Callable[[int], Any]:
        ledger = self._ledger.seconds()
        return lambda seq: kind(
            lease=self._assignment.lease, fence=self._assignment.fence, seq=seq, ledger=ledger, **fields
        )

    # --- replies of the server ---

    def _on_directive(self, directive: Directive) -> None:
        if directive.action is Action.DRAIN:
            self._request_stop("paused" if directive.reason == "paused" else "drained")
        elif directive.action is Action.ABORT:
            self._request_stop("cancelled")

    def _request_stop(self, reason: str) -> None:
        self._leave = self._leave or reason
        self._watch.ask(Ending(self._leave))

    def _end(self, why: str) -> None:
        self._why_over = why
        self._over.set()
        self._saver.stop()
        self._watch.ask(Ending("cancelled", why))

    # --- SaverContext ---

    def grant(self) -> Grant:
        return self._upload_grant(GrantKind.CHECKPOINT)

    def _upload_grant(self, kind: GrantKind) -> Grant:
        if self._holding:
            raise Refused("checkpoints stay on this machine")
        return self._uploads.take(kind)

    def offer(self, *, key: str, sha256: str, size: int, manifest: Manifest) -> Offer:
        lease, fence = self._assignment.lease, self._assignment.fence
        offer = self._outbox.add(
            lambda seq: Offer(lease=lease, fence=fence, seq=seq, key=key, sha256=sha256, size=size, manifest=manifest),
            urgent=True,
        )
        assert isinstance(offer, Offer)
        return offer

    def send(self, grant: Grant, path: Path) -> None:
        self._uploads.send(grant, path)

    def unsaved(self, why: str) -> None:
        if why:
            self.warn(why)
        if self._progress.record_problem(why):
            self._beat(urgent=True)

    def keep(self, path: Path, why: str) -> Kept | None:
        if self._keep is None:
            return None
        self._hold(why)
        return self._keep.take(path)

    def withdraw(self, offer: Offer) -> None:
        self._outbox.withdraw(offer)

    def refused(self, why: str) -> None:
        self._end(why)

    def warn(self, text: str) -> None:
        if text != self._last_warning:
            log(text)
        self._last_warning = text

    # --- Hooks ---

    def phase(self, phase: Phase) -> None:
        before = self._ledger.phase
        took = self._ledger.enter(phase)
        if before is Phase.SAVE:
            self._cadence.record_stall(took)

    def begins(self, part: Part) -> None:
        self._watch.begins(part)

    def lost(self, words: str) -> None:
        if not self._watch.ask(Ending("unfit", words, causes.GPUS)):
            log(words)
            os._exit(1)  # the server counts the session as lost and resumes from the last checkpoint

    def restored(self, step: int, fidelity: Fidelity, backend: str) -> None:
        self.begins(Part.FIRST_STEP)
        self._progress.record_restore(step, fidelity, backend)
        log(f"ready at step {step} ({backend}, {fidelity})")
        self._beat(urgent=True)

    def lowered(self, fidelity: Fidelity, why: str) -> None:
        self._progress.record_fidelity(fidelity)
        log(f"the run is now {fidelity}: {why}")
        self._beat(urgent=True)

    def step_done(self, step: int, values: Mapping[str, float], seconds: float) -> Decision:
        if not self._progress.steps_done:
            self._watch.passed()
        self._budget.record_step(self._progress.record_step(step, seconds))
        rate = values.get("tokens", 0.0) / seconds if seconds else 0.0
        self._report((MetricRow(step=step, values={**values, "tokens_per_s": rate, "step_seconds": seconds}),))
        loss = f" loss {values['loss']:.4f}" if "loss" in values else ""
        print(f"step {step}{loss} {seconds:.2f} s", flush=True)
        return self._decide()

    def _decide(self) -> Decision:
        if self._over.is_set() or self._leave == "cancelled":
            return Decision.STOP
        if self._leave or self._budget.is_nearly_over:
            return Decision.SAVE_AND_STOP
        if self._cadence.is_due and not self._saver.is_busy:
            self._cadence.record_save_start()
            return Decision.SAVE
        return Decision.CONTINUE

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        self._report((MetricRow(step=step, values=dict(values)),))

    def sampled(self, samples: tuple[Sample, ...]) -> None:
        for sample in samples:  # one report each, because the outbox merges as many as fit
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
        load = hardware.reading() if reading else None
        fields = self._message_factory(
            Report,
            **self._progress.report_fields(),
            phase=self._ledger.phase,
            metrics=metrics,
            samples=samples,
            reading=load,
            seconds_left=self._budget.left,
        )
        self._outbox.add(fields, urgent=urgent)
