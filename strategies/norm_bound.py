"""The mean of the clients' updates, none of which is longer than a bound."""

from strategies import robust
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.transform import chain
from strategies.transforms.weighting import ByExamples
from strategies.work import Delta


class NormBound(ComposedStrategy):
    """The mean of updates that the server clips to an L2 norm first (Sun et al. 2019, arXiv:1911.07963).

    Withstands liars that make their updates large; one of ordinary length in a wrong direction counts like any other.
    A client says itself how many rows it has, so by default every client counts the same.

    Args:
        clip_norm: the largest L2 norm of an update; 0 = the median of the norms of the round's updates
        max_weight: how much a client counts at most: 1 = every client the same, more = by its rows up to so many
        server_learning_rate: how far the server goes towards the mean model; 1 = all the way
        momentum: of the server's steps
    """

    def __init__(
        self,
        basics: Basics,
        *,
        clip_norm: float = 0.0,
        max_weight: int = 1,
        server_learning_rate: float = 1.0,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(ByExamples(max_weight)),
            aggregator=robust.NormBound(clip_norm) if clip_norm else robust.MedianNormBound(),
            server_optimizer=SGD(server_learning_rate, momentum),
        )
