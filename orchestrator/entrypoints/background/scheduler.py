"""The scheduler. Services trigger rounds by events. APScheduler triggers the periodic ones."""

from __future__ import annotations

import threading

import structlog

from orchestrator.bootstrap import App
from orchestrator.entrypoints.background.log_followers import Follower
from orchestrator.entrypoints.background.loops import Loop, Periodic, guarded
from orchestrator.services import adapter_exports, clock_jumps
from orchestrator.services.diagnosis import clear_left
from orchestrator.services.dispatch import dispatch
from orchestrator.services.judging import judge_due
from orchestrator.services.mailbox import MailboxPoller
from orchestrator.services.notifications import check_alerts, deliver_due
from orchestrator.services.pushing import push_due
from orchestrator.services.reconcile import Watch
from orchestrator.services.reporting import report_due
from orchestrator.services.retention import DAY_S, tidy
from orchestrator.services.rounds import LATE_S

log = structlog.get_logger()

TELL_EVERY_S = 2.0
JUDGE_EVERY_S = 2.0
PUSH_EVERY_S = 2.0
TRACK_EVERY_S = 2.0
LOOK_AROUND_EVERY_S = 60.0
TIDY_EVERY_S = 600.0
WATCH_EVERY_S = 1.0
FIND_US_S = 900.0
"""How long machines may need to find a server that has moved, for example until its name has the new address."""
WATCHDOG = "watchdog"


class Ticker:
    """Threads for dispatch, reconcile and mailboxes, so that a slow provider or store never delays a launch.

    Another thread watches over them by monotonic time. `has_moved` says that the data folder was restored or copied,
    and is the only one now.
    """

    def __init__(
        self,
        app: App,
        *,
        tidy_every_s: float = TIDY_EVERY_S,
        watch_every_s: float = WATCH_EVERY_S,
        has_moved: bool = False,
    ) -> None:
        self._app, self._watch_every_s, self._has_moved = app, watch_every_s, has_moved
        self._stopping = threading.Event()
        self._follower = Follower(app.context, app.news.set)
        settings, rounds = app.settings, app.rounds
        rest_s = max(settings.report_every_s, 3 * settings.reconcile_s)
        self._watch = Watch(app.context, longest_rest_s=rest_s, find_us_s=FIND_US_S if has_moved else 0.0)
        mailbox_wake, mailbox_poller = threading.Event(), MailboxPoller(app.context)
        self._loops = [
            Loop("dispatch", app.wake, self._dispatch, rounds, every_s=settings.tick_s),
            Loop("reconcile", app.news, self._reconcile, rounds, every_s=settings.reconcile_s),
            Loop("mailbox", mailbox_wake, mailbox_poller.round, rounds, every_s=settings.letters_s),
        ]
        self._watchdog = threading.Thread(target=self._watch_over, name=WATCHDOG, daemon=True)
        self._periodic = Periodic(rounds)
        self._periodic.every(settings.tick_s, "tick", app.wake.set)
        self._periodic.every(settings.reconcile_s, "look", app.news.set)
        self._periodic.every(settings.letters_s, "letters", mailbox_wake.set)
        self._periodic.every(TELL_EVERY_S, "notifications", lambda: deliver_due(app.notifications))
        self._periodic.every(JUDGE_EVERY_S, "judgements", lambda: judge_due(app.judging))
        self._periodic.every(PUSH_EVERY_S, "pushes", lambda: push_due(app.pushing))
        self._periodic.every(TRACK_EVERY_S, "trackers", lambda: report_due(app.reporting))
        self._periodic.every(LOOK_AROUND_EVERY_S, "alerts", lambda: check_alerts(app.notifications))
        self._periodic.every(tidy_every_s, "tidying", self._tidy)

    def start(self) -> None:
        """Start, with a first round of each thread."""
        self._app.news.set()
        self._app.context.spawn(lambda: clear_left(self._app.context))
        for loop in self._loops:
            loop.start()
        self._periodic.start()
        self._app.rounds.expect(WATCHDOG, self._watch_every_s + LATE_S)
        self._watchdog.start()

    def stop(self) -> None:
        """Finish the current round and stop."""
        self._stopping.set()
        self._app.judges.stopping.set()
        self._periodic.stop()
        self._follower.stop()
        for loop in self._loops:
            loop.stop()
        for loop in self._loops:
            loop.join(timeout_s=10)

    def _watch_over(self) -> None:
        while not self._stopping.wait(self._watch_every_s):
            guarded(self._app.rounds, WATCHDOG, self._revive)

    def _revive(self) -> None:
        for loop in self._loops:
            if loop.revive():
                log.warning("a loop has ended and was started again")
        if not self._stopping.is_set():
            self._periodic.revive()

    def _dispatch(self) -> None:
        """A database that was restored knows of sessions what was true then, so their providers are asked first."""
        if self._watch.has_looked or not self._has_moved:
            dispatch(self._app.context)

    def _reconcile(self) -> None:
        clock_jumps.follow(self._app.context, self._app.clock)
        self._follower.look()
        self._watch.round()

    def _tidy(self) -> None:
        """What a jump of the clock has made old is not old."""
        if self._app.clock.calm_s > DAY_S:
            tidy(self._app.context)
            adapter_exports.tidy(self._app.context)
        clear_left(self._app.context)
