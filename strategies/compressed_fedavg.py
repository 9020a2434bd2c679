"""Federated averaging with fewer bytes in both directions."""

from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.compression import Rotation, downlink, uplink
from strategies.optimizers import ServerOptimizerName, optimizer_named
from strategies.transform import Transform, chain
from strategies.transforms.prune import Prune
from strategies.transforms.weighting import Weighting, weighted
from strategies.work import Delta


class CompressedFedAvg(ComposedStrategy):
    """Federated averaging whose updates, and whose steps of the model on the way down, are compressed.

    With the defaults an eighth to a fifth of the bytes of float64, and accuracy as without; with top-k=0.01 a
    hundredth. What sparse updates lose is kept at the client and goes with the next (arXiv:1901.09847); numbers are
    rounded to few bits, stochastically and without bias where they are many (arXiv:1610.02132).

    Args:
        top_k: the share of an update's coordinates that is sent, the largest; 0 = all
        bits: of each number that is sent up: 1, 2, 4, 8, 16, or 32 = as it is
        rotation: spreads large coordinates before rounding: auto = for 4 bits and fewer, on, off
        down_top_k: the share of a step's coordinates that is sent down; 0 = all
        down_bits: of each number that is sent down; 32 and no down-top-k = all of the model in every round
        sparsity: the share of the model's weights that is pruned to zero; 0 = none
        prune_from: the round after which pruning begins
        prune_to: the round after which the sparsity is reached
        weighting: examples (a client counts by its rows) or uniform (every client counts the same)
        max_weight: with weighting=examples, more rows than this count as this many
        server_optimizer: sgd, adam, yogi or adagrad
        server_learning_rate: of the server's steps; 0 = the optimizer's usual one
        momentum: of server-optimizer=sgd
    """

    def __init__(
        self,
        basics: Basics,
        *,
        top_k: float = 0.0,
        bits: int = 8,
        rotation: Rotation = "auto",
        down_top_k: float = 0.0,
        down_bits: int = 8,
        sparsity: float = 0.0,
        prune_from: int = 1,
        prune_to: int = 10,
        weighting: Weighting = "examples",
        max_weight: int = 1_000_000,
        server_optimizer: ServerOptimizerName = "sgd",
        server_learning_rate: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        pruned: list[Transform] = [Prune(sparsity, prune_from, prune_to)] if sparsity else []
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(weighted(weighting, max_weight), *pruned, uplink(top_k, bits, rotation)),
            aggregator=WeightedMean(),
            server_optimizer=optimizer_named(server_optimizer, server_learning_rate, momentum),
            downlink=downlink(down_top_k, down_bits),
        )
