"""Who takes part in a round. Samplers draw clients, never nodes: where a client is hosted changes nothing.

A sampler is *secret* where a promise of privacy counts on nobody knowing who was drawn. It then draws from the entropy
of the operating system, and the server tells nobody who was drawn but the nodes of these clients.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from privacy.accounting import Sampling

NEVER: Mapping[str, int] = MappingProxyType({})


def derive_seed(seed: int, *parts: object) -> int:
    """The seed for one purpose of a run: 64 bits of a hash of (run seed, parts)."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def round_rng(seed: int, round: int) -> np.random.Generator:
    """The generator of one round: the same after a resume, whatever was drawn before."""
    return np.random.default_rng([seed, round])


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of a cohort. `asked_rounds`: the last round for which each client was drawn, where that is kept."""

    round: int
    rng: np.random.Generator
    asked_rounds: Mapping[str, int] = field(default_factory=lambda: NEVER)


class Sampler(ABC):
    """Draws the cohort of a round."""

    secret: ClassVar[bool] = False
    """Whether a promise of privacy rests on nobody knowing who was drawn."""
    spaced: ClassVar[bool] = False
    """Whether it has to know for which round each client was drawn last."""

    @abstractmethod
    def sample(self, clients: Sequence[str], draw: Draw) -> tuple[str, ...]:
        """The cohort, in the order of `clients`, which is sorted."""

    @abstractmethod
    def cohort_size(self, population: int) -> int:
        """How many clients a cohort has, or is expected to have."""

    def awaited(self, cohort: int) -> int:
        """With how many good updates the round ends, for a cohort of this size."""
        return cohort

    def describe(self) -> Sampling:
        """How it draws, in the accountant's terms."""
        return Sampling("none")


@dataclass(frozen=True)
class Everyone(Sampler):
    """All clients in every round."""

    def sample(self, clients: Sequence[str], draw: Draw) -> tuple[str, ...]:
        """All of them."""
        return tuple(clients)

    def cohort_size(self, population: int) -> int:
        """All of them."""
        return population


@dataclass(frozen=True)
class FixedSize(Sampler):
    """`size` clients without replacement, all subsets equally likely; everyone where there are fewer.

    With `over_selection` s, size * (1 + s) are drawn and the first `size` good updates close the round, so that nobody
    waits for stragglers (Bonawitz et al. 2019, arXiv:1902.01046, draw 1.3 times as many).
    """

    size: int
    over_selection: float = 0.0

    def sample(self, clients: Sequence[str], draw: Draw) -> tuple[str, ...]:
        """`cohort_size` distinct clients."""
        chosen = draw.rng.choice(len(clients), size=self.cohort_size(len(clients)), replace=False)
        return tuple(clients[i] for i in np.sort(chosen))

    def cohort_size(self, population: int) -> int:
        """min(size * (1 + over_selection), population), rounded up."""
        more = ceil(round(self.size * self.over_selection, 6))  # 0.07 of 100 are 7, not 8
        return min(self.size + more, population)

    def awaited(self, cohort: int) -> int:
        """min(size, cohort)."""
        return min(self.size, cohort)


@dataclass(frozen=True)
class OfPopulation(Sampler):
    """A cohort of `size` out of a `population` whose number is public, and fixed for the run.

    `population` is 0 at a node, which draws nothing. Raises ValueError for a cohort larger than the population.
    """

    size: int
    population: int
    source: random.Random = field(default_factory=random.SystemRandom, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.population and not 1 <= self.size <= self.population:
            raise ValueError(
                f"clients-per-round={self.size} of {self.population} clients: expected 1 to {self.population}"
            )

    def cohort_size(self, population: int) -> int:
        """`size`, whoever is there."""
        return self.size

    @property
    def rate(self) -> float:
        """The probability of one client to be drawn. Raises ValueError where the population is not known."""
        if not self.population:
            raise ValueError("the number of clients is not known here: set num-clients, which a private run publishes")
        return self.size / self.population


@dataclass(frozen=True)
class Poisson(OfPopulation):
    """Each client by itself with probability size / population; an empty cohort is a cohort."""

    secret = True

    def sample(self, clients: Sequence[str], draw: Draw) -> tuple[str, ...]:
        """Those for whom the coin fell. The probability is exact, and no seed foretells the outcome."""
        return tuple(client for client in clients if self.source.randrange(self.population) < self.size)

    def describe(self) -> Sampling:
        """Poisson sampling with this rate."""
        return Sampling("poisson", self.rate)


@dataclass(frozen=True)
class SecretFixedSize(OfPopulation):
    """`size` of the population without replacement. Who is drawn and absent is missing from the cohort."""

    secret = True

    def sample(self, clients: Sequence[str], draw: Draw) -> tuple[str, ...]:
        """All subsets of the population are equally likely. Raises ValueError for more clients than the population."""
        if len(clients) > self.population:
            raise ValueError(f"{len(clients)} clients are here, more than the {self.population} that were announced")
        chosen = self.source.sample(range(self.population), self.size)
        return tuple(clients[place] for place in sorted(chosen) if place < len(clients))

    def describe(self) -> Sampling:
        """Sampling without replacement of this size."""
        return Sampling("fixed", self.rate, self.size, self.population)


@dataclass(frozen=True)
class Spaced(OfPopulation):
    """`size` clients of those that were not asked in the last `separation` - 1 rounds, those asked longest ago first.

    Nothing about it is random that would need to be secret: it bounds how often, and how close together, a client can
    take part, whoever is online.
    """

    spaced = True

    @property
    def separation(self) -> int:
        """The least number of rounds from one use of a client to the next."""
        return max(1, self.population // self.size)

    def sample(self, clients: Sequence[str], draw: Draw) -> tuple[str, ...]:
        """At most `size`; ties are broken by the run's seed."""
        last = {client: draw.asked_rounds.get(client, -self.separation) for client in clients}
        free = [client for client in clients if draw.round - last[client] >= self.separation]
        order = sorted(draw.rng.permutation(len(free)), key=lambda place: last[free[place]])
        return tuple(free[place] for place in sorted(order[: self.size]))


def clients_per_round(count: int, over_selection: float = 0.0) -> Sampler:
    """The sampler for the `clients-per-round` key: 0 means everyone."""
    return FixedSize(count, over_selection) if count else Everyone()
