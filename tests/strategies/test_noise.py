"""Noise is as large as it claims, depends on nothing, cannot be foreseen, and sits on the grid of the sum."""

import random
from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from protected import GRID, STEP, empty_sum, fits, flat, opened, protection
from seeded import SeededEntropy

from privacy.entropy import SYSTEM
from strategies.base import Basics
from strategies.dp_fedavg import DPFedAvg
from strategies.dp_ftrl import DPFTRL
from strategies.roster import Member, Roster
from strategies.transform import Round
from strategies.transforms.correlated_noise import (
    MOST_BANDS,
    CorrelatedNoiseOnSum,
    best_bands,
    coefficients,
    error,
)
from strategies.transforms.noise import LocalNoise, NoiseOnSum
from strategies.update import FixedPoint, Update

ROUND = Round(1, 0, GRID)
SHAPES = ((50, 40), (), (2000,))
SIZE = 4001


def central(noise_multiplier=1.0, sensitivity=1.0, entropy=None):
    return NoiseOnSum(protection(noise_multiplier), sensitivity, entropy or SeededEntropy(0))


def noise_of(transform, total=None, info=ROUND):
    """What is added to a sum, in its own units."""
    total = total or empty_sum(*SHAPES)
    noisy, _ = transform.decode_sum(total, transform.begin(), info)
    return (flat(noisy.arrays) - flat(total.arrays)) * 2.0**-info.grid.fraction_bits


def unrelated(*samples):
    """Whether samples of one size have no correlation: each pair within 5 standard deviations of none."""
    table = np.corrcoef(np.array(samples))
    return np.abs(table - np.eye(len(samples))).max() < 5 / np.sqrt(len(samples[0]))


# ------------------------------------------------------------------------------------------------ on the sum, its scale


@pytest.mark.parametrize(
    ("noise_multiplier", "sensitivity"), [(1.0, 1.0), (0.5, 3.0), (7.0, 0.01), (1e-3, 1.0), (100.0, 50.0)]
)
def test_the_scale_is_that_of_the_promise_and_neither_two_thirds_nor_three_halves_of_it(noise_multiplier, sensitivity):
    sample, claimed = noise_of(central(noise_multiplier, sensitivity)), noise_multiplier * sensitivity
    assert fits(sample, claimed)
    assert not fits(sample, claimed * 2 / 3)
    assert not fits(sample, claimed * 3 / 2)
    assert not fits(sample + claimed / 5, claimed)


def test_every_array_gets_the_whole_noise_and_none_of_it_twice():
    noisy, _ = central().decode_sum(empty_sum((2000,), (2000,), (2000,)), (), ROUND)
    parts = [array * STEP for array in noisy.arrays]
    assert all(fits(part, 1.0) for part in parts)
    assert unrelated(*parts)


def test_the_noise_covers_the_rounding_to_a_coarse_grid():
    """On a grid of 1/4 a contribution of norm 1 of 4,001 elements may be longer by sqrt(4001) / 2 steps."""
    sample = noise_of(central(), info=Round(1, 0, FixedPoint(2)))
    assert fits(sample, 1.0 + np.sqrt(SIZE) / 2 / 4)
    assert not fits(sample, 1.0)


def test_noise_is_the_same_law_whatever_it_is_added_to():
    rng = np.random.default_rng(0)
    total = replace(empty_sum(), arrays=(rng.integers(-(2**40), 2**40, 4000),))
    assert noise_of(central(), total).tolist() == noise_of(central(), empty_sum((4000,))).tolist()


def test_released_and_true_sum_differ_by_whole_steps_of_the_grid_odd_and_even_ones():
    total = replace(empty_sum(), arrays=(np.arange(-2000, 2000),))
    for transform in (central(), CorrelatedNoiseOnSum(protection(), 1.0, 4, SeededEntropy(0))):
        noisy, _ = transform.decode_sum(total, transform.begin(), ROUND)
        assert noisy.arrays[0].dtype == np.int64
        odd = np.mean((noisy.arrays[0] - total.arrays[0]) % 2)
        assert abs(odd - 0.5) < 5 * 0.5 / np.sqrt(4000)
        assert len(set((noisy.arrays[0] - total.arrays[0]).tolist())) > 3990  # no few values, no multiples


@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e3, 1e5])
@pytest.mark.parametrize("noise_multiplier", [0.5, 30.0, 1e4])
@pytest.mark.parametrize("correlated", [False, True], ids=["independent", "correlated"])
def test_the_grid_of_a_round_has_room_for_the_noise_whatever_its_size(clip_norm, noise_multiplier, correlated):
    """Neither does the sampler refuse its scale, nor does a sum overflow; the grid stays far finer than the noise."""
    basics = Basics(clients_per_round=10, population=100, rounds=40)
    kind = DPFTRL if correlated else DPFedAvg
    strategy = kind(basics, noise_multiplier=noise_multiplier, clip_norm=clip_norm)
    grid = strategy_grid(strategy, 100)
    step, state = 2.0**-grid.fraction_bits, strategy.pipeline.begin()
    assert step < noise_multiplier * clip_norm * 2.0**-12
    for _ in range(3):
        total, state = strategy.pipeline.decode_sum(empty_sum((500,)), state, Round(1, 0, grid))
    largest = np.abs(total.arrays[0]).max()
    assert noise_multiplier * clip_norm < largest * step < 12 * noise_multiplier * clip_norm
    assert 10 * largest < 2**62


def strategy_grid(strategy, clients):
    """The grid that the round loop opens for so many clients, as strategies/base.py computes it."""

    class Here:
        def current(self, grid):
            return Roster(Member(f"{i:03}", 1, 1) for i in range(clients))

    strategy._setting = replace(strategy._setting, roster=Here())
    strategy._state = strategy.first_state((np.zeros(500),))
    return strategy._draw(1, None).info.grid


# --------------------------------------------------------------------------------------------- independence, entropy


def test_noise_is_independent_over_rounds_coordinates_and_runs():
    entropy = SeededEntropy(3)
    rounds = [noise_of(central(entropy=entropy)) for _ in range(4)]
    others = [noise_of(central(entropy=SeededEntropy(seed))) for seed in (4, 5)]
    assert unrelated(*rounds, *others)
    assert all(fits(sample, 1.0) for sample in (*rounds, *others))
    (whole,) = [noise_of(central(entropy=SeededEntropy(6)), empty_sum((40_000,)))]
    for lag in (1, 2, 3, 64, 4096, 16384, 32768 // 2 + 1):
        assert abs(np.mean(whole[lag:] * whole[:-lag])) < 5 / np.sqrt(whole.size - lag), lag
        squares = (whole[lag:] ** 2 - 1) * (whole[:-lag] ** 2 - 1) / 2
        assert abs(squares.mean()) < 6 / np.sqrt(whole.size - lag), lag


def seeded_everywhere(call):
    """The call after everything that has a seed was given the same one."""
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    torch.manual_seed(0)
    return call()


def strategies_with_noise():
    basics = Basics(clients_per_round=5, population=20, rounds=10, seed=7)
    yield DPFedAvg(basics, noise_multiplier=1.0).pipeline
    yield DPFTRL(basics, noise_multiplier=1.0).pipeline


def test_no_seed_of_anything_foretells_noise():
    def released():
        return [flat(p.decode_sum(empty_sum((50,)), p.begin(), ROUND)[0].arrays) for p in strategies_with_noise()]

    runs = [seeded_everywhere(released) for _ in range(3)]
    for one, other in combinations(runs, 2):
        for a, b in zip(one, other, strict=True):
            assert np.mean(a == b) < 0.05
    local = LocalNoise(protection(), 1.0)
    update = Update((np.zeros(50),), ("a",))
    first, second = (seeded_everywhere(lambda: local.encode(update, (), ROUND)[0].arrays[0]) for _ in range(2))
    assert np.mean(first == second) < 0.05


def test_unless_a_test_injects_another_noise_comes_from_the_operating_system():
    for pipeline in strategies_with_noise():
        assert all(t.entropy is SYSTEM for t in pipeline.transforms if t.privacy_event())
    assert LocalNoise(protection(), 1.0).entropy is SYSTEM


# ---------------------------------------------------------------------------------------------------- at the client


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("noise_multiplier", "clip_norm"), [(1.0, 1.0), (5.0, 0.02), (0.3, 40.0)])
def test_local_noise_is_of_the_claimed_scale_at_every_client(noise_multiplier, clip_norm, dtype):
    transform = LocalNoise(protection(noise_multiplier), clip_norm, SeededEntropy(0))
    update = Update(tuple(np.full(shape, 0.01, dtype) for shape in SHAPES), ("a",))
    samples = []
    for _ in range(3):
        encoded, _ = transform.encode(update, (), ROUND)
        assert [(a.shape, a.dtype) for a in encoded.arrays] == [(a.shape, a.dtype) for a in update.arrays]
        samples.append(flat(encoded.arrays) - flat(update.arrays))
    assert unrelated(*samples)
    for sample in samples:
        claimed = noise_multiplier * clip_norm
        assert fits(sample, claimed)
        assert not fits(sample, claimed * 2 / 3)
        assert not fits(sample, claimed * 3 / 2)


def test_local_noise_on_whole_numbers_gives_whole_numbers():
    transform = LocalNoise(protection(2.0), 100.0, SeededEntropy(0))
    encoded, _ = transform.encode(Update((np.full(4000, 7, np.int64),), ("a",)), (), ROUND)
    assert encoded.arrays[0].dtype == np.int64
    assert fits(encoded.arrays[0] - 7, 200.0)


# ------------------------------------------------------------------------------------------------------- correlated


def matrix(rounds, bands):
    """C: (rounds, rounds), lower triangular."""
    c = coefficients(bands)
    return sum(np.diag(np.full(rounds - lag, c[lag]), -lag) for lag in range(min(bands, rounds)))


def correlated(bands, noise_multiplier=1.0, sensitivity=1.0, seed=0):
    return CorrelatedNoiseOnSum(protection(noise_multiplier), sensitivity, bands, SeededEntropy(seed))


def rounds_of(transform, rounds, size):
    """The noise of consecutive rounds in units of the sum, (rounds, size), and the last state."""
    state, found = transform.begin(), []
    for number in range(1, rounds + 1):
        info = opened(transform, (np.zeros(size),), state, number)
        noisy, state = transform.decode_sum(empty_sum((size - 3,), (3,)), state, info)
        found.append(flat(noisy.arrays) * STEP)
    return np.array(found), state


def test_the_coefficients_are_those_of_the_square_root_of_the_prefix_sums():
    root = matrix(8, 8)
    np.testing.assert_allclose(root @ root, np.tril(np.ones((8, 8))), atol=1e-12)
    assert coefficients(4).tolist() == [1.0, 0.5, 0.375, 0.3125]


@pytest.mark.parametrize("bands", [1, 2, 5, 16])
def test_what_c_makes_of_the_noise_is_independent_noise_of_the_claimed_scale(bands):
    noise, _ = rounds_of(correlated(bands, 1.5, 0.2), 24, 1500)
    undone = matrix(24, bands) @ noise
    claimed = 1.5 * 0.2 * np.linalg.norm(coefficients(bands))
    assert fits(undone, claimed)
    assert not fits(undone, claimed * 2 / 3)
    assert not fits(undone, claimed * 3 / 2)
    assert unrelated(*undone)
    assert unrelated(*noise) == (bands == 1)
    np.testing.assert_allclose(undone / STEP, np.rint(undone / STEP), atol=bands)  # whole steps, but for the rounding


def test_the_rounding_of_what_is_taken_back_is_of_half_a_step_at_most():
    transform, drawn = correlated(4), correlated(1, seed=0)
    noise, _ = rounds_of(transform, 10, 200)
    fresh, _ = rounds_of(drawn, 10, 200)  # the same words, for a smaller sigma
    assert not np.array_equal(noise[0], fresh[0])
    steps = np.rint(noise / STEP)
    undone = matrix(10, 4) @ steps
    assert np.abs(undone - np.rint(undone)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("rounds", "bands"), [(40, 1), (40, 4), (60, 16)])
def test_the_noise_of_a_model_is_smaller_by_the_predicted_factor(rounds, bands):
    noise, _ = rounds_of(correlated(bands, 2.0, 0.5), rounds, 1500)
    found = np.sqrt(np.mean(np.cumsum(noise, axis=0) ** 2))
    assert found == pytest.approx(error(rounds, bands), rel=0.03)  # times 2.0 * 0.5
    independent = np.sqrt((rounds + 1) / 2)
    assert (found < 0.75 * independent) == (bands > 1)


@pytest.mark.parametrize(("rounds", "bands"), [(1, 1), (5, 3), (12, 12), (30, 7)])
def test_the_prediction_is_the_root_mean_square_of_the_matrix_mechanism(rounds, bands):
    prefix = np.tril(np.ones((rounds, rounds)))
    of_sums = np.linalg.norm(prefix @ np.linalg.inv(matrix(rounds, bands))) / np.sqrt(rounds)
    assert error(rounds, bands) == pytest.approx(of_sums * np.linalg.norm(coefficients(bands)), rel=1e-9)


def test_at_most_bands_less_one_noises_are_kept_and_a_resumed_run_forgets_them():
    transform = correlated(4)
    for rounds in (1, 2, 3, 10):
        _, (kept,) = rounds_of(transform, rounds, 30)
        assert (kept.shape, kept.dtype) == ((min(rounds, 3), 30), np.int64)
    assert transform.kept((kept,))[0].shape == transform.begin()[0].shape == (0, 0)
    assert rounds_of(correlated(1), 5, 30)[1][0].shape == (0, 30)


def test_the_first_noise_after_a_resume_takes_nothing_back():
    transform = correlated(8)
    noise, state = rounds_of(transform, 12, 4000)
    noisy, _ = transform.decode_sum(empty_sum((4000,)), transform.kept(state), ROUND)
    after = flat(noisy.arrays) * STEP
    assert all(unrelated(after, each) for each in noise)
    assert fits(after, np.linalg.norm(coefficients(8)))


def participations(rounds, separation):
    """All sets of rounds that are `separation` apart."""
    for bits in product((0, 1), repeat=rounds):
        taken = [t for t in range(rounds) if bits[t]]
        if taken and all(b - a >= separation for a, b in pairwise(taken)):
            yield taken


@pytest.mark.parametrize(("rounds", "separation", "bands"), [(9, 3, 3), (10, 4, 3), (8, 2, 2), (6, 1, 1), (10, 5, 5)])
def test_a_client_moves_the_released_rounds_by_the_root_of_its_participations_at_most(rounds, separation, bands):
    """Brute force over all participations, with contributions of norm 1 in random and in equal directions."""
    c, rng = matrix(rounds, bands), np.random.default_rng(0)
    length, worst, tight = np.linalg.norm(coefficients(bands)), 0.0, 0.0
    for taken in participations(rounds, separation):
        for trial in range(4):
            directions = rng.normal(size=(len(taken), 3)) if trial else np.ones((len(taken), 3))
            moved = np.zeros((rounds, 3))
            moved[taken] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
            ratio = np.linalg.norm(c @ moved) / (np.sqrt(len(taken)) * length)
            worst = max(worst, ratio)
            if taken[-1] + bands <= rounds:
                tight = max(tight, ratio)
    assert worst <= 1 + 1e-12
    assert tight == pytest.approx(1)
    # and as many participations as the strategy pays for: one in each stretch of `separation` rounds
    assert max(map(len, participations(rounds, separation))) == -(-rounds // separation)


def test_participations_closer_than_the_bands_would_move_more():
    c, moved = matrix(6, 3), np.array([1.0, 1.0, 1.0, 0, 0, 0])
    assert np.linalg.norm(c @ moved) > 1.3 * np.sqrt(3) * np.linalg.norm(coefficients(3))


def test_the_best_number_of_bands_is_within_the_separation_and_no_other_is_better():
    for rounds, separation in ((1, 9), (10, 1), (20, 4), (50, 10), (200, 100)):
        best = best_bands(rounds, separation)
        allowed = range(1, min(separation, MOST_BANDS) + 1)
        assert best in allowed
        assert error(rounds, best) == min(error(rounds, bands) for bands in allowed)
    assert best_bands(1, 9) == 1
    assert best_bands(200, 100) > 4


@pytest.mark.parametrize("bands", range(1, MOST_BANDS + 1))
def test_the_noise_of_a_single_round_is_less_than_the_room_that_is_left_for_it(bands):
    inverse = np.linalg.inv(matrix(120, bands))
    assert np.linalg.norm(inverse, axis=1).max() < 1.2
