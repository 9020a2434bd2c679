"""The coordinate-wise median of the clients' updates."""

from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.robust import TrimmedMean
from strategies.transform import chain
from strategies.work import Delta


class Median(ComposedStrategy):
    """In every coordinate the median of the clients' updates (Yin et al. 2018, arXiv:1803.01498).

    Withstands liars in every number below half of the clients, and nobody has to say how many: each coordinate stays
    within the range of the honest updates. Of an even number of clients it is the mean of the middle two, so with two
    clients it is their mean. Every client counts the same. Where clients' rows differ it is not their mean: it leans to
    what most clients have, and moves little where they disagree.

    Args:
        server_learning_rate: how far the server goes towards the median model; 1 = all the way
        momentum: of the server's steps
    """

    def __init__(self, basics: Basics, *, server_learning_rate: float = 1.0, momentum: float = 0.0) -> None:
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(),
            aggregator=TrimmedMean(0.5),
            server_optimizer=SGD(server_learning_rate, momentum),
        )
