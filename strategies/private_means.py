"""The means of the features over all clients, released once before the rounds, under the run's promise.

Features come in units of their declared range, so that a row lies within [-1, 1]^d. A row is clipped to half the norm
that the farthest corner has. How they are released: strategies/vector_release.py.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from privacy.accounting import Release, Sampling
from privacy.entropy import SYSTEM, Entropy
from strategies import wire
from strategies.exchange import Exchange
from strategies.protection import MEANS, Protection
from strategies.roster import Roster
from strategies.update import Arrays
from strategies.vector_release import VectorRelease

ROUND = 0


@dataclass(frozen=True)
class PrivateMeans:
    """Both halves of the release, for features of `size` columns."""

    protection: Protection
    size: int
    entropy: Entropy = SYSTEM

    @property
    def bound(self) -> float:
        """The L2 norm to which a row, and so the mean of rows, is clipped."""
        return sqrt(self.size) / 2

    @property
    def vectors(self) -> VectorRelease:
        """How it is released."""
        release = Release(MEANS, self.protection.means_noise, Sampling("none"))
        return VectorRelease(self.protection, release, self.size, self.bound, self.entropy)

    def contribution(self, rows: NDArray[Any]) -> Arrays:
        """Of one client, from its rows (n, size) in units of the declared range; where rows are protected, noised."""
        inside = np.clip(rows, -1.0, 1.0)
        norms = np.maximum(np.linalg.norm(inside, axis=1, keepdims=True), self.bound)
        return self.vectors.of_rows(inside * (self.bound / norms))

    def ask(
        self, grid: Grid, roster: Roster, config: ConfigRecord, population: int, *, fold: bool, timeout_s: float
    ) -> NDArray[np.float64] | None:
        """The mean over the clients, (size,) within [-1, 1]; None where nobody answered well."""
        vectors = self.vectors
        opened = vectors.opened(roster, ROUND, population)
        order = wire.Order(ROUND, (), (), opened.info.grid.fraction_bits, float(timeout_s), fold, {})
        messages = opened.ask_means(config, order, vectors.template)
        mean = vectors.mean(opened, Exchange(grid, messages, timeout_s), population)
        return None if mean is None else np.clip(mean, -1.0, 1.0)
