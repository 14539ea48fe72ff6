"""Every sample of an epoch exactly once, whatever cuts the run."""

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.shared.row_split import split
from worker.training.sampler import MicroBatches, Share, permutation, position, step_samples


@st.composite
def runs(draw):
    micro, accumulation, world = (draw(st.integers(1, 4)) for _ in range(3))
    rows, steps = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    cuts = sorted(draw(st.sets(st.integers(1, steps), max_size=4)) | {0, steps})
    return micro, micro * accumulation * world, world, rows, steps, cuts, draw(st.integers(0, 2**31 - 1))


def trained(micro, batch, world, rows, steps, cuts, seed):
    """Sample indices in the order of updates, over all sessions and processes."""
    stream = []
    for start, stop in pairwise(cuts):
        ranks = [iter(MicroBatches(rows, seed, start, steps, batch, micro, rank, world)) for rank in range(world)]
        for _ in range(stop - start):
            for _ in range(batch // (micro * world)):
                for rank in ranks:
                    stream.extend(next(rank))
    return stream


@given(runs())
def test_each_epoch_holds_every_sample_once(run):
    """Fails when `start_step` is ignored, or when a rank takes its neighbour's part."""
    rows = run[3]
    stream = trained(*run)
    assert len(stream) == run[4] * run[1]
    for begin in range(0, len(stream) - rows + 1, rows):
        assert Counter(stream[begin : begin + rows]) == Counter(range(rows))


@given(runs())
def test_the_order_depends_on_nothing_but_seed_and_position(run):
    """Fails when an epoch's permutation is drawn from a generator that sessions or splits advance."""
    _, batch, _, rows, steps, _, seed = run
    assert trained(*run) == trained(1, batch, 1, rows, steps, [0, steps], seed)


def test_a_resume_does_not_walk_through_earlier_epochs():
    """Fails when positions are found by iterating from step 0."""
    permutation.cache_clear()
    begin = time.perf_counter()
    next(iter(MicroBatches(1000, 1, 9_000_000, 10_000_000, 8, 8)))
    assert time.perf_counter() - begin < 0.5
    assert permutation.cache_info().misses == 1


def test_the_streams_are_frozen():
    """These numbers must never change: a run outlives a version of NumPy."""
    assert permutation(10, 42, 0).tolist() == FROZEN[0]
    assert permutation(10, 42, 1).tolist() == FROZEN[1]
    assert split(10, 3, 42)[1].tolist() == FROZEN[2]


FROZEN = ([0, 6, 7, 5, 3, 9, 2, 4, 8, 1], [2, 7, 0, 8, 5, 3, 4, 9, 1, 6], [0, 6, 9])


def test_epochs_and_seeds_differ():
    """The paper's order-replay (r = .948) would show here as equal permutations."""
    orders = {tuple(permutation(50, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert abs(np.corrcoef(permutation(5000, 1, 0), permutation(5000, 1, 1))[0, 1]) < 0.2


@given(st.integers(1, 60), st.integers(0, 59), st.integers(0, 100))
def test_the_split_is_a_partition(rows, held_out, seed):
    held_out = min(held_out, rows - 1)
    train, evaluation = split(rows, held_out, seed)
    assert sorted([*train, *evaluation]) == list(range(rows))
    assert len(evaluation) == held_out


def test_position_and_straddling():
    assert position(3, 4, 5) == (2, 2)
    assert step_samples(1, 4, 5, 0) == [*permutation(5, 0, 0)[4:], *permutation(5, 0, 1)[:3]]


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="micro-batch 3 x 1 processes does not divide the global batch 8"):
        MicroBatches(10, 0, 0, 1, 8, 3)


@st.composite
def shares(draw):
    files, first = [], 0
    for rows in draw(st.lists(st.integers(0, 12), min_size=1, max_size=4)):
        files.append(Share(first, rows, draw(st.integers(1, 30)) if rows else 0))
        first += rows
    return tuple(files)


@given(shares(), st.integers(0, 2**31 - 1), st.integers(1, 5))
def test_each_epoch_has_its_share_of_each_file(files, seed, epochs):
    """Fails when a file's stream begins anew in each epoch, or when its rows are drawn with replacement."""
    length = sum(share.drawn for share in files)
    if not length:
        return
    seen: Counter[int] = Counter()
    for epoch in range(epochs):
        samples = step_samples(epoch, length, length, seed, files)
        for share in files:
            own = [each for each in samples if share.first <= each < share.first + share.rows]
            assert len(own) == share.drawn
        seen.update(samples)
    for share in files:
        counts = [seen[row] for row in range(share.first, share.first + share.rows)]
        assert not counts or max(counts) - min(counts) <= 1


@given(shares(), st.integers(1, 7), st.integers(0, 99))
def test_steps_cut_the_stream_of_epochs_and_nothing_else(files, batch, seed):
    length = sum(share.drawn for share in files)
    if not length:
        return
    whole = [each for epoch in range(3) for each in step_samples(epoch, length, length, seed, files)]
    cut = [each for step in range(3 * length // batch) for each in step_samples(step, batch, length, seed, files)]
    assert cut == whole[: len(cut)]


def test_the_order_of_repeated_rows_never_changes():
    """A checkpoint of an earlier version continues in it."""
    files = (Share(0, 3, 6), Share(3, 4, 2))
    assert [step_samples(step, 8, 8, 42, files) for step in range(3)] == FROZEN_SHARES


FROZEN_SHARES = [[2, 4, 5, 2, 0, 1, 1, 0], [0, 3, 2, 1, 0, 2, 1, 6], [2, 2, 0, 4, 3, 1, 1, 0]]
