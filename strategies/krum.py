"""The mean of the clients' updates that are nearest to each other."""

from strategies import robust
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.transform import chain
from strategies.work import Delta


class Krum(ComposedStrategy):
    """The mean of the updates nearest to others, the rest left out whole (Blanchard et al. 2017, arXiv:1703.02757).

    Withstands the given number of liars in a round of at least 2 * liars + 3 clients; a round with fewer does not
    count. Every client counts the same. Honest clients whose rows differ from those of most are left out too: what only
    they know is not learned, and what they keep between rounds stays as it was.

    Args:
        liars: how many of the clients of a round may lie
        kept: how many updates are averaged: 1 = Krum, 0 = as many as come, less liars + 2 (multi-Krum)
        server_learning_rate: how far the server goes towards the mean model; 1 = all the way
        momentum: of the server's steps
    """

    def __init__(
        self,
        basics: Basics,
        *,
        liars: int = 1,
        kept: int = 0,
        server_learning_rate: float = 1.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(),
            aggregator=robust.Krum(liars, kept),
            server_optimizer=SGD(server_learning_rate, momentum),
        )
