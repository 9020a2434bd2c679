"""Federated averaging with server momentum."""

from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.transforms.weighting import Weighting, weighted
from strategies.work import Delta


class FedAvgM(ComposedStrategy):
    """Federated averaging whose server has momentum (Hsu et al. 2019, arXiv:1909.06335).

    x <- x + server_learning_rate * v with v <- momentum * v + mean delta. In the long run a step is 1 / (1 - momentum)
    mean deltas long: lower learning-rate or server-learning-rate where the loss swings. The default momentum is that of
    Reddi et al. 2021 (arXiv:2003.00295).

    Args:
        weighting: examples (a client counts by its rows) or uniform (every client counts the same)
        max_weight: with weighting=examples, more rows than this count as this many
        server_learning_rate: what the velocity is multiplied by; 1 and no momentum = federated averaging
        momentum: the share of the velocity that stays from round to round
    """

    def __init__(
        self,
        basics: Basics,
        *,
        weighting: Weighting = "examples",
        max_weight: int = 1_000_000,
        server_learning_rate: float = 1.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(
            basics,
            work=Delta(),
            pipeline=weighted(weighting, max_weight),
            aggregator=WeightedMean(),
            server_optimizer=SGD(server_learning_rate, momentum),
        )
