"""The exact privacy curve of the Gaussian mechanism: Balle and Wang (2018), arXiv:1805.06530, Theorem 8.

For one release of a value of L2 sensitivity 1 with normal noise of standard deviation `noise_multiplier`, at any
epsilon: the classical sqrt(2 ln(1.25 / delta)) / epsilon holds below epsilon 1 only. T such releases, even if each
depends on those before, are together one with noise_multiplier / sqrt(T) (arXiv:1905.02383).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import erfcx, ndtr

NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)
SAFETY = 2.0**-35  # relative: far above the error of a delta (1e-12 or so), below the 1e-10 promised


def analytic_gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """The smallest delta with which the mechanism is (epsilon, delta)-private, for any epsilon >= 0.

    Relative error below 1e-11 where it exceeds 1e-300. ValueError for another epsilon or noise.
    """
    _check_noise(noise_multiplier)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}: expected a number from 0 up")
    # Theorem 8 is delta = Phi(-near) - e^epsilon Phi(-far). For the normal density phi, e^epsilon phi(far) = phi(near).
    # Thus e^epsilon, which overflows, drops out: delta = phi(near) (mills(near) - mills(far)).
    half = 0.5 / noise_multiplier
    middle = epsilon * noise_multiplier
    near, far = middle - half, middle + half
    if near > 39:
        return 0.0  # below the smallest float
    density = math.exp(-0.5 * near * near) / math.sqrt(2 * math.pi)
    if half < 0.5:
        # The two ratios are close: integrate the slope between them, 1 - x mills(x), instead of subtracting them.
        x = middle + half * NODES
        return float(density * half * np.dot(WEIGHTS, 1 - x * _mills(x)))
    return float(ndtr(-near) - density * _mills(np.array(far)))  # mills(near) may overflow, Phi(-near) does not


def analytic_gaussian_epsilon(delta: float, noise_multiplier: float) -> float:
    """The smallest epsilon >= 0 with which the mechanism is (epsilon, delta)-private, to 1e-10 and rounded up.

    ValueError for a delta outside (0, 1) or a noise that is not positive.
    """
    _check_delta(delta)
    _check_noise(noise_multiplier)
    if analytic_gaussian_delta(0.0, noise_multiplier) <= delta:
        return 0.0
    # Concentrated privacy bounds it from above: arXiv:1605.02065, Proposition 1.3 with rho = 1 / (2 noise^2).
    bound = 0.5 / noise_multiplier**2 + math.sqrt(-2 * math.log(delta)) / noise_multiplier
    return _first_safe(lambda epsilon: analytic_gaussian_delta(epsilon, noise_multiplier), delta, 0.0, bound)


def analytic_gaussian_noise(epsilon: float, delta: float) -> float:
    """The smallest noise multiplier that makes the mechanism (epsilon, delta)-private, to 1e-10 and rounded up.

    ValueError for an epsilon that is not positive or a delta outside (0, 1).
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}: expected a number above 0")
    _check_delta(delta)
    log = -math.log(delta)
    above = (math.sqrt(log + epsilon) + math.sqrt(log)) / (math.sqrt(2) * epsilon)  # the same bound, solved for noise
    below = above / 2
    while analytic_gaussian_delta(epsilon, below) <= delta:
        below /= 2
    return _first_safe(lambda noise: analytic_gaussian_delta(epsilon, noise), delta, below, above)


def _mills(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mills's ratio of the standard normal: its upper tail, divided by its density."""
    return np.asarray(math.sqrt(math.pi / 2) * erfcx(x / math.sqrt(2)))


def _first_safe(delta_at: Callable[[float], float], delta: float, below: float, above: float) -> float:
    """Just above the point between `below` and `above` at which the falling `delta_at` reaches `delta`."""

    def excess(x: float) -> float:
        return math.log(max(delta_at(x), 5e-324)) - math.log(delta)

    x = brentq(excess, below, above, xtol=1e-300, rtol=1e-14) * (1 + SAFETY)
    while delta_at(x) > delta:
        x *= 1 + SAFETY
    return x


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}: expected a number between 0 and 1, both excluded")


def _check_noise(noise_multiplier: float) -> None:
    if not 0 < noise_multiplier < math.inf:
        raise ValueError(f"the noise multiplier is {noise_multiplier}: expected a number above 0")
