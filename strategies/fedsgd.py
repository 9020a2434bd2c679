"""Federated gradient descent."""

from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.transform import chain
from strategies.transforms.weighting import ByExamples
from strategies.work import Gradient


class FedSGD(ComposedStrategy):
    """One gradient of the whole local objective a round: gradient descent on the pooled rows (McMahan et al. 2017).

    A client's contribution is minus `learning-rate` times its gradient, so that `lr-schedule` applies; solver,
    local-epochs, local-steps and batch-size do not matter. With momentum 0 and all clients in every round the result
    is that of centralised gradient descent.

    Args:
        max_weight: more rows than this count as this many
        momentum: of the server's steps
    """

    def __init__(self, basics: Basics, *, max_weight: int = 1_000_000, momentum: float = 0.0) -> None:
        super().__init__(
            basics,
            work=Gradient(),
            pipeline=chain(ByExamples(max_weight)),
            aggregator=WeightedMean(),
            server_optimizer=SGD(1.0, momentum),
        )
