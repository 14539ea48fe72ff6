"""The real application with a client, members and machines that are driven by hand, and a watch over its event loop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.testclient import TestClient

from orchestrator.adapters.judge_client import WebJudge
from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.domain.accounts import Account
from orchestrator.entrypoints.http.app import make_app
from orchestrator.ports.judges import JudgeAddress, NoReply, Remedy, Reply
from orchestrator.ports.providers import CheckOrder, Examined, Outcome
from orchestrator.providers.colab import ColabProvider
from orchestrator.providers.registry import Registry
from orchestrator.testing import FakePersonalProvider, FakeProvider
from orchestrator.testing.environments import driver_env
from tests.emulators.judge import JudgeEmulator
from tests.helpers.loop_watch import LoopWatch
from tests.http.http_client import Api

LOOP_MS = 100
"""The longest that one turn of the event loop may take, in milliseconds of processor time."""


class _Examinable(FakePersonalProvider):
    """Its machines can be checked, and have nothing to tell."""

    def diagnose(self, account: Account, order: CheckOrder, tell: Callable[[Outcome], None]) -> Examined:
        self._reach("diagnose", account, order, tell)
        return Examined(image="", versions={}, outcomes=())

    def clear_check(self, account: Account, check_id: str) -> None:
        self._reach("clear_check", account, check_id)


class _NearJudge(WebJudge):
    """Sends to this address only. An address that a fuzzer invents may be somebody's."""

    def __init__(self, url: str) -> None:
        super().__init__(lookup=lambda _: ["127.0.0.1"])
        self._url = url

    def ask(self, where: JudgeAddress, messages: Sequence[dict[str, str]], max_tokens: int) -> Reply:
        if where.url != self._url:
            raise NoReply("The endpoint cannot be reached.", Remedy.RETRY)
        return super().ask(where, messages, max_tokens)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The application, its pool of machines, an emulated judge model, and the watch."""

    api: Api
    pool: FakeProvider
    judge: JudgeEmulator
    watch: LoopWatch


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """A server over this folder."""
    pool = FakeProvider("local", slots=1_000_000, this_computer=True)
    providers = Registry.of(
        {"local": pool, "cloud": _Examinable(), "colab": ColabProvider(driver_env(folder / "colab"))}
    )
    app = build(Settings(data_dir=folder / "data", offline=True), providers=providers)
    app.context = dataclasses.replace(app.context, spawn=lambda work: work())
    watch = LoopWatch()
    try:
        with (
            JudgeEmulator() as judge,
            TestClient(
                make_app(app),
                base_url="http://127.0.0.1",
                raise_server_exceptions=False,
                backend_options={"loop_factory": watch.new_loop},
            ) as client,
        ):
            app.judge_client = _NearJudge(judge.url)
            yield Watched(api=Api(app=app, client=client), pool=pool, judge=judge, watch=watch)
    finally:
        app.close()
