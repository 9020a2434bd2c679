"""Federated Newton's method."""

from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import DampedNewton
from strategies.transform import chain
from strategies.transforms.weighting import ByExamples
from strategies.work import Curvature


class FedNewton(ComposedStrategy):
    """Damped Newton's method on the pooled objective: reaches its optimum in under 10 rounds for convex tasks.

    Each client sends its objective, gradient and Hessian at the received model, P(P+3)/2 + 1 numbers for P params;
    their means by rows are those of the pooled rows. One round is one Newton step (or the halving of one that went
    too far). Solver, learning-rate and local-epochs do not matter.

    Args:
        max_weight: more rows than this count as this many
        rcond: directions with less than this share of the largest curvature are left as they are
    """

    def __init__(self, basics: Basics, *, max_weight: int = 1_000_000, rcond: float = 1e-9) -> None:
        if not 0 < rcond < 1:
            raise ValueError(f"rcond={rcond}: expected above 0 and below 1")
        super().__init__(
            basics,
            work=Curvature(),
            pipeline=chain(ByExamples(max_weight)),
            aggregator=WeightedMean(),
            server_optimizer=DampedNewton(rcond),
        )
