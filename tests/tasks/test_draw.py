"""Seeded draws."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.draw import apportion, generator, stratified_split


def test_every_seed_purpose_and_client_has_a_stream_of_its_own():
    keys = [(0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y"), (0, "ax", ""), (0, "a", "")]
    streams = {tuple(generator(*key).integers(2**60, size=3)) for key in keys}
    assert len(streams) == len(keys)
    assert (generator(3, "p", "c").random(5) == generator(3, "p", "c").random(5)).all()


@given(st.integers(0, 500), st.lists(st.floats(0, 1e6), min_size=1, max_size=20).filter(lambda s: sum(s) > 1e-3))
def test_apportioned_numbers_sum_to_the_total_and_are_within_one_of_their_quota(total, shares):
    counts = apportion(total, shares)
    assert counts.sum() == total
    assert (np.abs(counts - total * np.array(shares) / sum(shares)) < 1 + 1e-9).all()


@given(st.lists(st.integers(0, 3), max_size=60), st.floats(0, 0.99))
def test_a_split_is_a_partition_in_proportion_that_leaves_something_to_train_on(labels, fraction):
    strata = np.array(labels, dtype=np.int64)
    train, test = stratified_split(strata, fraction, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(strata)))
    assert len(test) == max(0, min(round(fraction * len(strata)), len(strata) - 1))
    for label in set(labels):
        assert abs((strata[test] == label).sum() - len(test) * (strata == label).mean()) < 1


def test_the_draw_within_a_class_is_random():
    splits = [stratified_split(np.zeros(50), 0.2, np.random.default_rng(seed))[1] for seed in range(40)]
    hits = np.bincount(np.concatenate(splits), minlength=50)
    assert hits.max() < 25
    assert (hits > 0).sum() > 45


def test_apportion_of_nothing():
    assert apportion(0, []).tolist() == []
    assert apportion(2, [0, 1]).tolist() == [0, 2]
    assert apportion(1, [1, 1]).tolist() == [1, 0]
