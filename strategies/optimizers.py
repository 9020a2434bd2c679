"""What the server does with the aggregate of a round (Reddi et al. 2021, arXiv:2003.00295, for the pattern)."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.update import Arrays

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Contributors:
    """Whose updates are in an aggregate.

    `weight` is theirs together, `roster_weight` the most that all clients of the roster could have: their number, for
    a uniform mean.
    """

    clients: tuple[str, ...]
    weight: int
    roster_weight: int


class ServerOptimizer(ABC):
    """A pure step: (params, aggregate, state, contributors) -> (params, state). Nothing is written to."""

    def broadcast(self, params: Arrays, state: Arrays) -> Arrays:
        """What clients are sent beside the params."""
        return ()

    @abstractmethod
    def init(self, params: Arrays) -> Arrays:
        """The state before the first step."""

    @abstractmethod
    def step(
        self, params: Arrays, aggregate: Arrays, state: Arrays, contributors: Contributors
    ) -> tuple[Arrays, Arrays]:
        """The next params, in the dtypes of `params`, and the next state."""


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
        _check_above_0("server-learning-rate", self.learning_rate)
        _check_share("momentum", self.momentum)

    def init(self, params: Arrays) -> Arrays:
        """A zero velocity, or nothing without momentum."""
        return tuple(np.zeros(p.shape) for p in params) if self.momentum else ()

    def step(
        self, params: Arrays, aggregate: Arrays, state: Arrays, contributors: Contributors
    ) -> tuple[Arrays, Arrays]:
        """One step; the velocity is the state."""
        velocity = aggregate
        if self.momentum:
            velocity = tuple(self.momentum * v + a for v, a in zip(state, aggregate, strict=True))
        moved = tuple(p + self.learning_rate * v for p, v in zip(params, velocity, strict=True))
        return cast_like(moved, params), velocity if self.momentum else ()


@dataclass(frozen=True, kw_only=True)
class Adaptive(ServerOptimizer):
    """x <- x + learning_rate * m / (sqrt(v) + tau), element by element, with m <- beta1 * m + (1 - beta1) * aggregate.

    Algorithm 2 of Reddi et al. 2021 (arXiv:2003.00295): m starts at 0, v at tau^2, and nothing corrects their bias. A
    subclass says how v, the second moment of the aggregate, follows. `tau` bounds the rate of directions that hardly
    move: the larger, the nearer to momentum alone.
    """

    learning_rate: float
    beta1: float
    tau: float

    def __post_init__(self) -> None:
        _check_above_0("server-learning-rate", self.learning_rate)
        _check_share("beta1", self.beta1)
        _check_above_0("tau", self.tau)

    @abstractmethod
    def second(self, v: Array, squared: Array) -> Array:
        """The next v, given the squared aggregate."""

    def init(self, params: Arrays) -> Arrays:
        """m and then v, one array each for each of the params."""
        return (*(np.zeros(p.shape) for p in params), *(np.full(p.shape, self.tau**2) for p in params))

    def step(
        self, params: Arrays, aggregate: Arrays, state: Arrays, contributors: Contributors
    ) -> tuple[Arrays, Arrays]:
        """One step; m and v are the state."""
        m, v = state[: len(params)], state[len(params) :]
        m = tuple(self.beta1 * old + (1 - self.beta1) * a for old, a in zip(m, aggregate, strict=True))
        v = tuple(self.second(old, np.square(a)) for old, a in zip(v, aggregate, strict=True))
        moved = tuple(
            p + self.learning_rate * first / (np.sqrt(second) + self.tau)
            for p, first, second in zip(params, m, v, strict=True)
        )
        return cast_like(moved, params), (*m, *v)


@dataclass(frozen=True, kw_only=True)
class Adagrad(Adaptive):
    """v <- v + aggregate^2: rates only fall."""

    def second(self, v: Array, squared: Array) -> Array:
        """The sum of all squares."""
        return v + squared


@dataclass(frozen=True, kw_only=True)
class Adam(Adaptive):
    """v <- beta2 * v + (1 - beta2) * aggregate^2."""

    beta2: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("beta2", self.beta2)

    def second(self, v: Array, squared: Array) -> Array:
        """A running mean of the squares."""
        return self.beta2 * v + (1 - self.beta2) * squared


@dataclass(frozen=True, kw_only=True)
class Yogi(Adaptive):
    """v <- v - (1 - beta2) * aggregate^2 * sign(v - aggregate^2): v falls more slowly than Adam's."""

    beta2: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("beta2", self.beta2)

    def second(self, v: Array, squared: Array) -> Array:
        """A step towards the squares, whose length does not depend on v."""
        following: Array = v - (1 - self.beta2) * squared * np.sign(v - squared)
        return following


@dataclass(frozen=True)
class ControlVariates(ServerOptimizer):
    """SCAFFOLD's server: x <- x + learning_rate * mean(delta), and c <- the weighted mean of the clients' variates.

    The aggregate is [mean delta, mean change of the clients' variates], as `ControlledDelta` contributes them. The sum
    of weight * c_i over all clients is followed by what each round adds to it, share of the roster times mean change
    (m/N for a uniform mean), so that clients which did not take part count with the variate they have. c is that sum
    over the weight of the roster: a client that enrols later brings in zeros, one that left stays in the sum.
    """

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        _check_above_0("server-learning-rate", self.learning_rate)

    def init(self, params: Arrays) -> Arrays:
        """The weight of the roster that c is a mean over, none yet, and c: zeros."""
        return (np.zeros(()), *(np.zeros(p.shape) for p in params))

    def broadcast(self, params: Arrays, state: Arrays) -> Arrays:
        """c in the dtypes of the params."""
        return cast_like(state[1:], params)

    def step(
        self, params: Arrays, aggregate: Arrays, state: Arrays, contributors: Contributors
    ) -> tuple[Arrays, Arrays]:
        """One step; the state is the weight of the roster and c."""
        delta, change = aggregate[: len(params)], aggregate[len(params) :]
        total = float(contributors.roster_weight)
        kept, share = float(state[0]) / total, contributors.weight / total
        moved = tuple(p + self.learning_rate * d for p, d in zip(params, delta, strict=True))
        variate = tuple(kept * c + share * d for c, d in zip(state[1:], change, strict=True))
        return cast_like(moved, params), (np.array(total), *variate)


@dataclass(frozen=True)
class DampedNewton(ServerOptimizer):
    """Newton's method with step halving on (objective, gradient, Hessian) of the pooled objective.

    The aggregate is [objective (1,), gradient (P,), upper triangle of the Hessian (P(P+1)/2,)] at `params`, each the
    weighted mean of the clients' own, which is that of their pooled rows. A step that raised the objective is taken
    back and halved, at the cost of one round; so from any start a convex objective falls until it converges. That
    takes the same clients in both rounds: after a change of the contributors the step is taken as it is.

    Directions whose curvature, of the scaled Hessian, is below `rcond` of the largest have none but rounding (a shift
    of all intercepts of a softmax changes nothing): no step is taken along them.
    """

    rcond: float = 1e-9

    def init(self, params: Arrays) -> Arrays:
        """Nothing known: an infinite objective, which any point improves."""
        size = sum(p.size for p in params)
        return (np.array([np.inf]), np.zeros(size), np.zeros(size), np.zeros(32, np.uint8))

    def step(
        self, params: Arrays, aggregate: Arrays, state: Arrays, contributors: Contributors
    ) -> tuple[Arrays, Arrays]:
        """A full step from a point that improved; else half of the last step, from where it began.

        State: objective at the last good point, that point (P,), the step taken from it (P,), and a digest of the
        clients that it comes from.
        """
        (objective,), gradient, triangle = aggregate
        (best,), base, move, compared = state
        names = "\0".join(sorted(contributors.clients))
        who = np.frombuffer(hashlib.sha256(names.encode()).digest(), np.uint8)
        here = np.concatenate([p.reshape(-1) for p in params]).astype(np.float64)
        slack = 1e-12 * max(1.0, abs(float(best))) if np.isfinite(best) else 0.0
        if objective <= best + slack or not np.array_equal(who, compared):
            best, base, move = objective, here, -self._solve(gradient, triangle)
        else:
            move = move / 2
        return cast_like(_unflatten(base + move, params), params), (np.array([best]), base, move, who)

    def _solve(self, gradient: np.ndarray, triangle: np.ndarray) -> np.ndarray:
        """The minimum-norm solution of Hessian @ x = gradient.

        What is flat is judged in units in which the Hessian's diagonal is 1: a column counted in thousands or in
        thousandths is no reason to take it for flat.
        """
        hessian = np.zeros((gradient.size, gradient.size))
        hessian.T[np.triu_indices(gradient.size)] = triangle
        unit = np.sqrt(np.where(hessian.diagonal() > 0, hessian.diagonal(), 1.0))
        curvatures, directions = np.linalg.eigh(hessian / np.outer(unit, unit))  # reads the lower triangle
        curved = curvatures > self.rcond * curvatures[-1]
        along = directions[:, curved]
        solution = along @ ((along.T @ (gradient / unit)) / curvatures[curved]) / unit
        flat = np.linalg.qr(directions[:, ~curved] / unit[:, None]).Q
        return np.asarray(solution - flat @ (flat.T @ solution))


ServerOptimizerName = Literal["sgd", "adam", "yogi", "adagrad"]


def optimizer_named(name: ServerOptimizerName, learning_rate: float, momentum: float) -> ServerOptimizer:
    """The optimiser that a strategy names; a learning rate of 0 is its usual one. `momentum` is that of sgd, of which
    the others have their own: beta1 (Reddi et al. 2021). Raises ValueError for momentum that would not be used."""
    if name == "sgd":
        return SGD(learning_rate or 1.0, momentum)
    if momentum:
        raise ValueError(f"momentum={momentum:g} is for server-optimizer=sgd: leave it out")
    if name == "adagrad":
        return Adagrad(learning_rate=learning_rate or 0.1, beta1=0.0, tau=1e-3)
    second_moment = Adam if name == "adam" else Yogi
    return second_moment(learning_rate=learning_rate or 0.03, beta1=0.9, beta2=0.99, tau=1e-3)


def _unflatten(flat: np.ndarray, like: Arrays) -> Arrays:
    ends = np.cumsum([array.size for array in like])[:-1]
    return tuple(part.reshape(array.shape) for part, array in zip(np.split(flat, ends), like, strict=True))


def _check_above_0(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}={value}: expected above 0")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value}: expected at least 0 and below 1")
