"""The coordinate-wise trimmed mean of the clients' updates."""

from strategies import robust
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.transform import chain
from strategies.work import Delta


class TrimmedMean(ComposedStrategy):
    """In every coordinate the mean without the largest and the smallest values (Yin et al. 2018, arXiv:1803.01498).

    Withstands as many liars as are left out at each end: each coordinate then stays within the range of the honest
    updates. Every client counts the same. The less is left out, the nearer to the mean, which uses all that honest
    clients know.

    Args:
        trimmed: the share of the clients left out at each end, rounded up; from 0, the mean, to 0.5, the median
        server_learning_rate: how far the server goes towards the mean model; 1 = all the way
        momentum: of the server's steps
    """

    def __init__(
        self, basics: Basics, *, trimmed: float = 0.2, server_learning_rate: float = 1.0, momentum: float = 0.0
    ) -> None:
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(),
            aggregator=robust.TrimmedMean(trimmed),
            server_optimizer=SGD(server_learning_rate, momentum),
        )
