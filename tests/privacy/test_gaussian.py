"""The discrete sampler has the distribution it claims, decided exactly; the float sampler is a fast normal one."""

import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from scipy import stats
from seeded import ScriptedEntropy, SeededEntropy

import privacy.gaussian
from privacy.entropy import SYSTEM
from privacy.gaussian import (
    MARGIN,
    MAX_SIGMA,
    _bernoulli_exp,
    _coins,
    _discrete_laplace,
    _geometric,
    _is_below_exp,
    _uniform_below,
    discrete_gaussian,
    normal,
)

SEEN = 1e-9  # the p-value of a wrong distribution must be below this,
ACCEPTED = 1e-3  # and that of the right one above this


def p_value(samples, weight):
    """Chi-square of integers against the distribution in proportion to `weight`; rare values share a bin."""
    values = np.arange(-1000, 1001)
    expected = weight(values.astype(np.float64))
    expected *= samples.size / expected.sum()
    observed = np.bincount(samples + 1000, minlength=values.size)
    assert observed.size == values.size
    common = expected >= 10
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), expected.size - 1))


def gaussian(sigma, mean=0.0):
    return lambda x: np.exp(-((x - mean) ** 2) / (2 * sigma**2))


def independent(a, b, threshold=4.5):
    """Whether neither values, sizes nor squares of `a` and `b` are correlated."""
    pairs = ((a, b), (np.abs(a), np.abs(b)), (a * a, b * b), (a, np.abs(b)))
    return all(abs(np.corrcoef(x, y)[0, 1]) * len(a) ** 0.5 < threshold for x, y in pairs)


@pytest.mark.parametrize("sigma", [1, 2, 5, 50])
def test_small_discrete_gaussians_follow_the_exact_probabilities_and_no_others(sigma):
    samples = discrete_gaussian(sigma, 200_000, SeededEntropy(sigma))
    assert p_value(samples, gaussian(sigma)) > ACCEPTED
    for wrong in (2 / 3, 3 / 2, 0.97, 1.03):
        assert p_value(samples, gaussian(sigma * wrong)) < SEEN
    for shift in (-0.05, 0.05):
        assert p_value(samples, gaussian(sigma, mean=shift * sigma)) < SEEN


@pytest.mark.parametrize("sigma", [2**20, 2**40, 2**40 + 12345, MAX_SIGMA])
def test_large_discrete_gaussians_follow_the_normal_distribution_and_no_other(sigma):
    x = discrete_gaussian(sigma, 200_000, SeededEntropy(3)) / sigma
    assert stats.kstest(x, "norm").pvalue > ACCEPTED
    for wrong in (2 / 3, 3 / 2, 0.97, 1.03):
        assert stats.kstest(x / wrong, "norm").pvalue < SEEN
    for shift in (-0.05, 0.05):
        assert stats.kstest(x + shift, "norm").pvalue < SEEN


@pytest.mark.parametrize("sigma", [2**20, 2**40 + 12345])
def test_the_low_bits_of_a_large_discrete_gaussian_are_uniform(sigma):
    low = discrete_gaussian(sigma, 200_000, SeededEntropy(4)) & 63
    assert stats.chisquare(np.bincount(low, minlength=64)).pvalue > ACCEPTED


@pytest.mark.parametrize("sigma", [1, 7, 2**30])
def test_mean_variance_symmetry_and_tails_are_those_of_the_gaussian(sigma):
    x = discrete_gaussian(sigma, 1_000_000, SeededEntropy(5)) / sigma
    error = x.size**-0.5
    assert abs(x.mean()) < 4 * error
    assert abs((x**2).mean() - 1) < 4 * 2**0.5 * error
    assert abs((x**3).mean()) < 4 * 15**0.5 * error
    assert abs((x**4).mean() - 3) < 4 * 96**0.5 * error
    assert abs((x > 0).mean() - (x < 0).mean()) < 4 * error
    if sigma > 1:
        tail = 2 * stats.norm.sf(3 + 0.5 / sigma)
        assert abs((np.abs(x) > 3).mean() - tail) < 4 * (tail * error**2) ** 0.5


def test_samples_are_independent_within_a_call_and_between_calls():
    entropy = SeededEntropy(6)
    first, second = (discrete_gaussian(2**20, 300_000, entropy) / 2**20 for _ in range(2))
    assert independent(first[:-1], first[1:])
    assert independent(first, second)
    block = 15_000  # samples in a block of proposals, about: nothing carries over to the next
    assert all(independent(first[:-lag], first[lag:]) for lag in range(block, block + 1500, 100))
    assert not np.array_equal(first, second)


def test_dependence_would_be_noticed():
    x = SeededEntropy(7).words(100_000) / 2.0**64 - 0.5
    assert independent(x[:-1], x[1:])
    assert not independent(x, x)
    assert not independent(x, np.where(np.arange(x.size) % 20 == 0, x, np.roll(x, 7)))
    assert not independent(x, np.roll(x, 7) * (np.abs(x) + 0.5))


def test_samples_are_as_many_as_asked_for_and_of_64_bits():
    for size in (0, 1, 2, 63, 64, 65, 1000, 40_000):
        samples = discrete_gaussian(2**40, size, SeededEntropy(8))
        assert samples.dtype == np.int64
        assert samples.shape == (size,)


def test_the_length_of_a_call_does_not_bias_its_samples():
    entropy = SeededEntropy(9)
    samples = np.concatenate([discrete_gaussian(2, 1 + i % 3, entropy) for i in range(10_000)])
    assert p_value(samples, gaussian(2)) > ACCEPTED


def test_the_entropy_of_the_system_gives_other_noise_every_time():
    first, second = (discrete_gaussian(2**40, 1000, SYSTEM) for _ in range(2))
    assert not set(first.tolist()) & set(second.tolist())
    assert not set(normal(1000, SYSTEM).tolist()) & set(normal(1000, SYSTEM).tolist())


@pytest.mark.parametrize("sigma", [0, -1, 0.5, 2.5, MAX_SIGMA + 1, float("nan"), float("inf")])
def test_a_sigma_that_is_no_integer_in_range_is_refused(sigma):
    with pytest.raises(ValueError, match=r"sigma is .*: expected an integer from 1 to 2\^52"):
        discrete_gaussian(sigma, 1, SYSTEM)


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="negative"):
        discrete_gaussian(1, -1, SYSTEM)
    with pytest.raises(ValueError, match="negative"):
        normal(-1, SYSTEM)


# The parts


@pytest.mark.parametrize("scale", [1, 3, 20])
def test_the_discrete_laplace_follows_its_probabilities_and_has_one_zero(scale):
    y = _discrete_laplace(scale, 300_000, SeededEntropy(scale))
    assert p_value(y, lambda x: np.exp(-np.abs(x) / scale)) > ACCEPTED
    assert p_value(y, lambda x: np.exp(-np.abs(x) / scale) * np.where(x == 0, 2, 1)) < SEEN
    assert p_value(y, lambda x: np.exp(-np.abs(x) / (1.03 * scale))) < SEEN


def test_the_geometric_counts_successes_before_a_failure_whatever_their_number():
    for count in (0, 1, 10, 30_000):
        assert _geometric(count, SeededEntropy(10)).shape == (count,)
    entropy = SeededEntropy(11)
    v = np.concatenate([_geometric(100_000, entropy)] + [_geometric(3, entropy) for _ in range(10_000)])
    for part in (v[:100_000], v[100_000:], v[100_002::3]):  # long, short, and the last of each short one
        assert p_value(part, lambda x: np.where(x >= 0, np.exp(-np.maximum(x, 0)), 0)) > ACCEPTED
        assert p_value(part, lambda x: np.where(x >= 0, np.exp(-1.1 * np.maximum(x, 0)), 0)) < SEEN


def test_the_geometric_goes_on_where_its_first_trials_were_too_few():
    runs = [100, 0, 70]  # of 3 wanted, 68 trials are made first
    words = [word for run in runs for word in [0] * run + [2**64 - 1]]
    assert _geometric(3, ScriptedEntropy(words + [2**64 - 1] * 68)).tolist() == runs


@pytest.mark.parametrize("bound", [1, 3, 2**20 + 1, 2**40, MAX_SIGMA])
def test_every_integer_below_a_bound_owns_equally_many_words(bound):
    share = (2**64 - 1) // bound
    edges = [0, share - 1, share, (bound - 1) * share - 1, (bound - 1) * share, bound * share - 1]
    edges = [word for word in edges if 0 <= word < bound * share]
    left_over = sorted({bound * share, (bound * share + 2**64) // 2, 2**64 - 1})
    assert 2**64 - bound * share <= 2**52
    found = _uniform_below(bound, len(edges + left_over), ScriptedEntropy(edges + left_over))
    assert found.tolist() == [word // share for word in edges]
    assert max(found.tolist()) == bound - 1


def test_coins_are_all_the_bits_of_their_words():
    words = SeededEntropy(12).words(3)
    for count in (0, 1, 64, 65, 192):
        coins = _coins(count, ScriptedEntropy(words[: -(-count // 64)]))
        assert coins.shape == (count,)
        assert coins.sum() == sum(int(octet).bit_count() for octet in words.view(np.uint8)[: count // 8]) + (
            coins[count // 8 * 8 :].sum()
        )
    assert abs(_coins(1_000_000, SeededEntropy(13)).mean() - 0.5) < 0.002


# What floats cannot decide

GAMMAS = [
    Fraction(1),
    Fraction(1, 3),
    Fraction(7, 2),
    Fraction(30),
    Fraction(2**40 - 1, 2**41),
    Fraction(1, 2**52),
    Fraction(1, 2**104),
    Fraction((2**52 - 1) ** 2, 2**105),
]


def words_of_exp(gamma, count):
    """The first words of the binary expansion of exp(-gamma)."""
    with mpmath.workdps(200):
        digits = int(mpmath.floor(mpmath.exp(-mpmath.mpf(gamma.numerator) / gamma.denominator) * 2 ** (64 * count)))
    return [digits >> (64 * i) & (2**64 - 1) for i in reversed(range(count))]


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_number_that_begins_like_the_exponential_is_told_from_it_by_further_words(gamma):
    first, second, third = words_of_exp(gamma, 3)
    for words, below in [
        ([first - 1], True),
        ([first, second - 1], True),
        ([first, second, third - 1], True),
        ([first, second, third + 1], False),
        ([first, second + 1], False),
        ([first + 1], False),
    ]:
        if not 0 <= words[-1] < 2**64:
            continue
        whatever = [0, 2**64 - 1] if below else [2**64 - 1, 0]  # follows: where exp(-gamma) is nearly dyadic it is read
        script = ScriptedEntropy(words[1:] + whatever)
        assert _is_below_exp(words[0], gamma, script) == below
        assert 1 <= len(script.left) <= 2


def test_exp_of_0_is_above_every_number():
    assert _is_below_exp(2**64 - 1, Fraction(0), ScriptedEntropy([]))
    assert _bernoulli_exp(0.0, lambda _: Fraction(0), 2, ScriptedEntropy([2**64 - 1, 0])).all()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_close_to_the_boundary_floats_and_exact_arithmetic_decide_alike(gamma):
    """On both sides of the margin, from one unit of the word up to a large part of it."""
    word = words_of_exp(gamma, 1)[0]
    near = {word + sign * step for step in (2**i for i in range(63)) for sign in (-1, 1)}
    words = sorted(x for x in near if 0 <= x < 2**64)
    success = _bernoulli_exp(float(gamma), lambda _: gamma, len(words), ScriptedEntropy([*words, 2**63]))
    assert success.tolist() == [x < word for x in words]


def test_floats_alone_would_decide_wrongly(monkeypatch):
    monkeypatch.setattr(privacy.gaussian, "MARGIN", -1.0)
    with pytest.raises(AssertionError):
        test_close_to_the_boundary_floats_and_exact_arithmetic_decide_alike(Fraction(1, 3))


@pytest.mark.parametrize("sigma", [1, 3, 2**40, MAX_SIGMA])
def test_deciding_everything_exactly_changes_no_sample(sigma, monkeypatch):
    by_floats = discrete_gaussian(sigma, 1500, SeededEntropy(14))
    monkeypatch.setattr(privacy.gaussian, "MARGIN", 1.0)
    exactly = discrete_gaussian(sigma, 1500, SeededEntropy(14))
    assert np.array_equal(by_floats, exactly)
    if sigma == 3:
        assert p_value(exactly, gaussian(3)) > ACCEPTED
        assert p_value(exactly, gaussian(4.5)) < SEEN


def test_a_margin_that_leaves_some_to_exact_arithmetic_changes_no_sample(monkeypatch):
    asked = []
    monkeypatch.setattr(
        privacy.gaussian, "_is_below_exp", lambda *args: bool(asked.append(args) or _is_below_exp(*args))
    )
    by_floats = discrete_gaussian(2**40, 50_000, SeededEntropy(15))
    assert not asked  # one in 2^39
    monkeypatch.setattr(privacy.gaussian, "MARGIN", 2.0**-9)
    assert np.array_equal(by_floats, discrete_gaussian(2**40, 50_000, SeededEntropy(15)))
    assert len(asked) > 100


def test_the_errors_of_floats_are_far_below_the_margin():
    """What the comment at MARGIN adds up, measured: `np.exp`, and gamma with it as the sampler computes it."""
    rng = np.random.default_rng(16)
    sigma = 2**52 - 3
    distance = np.concatenate((rng.integers(-sigma, 40 * sigma, 3000), rng.integers(-sigma, sigma, 3000)))
    computed = np.exp(-((distance / sigma) ** 2) * 0.5)
    with mpmath.workdps(40):
        exact = [mpmath.exp(-((mpmath.mpf(int(d)) / sigma) ** 2) / 2) for d in distance]
        worst = max(abs(mpmath.mpf(float(a)) - b) for a, b in zip(computed, exact, strict=True))
    assert 0 < worst < 2.0**-51 < MARGIN / 1000


# Floats


def test_normal_floats_follow_the_normal_distribution_and_no_other():
    x = normal(1_000_000, SeededEntropy(17))
    assert stats.kstest(x, "norm").pvalue > ACCEPTED
    for wrong in (2 / 3, 3 / 2, 0.98, 1.02):
        assert stats.kstest(x / wrong, "norm").pvalue < SEEN
    for shift in (-0.02, 0.02):
        assert stats.kstest(x + shift, "norm").pvalue < SEEN
    error = x.size**-0.5
    assert abs(x.mean()) < 4 * error
    assert abs(x.var() - 1) < 4 * 2**0.5 * error
    assert abs((x**3).mean()) < 4 * 15**0.5 * error
    assert abs((x**4).mean() - 3) < 4 * 96**0.5 * error
    for bound in (3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * x.size
        assert abs((np.abs(x) > bound).sum() - expected) < 4 * expected**0.5


def test_normal_floats_are_independent_also_those_of_one_pair():
    x = normal(60_000, SeededEntropy(18))
    assert independent(x[:-1], x[1:])
    assert independent(x[:30_000], x[30_000:])  # the cosine and the sine of the same angle
    x = np.sort(x[:30_000] ** 2 + x[30_000:] ** 2)  # and the radius they share
    assert stats.kstest(x, "chi2", args=(2,)).pvalue > ACCEPTED


def test_the_tails_of_normal_floats_reach_beyond_9_and_nothing_is_infinite():
    corners = [0, 1, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 3 * 2**62, 2**64 - 2**10, 2**64 - 1]
    for radius in corners:
        for angle in corners:
            x = normal(2, ScriptedEntropy([radius, angle]))
            assert np.isfinite(x).all()
            turn = 2 * np.pi * (angle / 2**64)
            length = np.sqrt(-2 * np.log((radius + 0.5) / 2**64))
            assert x == pytest.approx([length * np.cos(turn), length * np.sin(turn)], abs=2e-8)
    assert normal(2, ScriptedEntropy([0, 0]))[0] == pytest.approx(9.49, abs=0.01)
    assert normal(2, ScriptedEntropy([0, 2**63]))[0] == pytest.approx(-9.49, abs=0.01)
    assert normal(2, ScriptedEntropy([0, 2**62]))[1] == pytest.approx(9.49, abs=0.01)


def test_normal_floats_are_as_many_as_asked_for_odd_or_even_and_over_several_blocks():
    for size in (0, 1, 2, 3, 65_535, 65_536, 65_537, 131_073):
        x = normal(size, SeededEntropy(19))
        assert x.dtype == np.float64
        assert x.shape == (size,)
        assert np.unique(x).size == size


def test_the_samplers_load_no_scipy():
    """A node starts a process for every message."""
    program = "import sys, privacy.gaussian; print(*{'scipy', 'torch'} & set(sys.modules))"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_noise_for_a_large_model_takes_a_fraction_of_a_second():
    """A tenth of this is usual; the bound is for busy machines and would still notice a loop over elements."""
    start = time.process_time()
    discrete_gaussian(2**40, 1_000_000, SYSTEM)
    normal(1_000_000, SYSTEM)
    assert time.process_time() - start < 1.5
