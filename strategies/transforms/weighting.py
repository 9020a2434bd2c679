"""How much a client's update counts in the mean."""

from dataclasses import dataclass, replace
from typing import Literal

from strategies.transform import Pipeline, Round, Transform, chain
from strategies.update import Arrays, Update


@dataclass(frozen=True)
class ByExamples(Transform):
    """Weight n, at most `cap`: FedAvg's weighting by examples (McMahan et al. 2017, arXiv:1602.05629), bounded.

    With weights n and no cap in reach, the mean of the clients' gradients is the gradient on the pooled rows.
    """

    cap: int

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"max-weight={self.cap}: expected at least 1")

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Sets the weight; the arrays stay."""
        return replace(update, weight=min(update.num_examples, self.cap)), state

    def max_weight(self, num_examples: int, before: int) -> int:
        """min(n, cap)."""
        return min(num_examples, self.cap)


@dataclass(frozen=True)
class BoundedWeights(Transform):
    """A client scales its contribution by min(n, cap) / cap itself, and its number of rows stays there.

    So that a mean weighted by rows can be private: no contribution grows, and the divisor needs no counts.
    """

    cap: int

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"max-examples={self.cap}: expected at least 1")

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Scales; the weight stays."""
        share = min(update.num_examples, self.cap) / self.cap
        return replace(update, arrays=tuple((array * share).astype(array.dtype) for array in update.arrays)), state


Weighting = Literal["examples", "uniform"]


def weighted(weighting: Weighting, max_weight: int) -> Pipeline:
    """The pipeline of a strategy that weighs clients and does nothing else to their updates."""
    return chain(ByExamples(max_weight)) if weighting == "examples" else chain()
