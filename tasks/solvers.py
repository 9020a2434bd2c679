"""Local solvers: from the received parameters a bounded number of steps towards the client's own optimum.

Bounded, because a client that solved its problem fully would forget the model it received, and the federated result
would be an average of strangers instead of the optimum of the pooled data. Every solver returns new parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.fit_config import FitConfig
from tasks.objective import Objective

Array = NDArray[Any]

ARMIJO = 1e-4
"""The share of the decrease that the slope promises, which a step must deliver (Nocedal & Wright 2006, section 3.1)."""
MAX_HALVINGS = 40
MAX_HESSIAN_BYTES = 2**30
"""A model whose Hessian is larger than this is refused the solvers that build one."""
DAMPING = 1e-9
"""Levenberg damping relative to the largest curvature. Multinomial intercepts have a direction without any."""


def gd(objective: Objective, theta: Array, config: FitConfig) -> Array:
    """Gradient descent on the whole shard; with l1 proximal, so that weights become exactly 0."""
    return _descend(objective, theta, config, 0)


def sgd(objective: Objective, theta: Array, config: FitConfig) -> Array:
    """Descent on mini-batches without replacement, reshuffled every epoch from `config.seed`; with l1 proximal."""
    return _descend(objective, theta, config, config.batch_size)


def _descend(objective: Objective, theta: Array, config: FitConfig, batch_size: int) -> Array:
    num_rows = len(objective.x)
    size = min(batch_size or num_rows, num_rows)
    theta = theta.copy()
    step = objective.stepper(theta, config.learning_rate)
    stream = batches(num_rows, size, np.random.default_rng(config.seed))
    for rows in islice(stream, config.iterations(-(-num_rows // size))):
        step(rows)
    return theta


def mean_gradient(objective: Objective, start: Array, end: Array, config: FitConfig) -> Array:
    """The mean of the gradients along which gd or sgd went from `start` to `end`; with l1 of subgradients."""
    num_rows = len(objective.x)
    size = min(config.batch_size or num_rows, num_rows) if config.solver == "sgd" else num_rows
    result: Array = (start - end) / (config.iterations(-(-num_rows // size)) * config.learning_rate)
    return result


def batches(num_rows: int, size: int, rng: np.random.Generator) -> Iterator[Array | slice]:
    """Mini-batches without end: each epoch is a fresh permutation cut into pieces of `size`, the last one shorter.

    A batch that is the whole shard is given as such: nothing is drawn and nothing copied.
    """
    while size >= num_rows:
        yield slice(None)
    while True:
        order = rng.permutation(num_rows)
        yield from (order[start : start + size] for start in range(0, num_rows, size))


def lbfgs(objective: Objective, theta: Array, config: FitConfig) -> Array:
    """At most so many iterations of L-BFGS (Liu & Nocedal 1989, doi:10.1007/BF01589116), by scipy."""
    return quasi_newton(objective, theta, config.iterations())


def newton(objective: Objective, theta: Array, config: FitConfig) -> Array:
    """At most so many damped Newton steps. For P parameters each takes 8 P^2 bytes and time in P^3."""
    for _ in range(config.iterations()):
        following = newton_step(objective, theta)
        if following is None:
            break
        theta = following
    return theta


def newton_step(objective: Objective, theta: Array) -> Array | None:
    """theta - t H^-1 g with the first t of 1, 1/2, 1/4 ... that decreases F enough; None where no step does.

    The line search forgives rounding of F, without which it would stop at half the digits.
    """
    gradient, hessian = objective.gradient(theta), objective.hessian(theta)
    hessian[np.diag_indices_from(hessian)] += DAMPING * hessian.diagonal().max() + np.finfo(np.float64).tiny
    direction = np.linalg.solve(hessian, gradient)
    slope, value = float(np.vdot(gradient, direction)), objective.value(theta)
    rounding = 8 * np.finfo(np.float64).eps * max(1.0, abs(value))
    for halving in range(MAX_HALVINGS):
        step = 0.5**halving
        candidate: Array = theta - step * direction
        if objective.value(candidate) <= value - ARMIJO * step * slope + rounding:
            return candidate
    return None


def quasi_newton(objective: Objective, theta: Array, max_iterations: int, tolerance: float = 0.0) -> Array:
    """L-BFGS until the largest entry of the gradient is at most `tolerance`, or `max_iterations`."""
    from scipy.optimize import minimize  # not at the top: a deployed node pays its imports in every round

    def value_and_gradient(theta: Array) -> tuple[float, Array]:
        return objective.value(theta), objective.gradient(theta)

    solution = minimize(
        value_and_gradient,
        theta,
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": max_iterations,
            "maxfun": (MAX_HALVINGS + 1) * max_iterations,
            "gtol": tolerance,
            "ftol": 0.0,
        },
    )
    result: Array = solution.x
    return result


SOLVERS: Mapping[str, Callable[[Objective, Array, FitConfig], Array]] = MappingProxyType(
    {"sgd": sgd, "gd": gd, "lbfgs": lbfgs, "newton": newton}
)
