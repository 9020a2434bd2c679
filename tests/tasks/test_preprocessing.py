"""Federated moments are the pooled moments, also where raw squares would have no digit left."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.base import Rows, Shard
from tasks.data.preprocessing import Moments, Standardizer

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
    assert merged.mean[0] == pytest.approx(pooled.mean[0], rel=1e-12, abs=1e-12)
    assert merged.m2[0] == pytest.approx(pooled.m2[0], rel=1e-12, abs=1e-12)


def test_a_constant_column_becomes_zero_and_others_get_unit_spread():
    rng = np.random.default_rng(0)
    n = 300
    x = np.column_stack(
        [np.full(n, 0.1), np.full(n, 1.7e9), np.zeros(n), 1e-9 * rng.normal(size=n), 1e9 + rng.normal(size=n)]
    )
    moments = Moments.merge([Moments.of(part) for part in np.array_split(x, 7)])
    standardizer = Standardizer.of(moments)
    assert standardizer.scale[:3].tolist() == [1.0, 1.0, 1.0]
    z = standardizer.apply(x)
    np.testing.assert_allclose(z[:, :3], 0.0, atol=1e-16)
    np.testing.assert_allclose(z[:, 3:].mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(z[:, 3:].std(axis=0), 1.0, rtol=1e-6)


def test_a_column_that_varies_by_rounding_alone_is_constant():
    x = np.where(np.arange(30) % 2, 0.3, 0.1 + 0.2)[:, None]
    assert x.std() > 0
    assert Standardizer.of(Moments.of(x)).scale[0] == 1.0


def test_train_and_test_rows_are_standardised_alike_and_the_originals_kept():
    x = np.arange(6.0).reshape(3, 2)
    shard = Shard("00", Rows(x, np.array([0, 1, 0])), Rows(x[:1], np.array([1])))
    standardizer = Standardizer.of(Moments.of(x))
    scaled = standardizer.apply_shard(shard)
    np.testing.assert_allclose(scaled.train.x, (x - [2, 3]) / np.sqrt(8 / 3))
    np.testing.assert_array_equal(scaled.test.x, scaled.train.x[:1])
    assert scaled.train.y is shard.train.y
    np.testing.assert_array_equal(shard.train.x, np.arange(6.0).reshape(3, 2))


def test_moments_and_statistics_travel():
    moments = Moments.merge([Moments.of(np.array([[1e12, 0.0]])), Moments.of(np.array([[1e12 + 1, 2.0]]))])
    arrived = Moments.from_arrays(moments.to_arrays())
    assert all(np.array_equal(a, b) for a, b in zip(arrived.to_arrays(), moments.to_arrays(), strict=True))
    sent = Standardizer.of(moments)
    again = Standardizer.from_lists(sent.mean.tolist(), sent.scale.tolist())
    assert again.digest == sent.digest != Standardizer.from_lists([0.0, 0.0], [1.0, 1.0]).digest


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Moments.merge([]), "no moments to merge"),
        (lambda: Moments.merge([Moments.of(np.ones((2, 1))), Moments.of(np.ones((2, 2)))]), "1 and 2 columns"),
        (lambda: Moments.of(np.array([[1.0, np.nan], [1.0, 2.0]])), "column 1 are not finite"),
        (lambda: Moments.of(np.array([[1.0, np.inf]])), "column 1 are not finite"),
        (lambda: Moments.of(np.array([[1e200], [-1e200]])), "column 0 are not finite"),
        (lambda: Moments(3, np.zeros(2), np.array([1.0, -1.0]), np.zeros(2)), "column 1 .* m2 is negative"),
        (lambda: Moments(-1, np.zeros(2), np.zeros(2), np.zeros(2)), "n >= 0"),
        (lambda: Moments(1, np.zeros(2), np.zeros(3), np.zeros(2)), "of one length"),
        (lambda: Moments.from_arrays((np.zeros(2),)), "come as 4 arrays"),
        (lambda: Standardizer.of(Moments.of(np.zeros((0, 2)))), "no rows to standardise by"),
        (lambda: Standardizer.from_lists([0.0], [0.0]), "scale above 0"),
        (lambda: Standardizer.from_lists([float("nan")], [1.0]), "finite"),
        (lambda: Standardizer.from_lists([0.0, 1.0], [1.0]), "of one length"),
    ],
)
def test_what_cannot_be_is_refused(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
