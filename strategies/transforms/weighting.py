"""How much a client's update counts in the mean."""

from dataclasses import dataclass, replace

from strategies.transform import Round, Transform
from strategies.update import Arrays, Update


@dataclass(frozen=True)
class ByExamples(Transform):
    """Weight n, at most `cap`: FedAvg's weighting by examples (McMahan et al. 2017, arXiv:1602.05629), bounded.

    With weights n and no cap in reach, the mean of the clients' gradients is the gradient on the pooled rows.
    """

    cap: int

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Sets the weight; the arrays stay."""
        return replace(update, weight=min(update.num_examples, self.cap)), state

    def max_weight(self, num_examples: int, before: int) -> int:
        """min(n, cap)."""
        return min(num_examples, self.cap)
