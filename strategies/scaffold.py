"""Stochastic controlled averaging."""

from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import ControlVariates
from strategies.transforms.weighting import Weighting, weighted
from strategies.work import ControlledDelta


class Scaffold(ComposedStrategy):
    """Federated averaging whose clients correct for what sets them apart (Karimireddy et al. 2020, arXiv:1910.06378).

    Every local step goes along gradient + c - c_i. A client's variate c_i, zeros at first, becomes the mean gradient of
    its last local training (option II) and stays on its node; c is the mean of all clients' variates by their weights,
    also of those that are not in the round. So many local steps lead to the pooled optimum however different the
    clients' rows are. Messages are twice as large. Solvers sgd and gd only; the paper's own weighting is uniform.

    c and all c_i belong together. A client whose node lost its state starts from zeros again, while what it had
    contributed stays in c: the optimum is then off by as much.

    Args:
        weighting: examples (a client counts by its rows) or uniform (every client counts the same)
        max_weight: with weighting=examples, more rows than this count as this many
        server_learning_rate: how far the server goes towards the mean model; 1 = all the way
    """

    def __init__(
        self,
        basics: Basics,
        *,
        weighting: Weighting = "examples",
        max_weight: int = 1_000_000,
        server_learning_rate: float = 1.0,
    ) -> None:
        super().__init__(
            basics,
            work=ControlledDelta(),
            pipeline=weighted(weighting, max_weight),
            aggregator=WeightedMean(),
            server_optimizer=ControlVariates(server_learning_rate),
        )
