"""The packages of the sessions, prepared once per account. A CPU kernel stores them as its output.

A CPU kernel uses no GPU hours. A session without prepared packages installs them, so an error here never fails a
launch.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from orchestrator.ports.providers import ProviderError, ProviderUnavailable
from orchestrator.providers.kaggle.client import Push
from orchestrator.providers.kaggle.kernel import packages_source
from orchestrator.providers.kaggle.launch import UNSURE_S, KernelPlace
from orchestrator.providers.kaggle.outputs import save_log
from orchestrator.providers.kaggle.records import AccountNotes, KernelNotes
from orchestrator.providers.last_words import last_words
from orchestrator.providers.session_records import WRITING
from worker.shared import packages

MAX_S = 900
"""Maximum seconds for the kernel to install and pack."""
AGAIN_AFTER_S = 86_400.0
"""A kernel that failed or hangs is not started again on the same day."""
FAILED = frozenset({"ERROR", "CANCEL_ACKNOWLEDGED"})
log = structlog.get_logger()


def set_slug() -> str:
    """The name of the kernel that prepares exactly the packages of this version's sessions."""
    return f"trainhop-packages-{packages.set_key()}"


@dataclass(frozen=True, kw_only=True)
class PackageSet:
    """The set of one account. Its kernel is at `place`. `now` is in epoch seconds."""

    place: KernelPlace
    notes: AccountNotes
    now: float

    def found(self) -> tuple[str, ...]:
        """`owner/slug` of the kernel that has the set as its output. Empty if there is none."""
        try:
            if self._state() != "COMPLETE":
                return ()
        except ProviderUnavailable:
            return ()
        self._clear_old()
        return (f"{self.place.owner}/{self.place.slug}",)

    def prepare(self) -> None:
        """Start its kernel unless there is one. After an error a later launch tries again."""
        try:
            self._prepare()
        except ProviderError as error:
            log.info("the packages were not prepared", account=self.place.owner, why=str(error))

    def _prepare(self) -> None:
        state = self._state()
        if state in FAILED:
            self._say_why()
        if state == "COMPLETE" or not self._is_due(state):
            return
        if state not in (None, *FAILED):  # the kernel hangs
            self.place.connection.delete_kernel(self.place.owner, self.place.slug)
        source = packages_source()
        push = Push(slug=self.place.slug, source=source, machine_shape="", internet=True, timeout_s=MAX_S)
        self.place.connection.push(self.place.owner, push)
        self.notes.write(set_busy_until=self.now + MAX_S)

    def _is_due(self, state: str | None) -> bool:
        """Whether to start the kernel now. Of several concurrent launches only one gets True."""
        with WRITING:
            record, slug = self.notes.read(), self.place.slug
            ours = record.set_slug == slug
            wait_s = UNSURE_S if state is None else AGAIN_AFTER_S
            if ours and 0 <= self.now - record.set_pushed_at < wait_s:
                return False
            if state not in (None, *FAILED) and not ours:
                return False  # another server is preparing the set
            old = [s for s in (*record.old_sets, record.set_slug) if s not in ("", slug)]
            self.notes.write(set_slug=slug, set_pushed_at=self.now, old_sets=old, set_trouble="")
            return True

    def _state(self) -> str | None:
        """The name of its kernel's state. None if the kernel does not exist."""
        state = self.place.state()
        if state == "COMPLETE" or state in FAILED:
            self.notes.write(set_busy_until=0.0)
        return state

    def _say_why(self) -> None:
        """Report the reason once for each kernel that failed."""
        if self.notes.read().set_trouble:
            return
        notes = KernelNotes(self.notes.folder / self.place.slug)
        save_log(self.place.connection, self.place.owner, self.place.slug, notes)
        why = self.place.connection.clean(last_words(notes.log)) or "no reason given"
        self.notes.write(set_trouble=why)
        log.warning("the packages could not be prepared; sessions install them", account=self.place.owner, why=why)

    def _clear_old(self) -> None:
        """Delete the kernels of older sets of this server that are no longer needed."""
        record = self.notes.read()
        old = [s for s in (*record.old_sets, record.set_slug) if s not in ("", self.place.slug)]
        if not old:
            return
        try:
            for slug in old:
                self.place.connection.delete_kernel(self.place.owner, slug)
        except ProviderUnavailable:
            return  # the next launch tries again
        self.notes.write(set_slug=self.place.slug, old_sets=[])
