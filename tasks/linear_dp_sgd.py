"""DP-SGD for generalised linear models (tasks/dp_sgd.py), with clipping in closed form.

The gradient of one row's loss is the outer product of its residual mean(z) - t and [x, 1]. So its norm is the product
of two norms, and nothing is computed row by row (Goodfellow 2015, arXiv:1510.01799).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.entropy import Entropy
from privacy.gaussian import normal
from tasks.dp_sgd import RecordPrivacy, poisson, shrinking
from tasks.fit_config import FitConfig
from tasks.objective import Objective, soft_threshold

Array = NDArray[Any]


def private_descent(
    objective: Objective, theta: Array, config: FitConfig, record: RecordPrivacy, entropy: Entropy
) -> Array:
    """DP-SGD from theta: new parameters (P,). The batch size of the config is not used; solvers sgd and gd are one.

    A step goes along (sum of clipped gradients + noise) / divisor + the gradient of l2 and the pull, which know nothing
    of the rows; then comes the proximal operator of l1. The number of steps knows nothing of the rows either.
    """
    rate, num_rows = config.learning_rate, len(objective.x)
    for _ in range(config.iterations(record.steps_per_epoch)):
        rows = poisson(num_rows, record.rate, entropy)
        total = clipped_sum(objective, theta, rows, record.clip_norm)
        if record.stddev:
            total += record.stddev * normal(theta.size, entropy)
        direction = total / record.divisor(num_rows)
        direction[: -objective.family.outputs] += objective.l2 * theta[: -objective.family.outputs]
        if objective.pull is not None:
            direction += objective.pull.gradient(theta)
        theta = theta - rate * direction
        w, _ = objective.views(theta)
        if objective.l1:
            w[...] = soft_threshold(w, rate * objective.l1)
    return theta


def clipped_sum(objective: Objective, theta: Array, rows: Array, clip_norm: float) -> Array:
    """The sum over `rows` of the gradients of their losses at theta, each clipped to `clip_norm`: (P,).

    A row whose gradient is not finite, or too large to have a norm, adds nothing.
    """
    x = objective.x[rows]
    w, b = objective.views(theta)
    residual = objective.family.mean(x @ w.T + b) - objective.targets[rows]
    norms = np.sqrt(np.square(residual).sum(axis=1)) * np.sqrt(np.square(x).sum(axis=1) + 1)
    finite = np.isfinite(norms)
    if not finite.all():
        x, residual, norms = x[finite], residual[finite], norms[finite]
    residual = residual * shrinking(norms, clip_norm)[:, None]
    return np.concatenate([(residual.T @ x).ravel(), residual.sum(axis=0)])
