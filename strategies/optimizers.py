"""What the server does with the aggregate of a round (Reddi et al. 2021, arXiv:2003.00295, for the pattern)."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from strategies.update import Arrays


class ServerOptimizer(ABC):
    """A pure step: (params, aggregate, state, contributors) -> (params, state). Nothing is written to."""

    @abstractmethod
    def init(self, params: Arrays) -> Arrays:
        """The state before the first step."""

    @abstractmethod
    def step(
        self, params: Arrays, aggregate: Arrays, state: Arrays, contributors: tuple[str, ...]
    ) -> tuple[Arrays, Arrays]:
        """The next params, in the dtypes of `params`, and the next state.

        `contributors` are the clients in the aggregate: rounds of others cannot be compared.
        """


def cast_like(values: Arrays, params: Arrays) -> Arrays:
    """`values` in the dtypes of `params`; values for integer params are rounded to the nearest."""
    return tuple(
        (np.rint(value) if np.issubdtype(param.dtype, np.integer) else np.asarray(value)).astype(param.dtype)
        for value, param in zip(values, params, strict=True)
    )


@dataclass(frozen=True)
class SGD(ServerOptimizer):
    """x <- x + learning_rate * v with v <- momentum * v + aggregate (FedAvgM: Hsu et al. 2019, arXiv:1909.06335).

    The aggregate is the mean delta, a descent direction, hence the plus. With learning_rate 1 and momentum 0 the
    clients' mean model becomes the next model: federated averaging.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"server-learning-rate={self.learning_rate}: expected above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: expected at least 0 and below 1")

    def init(self, params: Arrays) -> Arrays:
        """A zero velocity, or nothing without momentum."""
        return tuple(np.zeros(p.shape) for p in params) if self.momentum else ()

    def step(
        self, params: Arrays, aggregate: Arrays, state: Arrays, contributors: tuple[str, ...]
    ) -> tuple[Arrays, Arrays]:
        """One step; the velocity is the state."""
        velocity = aggregate
        if self.momentum:
            velocity = tuple(self.momentum * v + a for v, a in zip(state, aggregate, strict=True))
        moved = tuple(p + self.learning_rate * v for p, v in zip(params, velocity, strict=True))
        return cast_like(moved, params), velocity if self.momentum else ()


@dataclass(frozen=True)
class DampedNewton(ServerOptimizer):
    """Newton's method with step halving on (objective, gradient, Hessian) of the pooled objective.

    The aggregate is [objective (1,), gradient (P,), upper triangle of the Hessian (P(P+1)/2,)] at `params`, each the
    weighted mean of the clients' own, which is that of their pooled rows. A step that raised the objective is taken
    back and halved, at the cost of one round; so from any start a convex objective falls until it converges. That
    takes the same clients in both rounds: after a change of the contributors the step is taken as it is.

    Directions whose curvature is below `rcond` of the largest have none but rounding (a shift of all intercepts of a
    softmax changes nothing): no step is taken along them.
    """

    rcond: float = 1e-9

    def init(self, params: Arrays) -> Arrays:
        """Nothing known: an infinite objective, which any point improves."""
        size = sum(p.size for p in params)
        return (np.array([np.inf]), np.zeros(size), np.zeros(size), np.zeros(32, np.uint8))

    def step(
        self, params: Arrays, aggregate: Arrays, state: Arrays, contributors: tuple[str, ...]
    ) -> tuple[Arrays, Arrays]:
        """A full step from a point that improved; else half of the last step, from where it began.

        State: objective at the last good point, that point (P,), the step taken from it (P,), and a digest of the
        clients that it comes from.
        """
        (objective,), gradient, triangle = aggregate
        (best,), base, move, compared = state
        who = np.frombuffer(hashlib.sha256("\0".join(sorted(contributors)).encode()).digest(), np.uint8)
        here = np.concatenate([p.reshape(-1) for p in params]).astype(np.float64)
        slack = 1e-12 * max(1.0, abs(float(best))) if np.isfinite(best) else 0.0
        if objective <= best + slack or not np.array_equal(who, compared):
            best, base, move = objective, here, -self._solve(gradient, triangle)
        else:
            move = move / 2
        return cast_like(_unflatten(base + move, params), params), (np.array([best]), base, move, who)

    def _solve(self, gradient: np.ndarray, triangle: np.ndarray) -> np.ndarray:
        """The minimum-norm solution of Hessian @ x = gradient."""
        hessian = np.zeros((gradient.size, gradient.size))
        hessian.T[np.triu_indices(gradient.size)] = triangle
        curvatures, directions = np.linalg.eigh(hessian)  # reads the lower triangle
        curved = curvatures > self.rcond * curvatures[-1]
        along = directions[:, curved]
        return np.asarray(along @ ((along.T @ gradient) / curvatures[curved]))


def _unflatten(flat: np.ndarray, like: Arrays) -> Arrays:
    ends = np.cumsum([array.size for array in like])[:-1]
    return tuple(part.reshape(array.shape) for part, array in zip(np.split(flat, ends), like, strict=True))
