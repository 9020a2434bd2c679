"""Federated averaging with a proximal term."""

import math

from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.transforms.weighting import Weighting, weighted
from strategies.work import Delta


class FedProx(ComposedStrategy):
    """Federated averaging of clients that are pulled back to the received model (Li et al. 2020, arXiv:1812.06127).

    A client minimises its objective + mu/2 ||w - w_0||^2, over all parameters and from the received ones. mu=0 is
    fedavg to the bit. The paper tried 0.001 to 1. Gradient steps need mu * learning-rate below 2.

    Args:
        weighting: examples (a client counts by its rows) or uniform (every client counts the same)
        max_weight: with weighting=examples, more rows than this count as this many
        mu: the weight of the proximal term; the more, the nearer clients stay to the model they receive
        server_learning_rate: how far the server goes towards the mean model; 1 = all the way
    """

    def __init__(
        self,
        basics: Basics,
        *,
        weighting: Weighting = "examples",
        max_weight: int = 1_000_000,
        mu: float = 0.1,
        server_learning_rate: float = 1.0,
    ) -> None:
        if not 0 <= mu < math.inf:
            raise ValueError(f"mu={mu}: expected a finite number of 0 or more")
        super().__init__(
            basics,
            work=Delta(settings={"proximal-mu": mu}),
            pipeline=weighted(weighting, max_weight),
            aggregator=WeightedMean(),
            server_optimizer=SGD(server_learning_rate),
        )
