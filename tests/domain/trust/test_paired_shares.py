"""Two shares of the same items: McNemar's exact test, and an interval that holds the truth as often as it says."""

import math

import pytest

from orchestrator.domain.trust.paired_shares import compare_shares, difference


def paired(both, only_base, only_adapter, none):
    base = [True] * (both + only_base) + [False] * (only_adapter + none)
    adapter = [True] * both + [False] * only_base + [True] * only_adapter + [False] * none
    return compare_shares(base, adapter)


@pytest.mark.parametrize(
    ("only_base", "only_adapter", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 0.0625),
        (6, 0, 0.03125),
        (9, 2, 0.0654296875),
        (12, 5, 0.143463134765625),
        (20, 20, 1.0),
        (41, 23, 0.0327657590988232),
        (3, 17, 0.0025768280029296875),
    ],
)
def test_the_p_value_is_that_of_scipy(only_base, only_adapter, p):
    """`scipy.stats.binomtest(only_base, only_base + only_adapter, 0.5).pvalue` of scipy 1.17.1."""
    assert paired(30, only_base, only_adapter, 9).p == pytest.approx(p, rel=1e-12)


def coverage(n, both, only_first, only_second):
    """The exact probability that the interval holds the difference of these true shares."""
    shares = (both, only_first, only_second, 1 - both - only_first - only_second)
    total = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            for c in range(n + 1 - a - b):
                counts = (a, b, c, n - a - b - c)
                chance = math.factorial(n)
                for count, share in zip(counts, shares, strict=True):
                    chance *= share**count / math.factorial(count)
                found = difference(*counts)
                if found.low <= only_first - only_second <= found.high:
                    total += chance
    return total


@pytest.mark.parametrize(
    ("both", "first", "second"), [(0.5, 0.1, 0.1), (0.3, 0.2, 0.05), (0.2, 0.05, 0.3), (0.1, 0.4, 0.1)]
)
def test_the_interval_holds_the_truth(both, first, second):
    """Counted over all tables of 20 items. Guard: with the correlation turned, one held 93 %, and another 99.9 %."""
    assert 0.945 <= coverage(20, both, first, second) <= 0.985


def test_the_interval_is_the_same_from_both_sides():
    for counts in ((30, 9, 2, 19), (0, 0, 0, 5), (7, 0, 0, 0), (0, 12, 0, 0), (3, 4, 5, 6)):
        both, first, second, none = counts
        one, other = difference(both, first, second, none), difference(both, second, first, none)
        assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
        assert -1 <= one.low <= one.value <= one.high <= 1


def test_items_are_counted_and_must_be_pairs():
    found = paired(4, 3, 2, 1)
    assert (found.both, found.only_base, found.only_adapter, found.none, found.items) == (4, 3, 2, 1, 10)
    assert found.difference.value == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="at least one item"):
        compare_shares([], [])
    with pytest.raises(ValueError, match="shorter"):
        compare_shares([True, False], [True])
