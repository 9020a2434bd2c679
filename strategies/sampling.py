"""Who takes part in a round. Samplers draw clients, never nodes: where a client is hosted changes nothing."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def derive_seed(seed: int, *parts: object) -> int:
    """A seed of its own for each (run seed, parts): 64 bits of a hash, so that none is near another."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def round_rng(seed: int, round: int) -> np.random.Generator:
    """The generator of one round: the same after a resume, whatever was drawn before."""
    return np.random.default_rng([seed, round])


class Sampler(ABC):
    """Draws the cohort of a round."""

    @abstractmethod
    def sample(self, clients: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
        """The cohort, in the order of `clients`, which is sorted."""

    @abstractmethod
    def cohort_size(self, population: int) -> int:
        """How many clients a cohort has."""


@dataclass(frozen=True)
class Everyone(Sampler):
    """All clients in every round."""

    def sample(self, clients: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
        """All of them."""
        return tuple(clients)

    def cohort_size(self, population: int) -> int:
        """All of them."""
        return population


@dataclass(frozen=True)
class FixedSize(Sampler):
    """`size` clients without replacement, all subsets equally likely; everyone where there are fewer."""

    size: int

    def sample(self, clients: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
        """min(size, population) distinct clients."""
        chosen = rng.choice(len(clients), size=self.cohort_size(len(clients)), replace=False)
        return tuple(clients[i] for i in np.sort(chosen))

    def cohort_size(self, population: int) -> int:
        """min(size, population)."""
        return min(self.size, population)


def clients_per_round(count: int) -> Sampler:
    """The sampler for the `clients-per-round` key: 0 means everyone."""
    return FixedSize(count) if count else Everyone()
