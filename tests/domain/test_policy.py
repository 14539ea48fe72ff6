"""Choosing, as pure functions: who goes first, where to, and what is said to those who wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.jobs import CPU_SLOWDOWN, StepTime
from orchestrator.domain.lifecycle import EndReason
from orchestrator.domain.scheduling import (
    Candidate,
    PendingJob,
    budget,
    done_at,
    explain,
    finish_s,
    fits,
    match,
    prune,
    rank,
    retry_at,
)

NOW = 1_000_000.0


def job(ident: str = "job", **facts: Any) -> PendingJob:
    return PendingJob(
        **({"job_id": ident, "member_id": "alice", "priority": 0, "deadline": None, "created_at": 0.0} | facts)
    )


def place(ident: str = "place", **facts: Any) -> Candidate:
    base = {"account_id": ident, "provider": "sim", "name": ident, "member_id": None, "slots": 1, "session_s": 3600.0}
    return Candidate(**(base | facts))


def test_a_deadline_goes_first_only_where_it_can_be_met() -> None:
    """Seen failing without the feasibility check: a hopeless deadline delays everybody."""
    soon = job("soon", steps_left=10, step_time=StepTime(host_s=1.0), deadline=NOW + 1_000)
    hopeless = job("hopeless", steps_left=10, step_time=StepTime(host_s=1.0), deadline=NOW + 5)
    urgent = job("urgent", priority=5)
    order = rank([hopeless, urgent, soon], [place()], {}, NOW)
    assert [j.job_id for j in order] == ["soon", "urgent", "hopeless"]


def test_a_deadline_counts_until_the_pace_of_the_job_is_known() -> None:
    """Removed: the benefit of the doubt in `rank`; on a server without a GPU no new job's deadline would count."""
    fresh = job("fresh", steps_left=1_000, deadline=NOW + 1_000)
    order = rank([job("urgent", priority=5), fresh], [place()], {}, NOW)
    assert [j.job_id for j in order] == ["fresh", "urgent"]


def test_a_gpu_goes_before_a_cpu_until_both_are_timed() -> None:
    """Removed: `CPU_SLOWDOWN`; a large job began on the server's own CPU while a GPU was free."""
    places = [place("cpu"), place("gpu", gpu=True, start_up_s=300.0)]

    def chosen(**step_time: float) -> str:
        return match([job(steps_left=100, step_time=StepTime(**step_time))], places, {}, NOW)[0].account_id

    assert chosen() == "gpu"
    assert chosen(gpu_s=9.0) == "gpu"
    assert chosen(host_s=400.0) == "gpu"
    assert chosen(host_s=0.1) == "cpu", "a small job is done before the GPU has even started"
    assert chosen(gpu_s=9.0, host_s=8.0) == "cpu"


def test_a_job_is_not_sent_again_to_a_machine_that_was_too_small() -> None:
    """Removed: `large_enough` in `match`, and in `explain`; the small machine was free, and was tried again."""
    small, large = place("small"), place("large", slots=0)
    heavy = job(too_small_at=frozenset({"small"}))
    assert match([heavy], [small, large], {}, NOW) == []
    waits = explain(heavy, [small, large], NOW)
    assert waits is not None
    assert waits.reason == "all machines of large are busy"
    assert match([heavy], [small, replace(large, slots=1)], {}, NOW)[0].account_id == "large"


def test_a_machine_that_was_too_small_is_better_than_none() -> None:
    """Its memory may have been in use by others. Guard: without the look at the others the job waited for ever."""
    heavy = job(too_small_at=frozenset({"small"}), gpu_bytes=10 << 30)
    others = [
        place("shut", closed_reason="paused"),
        place("hers", member_id="bob"),
        place("smaller", gpu=True, memory_bytes=8 << 30),
    ]
    assert match([heavy], [place("small"), *others], {}, NOW)[0].account_id == "small"
    assert explain(heavy, [place("small"), *others], NOW) is None


def test_what_has_not_been_timed_is_told_from_the_other_kind_of_machine() -> None:
    assert StepTime().guess(gpu=False) == CPU_SLOWDOWN * StepTime().guess(gpu=True)
    assert StepTime(gpu_s=3.0).guess(gpu=False) == 3.0 * CPU_SLOWDOWN
    assert StepTime(host_s=3.0).guess(gpu=True) == 3.0 / CPU_SLOWDOWN
    assert StepTime(gpu_s=3.0, host_s=4.0).guess(gpu=False) == 4.0
    assert StepTime(gpu_s=3.0).timed(gpu=False) is None


def test_one_members_hundred_jobs_do_not_go_before_anothers_one() -> None:
    """Seen failing with fair share counted once instead of after every choice."""
    flood = [job(f"a{i:03}", created_at=float(i)) for i in range(100)]
    late = job("bob's", member_id="bob", created_at=1e6)
    chosen = match([*flood, late], [place(slots=2)], {}, NOW)
    assert {m.job_id for m in chosen} == {"a000", "bob's"}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 3)), max_size=12),
    st.lists(st.tuples(st.sampled_from("abc-"), st.integers(0, 3)), max_size=5),
)
def test_nobody_gets_more_than_there_is(wanted: list[tuple[str, int]], there: list[tuple[str, int]]) -> None:
    jobs = [job(f"j{i}", member_id=m, priority=p) for i, (m, p) in enumerate(wanted)]
    places = [place(f"p{i}", member_id=None if m == "-" else m, slots=n) for i, (m, n) in enumerate(there)]
    chosen = match(jobs, places, {}, NOW)
    by_id, room = {j.job_id: j for j in jobs}, {p.account_id: p for p in places}
    assert len({m.job_id for m in chosen}) == len(chosen)
    for account, spot in room.items():
        here = [m for m in chosen if m.account_id == account]
        assert len(here) <= spot.slots
        assert all(spot.member_id in (None, by_id[m.job_id].member_id) for m in here)
    left = [j for j in jobs if j.job_id not in {m.job_id for m in chosen}]
    used = {a: sum(m.account_id == a for m in chosen) for a in room}
    free = [p for p in places if p.slots > used[p.account_id]]
    assert not any(fits(j, p) is None for j in left for p in free), "a machine idles beside a job that fits"


def test_memory_is_that_of_the_gpu_where_there_is_one() -> None:
    big = job(gpu_bytes=2**34, host_bytes=2**35)
    no_card, card = (
        explain(big, [place(memory_bytes=2**34)], NOW),
        explain(big, [place(memory_bytes=2**33, gpu=True)], NOW),
    )
    assert no_card is not None
    assert "32.0 GiB of memory" in no_card.reason
    assert card is not None
    assert "16.0 GiB of GPU memory" in card.reason
    assert explain(big, [place(memory_bytes=2**34, gpu=True)], NOW) is None


def test_a_model_of_the_servers_disk_is_trained_where_it_is_seen() -> None:
    """Removed: the look at `any_folder` in `fits`; the job went to a machine that had to give it back, again and
    again."""
    far, here = place("far", gpu=True, any_folder=False), place("here")
    chosen = match([job(from_folder=True)], [far, here], {}, NOW)
    assert [m.account_id for m in chosen] == ["here"]
    waits = explain(job(from_folder=True), [far], NOW)
    assert waits is not None
    assert "a folder on the server, which far cannot read" in waits.reason
    assert match([job()], [far, here], {}, NOW)[0].account_id == "far"


def test_a_chat_waits_for_a_machine_that_can_call() -> None:
    """Removed: `needs_calls` in `_not_able`; a session began where no question could reach it."""
    chat, far = job(needs_calls=True), place("far", can_call=False)
    blocker = explain(chat, [far], NOW)
    assert blocker is not None
    assert blocker.reason == "machines of far cannot call this server; set TRAINHOP_PUBLIC_URL"
    assert match([chat], [far], {}, NOW) == []
    assert [each.account_id for each in match([chat], [far, place("near")], {}, NOW)] == ["near"]
    assert explain(job(), [far], NOW) is None


def test_a_backend_that_needs_a_gpu_waits_for_one() -> None:
    """Removed: `needs_gpu` in `_not_able`; the job went to a CPU twenty times, was refused there, and failed."""
    needy, cpu = job(needs_gpu=True), place("cpu")
    obstacle = fits(needy, cpu)
    assert obstacle is not None
    assert "needs a GPU, but cpu has none" in obstacle.reason
    assert fits(needy, place("card", gpu=True)) is None
    assert fits(job(), cpu) is None


def test_an_account_that_there_is_none_of_is_said_to_be_none() -> None:
    """Guard: without the look at all names in `explain` a typo read like an account that is busy."""
    waits = explain(job(accounts=("alise",)), [place(name="alice"), place("alise", member_id="bob")], NOW)
    assert waits is not None
    assert waits.reason == "the job asks for alise, but this member has no such account or pool"
    assert explain(job(accounts=("alice",)), [place(name="alice")], NOW) is None


def test_waiting_is_explained_with_a_time() -> None:
    quota = place(name="alice's Kaggle", hours_left=0.001, refresh_at=NOW + 60)
    found = explain(job(), [quota], NOW)
    assert found is not None
    assert "alice's Kaggle GPU hours: 0.0 left" in found.reason
    assert "job needs at least 1 min" in found.reason
    assert found.until == NOW + 60
    assert explain(job(), [place()], NOW) is None
    assert "there is no account" in str(explain(job(), [], NOW))


def test_the_first_losses_cost_no_time_and_the_next_ones_more_and_more() -> None:
    waits = [retry_at(EndReason.LOST, n, 0.0) for n in range(14)]
    assert waits[:5] == [0.0, 0.0, 1.0, 2.0, 4.0]
    assert waits[-1] == 300.0
    assert retry_at(EndReason.HANDED_OFF, 9, 7.0) == 7.0


@given(st.lists(st.integers(1, 1000), unique=True, max_size=20), st.integers(1, 5))
def test_pruning_keeps_the_newest_and_always_the_head(steps: list[int], keep: int) -> None:
    chain = [(f"c{s}", s) for s in steps]
    head = f"c{min(steps)}" if steps else None
    gone = prune(chain, head, keep)
    assert head not in gone
    newest = {f"c{s}" for s in sorted(steps)[-keep:]}
    assert set(gone) == {f"c{s}" for s in steps} - newest - {head}


def test_a_job_that_lacks_hours_says_so_in_full() -> None:
    saturday = 1_795_824_000.0  # 2026-11-28T00:00Z
    short = place(
        name="alice's Kaggle",
        hours_left=0.4,
        hours_total=30.0,
        refresh_at=saturday,
        start_up_s=2400.0,
        session_s=36_000.0,
    )
    waits = explain(job(steps_left=92, step_time=StepTime(host_s=16.0)), [short], NOW)
    assert waits is not None
    assert waits.reason == ("alice's Kaggle GPU hours: 0.4 of 30 left, refresh Sat 00:00 UTC; job needs 1.1 h")
    assert waits.until == saturday


def test_two_jobs_do_not_spend_the_same_hours() -> None:
    """Guard: without the deduction in `_taken` both sessions were given the whole quota."""
    two = place(slots=2, session_s=36_000.0, hours_left=3.0)
    chosen = match([job("a"), job("b")], [two], {}, NOW)
    assert sum(m.budget_s for m in chosen) <= 3 * 3600


def test_a_job_that_never_uses_a_gpu_takes_no_hours_where_it_gets_a_cpu() -> None:
    """Guards: without `_hours_left` it waited for new hours; without it in `match` its session left none for others."""
    export = job("export", needs_no_gpu=True)
    spent = place(session_s=36_000.0, hours_left=0.001, has_cpu=True)
    assert fits(export, spent) is None
    assert budget(export, spent) == 36_000.0
    for other in (job(), replace(export, needs_no_gpu=False)):
        assert fits(other, spent) is not None
    assert fits(export, replace(spent, has_cpu=False)) is not None
    both = place(slots=2, session_s=7_200.0, hours_left=2.0, has_cpu=True)
    assert [m.budget_s for m in match([export, job("other")], [both], {}, NOW)] == [7_200.0, 7_200.0]


def test_the_end_of_a_job_counts_the_wait_for_new_hours() -> None:
    long = job(steps_left=7200, step_time=StepTime(host_s=1.0))
    assert done_at(long, place(hours_left=5.0), NOW) == NOW + finish_s(long, place())
    refreshed = place(hours_left=1.0, hours_total=30.0, refresh_at=NOW + 50_000)
    assert done_at(long, refreshed, NOW) == NOW + 50_000 + finish_s(long, place()) - 3600
    assert done_at(long, place(hours_left=1.0), NOW) is None
