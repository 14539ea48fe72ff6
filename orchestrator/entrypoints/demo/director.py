"""What happens to the demo's machines, and when: the part of the demo that real life plays elsewhere."""

from __future__ import annotations

from typing import Any

from orchestrator.entrypoints.cli.output import age, seconds
from orchestrator.entrypoints.cli.phrases import listed
from orchestrator.entrypoints.cli.views import View
from orchestrator.entrypoints.demo.server import PrivateServer

KILL_AFTER = 0.25
"""Share of the steps that has to be committed before the first machine dies."""

STEPS_TO_LOSE = 3
"""Steps beyond the checkpoint that the first machine takes with it, if they are quicker than the next save."""

HAND_OFF_AT = 0.65
"""Share of the steps at which the second machine's time should be up."""

LONG_S = 12 * 3600.0


class Director:
    """Lets the first machine die, gives the second a budget that ends in mid-run, and leaves the third alone."""

    def __init__(self, server: PrivateServer, account: str, view: View) -> None:
        self._server, self._account, self._view = server, account, view
        self._session: str | None = None
        self._killed: str | None = None
        self._released = False

    def look(self, job: dict[str, Any]) -> None:
        """Called every second with the job as it is."""
        session = job["session"]
        if session is None:
            return
        if session["id"] != self._session and session["state"] != "provisioning":
            self._session = session["id"]
            how = f"goes on from step {session['step']}" if session["step"] else "begins"
            self._view.note(f">>> {session['id']} {how}")
        if self._killed is None and self._is_time(job):
            self._kill(job)
        elif self._killed not in (None, session["id"]) and session["state"] != "provisioning" and not self._released:
            self._released = True
            self.second_is_up()

    def end(self, session: str) -> bool:
        """Make the first machine vanish; False if it was gone already."""
        return self._server.kill(session)

    def second_is_up(self) -> None:
        """The running session keeps its short budget; the next one gets all the time it wants."""
        self._set_budget(LONG_S)

    @staticmethod
    def _is_time(job: dict[str, Any]) -> bool:
        """Enough is safe, and some steps beyond it are there to be lost; the next save must not come first."""
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
            f">>> {session['id']} killed (SIGKILL) at step {session['step']}; step {head['step']} is safe. "
            f"The next machine gets {seconds(budget)}"
        )

    def _budget(self, job: dict[str, Any]) -> float:
        """Seconds in which a session like the first one starts up and gets to `HAND_OFF_AT` with its last save."""
        first = listed(self._server.client.get(f"/jobs/{job['id']}/sessions"))[-1]
        ledger, step_s = first["ledger"], job["seconds_per_step"]
        start_up = 2.0 + sum(ledger.get(phase, 0.0) for phase in ("boot", "download", "load", "restore"))
        since, until = job["head"]["step"], round(HAND_OFF_AT * job["total_steps"])
        every = job["spec"]["eval_steps"] or max(1, job["total_steps"] // 5)
        pauses = (until // every - since // every) * ledger.get("eval", 0.0)
        return start_up + (until - since + 1.5) * step_s + 2.5 * pauses + 5.0

    def _set_budget(self, budget: float) -> None:
        self._server.client.patch(f"/accounts/{self._account}", {"config": {"session_s": budget}})
