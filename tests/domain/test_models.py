"""The registry of models as pure functions: moves, what a rollback goes back to, and what a verdict refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import ConflictError
from orchestrator.domain.models import MAX_MOVES, Model, Move, MoveKind, refuse_unless, rollback_target
from orchestrator.domain.trust.verdict import Recommendation, Verdict

GOOD = Verdict(answer=Recommendation.PROMOTE, reasons=("People prefer the adapter to its base.",))
OPEN = Verdict(answer=Recommendation.NOT_ENOUGH, reasons=("The votes do not decide yet.",), more=40)
BAD = Verdict(answer=Recommendation.DO_NOT, reasons=("It forgot.", "It repeats."))


def model() -> Model:
    return Model(member_id="ann", name="guide", created_at=1.0)


def move(of: Model, to: str | None, verdict: Verdict | None = GOOD, kind: MoveKind = MoveKind.PROMOTION) -> Move:
    return of.move(to, verdict, kind, actor="ann", at=2.0)


def test_a_move_says_who_when_from_where_and_why() -> None:
    guide = model()
    first, second = move(guide, "job-1"), move(guide, "job-2", BAD)
    assert (first.before, first.after, first.number, first.against_verdict) == (None, "job-1", 1, False)
    assert (second.before, second.after, second.number, second.against_verdict) == ("job-1", "job-2", 2, True)
    assert (second.verdict, second.reasons) == (Recommendation.DO_NOT, ["It forgot.", "It repeats."])
    assert (guide.promoted, guide.moves) == ("job-2", 2)
    emptied = move(guide, None, None, MoveKind.ROLLBACK)
    assert (emptied.verdict, emptied.against_verdict) == (None, False)
    with pytest.raises(ConflictError, match="already"):
        move(guide, None)


def test_a_full_history_takes_no_more() -> None:
    """Guard: without the limit, a program that promotes in a loop fills the database."""
    guide = model()
    guide.moves = MAX_MOVES - 1
    move(guide, "job-1")
    with pytest.raises(ConflictError, match="history of model guide is full"):
        move(guide, "job-2")
    assert (guide.promoted, guide.moves) == ("job-1", MAX_MOVES)


def test_a_verdict_is_refused_with_its_reasons() -> None:
    refuse_unless(GOOD, forced=False)
    for verdict in (OPEN, BAD):
        refuse_unless(verdict, forced=True)
    with pytest.raises(ConflictError, match=r"do not promote\. It forgot\. It repeats\.$"):
        refuse_unless(BAD, forced=False)
    with pytest.raises(ConflictError, match=r"decide yet\. About 40 more ratings would probably decide\.$"):
        refuse_unless(OPEN, forced=False)


JOBS = ("a", "b", "c")


@given(st.lists(st.sampled_from(JOBS) | st.none(), max_size=12))
def test_rollbacks_undo_all_promotions_in_turn(steps: list[str | None]) -> None:
    """None is a rollback. Guard: with "the candidate of the last move" as the target, two rollbacks came back to the
    first one."""
    guide, moves, stack = model(), [], []

    def back() -> None:
        target = rollback_target(moves, JOBS)
        moves.append(move(guide, target, GOOD, MoveKind.ROLLBACK))
        stack.pop()

    for step in steps:
        if step is None and guide.promoted is not None:
            back()
        elif step is not None and step != guide.promoted:
            moves.append(move(guide, step))
            stack.append(step)
        assert guide.promoted == (stack[-1] if stack else None)
    while guide.promoted is not None:
        back()
        assert guide.promoted == (stack[-1] if stack else None)
    assert stack == []


def test_a_rollback_passes_over_what_is_deleted() -> None:
    """Guard: without `available`, a rollback promoted an adapter whose file was gone."""
    guide = model()
    moves = [move(guide, job) for job in ("a", "b", "c")]
    assert rollback_target(moves, {"a", "b", "c"}) == "b"
    assert rollback_target(moves, {"a", "c"}) == "a"
    assert rollback_target(moves, {"c"}) is None
    moves.append(move(guide, "a", GOOD, MoveKind.ROLLBACK))
    assert rollback_target(moves, {"a", "c"}) is None
    assert rollback_target([], JOBS) is None
