"""What time drives. Services announce what they know by events; APScheduler announces what nobody does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from orchestrator.bootstrap import App
from orchestrator.entrypoints.background.log_followers import Follower
from orchestrator.services.diagnosis import clear_left
from orchestrator.services.dispatch import dispatch
from orchestrator.services.mailbox import MailboxPoller
from orchestrator.services.notifications import NotificationContext, check_alerts, deliver_due
from orchestrator.services.reconcile import Watch
from orchestrator.services.retention import tidy

log = structlog.get_logger()

TELL_EVERY_S = 2.0
LOOK_AROUND_EVERY_S = 60.0
TIDY_EVERY_S = 600.0


class Ticker:
    """Threads that dispatch, reconcile and read letters, so that a slow provider or store never delays a launch.

    Each waits for its event. Setting an event that is set already costs nothing and loses nothing.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._stopping = threading.Event()
        self._follower = Follower(app.context, app.news.set)
        rest_s = max(app.settings.report_every_s, 3 * app.settings.reconcile_s)
        self._watch = Watch(app.context, longest_rest_s=rest_s)
        self._post, self._postman = threading.Event(), MailboxPoller(app.context)
        self._threads = [
            threading.Thread(target=self._run, args=(app.wake, self._dispatch), name="dispatch", daemon=True),
            threading.Thread(target=self._run, args=(app.news, self._reconcile), name="reconcile", daemon=True),
            threading.Thread(target=self._run, args=(self._post, self._postman.round), name="letters", daemon=True),
        ]
        self._scheduler = BackgroundScheduler(job_defaults={"max_instances": 1, "coalesce": True}, timezone="UTC")
        self._scheduler.add_job(app.wake.set, "interval", seconds=app.settings.tick_s)
        self._scheduler.add_job(app.news.set, "interval", seconds=app.settings.reconcile_s)
        self._scheduler.add_job(self._post.set, "interval", seconds=app.settings.letters_s)
        self._scheduler.add_job(self._tell, "interval", seconds=TELL_EVERY_S)
        self._scheduler.add_job(self._look_around, "interval", seconds=LOOK_AROUND_EVERY_S)
        self._scheduler.add_job(self._tidy, "interval", seconds=TIDY_EVERY_S)

    def start(self) -> None:
        """Begin with a look at what was left behind."""
        self._app.news.set()
        self._app.context.spawn(lambda: clear_left(self._app.context))
        for thread in self._threads:
            thread.start()
        self._scheduler.start()

    def stop(self) -> None:
        """Finish the round under way and end."""
        self._scheduler.shutdown(wait=False)
        self._stopping.set()
        self._follower.stop()
        self._app.wake.set()
        self._app.news.set()
        self._post.set()
        for thread in self._threads:
            thread.join(timeout=10)

    def _run(self, event: threading.Event, work: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            event.wait()
            event.clear()
            if self._stopping.is_set():
                return
            try:
                work()
            except Exception:
                log.exception("a round failed; the next one tries again", round=threading.current_thread().name)

    def _dispatch(self) -> None:
        dispatch(self._app.context)

    def _reconcile(self) -> None:
        self._follower.look()
        self._watch.round()

    def _tell(self) -> None:
        self._guarded(deliver_due)

    def _look_around(self) -> None:
        self._guarded(check_alerts)

    def _tidy(self) -> None:
        try:
            tidy(self._app.context)
            clear_left(self._app.context)
        except Exception:
            log.exception("what is too old could not be forgotten; the next round tries again")

    def _guarded(self, work: Callable[[NotificationContext], object]) -> None:
        """Notifications may fail, but only for themselves."""
        try:
            work(self._app.office)
        except Exception:
            log.exception("notifications could not be made; the next round tries again")
