"""An account whose provider takes its time costs nobody else any; on both databases, and with the real Kaggle
driver."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.accounts import Account
from orchestrator.domain.lifecycle import JobState
from orchestrator.ports.providers import Capabilities, Handle, ProviderUnavailable
from orchestrator.providers.kaggle import KaggleProvider
from orchestrator.providers.registry import Registry
from orchestrator.services.capacity import list_capacity
from orchestrator.services.dispatch import dispatch, why_waiting
from orchestrator.services.reconcile import reconcile
from orchestrator.services.single_flight import SingleFlight
from orchestrator.testing.environments import driver_env
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.helpers.world import World
from tests.providers.kernels import kaggle_account, until

LONG_S = 10.0
"""Longer than any of this takes: what waits for it waited for something that did not happen."""
SHORT_S = 0.2


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """What bob's provider waits for before it answers."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def woken() -> threading.Event:
    """Set when somebody asks for a dispatch."""
    return threading.Event()


@pytest.fixture
def slow(world: World, woken: threading.Event) -> World:
    """A world in which nobody waits long."""
    limits = dataclasses.replace(world.ctx.limits, patience_s=SHORT_S)
    world.ctx = dataclasses.replace(world.ctx, limits=limits, wake=woken.set)
    return world


def _hold_bob(world: World, held: threading.Event) -> list[str]:
    """Bob's room is told only once `held` is set; returns the accounts that were asked."""
    asked = list[str]()

    def slowly(account: Account) -> None:
        asked.append(account.id)
        if account.member_id == "bob":
            assert held.wait(LONG_S)

    world.machines.before["capacity"] = slowly
    return asked


def test_accounts_are_asked_side_by_side(world: World) -> None:
    """Guard: asked one after another, the first waited in vain for the second to be asked too."""
    both = threading.Barrier(2)
    world.submit("alice")
    world.submit("bob")
    world.machines.before["capacity"] = lambda _: both.wait(LONG_S)
    assert dispatch(world.ctx) == 2


def test_a_slow_account_keeps_no_other_waiting_and_is_used_once_it_answers(
    slow: World, held: threading.Event, woken: threading.Event
) -> None:
    """Guards: with accounts asked one after another the round ended only with bob's answer; without `on_late` nothing
    asked for a dispatch when it came; without `_calls` he was asked again in every round meanwhile.
    """
    asked = _hold_bob(slow, held)
    his, hers = slow.submit("bob"), slow.submit("alice")
    woken.clear()
    assert dispatch(slow.ctx) == 1
    assert slow.job(hers).state is JobState.LEASED
    waits = why_waiting(slow.ctx, his)
    assert waits is not None
    assert "bob's: not reachable (no answer within 0.2 s)" in waits.reason
    assert asked.count("bob-sim") == 1
    held.set()
    assert woken.wait(LONG_S)
    assert dispatch(slow.ctx) == 1
    assert slow.job(his).state is JobState.LEASED
    assert asked.count("bob-sim") == 1


def test_other_credentials_are_another_question(slow: World, held: threading.Event) -> None:
    """Guard: without credentials in the key the new token's account was given the old one's answer."""
    asked = _hold_bob(slow, held)
    with slow.ctx.uow() as tx:
        account = tx.accounts.get("bob-sim")
    assert account is not None
    list_capacity(slow.ctx, [account])
    list_capacity(slow.ctx, [dataclasses.replace(account, credentials="sealed anew")])
    assert asked == ["bob-sim", "bob-sim"]


def test_an_account_that_is_closed_says_so_while_it_is_asked_again(slow: World, held: threading.Event) -> None:
    """Guard: without `last`, the reason on a job's page changed to "no answer" and back every few seconds."""
    with slow.ctx.uow() as tx:
        account = tx.accounts.get("bob-sim")
    assert account is not None
    slow.machines.failure = ProviderUnavailable("no machine is free")
    slow.ctx = dataclasses.replace(slow.ctx, limits=dataclasses.replace(slow.ctx.limits, patience_s=LONG_S))
    (before,) = list_capacity(slow.ctx, [account])
    slow.machines.failure = None
    _hold_bob(slow, held)
    slow.ctx = dataclasses.replace(slow.ctx, limits=dataclasses.replace(slow.ctx.limits, patience_s=0.01))
    (meanwhile,) = list_capacity(slow.ctx, [account])
    assert "no machine is free" in before.closed_reason
    assert (meanwhile.closed_reason, meanwhile.slots) == (before.closed_reason, 0)


def test_what_is_at_hand_is_told_without_a_thread(world: World) -> None:
    """Guard: without `_is_at_hand` the pool of this computer, asked for every launch, cost a change of threads each
    time."""
    world.machines.capabilities = Capabilities(provider="sim", shares_disk=True, local=True)
    threads = set[threading.Thread]()
    world.machines.before["capacity"] = lambda _: threads.add(threading.current_thread())
    world.submit("alice")
    assert dispatch(world.ctx) == 1
    assert threads == {threading.current_thread()}


def test_sessions_of_a_slow_account_keep_no_others_unsettled(
    slow: World, held: threading.Event, woken: threading.Event
) -> None:
    """Guards: with one look at all sessions of a provider alice's job waited for bob's answer; without `_calls` a
    second thread settled his sessions while the first was at it; without `on_late` nothing dispatched what that had set
    free.
    """
    his, hers = slow.submit("bob"), slow.submit("alice")
    assert dispatch(slow.ctx) == 2
    slow.machines.end(*slow.machines.leases)
    asked = list[str]()

    def slowly(handles: Sequence[Handle]) -> None:
        asked.extend(handle.account.id for handle in handles)
        if any(handle.account.id == "bob-sim" for handle in handles):
            assert held.wait(LONG_S)

    slow.machines.before["observe"] = slowly
    reconcile(slow.ctx)
    reconcile(slow.ctx)
    assert (slow.job(hers).state, slow.job(his).state) == (JobState.QUEUED, JobState.LEASED)
    assert asked.count("bob-sim") == 1
    woken.clear()
    held.set()
    assert woken.wait(LONG_S)
    assert slow.job(his).state is JobState.QUEUED


def test_what_a_late_call_raises_is_raised_where_it_is_asked_for(held: threading.Event) -> None:
    """Guard: without `set_exception` a call that failed was waited for as long as patience lasts, and then ever
    after."""
    aside, late = SingleFlight[int](), threading.Event()

    def fail() -> int:
        assert held.wait(LONG_S)
        raise LookupError("late")

    assert aside.gather({"slow": fail}, 0.0, late.set) == {}
    held.set()
    assert late.wait(LONG_S)
    with pytest.raises(LookupError, match="late"):
        aside.gather({"slow": lambda: 1}, LONG_S, late.set)
    assert aside.gather({"slow": lambda: 1}, LONG_S, late.set) == {"slow": 1}


def test_an_old_answer_that_nobody_asked_for_is_asked_anew(held: threading.Event) -> None:
    """Guard: without `believed_s` a server with an idle queue believed in the room of hours ago."""
    aside, late = SingleFlight[bool](believed_s=-1.0), threading.Event()
    assert aside.gather({"a": lambda: held.wait(LONG_S)}, 0.0, late.set) == {}
    held.set()
    assert late.wait(LONG_S)
    assert aside.gather({"a": lambda: False}, LONG_S, late.set) == {"a": False}


# --- the real driver --------------------------------------------------------------------------------------


@pytest.fixture
def kaggle(tmp_path: Path) -> Iterator[KaggleEmulator]:
    """Many people at an emulated Kaggle."""
    people = [Person(name=name, token=f"KGAT_{name}") for name in NAMES]
    with KaggleEmulator(tmp_path / "emulator", people) as emulator:
        yield emulator


NAMES = ("alice", "bob", "carol", "dave", "erin", "frank")


@pytest.fixture
def at_kaggle(slow: World, kaggle: KaggleEmulator) -> Callable[[float], list[Any]]:
    """Surveys everybody's account with this patience in seconds, through Kaggle's own client library."""
    driver = KaggleProvider(driver_env(slow.folder / "kaggle", endpoint=kaggle.endpoint), fresh_s=0.0)
    slow.ctx = dataclasses.replace(slow.ctx, providers=Registry.of({"kaggle": driver}))
    accounts = [kaggle_account(name) for name in NAMES]

    def look(patience_s: float) -> list[Any]:
        limits = dataclasses.replace(slow.ctx.limits, patience_s=patience_s)
        return list_capacity(dataclasses.replace(slow.ctx, limits=limits), accounts)

    return look


def test_kaggle_is_asked_for_many_accounts_at_once(
    kaggle: KaggleEmulator, at_kaggle: Callable[[float], list[Any]]
) -> None:
    """Guard: with accounts asked one after another only the first request arrived while it was held."""
    kaggle.world.people["bob"].used_s = 3600.0
    everybody = kaggle.rules.add("QuotaStatistics", hold=threading.Event(), times=0)
    found = list[Any]()
    asking = threading.Thread(target=lambda: found.extend(at_kaggle(LONG_S)))
    asking.start()
    until(lambda: everybody.seen == len(NAMES), within_s=LONG_S)
    kaggle.rules.clear()
    asking.join(LONG_S)
    hours = {place.name.partition("-")[0]: place.hours_left for place in found}
    assert hours["alice"] - hours.pop("bob") == pytest.approx(1.0)
    assert set(hours.values()) == {hours["alice"]}
    assert [place.closed_reason for place in found] == [""] * len(NAMES)


def test_kaggles_silence_towards_one_account_is_that_accounts(
    slow: World, kaggle: KaggleEmulator, at_kaggle: Callable[[float], list[Any]], woken: threading.Event
) -> None:
    """Guard: with accounts asked one after another five people waited out bob's time-out of a minute."""
    kaggle.rules.add("QuotaStatistics", account="bob", hold=threading.Event(), times=0)
    at_kaggle(1.0)
    found = {place.name.partition("-")[0]: place for place in at_kaggle(1.0)}
    assert found.pop("bob").closed_reason == "not reachable (no answer within 1 s)"
    assert all(place.slots == 2 and not place.closed_reason for place in found.values())
    woken.clear()
    kaggle.rules.clear()
    assert woken.wait(LONG_S)
    assert list_capacity(slow.ctx, [kaggle_account("bob")])[0].slots == 2
