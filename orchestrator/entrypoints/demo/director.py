"""Causes the demo's interruptions: a killed worker and a short time limit."""

from __future__ import annotations

from typing import Any

from orchestrator.entrypoints.cli.output import age, seconds
from orchestrator.entrypoints.cli.phrases import listed
from orchestrator.entrypoints.cli.views import View
from orchestrator.entrypoints.demo.server import PrivateServer

KILL_AFTER = 0.25
"""Share of the steps in a committed checkpoint before the first worker is killed."""

STEPS_TO_LOSE = 3
"""Steps after the checkpoint that the kill should lose, if no save comes first."""

HAND_OFF_AT = 0.65
"""Share of the steps at which the second session should reach its time limit."""

LONG_S = 12 * 3600.0


class Director:
    """Kills the first worker, gives the second session a short budget, and lets the third finish."""

    def __init__(self, server: PrivateServer, account: str, view: View) -> None:
        self._server, self._account, self._view = server, account, view
        self._session: str | None = None
        self._killed: str | None = None
        self._released = False

    def look(self, job: dict[str, Any]) -> None:
        """Called every second with the current job."""
        session = job["session"]
        if session is None:
            return
        if session["id"] != self._session and session["state"] != "provisioning":
            self._session = session["id"]
            how = f"resumes from step {session['step']}" if session["step"] else "starts"
            self._view.note(f">>> {session['id']} {how}")
        if self._killed is None and self._is_time(job):
            self._kill(job)
        elif self._killed not in (None, session["id"]) and session["state"] != "provisioning" and not self._released:
            self._released = True
            self.second_is_up()

    def end(self, session: str) -> bool:
        """Kill the first worker. Returns False if it had already ended."""
        return self._server.kill(session)

    def second_is_up(self) -> None:
        """Restore the normal budget for the next session. The running session keeps its short one."""
        self._set_budget(LONG_S)

    @staticmethod
    def _is_time(job: dict[str, Any]) -> bool:
        """Whether to kill now: enough steps are committed, some later steps can be lost, and no save comes first."""
        head, session = job["head"], job["session"]
        if head is None or head["step"] < KILL_AFTER * job["total_steps"] or job["seconds_per_step"] is None:
            return False
        beyond = session["step"] - head["step"]
        late = (age(head["committed_at"]) or 0.0) > 0.8 * job["spec"]["checkpoint"]["max_interval_s"]
        return beyond >= STEPS_TO_LOSE or (beyond > 0 and late)

    def _kill(self, job: dict[str, Any]) -> None:
        session, head = job["session"], job["head"]
        budget = self._budget(job)
        self._set_budget(budget)
        if not self.end(session["id"]):
            return
        self._killed = session["id"]
        self._view.note(
            f">>> {session['id']} killed (SIGKILL) at step {session['step']}, last checkpoint at step {head['step']}. "
            f"The next session gets {seconds(budget)}"
        )

    def _budget(self, job: dict[str, Any]) -> float:
        """Seconds that a session like the first needs to start, reach `HAND_OFF_AT` and save."""
        first = listed(self._server.client.get(f"/jobs/{job['id']}/sessions"))[-1]
        ledger, step_s = first["ledger"], job["seconds_per_step"]
        start_up = 2.0 + sum(ledger.get(phase, 0.0) for phase in ("boot", "download", "load", "restore"))
        since, until = job["head"]["step"], round(HAND_OFF_AT * job["total_steps"])
        every = job["spec"]["eval_steps"] or max(1, job["total_steps"] // 5)
        pauses = (until // every - since // every) * ledger.get("eval", 0.0)
        return start_up + (until - since + 1.5) * step_s + 2.5 * pauses + 5.0

    def _set_budget(self, budget: float) -> None:
        self._server.client.patch(f"/accounts/{self._account}", {"config": {"session_s": budget}})
