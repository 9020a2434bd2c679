"""Federated averaging with Adagrad at the server."""

from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import Adagrad
from strategies.transforms.weighting import Weighting, weighted
from strategies.work import Delta


class FedAdagrad(ComposedStrategy):
    """Federated averaging whose server takes Adagrad steps (Reddi et al. 2021, arXiv:2003.00295).

    With d the mean delta: x <- x + server_learning_rate * m / (sqrt(v) + tau), m <- beta1 m + (1 - beta1) d and
    v <- v + d^2. Rates only fall, so that the largest steps are the first.

    As in the paper nothing corrects the bias of m, and v starts at tau^2. Its beta1 and tau are the
    defaults; server-learning-rate is the one to tune, between 0.01 and 1.

    Args:
        weighting: examples (a client counts by its rows) or uniform (every client counts the same)
        max_weight: with weighting=examples, more rows than this count as this many
        server_learning_rate: of the adaptive steps
        beta1: the share of the mean delta's running mean that stays from round to round
        tau: added to the root of the squares; the larger, the less adaptive
    """

    def __init__(
        self,
        basics: Basics,
        *,
        weighting: Weighting = "examples",
        max_weight: int = 1_000_000,
        server_learning_rate: float = 0.1,
        beta1: float = 0.0,
        tau: float = 1e-3,
    ) -> None:
        super().__init__(
            basics,
            work=Delta(),
            pipeline=weighted(weighting, max_weight),
            aggregator=WeightedMean(),
            server_optimizer=Adagrad(learning_rate=server_learning_rate, beta1=beta1, tau=tau),
        )
