"""Pruning follows its schedule, server and clients agree on the mask, and the zeros of the model are zeros."""

from dataclasses import replace

import numpy as np
import pytest
from compressed import GRID, encoded, round_of, update

from strategies.transform import Round, chain
from strategies.transforms.entropy_coding import EntropyCoding
from strategies.transforms.prune import MASK, Prune
from strategies.transforms.quantize import Quantize
from strategies.update import ExactSum, InvalidUpdate
from strategies.work import check_template, template_of


def params(seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(20, 10)).astype(np.float32),
        np.full(10, 1e-6, np.float32),
        rng.normal(size=(10, 5)).astype(np.float32),
        np.array([7]),
    )


def test_the_schedule_is_the_cubic_of_zhu_and_gupta():
    prune = Prune(0.8, first_round=3, last_round=6)
    shares = [prune.sparsity_after(round) for round in range(1, 9)]
    expected = [0, 0, *(0.8 * (1 - (1 - p) ** 3) for p in (0.25, 0.5, 0.75)), 0.8, 0.8, 0.8]
    assert shares == pytest.approx(expected)
    assert Prune(0.5, 4, 4).sparsity_after(4) == 0.5


def test_the_smallest_weights_become_zero_and_biases_and_counters_stay():
    before = params()
    after, (mask,) = Prune(0.8, 1, 1).settle(before, Prune().begin(), Round(1, 0, GRID))
    check_template(after, template_of(before))
    weights = np.concatenate([np.abs(before[0]).ravel(), np.abs(before[2]).ravel()])
    kept = np.concatenate([after[0].ravel(), after[2].ravel()]) != 0
    assert kept.sum() == 50  # of 250
    assert weights[~kept].max() <= weights[kept].min()
    for index in (1, 3):
        np.testing.assert_array_equal(after[index], before[index])
    assert np.unpackbits(mask, count=260).sum() == 60


def test_a_model_without_matrices_is_pruned_too():
    after, _ = Prune(0.5, 1, 1).settle((np.arange(1.0, 11),), Prune().begin(), Round(1, 0, GRID))
    np.testing.assert_array_equal(after[0], [0, 0, 0, 0, 0, 6, 7, 8, 9, 10])


def test_nothing_is_pruned_before_the_first_round():
    before, state = params(), Prune().begin()
    after, same = Prune(0.8, 5, 9).settle(before, state, Round(4, 0, GRID))
    assert after is before
    assert same is state


@pytest.mark.parametrize("pipeline", [chain(Prune(0.8, 2, 5), Quantize(8), EntropyCoding()), chain(Prune(0.8, 2, 5))])
def test_over_rounds_the_model_gets_as_sparse_as_the_schedule_says(pipeline):
    """The loop as the server has to run it: announce, encode, decode, sum, open, step, settle."""
    prune = pipeline.transforms[0]
    model, state, sizes = params()[:3], pipeline.begin(), []
    for number in range(1, 8):
        rng = np.random.default_rng(number)
        info = Round(number, number, GRID, template=template_of(model))
        info = replace(info, public=pipeline.announce(state, info))
        total = ExactSum(GRID)
        for client in "abc":
            delta = tuple(rng.normal(size=array.shape).astype(np.float32) for array in model)
            sent, _ = pipeline.encode(update(delta, client), (), info)
            sizes.append(sent.arrays[0].size)
            total.add(pipeline.decode_each(sent, info))
        opened, state = pipeline.decode_sum(total.total(), state, info)
        step = tuple(GRID.to_float(array, 3.0) for array in opened.arrays)
        zeros = [array == 0 for array in model]
        assert all((s[z] == 0).all() for s, z in zip(step, zeros, strict=True))  # what is pruned is not moved
        model = tuple((array + s).astype(np.float32) for array, s in zip(model, step, strict=True))
        model, state = prune.settle(model, state, info)
        weights = np.concatenate([model[0].ravel(), model[2].ravel()])
        assert np.count_nonzero(weights == 0) == int(prune.sparsity_after(number) * 250)
    assert np.count_nonzero(weights) == 50
    if len(pipeline.transforms) > 1:
        assert sizes[-1] < 0.45 * sizes[0]  # 60 of 260 numbers, scales and heads


def test_what_was_pruned_takes_no_bytes_beside_entropy_coding():
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    pipeline = chain(Prune(), Quantize(8), EntropyCoding())
    mask = np.packbits(np.random.default_rng(1).random(100_000) < 0.2).tobytes()
    info = replace(round_of(pipeline, (x,)), public={MASK: mask})
    pruned = pipeline.encode(update((x,)), (), info)[0].arrays[0]
    assert pruned.size < 0.21 * encoded(pipeline, (x,))[0].size


@pytest.mark.parametrize("mask", [None, "yes", 3, b"\x00", b"\x00" * 99])
def test_a_mask_of_another_model_is_refused(mask):
    x = (np.ones((5, 5)),)
    info = replace(round_of(Prune(), x), public={MASK: mask} if mask is not None else {})
    with pytest.raises(InvalidUpdate, match="pruning-mask: expected a bit for each of 25 numbers"):
        Prune().encode(update(x), (), info)


def test_values_for_pruned_coordinates_are_refused():
    x = (np.ones(8),)
    info = replace(round_of(Prune(), x), public={MASK: b"\xf0"})
    assert Prune().decode_each(update((np.array([1.0, 2, 3, 4, 0, 0, 0, 0]),)), info).arrays[0].sum() == 10
    with pytest.raises(InvalidUpdate, match="values for pruned coordinates"):
        Prune().decode_each(update((np.arange(8.0),)), info)
