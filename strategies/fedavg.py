"""Federated averaging."""

from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.transforms.weighting import Weighting, weighted
from strategies.work import Delta


class FedAvg(ComposedStrategy):
    """Federated averaging: the mean of the clients' locally trained models (McMahan et al. 2017, arXiv:1602.05629).

    Args:
        weighting: examples (a client counts by its rows) or uniform (every client counts the same)
        max_weight: with weighting=examples, more rows than this count as this many
        server_learning_rate: how far the server goes towards the mean model; 1 = all the way
        momentum: of the server's steps (Hsu et al. 2019, arXiv:1909.06335)
    """

    def __init__(
        self,
        basics: Basics,
        *,
        weighting: Weighting = "examples",
        max_weight: int = 1_000_000,
        server_learning_rate: float = 1.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(
            basics,
            work=Delta(),
            pipeline=weighted(weighting, max_weight),
            aggregator=WeightedMean(),
            server_optimizer=SGD(server_learning_rate, momentum),
        )
