"""Metrics of the model on the clients' test rows, released with noise under the run's promise (`noisy-metrics`).

A metric of a row is held to the range that the task declares for it, and counts from the middle of that range in units
of its width: all metrics of a row are a vector within [-1/2, 1/2]^k, whatever the row and the model are. What is
released is the mean over the clients of the means over their test rows (strategies/vector_release.py).

Where clients are protected nobody may learn who answered, or who has test rows. So each that has some adds 1/2 in one
more coordinate, which gets the same noise; the released metrics are divided by what is released there. A client that
does not answer, or has no test rows, adds zero and so does not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from privacy.entropy import SYSTEM, Entropy
from strategies import wire
from strategies.exchange import Exchange
from strategies.protection import Protection
from strategies.rounds import OpenRound
from strategies.update import Arrays, InvalidUpdate
from strategies.vector_release import VectorRelease

Ranges = Mapping[str, tuple[float, float]]
"""For each metric the least and the greatest value of a row that counts."""

LEAST_SHARE = 0.1
"""Of the clients: fewer are never taken to have answered, whatever the noise says."""


@dataclass(frozen=True)
class PrivateMetrics:
    """Both halves of one release, for metrics of these ranges."""

    protection: Protection
    ranges: Ranges
    entropy: Entropy = SYSTEM

    @property
    def by_answers(self) -> bool:
        """Whether there is one more coordinate, which tells how many clients there are answers of."""
        return self.protection.unit == "client"

    @property
    def vectors(self) -> VectorRelease:
        """How it is released. Raises ValueError where the run plans no such release."""
        if self.protection.metrics is None:
            raise ValueError("this run releases no metrics: set noisy-metrics")
        release, size = replace(self.protection.metrics, count=1), len(self.ranges) + self.by_answers
        return VectorRelease(self.protection, release, size, sqrt(size) / 2, self.entropy)

    def stddev(self, population: int) -> dict[str, float]:
        """Of the noise in each metric that is released, at most, where all clients answer; where rows are protected
        times n, for n test rows at each client."""
        divisor = sqrt(population) if self.protection.by_clients else population
        share = self.vectors.own.noise_multiplier * self.vectors.bound / divisor
        if self.by_answers:  # a metric is divided by a number whose noise is as much for one at an end of its range
            share *= sqrt(2)
        return {name: share * (high - low) for name, (low, high) in self.ranges.items()}

    def contribution(self, rows: Mapping[str, NDArray[Any]], count: int) -> Arrays:
        """Of one client, from the metrics of its `count` test rows, (count,) each; where rows are protected, noised.

        Of no rows they may be missing. A value that is no number counts as the middle of its range. Raises
        InvalidUpdate for metrics of other names or numbers of rows, and where single rows are protected and there are
        none, which is no secret then.
        """
        if not count and self.protection.unit == "record":
            raise InvalidUpdate("declined", "no test rows")
        if not count:
            return (np.zeros(self.vectors.size),)
        if set(rows) != set(self.ranges) or any(np.shape(values) != (count,) for values in rows.values()):
            raise InvalidUpdate("metrics", f"expected {', '.join(self.ranges)}, each of {count} rows")
        held = [_held(rows[name], low, high) for name, (low, high) in self.ranges.items()]
        held += [np.full(count, 0.5)] if self.by_answers else []
        return self.vectors.of_rows(np.stack(held, axis=1))

    def ask(
        self, grid: Grid, now: OpenRound, params: ArrayRecord, config: ConfigRecord, order: wire.Order, population: int
    ) -> dict[str, float] | None:
        """The metrics of `params`, within their ranges, from all clients of the round's roster; None where nobody
        answered well. What it sends and receives is counted in the round."""
        vectors = self.vectors
        opened = vectors.opened(now.roster, now.info.number, population)
        order = replace(order, fraction_bits=opened.info.grid.fraction_bits, public={})
        replies = Exchange(grid, opened.ask_evaluate(params, config, order, vectors.template), order.timeout_s)
        mean = vectors.mean(opened, replies, population)
        now.count_bytes(replies)
        now.clipped |= opened.clipped
        now.payload_up += opened.payload_up
        now.payload_down += opened.payload_down
        return None if mean is None else self._metrics(mean)

    def _metrics(self, mean: NDArray[np.float64]) -> dict[str, float]:
        if self.by_answers:
            mean = mean[:-1] / np.clip(2 * mean[-1], LEAST_SHARE, 1.0)
        ranges = zip(self.ranges.items(), np.clip(mean, -0.5, 0.5), strict=True)
        return {name: float((low + high) / 2 + value * (high - low)) for (name, (low, high)), value in ranges}


def _held(values: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    """In units of the range, from its middle; what is no number is 0."""
    inside = np.clip(np.asarray(values, np.float64), low, high)
    return np.nan_to_num((inside - (low + high) / 2) / (high - low), nan=0.0)
