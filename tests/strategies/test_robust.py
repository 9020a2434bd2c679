"""Robust aggregates: what they compute, that order never shows, and how many liars break them."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies import robust
from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.krum import Krum as KrumStrategy
from strategies.norm_bound import NormBound as NormBoundStrategy
from strategies.optimizers import SGD
from strategies.robust import Krum, MedianNormBound, NormBound, TrimmedMean, scores
from strategies.transform import IllegalChain, chain
from strategies.transforms.flatten import Flatten
from strategies.transforms.rotate import Rotate
from strategies.trimmed_mean import TrimmedMean as TrimmedMeanStrategy
from strategies.update import MAGNITUDE_BITS, FixedPoint, InvalidUpdate, Update
from strategies.work import Delta

MEDIAN = TrimmedMean(0.5)
ALL = [MEDIAN, TrimmedMean(0.2), TrimmedMean(0.0), Krum(1), Krum(2, kept=1), NormBound(0.5), MedianNormBound()]
HUGE = 2.0**MAGNITUDE_BITS * (1 - 2**-20)
REALS = st.floats(-100, 100, allow_nan=False)


def named(aggregator):
    return repr(aggregator) if isinstance(aggregator, TrimmedMean | Krum | NormBound) else type(aggregator).__name__


def updates_of(rows, weights=None, dtype=np.float64):
    """One update of each row, in two arrays: (n, 5) -> a (2, 2) and a ()."""
    rows = np.asarray(rows, dtype)
    return [
        Update((row[:4].reshape(2, 2), row[4]), (f"{i:02}",), weight=1 if weights is None else weights[i])
        for i, row in enumerate(rows)
    ]


def grid_of(updates):
    return FixedPoint.for_weight(sum(update.weight for update in updates))


def closed(aggregator, updates):
    fold = aggregator.start(grid_of(updates))
    for update in updates:
        fold.add(update)
    return fold.total()


def aggregate(aggregator, updates):
    """As one vector."""
    result = aggregator.finish(closed(aggregator, updates), grid_of(updates))
    assert all(array.dtype == np.float64 for array in result)
    return np.concatenate([array.ravel() for array in result])


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(9, 5))


# -------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 10])
def test_the_median_is_numpys_to_the_bit(n):
    rows = np.random.default_rng(n).normal(size=(n, 5))
    np.testing.assert_array_equal(aggregate(MEDIAN, updates_of(rows)), np.median(rows, axis=0))


@pytest.mark.parametrize(("share", "n", "cut"), [(0.2, 10, 2), (0.2, 9, 2), (0.2, 4, 1), (0.07, 100, 7), (0.45, 5, 2)])
def test_the_trimmed_mean_leaves_out_the_share_at_each_end_rounded_up(share, n, cut):
    rows = np.random.default_rng(n).normal(size=(n, 5))
    expected = np.sort(rows, axis=0)[cut : n - cut].mean(axis=0)
    np.testing.assert_allclose(aggregate(TrimmedMean(share), updates_of(rows)), expected, rtol=1e-12)


def test_trimming_nothing_gives_the_mean(rows):
    np.testing.assert_allclose(aggregate(TrimmedMean(0.0), updates_of(rows)), rows.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.4, 0.45, 0.5])
def test_a_share_that_would_leave_nothing_leaves_the_median(share):
    rows = np.random.default_rng(3).normal(size=(3, 5))
    np.testing.assert_array_equal(aggregate(TrimmedMean(share), updates_of(rows)), np.median(rows, axis=0))


def krum_reference(rows, liars, kept):
    """The definition, update by update."""
    n, found = len(rows), []
    for i in range(n):
        distances = sorted(np.sum((rows[i] - rows[j]) ** 2) for j in range(n) if j != i)
        found.append(sum(distances[: n - liars - 2]))
    best = sorted(range(n), key=lambda i: found[i])[: kept or n - liars - 2]
    return np.array(found), sorted(best)


@pytest.mark.parametrize(("liars", "kept"), [(0, 1), (1, 0), (1, 3), (2, 1), (3, 0), (3, 1)])
def test_krum_is_its_definition(rows, liars, kept):
    expected, best = krum_reference(rows, liars, kept)
    np.testing.assert_allclose(scores(updates_of(rows), len(rows) - liars - 2), expected, rtol=1e-12)
    total = closed(Krum(liars, kept), updates_of(rows))
    np.testing.assert_allclose(aggregate(Krum(liars, kept), updates_of(rows)), rows[best].mean(axis=0), rtol=1e-12)
    assert total.clients == tuple(f"{i:02}" for i in best)
    assert total.weight == len(best)


def test_krum_gives_one_of_the_updates_and_ties_go_to_the_first_client():
    rows = np.zeros((7, 5))
    rows[:3] = np.arange(3)[:, None]
    assert closed(Krum(2, kept=1), updates_of(rows)).clients == ("00",)  # 00 and 03 to 06 are alike


def test_large_values_of_liars_do_not_drown_the_distances_between_the_others():
    """By inner products, or around the mean, the rounding of 1e12 would be larger than the honest distances."""
    honest = 1e-4 * np.random.default_rng(0).normal(size=(5, 5))
    rows = np.concatenate([honest, np.full((2, 5), HUGE)])
    expected, best = krum_reference(rows, 2, 1)
    np.testing.assert_allclose(scores(updates_of(rows), 3)[:5], expected[:5], rtol=1e-12)
    np.testing.assert_array_equal(aggregate(Krum(2, kept=1), updates_of(rows)), rows[best[0]])


def clipped_mean(rows, bound, weights):
    factors = np.minimum(1, bound / np.linalg.norm(rows, axis=1))
    return np.average(rows * factors[:, None], axis=0, weights=weights)


@pytest.mark.parametrize("weights", [None, [3, 1, 5, 2, 2, 7, 1, 1, 4]])
def test_a_bounded_mean_is_that_of_the_clipped_updates(rows, weights):
    updates = updates_of(rows, weights)
    middle = np.median(np.linalg.norm(rows, axis=1))
    assert aggregate(NormBound(0.5), updates) == pytest.approx(clipped_mean(rows, 0.5, weights), abs=1e-11)
    assert aggregate(MedianNormBound(), updates) == pytest.approx(clipped_mean(rows, middle, weights), abs=1e-11)


def test_a_bound_that_nobody_reaches_gives_the_mean_to_the_bit(rows):
    updates = updates_of(rows)
    np.testing.assert_array_equal(aggregate(NormBound(1e6), updates), aggregate(WeightedMean(), updates))


def test_a_median_norm_of_zero_gives_zero(rows):
    rows[:5] = 0
    np.testing.assert_array_equal(aggregate(MedianNormBound(), updates_of(rows)), np.zeros(5))


@pytest.mark.parametrize("aggregator", ALL, ids=named)
@pytest.mark.parametrize("size", [3, 4, 5, 12, 13])
def test_blocks_of_coordinates_do_not_show(monkeypatch, rows, aggregator, size):
    rng = np.random.default_rng(1)
    updates = [
        Update((rng.normal(size=(size, 3)), rng.normal(size=0), rng.normal(size=size)), (str(i),)) for i in range(9)
    ]
    whole = aggregate(aggregator, updates)
    monkeypatch.setattr(robust, "TABLE_SIZE", 9 * 4)
    np.testing.assert_allclose(aggregate(aggregator, updates), whole, rtol=1e-12)


@pytest.mark.parametrize("aggregator", ALL, ids=named)
def test_results_have_the_shapes_of_the_updates_in_float64_whatever_their_dtypes_and_layout(rows, aggregator):
    single = [
        Update((np.asfortranarray(row[:4].reshape(2, 2), np.float32), np.array(i, np.int64)), (f"{i:02}",))
        for i, row in enumerate(rows)
    ]
    double = [Update(tuple(a.astype(np.float64) for a in update.arrays), update.clients) for update in single]
    result = aggregator.finish(closed(aggregator, single), grid_of(single))
    assert [(array.shape, array.dtype) for array in result] == [((2, 2), np.float64), ((), np.float64)]
    np.testing.assert_array_equal(aggregate(aggregator, single), aggregate(aggregator, double))


# -------------------------------------------------------------------------------------- order


@given(arrays(np.float64, st.tuples(st.integers(7, 12), st.just(5)), elements=REALS), st.randoms())
def test_the_order_of_the_replies_changes_no_bit(rows, random):
    updates = updates_of(rows, [1 + i % 3 for i in range(len(rows))])
    shuffled = random.sample(updates, len(updates))
    for aggregator in ALL:
        assert aggregate(aggregator, updates).tobytes() == aggregate(aggregator, shuffled).tobytes(), named(aggregator)


@pytest.mark.parametrize("aggregator", ALL, ids=named)
def test_nothing_is_written_to(rows, aggregator):
    updates = updates_of(rows)
    for update in updates:
        for array in update.arrays:
            array.setflags(write=False)
    assert np.isfinite(aggregate(aggregator, updates)).all()


@pytest.mark.parametrize("aggregator", [MEDIAN, TrimmedMean(0.2), Krum(3)], ids=named)
def test_an_aggregate_takes_the_updates_itself_and_a_block_beside_them(aggregator):
    size = 500_000
    updates = [Update((np.full(size, i, np.float32),), (str(i),)) for i in range(10)]
    fold = aggregator.start(grid_of(updates))
    for update in updates:
        fold.add(update)
    tracemalloc.start()
    try:
        fold.total()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - 8 * size < 4 * 8 * robust.TABLE_SIZE


# -------------------------------------------------------------------------------------- breakdown


@st.composite
def cohorts(draw, *, fewest=5, most=12):
    """(rows, which lie): less than half of the rows are the liars', at any place; what they hold is anything."""
    n = draw(st.integers(fewest, most))
    rows = draw(arrays(np.float64, (n, 5), elements=REALS))
    count = draw(st.integers(0, (n - 1) // 2))
    lie = np.zeros(n, bool)
    lie[draw(st.permutations(range(n)))[:count]] = True
    rows[lie] = draw(arrays(np.float64, (count, 5), elements=st.floats(-HUGE, HUGE, allow_nan=False)))
    return rows, lie


def within(values, honest):
    slack = 1e-12 * np.abs(honest).max(axis=0)
    return ((honest.min(axis=0) - slack <= values) & (values <= honest.max(axis=0) + slack)).all()


@given(cohorts())
def test_below_half_of_the_clients_liars_do_not_get_the_median_out_of_the_honest_range(cohort):
    rows, lie = cohort
    assert within(aggregate(MEDIAN, updates_of(rows)), rows[~lie])


@given(cohorts(), st.floats(0, 0.5))
def test_as_many_liars_as_are_trimmed_do_not_get_the_mean_out_of_the_honest_range(cohort, share):
    rows, lie = cohort
    aggregator = TrimmedMean(share)
    assume(lie.sum() <= aggregator.cut(len(rows)))
    assert within(aggregate(aggregator, updates_of(rows)), rows[~lie])


@pytest.mark.parametrize("n", [3, 4, 5, 10, 11])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
def test_one_liar_more_than_are_trimmed_moves_the_mean_as_far_as_it_likes(n, share):
    aggregator = TrimmedMean(share)
    rows = np.random.default_rng(n).normal(size=(n, 5))
    for count, breaks in ((aggregator.cut(n), False), (aggregator.cut(n) + 1, True)):
        rows[:count] = HUGE
        moved = np.abs(aggregate(aggregator, updates_of(rows))).max()
        assert (moved > HUGE / n) == breaks
        assert (moved > 10) == breaks


@given(cohorts(fewest=7), st.integers(0, 5), st.data())
def test_as_many_distant_liars_as_krum_is_told_of_are_left_out(cohort, kept, data):
    rows, lie = cohort
    n, liars = len(rows), int(lie.sum())
    assume(2 * liars + 3 <= n)
    assume(kept <= n - liars - 2)
    rows[lie] = 1e5 + data.draw(arrays(np.float64, (liars, 5), elements=st.floats(0, 1e3)))
    total = closed(Krum(liars, kept), updates_of(rows))
    assert not set(total.clients) & {f"{i:02}" for i in np.flatnonzero(lie)}
    assert within(aggregate(Krum(liars, kept), updates_of(rows)), rows[~lie])


@pytest.mark.parametrize("liars", [1, 2, 4])
def test_krum_breaks_where_liars_who_agree_are_neighbours_enough_of_each_other(liars):
    """n - f - 2 neighbours count. n = 2f + 3, and f + 2 who say the same have f + 1 neighbours at no distance."""
    n = 2 * liars + 3
    rows = np.random.default_rng(0).normal(size=(n, 5))
    for count, breaks in ((liars, False), (liars + 1, False), (liars + 2, True)):
        rows[:count] = HUGE
        assert (np.abs(aggregate(Krum(liars, kept=1), updates_of(rows))).max() > 10) == breaks


@given(cohorts(), st.floats(0.01, 10))
def test_liars_move_a_bounded_mean_by_their_share_of_twice_the_bound(cohort, bound):
    rows, lie = cohort
    honest = np.where(lie[:, None], 0, rows)
    moved = aggregate(NormBound(bound), updates_of(rows)) - aggregate(NormBound(bound), updates_of(honest))
    assert np.linalg.norm(moved) <= lie.mean() * bound * (1 + 1e-9) + 1e-9


@given(cohorts())
def test_below_half_of_the_clients_liars_do_not_make_the_bound_longer_than_the_longest_honest_update(cohort):
    rows, lie = cohort
    longest = np.linalg.norm(rows[~lie], axis=1).max()
    assert np.linalg.norm(aggregate(MedianNormBound(), updates_of(rows))) <= longest * (1 + 1e-9) + 1e-9


def test_the_mean_breaks_with_the_first_liar(rows):
    rows[0] = HUGE
    assert np.abs(aggregate(WeightedMean(), updates_of(rows))).max() > HUGE / 10


# -------------------------------------------------------------------------------------- what is let in


@pytest.mark.parametrize("aggregator", ALL, ids=named)
@pytest.mark.parametrize("value", [np.nan, np.inf, -(2.0**MAGNITUDE_BITS)])
def test_an_update_that_is_not_finite_is_not_taken_in(rows, aggregator, value):
    updates = updates_of(rows)
    fold = aggregator.start(grid_of(updates))
    for update in updates:
        fold.add(update)
    with pytest.raises(InvalidUpdate, match="non-finite"):
        fold.add(Update((np.full((2, 2), value), np.zeros(())), ("bad",)))
    assert len(fold) == len(updates)
    assert "bad" not in fold.total().clients


@pytest.mark.parametrize("aggregator", ALL, ids=named)
def test_a_sum_of_several_clients_is_not_taken_in(rows, aggregator):
    """A node that folds although it was asked not to, so that one of its clients counts as another does."""
    updates = updates_of(rows)
    fold = aggregator.start(grid_of(updates))
    for kind in ({"clients": ("a", "b")}, {"clients": ("a",), "on_grid": True}):
        with pytest.raises(InvalidUpdate, match="keys: a sum of updates"):
            fold.add(Update((np.zeros((2, 2), np.int64), np.zeros((), np.int64)), **kind))
    assert len(fold) == 0


@pytest.mark.parametrize("aggregator", ALL, ids=named)
def test_what_updates_say_besides_their_arrays_is_added_up(rows, aggregator):
    updates = [
        Update(u.arrays, u.clients, num_examples=10 + i, metric_sums={"loss": Fraction(i, 2)}, payload_bytes=i)
        for i, u in enumerate(updates_of(rows))
    ]
    total = closed(aggregator, updates[::-1])
    assert (total.num_examples, total.metric_sums, total.payload_bytes) == (126, {"loss": Fraction(18)}, 36)


@pytest.mark.parametrize("aggregator", ALL, ids=named)
def test_too_few_updates_have_a_total_that_names_them(rows, aggregator):
    few = updates_of(rows)[: max(0, aggregator.fewest - 1)]
    assert set(closed(aggregator, few).clients) == {update.clients[0] for update in few}


@pytest.mark.parametrize(("liars", "kept", "fewest"), [(0, 0, 3), (1, 0, 5), (2, 1, 7), (2, 5, 9), (8, 0, 19)])
def test_krum_needs_two_honest_clients_more_than_liars_and_one(liars, kept, fewest):
    assert Krum(liars, kept).fewest == fewest


def test_updates_that_are_opened_on_the_sum_only_cannot_be_compared():
    parts = {"work": Delta(), "server_optimizer": SGD()}
    with pytest.raises(IllegalChain, match="Krum needs every client's update, which the pipeline opens on the sum"):
        ComposedStrategy(Basics(), pipeline=chain(Flatten(), Rotate()), aggregator=Krum(1), **parts)
    ComposedStrategy(Basics(), pipeline=chain(Flatten(), Rotate()), aggregator=WeightedMean(), **parts)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrimmedMeanStrategy(Basics(), trimmed=-0.1), "trimmed=-0.1: expected from 0 to 0.5"),
        (lambda: TrimmedMeanStrategy(Basics(), trimmed=0.6), "trimmed=0.6: expected from 0 to 0.5"),
        (lambda: KrumStrategy(Basics(), liars=-1), "liars=-1: expected at least 0"),
        (lambda: KrumStrategy(Basics(), kept=-1), "kept=-1: expected at least 1, or 0"),
        (lambda: NormBoundStrategy(Basics(), clip_norm=-1.0), "clip-norm=-1: expected above 0"),
        (lambda: NormBoundStrategy(Basics(), max_weight=0), "max-weight=0: expected at least 1"),
    ],
)
def test_an_argument_out_of_range_is_refused_with_the_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
