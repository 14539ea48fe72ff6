"""The order of an audit: a function of the seed, a prefix of every longer one, in proportion to the strata."""

from collections import Counter
from statistics import fmean

import pytest

from orchestrator.domain.trust.audit_sample import Unit, first_units, is_rated_twice, tercile, tercile_limits

SIZES = {"forum": 600, "wiki": 300, "mail": 99, "one": 1}
UNITS = [Unit(row, row % 3, name) for row, name in enumerate(n for n, size in SIZES.items() for _ in range(size))]


def _first(count, seed=7):
    return first_units(UNITS, SIZES, seed, count)


def test_a_longer_sample_begins_with_the_shorter():
    """Guard: the units that a stratum keeps must be enough for every beginning."""
    whole = _first(1000)
    assert sorted(whole, key=lambda unit: unit.row) == UNITS
    assert all(_first(count) == whole[:count] for count in (1, 2, 20, 145, 400, 999))


@pytest.mark.parametrize("seed", range(20))
def test_many_small_strata_keep_the_order(seed):
    """Guard: a stratum may be ahead of its proportion, so more of its units are kept than its share."""
    sizes = {str(n): n for n in range(1, 31)}
    units = [Unit(row, 0, name) for row, name in enumerate(n for n, size in sizes.items() for _ in range(size))]
    whole = first_units(units, sizes, seed, len(units))
    assert len(whole) == len(units)
    assert all(first_units(units, sizes, seed, count) == whole[:count] for count in range(1, 60, 3))


def test_the_order_is_a_function_of_the_seed():
    assert first_units(reversed(UNITS), SIZES, 7, 50) == _first(50)
    assert _first(50, seed=8) != _first(50)


@pytest.mark.parametrize("count", [20, 100, 400])
def test_every_beginning_has_the_strata_in_proportion(count):
    found = Counter(unit.stratum for unit in _first(count))
    assert all(abs(found[name] - count * size / 1000) < len(SIZES) for name, size in SIZES.items())


def test_every_row_is_as_likely_as_any_other():
    """Guard: without a start by hash, the only row of a stratum would always come in the middle."""
    firsts = [_first(100, seed) for seed in range(120)]
    assert 0.03 <= fmean("one" in {unit.stratum for unit in found} for found in firsts) <= 0.19
    assert 0.4 <= fmean(unit.row % 2 for found in firsts for unit in found) <= 0.6


def test_one_row_is_a_sample():
    assert first_units([Unit(0, 0, "all")], {"all": 1}, 1, 400) == [Unit(0, 0, "all")]


def test_a_fifth_is_rated_twice():
    twice = [is_rated_twice(7, unit.row, unit.turn) for unit in UNITS]
    assert 0.16 <= fmean(twice) <= 0.24
    assert twice == [is_rated_twice(7, unit.row, unit.turn) for unit in UNITS]


@pytest.mark.parametrize(
    ("lengths", "thirds"),
    [
        ([5], ["short"]),
        ([5, 5, 5], ["short"] * 3),
        ([1, 2, 3], ["short", "middle", "long"]),
        ([5, 5, 5, 9], ["short"] * 3 + ["long"]),
    ],
)
def test_lengths_are_cut_into_thirds(lengths, thirds):
    limits = tercile_limits(Counter(lengths))
    assert [tercile(length, limits) for length in lengths] == thirds
