"""Generalised linear models of many clients trained at once: `Objective.stepper`, for a stack of them."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import Arrays, Rows
from tasks.families import Family
from tasks.fit_config import FitConfig
from tasks.objective import soft_threshold
from tasks.solvers import batches
from tasks.together import Batch, Scratch, batch_rows, side_by_side

Array = NDArray[Any]


def descend(
    family: Family,
    params: Arrays,
    block: Sequence[Rows],
    seeds: Sequence[int],
    config: FitConfig,
    scratch: tuple[Scratch, Scratch],
) -> tuple[Array, Array]:
    """Solver sgd or gd from `params` on the rows of each client: weights (c, K, d) and intercepts (c, K), for each to
    the bit what the solver gives."""
    rate, shrink = config.learning_rate, 1.0 - config.learning_rate * config.l2
    pull = rate * config.proximal_mu
    weights, intercepts = (np.repeat(param[None], len(block), axis=0) for param in params)
    directions = scratch[0].empty(weights.shape, weights.dtype)
    streams = [_batches(len(rows), seed, config) for rows, seed in zip(block, seeds, strict=True)]
    for which, x, y in side_by_side([rows.x for rows in block], [rows.y for rows in block], streams, scratch[1]):
        w, b, direction = weights[which], intercepts[which], directions[which]  # contiguous, which numpy is fastest on
        pulls = [rate * (config.proximal_mu * (now - then)) for now, then in zip((w, b), params, strict=True) if pull]
        z = np.matmul(x, w.swapaxes(1, 2))
        np.add(z, b[:, None], out=z)
        residual = family.mean(z.reshape(-1, family.outputs))
        np.subtract(residual, family.targets(y.reshape(-1)), out=residual)
        np.multiply(residual, rate / x.shape[1], out=residual)
        residual = residual.reshape(z.shape)
        np.matmul(residual.swapaxes(1, 2), x, out=direction)
        if config.l2:
            np.multiply(w, shrink, out=w)
        np.subtract(w, direction, out=w)
        np.subtract(b, np.add.reduce(residual, axis=1), out=b)
        for now, pulled in zip((w, b), pulls, strict=False):
            np.subtract(now, pulled, out=now)
        if config.l1:
            w[...] = soft_threshold(w, rate * config.l1)
    return weights, intercepts


def _batches(num_rows: int, seed: int, config: FitConfig) -> Iterator[Batch]:
    """The rows of each step, as the solvers deal them."""
    size = batch_rows(config, num_rows)
    return islice(batches(num_rows, size, np.random.default_rng(seed)), config.iterations(-(-num_rows // size)))
