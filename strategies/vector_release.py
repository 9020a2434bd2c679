"""The mean over all clients of a vector of each, released once under a run's promise, beside its rounds.

A client's vector is a mean over its rows, each clipped. Where rows are protected it adds noise to that mean itself;
where clients are, their vectors are clipped, and summed with noise, or noised one by one, as in a round. All clients
take part: nothing is claimed for being drawn.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from privacy.accounting import Release, Sampling
from privacy.entropy import Entropy
from strategies.aggregation import Aggregator, FixedDivisor, WeightedMean
from strategies.protection import Promise, Protection
from strategies.roster import Roster
from strategies.rounds import OpenRound
from strategies.transform import Pipeline, Round, chain
from strategies.transforms.clipping import Clip
from strategies.transforms.noise import LocalNoise, NoiseOnSum
from strategies.update import Arrays, FixedPoint, Template, Update

STEPS = 2**30
"""Of the grid on which a client adds up its rows, in 1. Sums of floats depend on what else is in them; these do not."""
ROUNDING = 2.0**-20
"""By so much of it a row's bound is raised where the client adds the noise: more than rounding adds to what one row
moves, to this grid, that of the noise, and the mean to a float (up to 100,000 columns and 2^30 rows)."""


@dataclass(frozen=True)
class VectorRelease:
    """Both halves of it.

    promise: of the run. release: this one, as ledgers hold it. size: of the vectors. bound: the L2 norm that no row's
    vector exceeds, and so no client's.
    """

    promise: Protection
    release: Release
    size: int
    bound: float
    entropy: Entropy

    @property
    def own(self) -> Protection:
        """The promise of this release alone."""
        promise = Promise(0.0, self.release.noise_multiplier, self.promise.promise.delta)
        return replace(
            self.promise,
            promise=promise,
            sampling=Sampling("none"),
            per_round=1,
            every=1,
            means=False,
            metrics=None,
            what=self.release.what,
        )

    @property
    def pipeline(self) -> Pipeline:
        """How the vectors of clients come together; where rows are protected nothing is left to be done."""
        if self.promise.unit == "record":
            return chain()
        if self.promise.by_clients:
            return chain(Clip(self.bound), LocalNoise(self.own, self.bound, self.entropy))
        return chain(Clip(self.bound), NoiseOnSum(self.own, self.bound, self.entropy))

    @property
    def template(self) -> Template:
        """One vector."""
        return (((self.size,), np.dtype(np.float64)),)

    def of_rows(self, rows: NDArray[np.float64]) -> Arrays:
        """A client's vector, from those of its rows (n, size), n from 1 on; where rows are protected, noised."""
        mean = np.rint(rows * STEPS).astype(np.int64).sum(axis=0) / (STEPS * len(rows))
        if self.promise.unit != "record":
            return (mean,)
        noise = LocalNoise(self.own, self.bound / len(rows) * (1 + ROUNDING), self.entropy)
        return noise.encode(Update((mean,), ()), (), Round(0, 0, FixedPoint(0)))[0].arrays

    def opened(self, roster: Roster, round: int, population: int) -> OpenRound:
        """The exchange that asks all clients of the roster."""
        everybody = max(len(roster), population)
        if self.promise.by_clients:
            grid = FixedPoint.for_weight(everybody)
        else:
            grid = FixedPoint.for_reach(everybody * self.bound + self.pipeline.headroom)
        return OpenRound(roster, roster.clients, Round(round, 0, grid, template=self.template), self.pipeline)

    def mean(self, opened: OpenRound, replies: Iterable[Message], population: int) -> NDArray[np.float64] | None:
        """Over the clients, (size,). Where the server adds the noise who does not answer counts as zero; else those
        count who answer, and None comes of nobody."""
        info = opened.info
        aggregator: Aggregator = WeightedMean() if self.promise.by_clients else FixedDivisor(population)
        total = aggregator.start(info.grid)
        for update in opened.admit(replies, None, self.template):
            with opened.dropping(update):
                total.add(update)
                opened.payload_up += update.payload_bytes
        if not len(total) and self.promise.by_clients:
            return None
        nothing = Update((np.zeros(self.size, np.int64),), (), weight=0, on_grid=True)
        summed, _ = self.pipeline.decode_sum(total.total() if len(total) else nothing, (), info)
        return aggregator.finish(summed, info.grid)[0]
