"""The privacy curve of the Gaussian mechanism, against 50 digits; what is read off it is on the safe side."""

import math
from itertools import pairwise

import mpmath
import pytest

from privacy.analytic import analytic_gaussian_delta, analytic_gaussian_epsilon, analytic_gaussian_noise

DELTAS = (1e-12, 1e-8, 1e-5, 1e-2, 0.3)
EPSILONS = (1e-3, 0.03, 0.5, 1.0, 2.0, 10.0, 50.0, 500.0)


def reference(epsilon, noise):
    """Theorem 8 as it is written, in mpmath: 50 digits are left after the cancellation."""
    far = epsilon * noise + 0.5 / noise
    with mpmath.workdps(int(60 + epsilon + far**2)):
        epsilon, noise = mpmath.mpf(epsilon), mpmath.mpf(noise)
        half, middle = 1 / (2 * noise), epsilon * noise
        return mpmath.ncdf(half - middle) - mpmath.exp(epsilon) * mpmath.ncdf(-half - middle)


def classical_noise(epsilon, delta):
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, *EPSILONS[:-1]])
@pytest.mark.parametrize("noise", [0.05, 0.2, 0.7, 0.999, 1.0, 1.001, 1.5, 5.0, 30.0, 1e3, 1e6])
def test_the_curve_is_right_to_eleven_digits_far_into_the_tail(epsilon, noise):
    if epsilon * noise - 0.5 / noise > 36:
        assert analytic_gaussian_delta(epsilon, noise) < 1e-280
        return
    right = reference(epsilon, noise)
    assert right > 0
    assert abs(analytic_gaussian_delta(epsilon, noise) / right - 1) < 1e-11


def test_the_curve_at_epsilon_500_neither_overflows_nor_cancels():
    for noise in (0.03, 0.04, 0.05, 0.06):
        assert abs(analytic_gaussian_delta(500.0, noise) / reference(500.0, noise) - 1) < 1e-11


def test_without_epsilon_delta_is_the_total_variation():
    for noise in (0.1, 1.0, 3.0, 1e5):
        assert analytic_gaussian_delta(0.0, noise) == pytest.approx(math.erf(math.sqrt(0.125) / noise), rel=1e-12)


def test_delta_of_extreme_noise_is_0_or_1():
    assert analytic_gaussian_delta(1.0, 1e300) == 0
    assert analytic_gaussian_delta(1e6, 1.0) == 0
    assert analytic_gaussian_delta(1.0, 1e-300) == 1


def test_one_release_with_noise_1_costs_epsilon_4_377():
    with mpmath.workdps(50):
        right = mpmath.findroot(lambda epsilon: reference(epsilon, 1) - mpmath.mpf(1e-5), 4.4)
    assert analytic_gaussian_epsilon(1e-5, 1.0) == pytest.approx(float(right), rel=2e-10)
    assert float(right) == pytest.approx(4.377178, abs=1e-6)


def test_the_classical_formula_spends_more_than_it_says_at_large_epsilon():
    assert analytic_gaussian_delta(0.9, classical_noise(0.9, 1e-5)) < 1e-5
    assert analytic_gaussian_delta(10, classical_noise(10, 1e-5)) == pytest.approx(2.27e-5, rel=0.01)
    assert analytic_gaussian_delta(50, classical_noise(50, 1e-5)) == pytest.approx(0.586, rel=0.01)
    assert analytic_gaussian_noise(50, 1e-5) > 1.5 * classical_noise(50, 1e-5)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("delta", DELTAS)
def test_the_noise_is_the_least_that_is_enough(epsilon, delta):
    noise = analytic_gaussian_noise(epsilon, delta)
    assert reference(epsilon, noise) <= delta
    assert reference(epsilon, noise * (1 - 1e-10)) > delta


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0, 4.0, 25.0])
@pytest.mark.parametrize("delta", DELTAS)
def test_the_epsilon_is_the_least_that_holds(noise, delta):
    epsilon = analytic_gaussian_epsilon(delta, noise)
    assert reference(epsilon, noise) <= delta
    assert epsilon == 0 or reference(epsilon * (1 - 1e-10), noise) > delta


def test_epsilon_is_0_where_the_noise_hides_everything():
    assert analytic_gaussian_epsilon(0.3, 4.0) == 0
    assert analytic_gaussian_epsilon(1e-5, 4.0) > 0


def test_noise_and_epsilon_are_inverse_to_each_other():
    for epsilon in EPSILONS:
        for delta in (1e-12, 1e-5, 1e-2):
            assert analytic_gaussian_epsilon(delta, analytic_gaussian_noise(epsilon, delta)) == pytest.approx(
                epsilon, rel=1e-9
            )


def test_more_noise_more_epsilon_and_more_delta_each_allow_less_of_the_others():
    noises = [0.02 * 1.05**i for i in range(150)]
    for epsilon in (0.0, 0.1, 1.0, 10.0):
        deltas = [analytic_gaussian_delta(epsilon, noise) for noise in noises]
        assert all(a >= b for a, b in pairwise(deltas))  # 1 and 0 repeat
        assert deltas[0] > 0.5 > deltas[-1]
    for noise in (0.3, 1.0, 1.0001, 20.0):
        deltas = [analytic_gaussian_delta(0.01 * 1.05**i, noise) for i in range(100)]
        assert all(a > b or a == b == 0 for a, b in pairwise(deltas))
    needed = [analytic_gaussian_noise(epsilon, 1e-6) for epsilon in EPSILONS]
    assert needed == sorted(needed, reverse=True)
    needed = [analytic_gaussian_noise(1.0, delta) for delta in DELTAS]
    assert needed == sorted(needed, reverse=True)
    spent = [analytic_gaussian_epsilon(1e-5, noise) for noise in noises]
    assert spent == sorted(spent, reverse=True)


def test_the_extremes_of_delta_terminate_on_the_safe_side():
    for epsilon in (1e-9, 1e-3, 1.0, 1e6):
        for delta in (1e-300, 1e-30, 0.5, 0.999999, 1 - 1e-15):
            assert analytic_gaussian_delta(epsilon, analytic_gaussian_noise(epsilon, delta)) <= delta


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 1.5, math.nan])
def test_a_delta_outside_0_and_1_is_refused(delta):
    with pytest.raises(ValueError, match=r"delta is .*: expected a number between 0 and 1"):
        analytic_gaussian_noise(1.0, delta)
    with pytest.raises(ValueError, match=r"delta is .*: expected a number between 0 and 1"):
        analytic_gaussian_epsilon(delta, 1.0)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan])
def test_a_noise_that_is_not_positive_is_refused(noise):
    with pytest.raises(ValueError, match=r"the noise multiplier is .*: expected a number above 0"):
        analytic_gaussian_delta(1.0, noise)
    with pytest.raises(ValueError, match=r"the noise multiplier is .*: expected a number above 0"):
        analytic_gaussian_epsilon(1e-5, noise)


def test_an_epsilon_that_cannot_be_is_refused():
    for epsilon in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"epsilon is .*: expected a number from 0 up"):
            analytic_gaussian_delta(epsilon, 1.0)
    for epsilon in (0.0, -0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"epsilon is .*: expected a number above 0"):
            analytic_gaussian_noise(epsilon, 1e-5)
