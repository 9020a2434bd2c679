"""What holds on average: unbiased rounding and sampling, codes as short as the entropy, rotations that make noise.

Every test of a distribution has a fixed seed, accepts the right one and rejects a wrong one.
"""

from dataclasses import replace
from math import lgamma, log

import numpy as np
import pytest
from compressed import encoded, round_of, there_and_back, update
from scipy.stats import chi2, kurtosis

from strategies.transform import chain
from strategies.transforms import golomb_rice
from strategies.transforms.entropy_coding import EntropyCoding
from strategies.transforms.quantize import Quantize
from strategies.transforms.rotate import Rotate
from strategies.transforms.sparsify import RandomK, TopK

DRAWS = 2_000
LEAST_P = 1e-3


def p_of_no_bias(decoded, x):
    """The p-value of a chi-squared test that the mean over draws, (draws, elements), is x.

    Elements that are all but constant, such as the largest of a block, are left out.
    """
    stddev = decoded.std(axis=0, ddof=1)
    varies = stddev > 1e-3 * np.abs(x).max()
    z = (decoded.mean(axis=0) - x)[varies] / stddev[varies] * np.sqrt(len(decoded))
    assert varies.sum() > 0.5 * x.size
    return float(chi2.sf(z @ z, z.size))


def draws(codec, x):
    return np.array([there_and_back(codec, (x,), seed=2 * seed)[0] for seed in range(DRAWS)], np.float64)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=64).astype(np.float32)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_stochastic_rounding_is_unbiased(bits, x):
    assert p_of_no_bias(draws(Quantize(bits, 16), x), x) > LEAST_P


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_test_rejects_a_bias_of_a_tenth_of_a_step(bits, x):
    codec = Quantize(bits, 64)
    tenth = 0.1 * np.abs(x).max() / codec.top
    assert p_of_no_bias(draws(codec, x) + tenth, x) < LEAST_P


def test_the_test_rejects_rounding_to_nearest(x):
    """With noise that hides it from the check that elements vary."""
    noise = np.random.default_rng(1).normal(size=(DRAWS, x.size)) * 0.01
    assert p_of_no_bias(draws(Quantize(4, 64, "nearest"), x) + noise, x) < LEAST_P


def test_rotated_rounding_is_unbiased(x):
    found = draws(chain(Rotate(2**8), Quantize(2, 16)), x)
    assert p_of_no_bias(found, x) > LEAST_P
    assert p_of_no_bias(0.9 * found, x) < LEAST_P


def test_random_k_is_unbiased_and_its_error_is_what_it_says(x):
    found = draws(RandomK(0.25), x)
    assert p_of_no_bias(found, x) > LEAST_P
    assert p_of_no_bias(found / 4, x) < LEAST_P
    error = ((found - x) ** 2).sum(axis=1).mean() / (x.astype(float) ** 2).sum()
    assert error == pytest.approx(1 / 0.25 - 1, rel=0.1)


def test_random_k_draws_every_coordinate_equally_often():
    x = np.ones(50)
    counts = (draws(RandomK(0.1), x) > 0).sum(axis=0)
    expected = DRAWS / 10
    statistic = ((counts - expected) ** 2 / (expected * 0.9)).sum()
    assert chi2.sf(statistic, 49) > LEAST_P
    assert chi2.sf(((1.2 * counts - expected) ** 2 / (expected * 0.9)).sum(), 49) < LEAST_P


def test_clients_of_a_round_draw_the_same_coordinates_and_round_apart():
    x = np.random.default_rng(0).uniform(1, 2, 1_000)
    codec = chain(RandomK(0.1), Quantize(4))
    info = round_of(codec, (x,))
    sent = [codec.encode(update((x,)), (), replace(info, seed=seed))[0] for seed in (1, 2)]
    first, second = (codec.decode(one, info).arrays[0] for one in sent)
    np.testing.assert_array_equal(first != 0, second != 0)
    assert (first != second).any()


# ------------------------------------------------------------------------------------------------ entropy


def entropy_bits(size, k):
    """log2 of how many ways there are to choose k of so many."""
    return (lgamma(size + 1) - lgamma(k + 1) - lgamma(size - k + 1)) / log(2)


@pytest.mark.parametrize(
    ("fraction", "above"),
    [(0.0001, 0.02), (0.001, 0.02), (0.01, 0.02), (0.03, 0.02), (0.05, 0.02), (0.11, 0.05), (0.38, 0.05)],
)
def test_golomb_rice_is_near_the_entropy_of_random_positions(fraction, above):
    size = 1_000_000
    k = int(fraction * size)
    positions = np.sort(np.random.default_rng(0).choice(size, k, replace=False)).astype(np.uint32)
    bits = 8 * golomb_rice.encode(positions, golomb_rice.best_digits(positions)).size
    assert entropy_bits(size, k) <= bits <= (1 + above) * entropy_bits(size, k) + 8


def test_padding_costs_few_bytes():
    x = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    positions, _ = encoded(TopK(0.01), (x,))
    plain, padded = (encoded(EntropyCoding(padded), (positions,))[0].size for padded in (False, True))
    assert plain < 10_200
    assert plain < padded < 1.07 * plain


def test_one_percent_with_8_bits_of_a_million_is_below_21_kilobytes():
    x = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    assert encoded(chain(TopK(0.01), Quantize(8), EntropyCoding()), (x,))[0].size < 21_000


# ------------------------------------------------------------------------------------------------- rotate


def test_a_rotated_block_is_like_gaussian_noise():
    rng = np.random.default_rng(0)
    heavy = rng.standard_t(3, size=2**15)
    (rotated,) = encoded(Rotate(), (heavy,))
    assert kurtosis(heavy) > 10
    assert abs(kurtosis(rotated)) < 0.2
    assert np.abs(rotated).max() < 6 * rotated.std()


def test_rotation_makes_few_bits_of_heavy_tails_better():
    heavy = np.random.default_rng(0).standard_t(2, size=2**15)

    def error(codec):
        return np.linalg.norm(there_and_back(codec, (heavy,))[0] - heavy) / np.linalg.norm(heavy)

    assert error(chain(Rotate(), Quantize(4))) < 0.25 < 0.5 < error(chain(Quantize(4)))
