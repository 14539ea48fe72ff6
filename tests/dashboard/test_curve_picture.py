"""The curve as an SVG picture, for pages without a script."""

from __future__ import annotations

import pytest

from orchestrator.entrypoints.dashboard.curve_picture import HEIGHT, POINTS, WIDTH, draw


def _points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]


def test_each_session_has_a_line_that_begins_where_the_last_one_ended():
    """Guard: without the last point of the line before, there was a gap at each hand-off."""
    loss = [(step, 3.0 / step, 0.0, 1 if step <= 5 else 2) for step in range(1, 11)]
    found = draw(loss, [(5, 1.0, 0.0, 1)], {1: 1, 2: 2}, [5], 10)
    assert [line.kind for line in found.lines] == ["s0", "s1", "held-out"]
    first, second, _ = (_points(line.points) for line in found.lines)
    assert (len(first), len(second)) == (5, 6)
    assert second[0] == first[-1]
    assert found.marks == (first[-1][0],)
    assert [tick.words for tick in found.steps] == ["0", "2", "5", "8", "10"]


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [-1.0, 1.0], [1e-9, 1e9]])
def test_any_values_lie_within_the_picture(values):
    found = draw([(n + 1, value, 0.0, 1) for n, value in enumerate(values)], [], {1: 1}, [], len(values))
    for x, y in _points(found.lines[0].points):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
    assert found.values
    assert all(found.top <= tick.at <= found.bottom for tick in found.values)


def test_a_long_curve_stays_small_and_keeps_its_spike():
    loss = [(step, 9.0 if step == 7_777 else 1.0, 0.0, 1) for step in range(1, 20_001)]
    (line,) = draw(loss, [], {1: 1}, [], 20_000).lines
    found = _points(line.points)
    assert len(found) <= POINTS
    assert min(y for _, y in found) < HEIGHT / 4


def test_nothing_is_drawn_of_nothing():
    assert draw([], [], {}, [], 10).lines == ()
