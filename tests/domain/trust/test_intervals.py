"""Intervals against exact tables: coverage of Wilson's interval, quantiles of Student's t, strata, finite datasets."""

import math
import random
from statistics import fmean

import pytest

from orchestrator.domain.trust.audit_estimate import Stratum, estimate
from orchestrator.domain.trust.intervals import effective_n, paired_t, t_quantile, wilson, wilson_of

SHARES = [(5 + k) / 250 for k in range(121)]
"""From 2 to 50 %."""


def _coverage(n, p, bounds):
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if bounds[k][0] <= p <= bounds[k][1])


@pytest.mark.parametrize(
    ("wrong", "n", "low", "high"), [(39, 145, 0.203, 0.346), (11, 40, 0.161, 0.428), (16, 40, 0.263, 0.554)]
)
def test_wilson_gives_the_intervals_of_the_papers_audits(wrong, n, low, high):
    found = wilson(wrong, n)
    assert (round(found.low, 3), round(found.high, 3)) == (low, high)


@pytest.mark.parametrize(
    ("n", "least", "mean", "most"),
    [(40, 0.928, 0.953, 0.979), (100, 0.936, 0.951, 0.977), (150, 0.938, 0.951, 0.971), (400, 0.942, 0.950, 0.957)],
)
def test_wilson_has_the_exact_coverage_of_the_table(n, least, mean, most):
    bounds = [(i.low, i.high) for i in (wilson(k, n) for k in range(n + 1))]
    covered = [_coverage(n, p, bounds) for p in SHARES]
    assert (min(covered), fmean(covered), max(covered)) == pytest.approx((least, mean, most), abs=0.00051)


def test_a_correction_for_a_finite_dataset_keeps_the_coverage():
    """Guard: without the correction, 1,200 of 2,676 rows would be covered in more than 99 % of the samples."""
    size, n, wrong = 2676, 1200, 723

    def chance(k):
        return math.comb(wrong, k) * math.comb(size - wrong, n - k) / math.comb(size, n)

    def covered(bounds):
        return sum(chance(k) for k in range(n + 1) if bounds(k).low <= wrong / size <= bounds(k).high)

    assert covered(lambda k: wilson(k, n)) > 0.99
    assert 0.942 <= covered(lambda k: wilson_of(k / n, effective_n(n, size))) <= 0.969


def test_a_dataset_that_was_read_whole_has_no_uncertainty():
    found = estimate([Stratum(size=1, wrong=1)])
    assert (found.wrong.low, found.wrong.value, found.wrong.high) == (1.0, 1.0, 1.0)
    found = estimate([Stratum(size=40, wrong=11, correct=29)])
    assert found.wrong.low == found.wrong.high == 11 / 40


def test_a_small_share_of_a_dataset_needs_no_correction():
    assert effective_n(50, 1000) == 50
    assert effective_n(51, 1000) == pytest.approx(51 * 999 / 949)
    with pytest.raises(ValueError, match="larger than its population"):
        effective_n(2, 1)


def test_one_stratum_gives_wilsons_interval():
    found = estimate([Stratum(size=100_000, wrong=39, correct=106, not_checkable=4)])
    assert (found.wrong.low, found.wrong.high) == pytest.approx((wilson(39, 145).low, wilson(39, 145).high))
    assert (found.decided, found.labelled) == (145, 149)


def test_unsure_rows_widen_the_bounds_and_leave_the_estimate():
    found = estimate([Stratum(size=100_000, wrong=20, correct=70, unsure=10)])
    assert found.wrong.value == pytest.approx(20 / 90)
    assert found.if_correct.low == pytest.approx(wilson(20, 100).low)
    assert found.if_wrong.high == pytest.approx(wilson(30, 100).high)
    assert found.if_correct.low < found.wrong.low < found.wrong.high < found.if_wrong.high


def test_a_stratum_counts_by_its_rows_and_not_by_its_labels():
    """Guard: pooled labels would say 50 %."""
    found = estimate([Stratum(size=9000, correct=50), Stratum(size=1000, wrong=50)])
    assert found.wrong.value == pytest.approx(0.1)


def test_the_width_of_an_interval_counts_strata_by_their_rows():
    """Guard: by labels, a small stratum that was labelled often would count as much as a large one."""
    found = estimate([Stratum(size=90_000, wrong=5, correct=45), Stratum(size=10_000, wrong=45, correct=5)]).wrong
    error = math.sqrt(0.9**2 * 0.1 * 0.9 / 50 + 0.1**2 * 0.9 * 0.1 / 50)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_nothing_labelled_is_not_clean():
    found = estimate([Stratum(size=10)])
    assert math.isnan(found.wrong.value)
    assert (found.wrong.low, found.wrong.high) == (0.0, 1.0)


def test_more_labels_than_rows_are_refused():
    with pytest.raises(ValueError, match="more labelled rows than rows"):
        estimate([Stratum(size=1, wrong=2)])


@pytest.mark.parametrize("shares", [(0.27, 0.27, 0.27), (0.02, 0.2, 0.6), (0.0, 0.05, 0.9)])
def test_strata_keep_the_coverage(shares):
    """Guard: one pooled interval would hold the truth in more than 98 % where strata differ much."""
    draw, sizes, n, runs = random.Random(3), (5000, 3000, 2000), 150, 1500
    truth = sum(size * share for size, share in zip(sizes, shares, strict=True)) / 10_000
    held = 0
    for _ in range(runs):
        strata = []
        for size, share in zip(sizes, shares, strict=True):
            rows = n * size // 10_000
            wrong = sum(draw.random() < share for _ in range(rows))
            strata.append(Stratum(size=size, wrong=wrong, correct=rows - wrong))
        found = estimate(strata).wrong
        held += found.low <= truth <= found.high
    assert 0.93 <= held / runs <= 0.98


@pytest.mark.parametrize(
    ("share", "freedom", "quantile"),
    [
        (0.975, 1, 12.70620474),
        (0.975, 4, 2.776445105),
        (0.975, 9, 2.262157163),
        (0.975, 49, 2.009575237),
        (0.95, 19, 1.729132812),
        (0.995, 99, 2.626405457),
        (0.025, 9, -2.262157163),
        (0.5, 3, 0.0),
    ],
)
def test_quantiles_of_t_are_those_of_the_tables(share, freedom, quantile):
    assert t_quantile(share, freedom) == pytest.approx(quantile, rel=1e-8)


def test_a_mean_of_paired_differences_has_the_t_interval():
    found = paired_t([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.103676, 0.496324), abs=1e-6)


@pytest.mark.parametrize("differences", [[], [1.0], [1.0, math.nan]])
def test_too_few_or_broken_differences_are_refused(differences):
    with pytest.raises(ValueError, match="at least two differences"):
        paired_t(differences)
