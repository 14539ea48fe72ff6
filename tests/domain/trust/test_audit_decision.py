"""The decision about a share of wrong rows: exact error at the threshold, finite datasets, unsure rows, forecasts."""

from itertools import islice

import pytest

from orchestrator.domain.trust.audit_decision import Decision, decide, forecast, limits, log_evidence, standing


def _decide(wrong, correct, unsure=0, rows=100_000, max_wrong=0.1):
    return decide(wrong=wrong, correct=correct, unsure=unsure, rows=rows, max_wrong=max_wrong)


def _more(wrong, correct, unsure=0, rows=100_000):
    found = standing(wrong=wrong, correct=correct, unsure=unsure, rows=rows, max_wrong=0.1)
    assert found.decision is Decision.OPEN
    return found.more


def _claims(share, max_wrong, last, first=20):
    """Exact probabilities of pass and fail when the decision is looked at after each of these rows."""
    chances, passed, failed = {0: 1.0}, 0.0, 0.0
    for n, (most, least) in zip(range(1, last + 1), limits(1, max_wrong), strict=False):
        following = {}
        for wrong, chance in chances.items():
            following[wrong + 1] = following.get(wrong + 1, 0.0) + chance * share
            following[wrong] = following.get(wrong, 0.0) + chance * (1 - share)
        if n >= first:
            passed += sum(chance for wrong, chance in following.items() if wrong <= most)
            failed += sum(chance for wrong, chance in following.items() if wrong >= least)
            following = {wrong: chance for wrong, chance in following.items() if most < wrong < least}
        chances = following
    return passed, failed


@pytest.mark.parametrize("max_wrong", [0.02, 0.1, 0.27])
def test_a_wrong_claim_at_the_threshold_is_rare(max_wrong):
    """Guard: with Wilson's interval looked at after each row it is 36 % at 10 %."""
    assert sum(_claims(max_wrong, max_wrong, 600)) <= 0.05


def test_the_exact_rates_are_those_of_the_table():
    """The table looks from the first row on. The product looks from the twentieth on, which halves the error."""
    assert sum(_claims(0.1, 0.1, 600, first=1)) == pytest.approx(0.029, abs=0.0005)
    assert sum(_claims(0.1, 0.1, 600)) == pytest.approx(0.0144, abs=0.0005)
    assert [sum(_claims(0.27, 0.1, rows, first=1)) >= 0.5 for rows in (32, 33)] == [False, True]
    assert [1 - sum(_claims(0.05, 0.1, rows)) for rows in (200, 600)] == pytest.approx([0.68, 0.094], abs=0.015)
    assert 1 - sum(_claims(0.02, 0.1, 200)) == pytest.approx(0.033, abs=0.01)


def test_the_papers_audit_fails_a_limit_of_ten_percent():
    assert _decide(39, 106) is Decision.FAIL
    assert _decide(39, 106, max_wrong=0.25) is Decision.OPEN


def test_limits_are_where_the_evidence_reaches_twenty():
    for n, (most, least) in zip(range(1, 300), limits(1, 0.1), strict=False):
        for wrong in range(n + 1):
            enough = log_evidence(wrong, n, 0.1) >= 2.995732273553991
            assert enough == (wrong <= most or wrong >= least)
    assert next(limits(250, 0.1)) == list(islice(limits(1, 0.1), 250))[-1]


def test_unsure_rows_decide_nothing():
    """Guard: pass must hold with every unsure row wrong, fail with every unsure row correct."""
    assert _decide(1, 120) is Decision.PASS
    assert _decide(1, 120, unsure=12) is Decision.OPEN
    assert _decide(18, 42) is Decision.FAIL
    assert _decide(18, 42, unsure=60) is Decision.OPEN
    assert _decide(0, 1, unsure=19, rows=20) is Decision.OPEN


def test_nothing_is_decided_before_the_twentieth_row():
    assert _decide(9, 10) is Decision.OPEN
    assert _decide(10, 10) is Decision.FAIL


@pytest.mark.parametrize(
    ("wrong", "correct", "rows", "decision"),
    [
        (0, 1, 1, Decision.PASS),
        (1, 0, 1, Decision.FAIL),
        (2, 0, 15, Decision.FAIL),
        (1, 14, 15, Decision.PASS),
        (0, 14, 15, Decision.PASS),
        (1, 3, 15, Decision.OPEN),
    ],
)
def test_a_small_dataset_is_decided_by_what_is_left_of_it(wrong, correct, rows, decision):
    assert _decide(wrong, correct, rows=rows) is decision


def test_a_forecast_never_asks_for_more_rows_than_there_are():
    assert _more(1, 3, rows=15) == 11
    assert _more(0, 0, rows=1) == 1
    assert _more(30, 270) is None
    assert _more(30, 270, rows=400) == 100


def test_a_forecast_counts_rows_that_stay_unsure():
    without = forecast(wrong=8, n=40, max_wrong=0.1)
    assert without is not None
    assert _more(8, 32, unsure=40) == 2 * without


@pytest.mark.parametrize("max_wrong", [0, 1, -0.1])
def test_a_limit_that_says_nothing_is_refused(max_wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        _decide(1, 1, max_wrong=max_wrong)
