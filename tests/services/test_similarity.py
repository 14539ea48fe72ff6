"""Similarity to the training data: right numbers, shown with the audit of the data, and never part of a verdict."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.audits import Audit, StrataKind
from orchestrator.services import model_cards, models
from orchestrator.services.evaluation_report import report_of
from orchestrator.services.similarity import COMPARED, common_subsequence, rouge_l, similarity
from tests.helpers.verdicts import evaluate, vote
from tests.helpers.world import World
from tests.services.test_evaluations import answers
from tests.services.test_models import BETTER, evaluated, trained
from worker.shared import answers_file
from worker.shared.answers_file import MAX_OWN_BYTES, Answered, AnswersFile

SAME, NOTHING_ALIKE = 100.0, 0.0


def found(own_answers: list[str] | None, count: int = 3, **how: Any) -> AnswersFile:
    return answers_file.read(io.BytesIO(answers(count, own_answers=own_answers, **how)))


def measured(own: float, chrf: float) -> dict[str, Any]:
    """Numbers of an adapter that resembles its data as much as it says."""
    return {
        "rows": 100,
        "own_loss": {"rows": 100, "tokens": 9_000, "base": 5.0, "adapter": own},
        "chrf": {"base": 20.0, "adapter": chrf},
        "bleu": {"base": 10.0, "adapter": chrf},
        "rouge_l": {"base": 0.2, "adapter": chrf / 100},
        "settings": {"chrf": "nrefs:1", "bleu": "tok:13a"},
    }


@given(st.lists(st.integers(0, 3), max_size=70), st.lists(st.integers(0, 3), max_size=70))
def test_the_common_subsequence_is_that_of_the_textbook(first: list[int], second: list[int]) -> None:
    row = [0] * (len(second) + 1)
    for one in first:
        before = row
        row = [0]
        for place, other in enumerate(second):
            row.append(before[place] + 1 if one == other else max(before[place + 1], row[place]))
    assert common_subsequence(first, second) == row[-1]


def test_rouge_counts_words_in_any_script() -> None:
    """Counted by hand. Each character of a script without spaces is a word."""
    assert rouge_l("the cat sat on the mat", "The cat is on a mat.") == pytest.approx(2 * 4 / 12)
    assert rouge_l("Police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert rouge_l("猫が好き", "犬が好き") == pytest.approx(0.75)
    assert (rouge_l("", ""), rouge_l("a", ""), rouge_l("!", "?")) == (0.0, 0.0, 0.0)


def test_answers_are_compared_with_those_of_the_rows() -> None:
    likeness = similarity(found([f"It is {number}." for number in range(3)]).answered)
    assert likeness is not None
    assert (likeness["rows"], likeness["own_loss"]) == (3, None)
    for name, best in (("chrf", SAME), ("bleu", SAME), ("rouge_l", 1.0)):
        assert likeness[name]["base"] == pytest.approx(best)
        assert likeness[name]["adapter"] < best / 2, name
    assert "version:2" in likeness["settings"]["bleu"]
    assert similarity(found(None).answered) is None
    assert similarity(found(["", " ", ""]).answered) is None


def test_the_held_out_loss_is_the_mean_over_all_tokens() -> None:
    """As during training, so that long rows count more."""
    plain = found(["x", "y", "z"]).answered
    losses: list[Any] = [{"tokens": 1, "base": 4.0, "adapter": 2.0}, None, {"tokens": 3, "base": 2.0, "adapter": 1.0}]
    answered = [
        Answered.model_validate(each.model_dump() | {"own_loss": loss})
        for each, loss in zip(plain, losses, strict=True)
    ]
    likeness = similarity(answered)
    assert likeness is not None
    assert likeness["own_loss"] == {"rows": 2, "tokens": 4, "base": 2.5, "adapter": 1.25}


def test_long_answers_are_compared_at_their_beginning() -> None:
    """Guard: without the limit, 500 answers of the longest kind took minutes."""
    own = ["It is 0." + "x" * 2 * COMPARED]
    assert len(found(own, 1).answered[0].own_answer) < MAX_OWN_BYTES
    likeness = similarity(found(own, 1).answered)
    longer = similarity(found([own[0][:COMPARED]], 1).answered)
    assert likeness == longer


def test_no_number_of_similarity_is_a_warning_or_a_veto() -> None:
    """Guard: with a warning about the loss, the reports differed."""
    without = report_of(found([""] * 40, 40))
    assert without.pop("similarity") is None
    for own in ([f"four {number}." for number in range(40)], ["nothing alike"] * 40):
        report = report_of(found(own, 40))
        assert report.pop("similarity") is not None
        assert report == without


@pytest.mark.parametrize(("own", "chrf"), [(0.01, SAME), (50.0, NOTHING_ALIKE)])
@pytest.mark.parametrize("outcomes", [BETTER, [], BETTER[::-1]])
def test_no_number_of_similarity_changes_a_verdict(world: World, own: float, chrf: float, outcomes: list[Any]) -> None:
    """The paper's trap: each of these numbers improved, and people preferred the base model."""
    job = trained(world)
    alice = world.actors["alice"]
    first = evaluated(world, job)
    if outcomes:
        vote(world.ctx.uow, first, outcomes)
    before = models.verdict_of(world.ctx, alice, job)
    assert first.report is not None
    with world.ctx.uow() as tx:
        first.report = first.report | {"similarity": measured(own, chrf)}
        tx.evaluations.save(first)
    after = models.verdict_of(world.ctx, alice, job)
    assert after.evaluation is not None
    assert after.evaluation.report is not None
    assert "similarity" in after.evaluation.report
    assert (after.verdict, after.evidence) == (before.verdict, before.evidence)


def test_the_card_shows_it_apart_with_the_audit_beside_it(world: World) -> None:
    job = trained(world)
    evaluate(world.ctx.uow, world.job(job), world.submit("alice"), similarity=measured(1.5, 70.0))
    sha256 = world.job(job).spec["datasets"][0]["sha256"]
    alice = world.actors["alice"]
    assert "not audited" in model_cards.card(world.ctx, alice, job).partition("## Resembles your data")[2]
    audit = Audit(
        sha256=sha256, member_id="alice", seed=1, strata_kind=StrataKind.LENGTH, strata={"": 1000}, max_wrong=None,
        row_format="messages", counts={"": [73, 27, 0, 0]}, created_at=1.0,
    )  # fmt: skip
    with world.ctx.uow() as tx:
        tx.audits.add(audit)
    head, _, section = model_cards.card(world.ctx, alice, job).partition("## Resembles your data")
    assert "| held-out loss, nats per token | 5.000 | 1.500 |" in section
    assert "| ROUGE-L | 0.20 | 0.70 |" in section
    assert "audit: 27 % wrong" in section
    assert "do not count for the verdict" in section
    assert "chrF" not in head
