"""Sums are exact: neither order nor grouping ever shows, and no bad update gets in."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies.update import MAGNITUDE_BITS, ExactSum, FixedPoint, InvalidUpdate, Update, check_magnitude

LIMIT = 2.0**MAGNITUDE_BITS
REALS = st.floats(-LIMIT, LIMIT, exclude_min=True, exclude_max=True, allow_nan=False)


@st.composite
def updates(draw):
    count = draw(st.integers(1, 6))
    return [
        Update(
            (
                draw(arrays(np.float64, (3, 2), elements=REALS)),
                draw(arrays(np.float32, (), elements=st.floats(-9, 9, width=32))),
            ),
            (f"client {i}",),
            weight=draw(st.integers(1, 10_000)),
            num_examples=i,
            metric_sums={"loss": Fraction(draw(st.floats(0, 1e6)))},
            payload_bytes=10 + i,
        )
        for i in range(count)
    ]


def summed(grid, items):
    fold = ExactSum(grid)
    for item in items:
        fold.add(item)
    return fold.total()


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.arrays, b.arrays, strict=True)) and (
        a.weight,
        a.num_examples,
        a.metric_sums,
        a.payload_bytes,
        set(a.clients),
    ) == (b.weight, b.num_examples, b.metric_sums, b.payload_bytes, set(b.clients))


@given(updates(), st.randoms(), st.integers(0, 6))
def test_neither_the_order_nor_the_grouping_of_additions_changes_a_bit(items, random, cut):
    grid = FixedPoint.for_weight(sum(item.weight for item in items))
    shuffled = random.sample(items, len(items))
    nodes = [summed(grid, part) for part in (shuffled[:cut], shuffled[cut:]) if part]
    assert same(summed(grid, items), summed(grid, nodes))


@given(updates())
def test_the_mean_is_right_to_the_stated_error_and_never_overflows(items):
    weight = sum(item.weight for item in items)
    grid = FixedPoint.for_weight(weight)
    total = summed(grid, items)
    mean = grid.to_float(total.arrays[0], total.weight)
    exact = [
        sum(Fraction(float(item.arrays[0].flat[i])) * item.weight for item in items) / weight
        for i in range(items[0].arrays[0].size)
    ]
    # half a step for each client, and one rounding of each product and of the result
    scale = max(1.0, *(abs(float(x)) for x in exact), *(np.abs(item.arrays[0]).max() for item in items))
    error = len(items) * 0.5 * 2.0**-grid.fraction_bits / weight + 4 * len(items) * scale * 2.0**-53
    assert all(abs(Fraction(float(m)) - x) <= error for m, x in zip(mean.flat, exact, strict=True))


def test_the_largest_values_at_the_largest_weight_fill_the_integers_without_overflow():
    value = np.nextafter(LIMIT, 0)
    for weights in ([1], [2**20 - 1] * 3, [10**6] * 1000):
        grid = FixedPoint.for_weight(sum(weights))
        total = summed(grid, [Update((np.array([value, -value]),), (str(i),), w) for i, w in enumerate(weights)])
        mean = grid.to_float(total.arrays[0], total.weight)
        np.testing.assert_allclose(mean, [value, -value], rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, LIMIT, -LIMIT])
def test_a_bad_value_refuses_the_whole_update_and_leaves_the_sum_as_it_was(bad):
    grid = FixedPoint.for_weight(10)
    fold = ExactSum(grid)
    good = Update((np.ones(2), np.ones(1)), ("good",), 2)
    fold.add(good)
    with pytest.raises(InvalidUpdate, match="non-finite") as caught:
        fold.add(Update((np.ones(2), np.array([bad])), ("bad",), 3))
    assert caught.value.reason == "non-finite"
    assert same(fold.total(), summed(grid, [good]))


def test_empty_and_integer_arrays_are_summed_like_others():
    grid = FixedPoint.for_weight(3)
    update = Update((np.zeros((0, 4)), np.array([3, -5]), np.array(7, np.int64)), ("a",), 3)
    total = summed(grid, [update])
    assert [grid.to_float(a, 3).tolist() for a in total.arrays] == [[], [3.0, -5.0], 7.0]
    check_magnitude(update.arrays)


def test_inputs_are_never_written_to():
    array = np.arange(4.0)
    array.setflags(write=False)
    partial = summed(FixedPoint(10), [Update((array,), ("a",), 2)])
    partial.arrays[0].setflags(write=False)
    summed(FixedPoint(10), [partial, Update((array,), ("b",))])


def test_metric_sums_do_not_lose_what_floats_lose():
    items = [Update((), (str(i),), metric_sums={"loss": Fraction(v)}) for i, v in enumerate([1e16, 1.0, -1e16])]
    assert summed(FixedPoint(0), items).metric_sums == {"loss": 1}


def test_a_claimed_sum_beyond_what_good_updates_can_reach_is_refused():
    grid = FixedPoint.for_weight(8)
    edge = int(8 * LIMIT * 2**grid.fraction_bits)
    grid.check_sum((np.array([edge, -edge]),), 8, 1)
    with pytest.raises(InvalidUpdate):
        grid.check_sum((np.array([edge + 10**6]),), 8, 1)
    with pytest.raises(InvalidUpdate):
        grid.check_sum((np.array([np.iinfo(np.int64).min]),), 8, 1)
