"""The means of the features over all clients, released once before the rounds, under the run's promise.

Features come in units of their declared range, so that a row lies within [-1, 1]^d. A row is clipped to half the norm
that the farthest corner has. Where rows are protected a client adds noise to the mean of its own rows; where clients
are, their means are clipped, and summed with noise, or noised one by one, as in a round.
"""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from privacy.accounting import Release, Sampling
from privacy.entropy import SYSTEM, Entropy
from strategies import wire
from strategies.aggregation import Aggregator, FixedDivisor, WeightedMean
from strategies.exchange import Exchange
from strategies.protection import MEANS, Promise, Protection
from strategies.roster import Roster
from strategies.rounds import OpenRound
from strategies.transform import Pipeline, Round, chain
from strategies.transforms.clipping import Clip
from strategies.transforms.noise import LocalNoise, NoiseOnSum
from strategies.update import Arrays, FixedPoint, Template, Update

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
    def own(self) -> Protection:
        """The promise of this release alone."""
        promise = Promise(0.0, self.protection.means_noise, self.protection.promise.delta)
        return replace(self.protection, promise=promise, sampling=Sampling("none"), per_round=1, every=1, what=MEANS)

    @property
    def release(self) -> Release:
        """What is entered into ledgers."""
        return Release(MEANS, self.protection.means_noise, Sampling("none"))

    @property
    def pipeline(self) -> Pipeline:
        """How the means of clients come together; where rows are protected nothing is left to be done."""
        if self.protection.unit == "record":
            return chain()
        if self.protection.by_clients:
            return chain(Clip(self.bound), LocalNoise(self.own, self.bound, self.entropy))
        return chain(Clip(self.bound), NoiseOnSum(self.own, self.bound, self.entropy))

    @property
    def template(self) -> Template:
        """One vector."""
        return (((self.size,), np.dtype(np.float64)),)

    def contribution(self, rows: NDArray[Any]) -> Arrays:
        """Of one client, from its rows (n, size) in units of the declared range; where rows are protected, noised."""
        inside = np.clip(rows, -1.0, 1.0)
        norms = np.maximum(np.linalg.norm(inside, axis=1, keepdims=True), self.bound)
        mean = (inside * (self.bound / norms)).mean(axis=0)
        if self.protection.unit != "record":
            return (mean,)
        noise = LocalNoise(self.own, self.bound / len(rows), self.entropy)
        return noise.encode(Update((mean,), ()), (), Round(ROUND, 0, FixedPoint(0)))[0].arrays

    def ask(
        self, grid: Grid, roster: Roster, config: ConfigRecord, population: int, *, fold: bool, timeout_s: float
    ) -> NDArray[np.float64] | None:
        """The mean over the clients, (size,) within [-1, 1]; None where nobody answered well."""
        scale = FixedPoint.for_weight(max(len(roster), population))
        info = Round(ROUND, 0, scale, template=self.template)
        opened = OpenRound(roster, roster.clients, info, self.pipeline)
        order = wire.Order(ROUND, (), (), scale.fraction_bits, float(timeout_s), fold, {})
        local = self.protection.by_clients
        aggregator: Aggregator = WeightedMean() if local else FixedDivisor(population)
        total = aggregator.start(scale)
        messages = opened.ask_means(config, order, self.template)
        for update in opened.admit(Exchange(grid, messages, timeout_s), None, self.template):
            with opened.dropping(update):
                total.add(update)
        if not len(total):
            return None
        summed, _ = self.pipeline.decode_sum(total.total(), (), info)
        return np.asarray(np.clip(aggregator.finish(summed, scale)[0], -1.0, 1.0))
