"""The optimum of an objective to full precision: what baselines and tests compare a federated result with."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.objective import Objective, soft_threshold
from tasks.solvers import newton_step, quasi_newton

Array = NDArray[Any]

NEWTON_MAX_PARAMETERS = 1_000
"""Above this many parameters a dense Hessian costs more than the iterations it saves."""


def optimum(objective: Objective, start: Array, *, tolerance: float = 1e-8, max_iterations: int = 20_000) -> Array:
    """The minimiser of F: Newton or, for many parameters, L-BFGS; with l1 accelerated proximal gradient.

    Done when the largest entry of the (proximal) gradient is at most `tolerance`, at which F exceeds its minimum by at
    most ||gradient||^2 / (2 l2); Newton's last step goes on from there to rounding. Raises RuntimeError when that is
    not reached in `max_iterations`. Without a penalty, classes that a plane separates have no optimum: what comes back
    is then no more than a point where F is nearly flat.
    """
    solve = _proximal if objective.l1 else _newton if start.size <= NEWTON_MAX_PARAMETERS else quasi_newton
    theta = solve(objective, start, max_iterations, tolerance)
    residual = stationarity(objective, theta)
    if not residual <= tolerance:
        raise RuntimeError(
            f"no optimum found: the gradient is still {residual:.1e} (wanted {tolerance:.1e}) after at most "
            f"{max_iterations} iterations: raise l2 (now {objective.l2}), standardise the features or allow more"
        )
    return theta


def stationarity(objective: Objective, theta: Array) -> float:
    """The largest entry of the gradient of F, with l1 of its smallest subgradient: 0 exactly at an optimum."""
    gradient = objective.gradient(theta)
    (slope, _), (w, _) = objective.views(gradient), objective.views(theta)
    slope[...] = np.where(w, slope + objective.l1 * np.sign(w), soft_threshold(slope, objective.l1))
    return float(np.abs(gradient).max())


def _newton(objective: Objective, theta: Array, max_iterations: int, tolerance: float) -> Array:
    for _ in range(max_iterations):
        following = newton_step(objective, theta)
        if following is None:
            break
        before, theta = theta, following
        if stationarity(objective, before) <= tolerance:
            break
    return theta


def _proximal(objective: Objective, theta: Array, max_iterations: int, tolerance: float) -> Array:
    """FISTA (Beck & Teboulle 2009, doi:10.1137/080716542), restarted (O'Donoghue & Candes 2015, arXiv:1204.3982)."""
    rate = 1.0 / objective.smoothness()
    momentum, ahead = 1.0, theta.copy()
    for _ in range(max_iterations):
        following = ahead.copy()
        objective.stepper(following, rate)(slice(None))
        moved = following - theta
        if np.vdot(ahead - following, moved) > 0:
            momentum = 1.0
        next_momentum = (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5) / 2.0
        theta, ahead = following, following + (momentum - 1.0) / next_momentum * moved
        momentum = next_momentum
        if stationarity(objective, theta) <= tolerance:
            break
    return theta
