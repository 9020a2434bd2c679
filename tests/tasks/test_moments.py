"""Federated moments are the pooled moments, also where raw squares would have no digit left."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.moments import Moments

COLUMNS = {
    "unit": lambda rng, n: rng.normal(size=n),
    "timestamps of a year": lambda rng, n: 1.7e9 + rng.uniform(0, 3e7, size=n),
    "timestamps of a minute": lambda rng, n: 1.7e9 + rng.uniform(0, 60, size=n),
    "1e12, spread 1e12": lambda rng, n: 1e12 * rng.uniform(size=n),
    "1e12, spread 1": lambda rng, n: 1e12 + rng.normal(size=n),
    "drifting from client to client": lambda rng, n: 1e12 + np.arange(n) * 100.0,
}


def exact(x):
    """Mean and sum of squared deviations in rational arithmetic, rounded once."""
    values = [Fraction(value) for value in x.tolist()]
    mean = sum(values) / len(values)
    return float(mean), float(sum((value - mean) ** 2 for value in values))


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_merged_moments_are_the_exact_pooled_ones(column):
    rng = np.random.default_rng(0)
    x = column(rng, 600)
    cuts = np.sort(rng.integers(0, 600, size=19))
    parts = [Moments.of(part[:, None]) for part in np.split(x, cuts)]
    mean, m2 = exact(x)
    for moments in (Moments.merge(parts), Moments.merge(parts[::-1]), Moments.of(x[:, None])):
        assert moments.n == 600
        assert moments.mean[0] == pytest.approx(mean, rel=1e-15)
        assert moments.m2[0] == pytest.approx(m2, rel=1e-12)


def test_raw_squares_would_have_failed_this():
    x = COLUMNS["timestamps of a minute"](np.random.default_rng(0), 600)
    assert (x**2).sum() - x.sum() ** 2 / 600 != pytest.approx(exact(x)[1], rel=1e-3)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=5), min_size=1, max_size=6).filter(any))
def test_merging_any_split_agrees_with_pooling(parts):
    merged = Moments.merge([Moments.of(np.array(part).reshape(-1, 1)) for part in parts])
    pooled = Moments.of(np.concatenate([np.array(part) for part in parts]).reshape(-1, 1))
    assert merged.n == pooled.n
    largest = max(abs(value) for part in parts for value in part)
    assert merged.mean[0] == pytest.approx(pooled.mean[0], rel=1e-12, abs=1e-12 * max(largest, 1.0))
    assert merged.m2[0] == pytest.approx(pooled.m2[0], rel=1e-12, abs=1e-12)


def bits(moments):
    return [(array.dtype, array.tobytes()) for array in moments.to_arrays()]


cells = st.floats(-1e9, 1e9) | st.sampled_from([0.0, -0.0, 1.7e9, 1e12, 1e12 + 1, np.nan])
tables = (
    st.integers(1, 3)
    .flatmap(
        lambda width: st.lists(
            st.lists(st.lists(cells, min_size=width, max_size=width), max_size=6), min_size=1, max_size=5
        )
    )
    .filter(any)
)


def of(part, width):
    return Moments.of(np.array(part, dtype=float).reshape(-1, width))


def width_of(parts):
    return next(len(row) for part in parts for row in part)


@given(tables, st.randoms(use_true_random=False))
def test_neither_the_order_of_the_rows_nor_of_the_owners_changes_a_bit(parts, random):
    width = width_of(parts)
    before = bits(Moments.merge([of(part, width) for part in parts]))
    shuffled = [random.sample(part, len(part)) for part in parts]
    random.shuffle(shuffled)
    assert bits(Moments.merge([of(part, width) for part in shuffled])) == before


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_the_layout_of_the_rows_in_memory_changes_no_bit(column):
    rng = np.random.default_rng(0)
    x = np.column_stack([column(rng, 300), rng.normal(size=300)])
    wide = np.repeat(x, 2, axis=1)[:, ::2]
    assert bits(Moments.of(np.asfortranarray(x))) == bits(Moments.of(wide)) == bits(Moments.of(x))


SMALLEST = np.finfo(float).tiny  # squares below it have fewer digits


@given(tables)
def test_missing_cells_are_not_counted_however_the_rows_are_divided(parts):
    width = width_of(parts)
    moments = Moments.merge([of(part, width) for part in parts])
    for column in range(width):
        values = np.array([row[column] for part in parts for row in part if not np.isnan(row[column])])
        assert moments.n[column] == len(values)
        if not len(values):
            assert [array[column] for array in moments.to_arrays()] == [0, 0.0, 0.0, 0.0]
            continue
        mean, m2 = exact(values)
        assert moments.mean[column] == pytest.approx(mean, rel=1e-12, abs=1e-12 * np.abs(values).max())
        assert moments.m2[column] == pytest.approx(m2, rel=1e-12, abs=1e-20 * (values**2).sum() + SMALLEST)


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_merged_moments_are_exact_also_where_every_third_cell_is_missing(column):
    rng = np.random.default_rng(1)
    x = column(rng, 600)
    x[rng.permutation(600)[:200]] = np.nan
    parts = [Moments.of(part[:, None]) for part in np.split(x, np.sort(rng.integers(0, 600, size=19)))]
    mean, m2 = exact(x[~np.isnan(x)])
    merged = Moments.merge(parts)
    assert merged.n == 400
    assert merged.mean[0] == pytest.approx(mean, rel=1e-15)
    assert merged.m2[0] == pytest.approx(m2, rel=1e-12)


def test_a_constant_column_has_scale_1_and_others_get_unit_spread():
    rng = np.random.default_rng(0)
    n = 300
    x = np.column_stack(
        [np.full(n, 0.1), np.full(n, 1.7e9), np.zeros(n), 1e-9 * rng.normal(size=n), 1e9 + rng.normal(size=n)]
    )
    moments = Moments.merge([Moments.of(part) for part in np.array_split(x, 7)])
    assert moments.scale()[:3].tolist() == [1.0, 1.0, 1.0]
    z = (x - moments.mean) / moments.scale()
    np.testing.assert_allclose(z[:, :3], 0.0, atol=1e-16)
    np.testing.assert_allclose(z[:, 3:].mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(z[:, 3:].std(axis=0), 1.0, rtol=1e-6)


def test_a_column_that_varies_by_rounding_alone_is_constant():
    x = np.where(np.arange(30) % 2, 0.3, 0.1 + 0.2)[:, None]
    assert x.std() > 0
    assert Moments.of(x).scale()[0] == 1.0


def test_a_column_of_which_nothing_is_known_has_scale_1():
    assert Moments.of(np.full((4, 1), np.nan)).scale()[0] == 1.0
    assert Moments.of(np.zeros((0, 2))).scale().tolist() == [1.0, 1.0]


def test_the_moments_of_some_columns_say_nothing_of_the_others():
    moments = Moments.of(np.array([[1.0, 5.0], [3.0, 6.0]]))
    some = moments.where(np.array([False, True]))
    assert [array.tolist() for array in some.to_arrays()] == [[0, 2], [0.0, 5.5], [0.0, 0.5], [0.0, 0.0]]
    merged = Moments.merge([some, moments.where(np.array([True, False]))])
    assert bits(merged) == bits(moments)


def test_the_rows_that_moments_are_of_are_not_written_to():
    x = np.array([[3.0, np.nan], [1.0, 2.0]])
    before = x.tobytes()
    Moments.of(x)
    assert x.tobytes() == before


ONE, ZERO = np.array([1]), np.zeros(1)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Moments.merge([]), "no moments to merge"),
        (lambda: Moments.merge([Moments.of(np.ones((2, 1))), Moments.of(np.ones((2, 2)))]), "(1 and 2|2 and 1) col"),
        (lambda: Moments.of(np.array([[1.0, np.inf]])), "column 1 are not finite"),
        (lambda: Moments.of(np.array([[1.0, np.nan], [-np.inf, 2.0]])), "column 0 are not finite"),
        (lambda: Moments.of(np.array([[1e200], [-1e200]])), "column 0 are not finite"),
        (lambda: Moments(np.array([3, 3]), np.zeros(2), np.array([1.0, -1.0]), np.zeros(2)), "column 1 .* negative"),
        (lambda: Moments(ONE, np.array([np.nan]), ZERO, ZERO), "column 0 are not finite"),
        (lambda: Moments(ONE, ZERO, ZERO, np.array([np.inf])), "column 0 are not finite"),
        (lambda: Moments(-ONE, ZERO, ZERO, ZERO), "whole numbers of 0 or more"),
        (lambda: Moments(ZERO, ZERO, ZERO, ZERO), "whole numbers of 0 or more"),
        (lambda: Moments(ONE, ZERO, np.zeros(3), ZERO), "of one length"),
        (lambda: Moments(np.array(1), *[np.array(0.0)] * 3), "of one length"),
    ],
)
def test_what_cannot_be_is_refused(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
