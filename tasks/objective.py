"""The function that a client minimises, with its derivatives.

    F(W, b) = 1/n sum_i loss(W x_i + b, t_i) + l2/2 ||W||_F^2 + l1 ||W||_1 + pull

The loss is a family's (tasks/families.py); the intercept b is not penalised. Since F is a mean, the n-weighted mean of
the clients' F is F of all their rows pooled: the federated optimum is the pooled one.

The parameters are one vector theta of length P = outputs * (d + 1): W (outputs, d) in C order, then b (outputs,).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.families import Family

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pull:
    """What a strategy adds to F: mu/2 ||theta - start||^2 + <slope, theta>, over all P parameters."""

    start: Array
    mu: float
    slope: Array

    def value(self, theta: Array) -> float:
        """At theta."""
        away = theta - self.start
        return float(self.mu / 2 * np.vdot(away, away) + np.vdot(self.slope, theta))

    def gradient(self, theta: Array) -> Array:
        """At theta: (P,)."""
        result: Array = self.mu * (theta - self.start) + self.slope
        return result


@dataclass(frozen=True, slots=True)
class Objective:
    """F over the rows of one data owner. x: (n, d), targets: (n, outputs), n at least 1. `pull` is seldom there."""

    family: Family
    x: Array
    targets: Array
    l1: float
    l2: float
    pull: Pull | None = None

    def views(self, theta: Array) -> tuple[Array, Array]:
        """W and b as views into a vector ordered like theta."""
        outputs = self.family.outputs
        return theta[:-outputs].reshape(outputs, -1), theta[-outputs:]

    def logits(self, theta: Array) -> Array:
        """z = W x + b for every row: (n, outputs)."""
        w, b = self.views(theta)
        return self.x @ w.T + b

    def value(self, theta: Array) -> float:
        """F(theta)."""
        w, _ = self.views(theta)
        loss = self.family.loss(self.logits(theta), self.targets).mean()
        own = float(loss + self.l2 / 2 * np.vdot(w, w) + self.l1 * np.abs(w).sum())
        return own if self.pull is None else own + self.pull.value(theta)

    def gradient(self, theta: Array) -> Array:
        """The gradient of F without its l1 term: 1/n sum_i (mean(z_i) - t_i) [x_i, 1] + l2 [W, 0], plus the pull's."""
        w, _ = self.views(theta)
        residual = (self.family.mean(self.logits(theta)) - self.targets) / len(self.x)
        own = np.concatenate([(residual.T @ self.x + self.l2 * w).ravel(), residual.sum(axis=0)])
        return own if self.pull is None else own + self.pull.gradient(theta)

    def subgradient(self, theta: Array) -> Array:
        """A subgradient of all of F; at a weight of exactly 0 the one of |w| is taken to be 0."""
        result, (w, _) = self.gradient(theta), self.views(theta)
        result[: w.size] += self.l1 * np.sign(w).ravel()
        return result

    def hessian(self, theta: Array) -> Array:
        """The Hessian of F without its l1 term: (P, P).

        1/n sum_i kron(covariance(z_i), [x_i, 1] [x_i, 1]^T), in theta's order, plus l2 on the weights' diagonal and
        the pull's mu on all of it.
        """
        x = np.column_stack([self.x, np.ones(len(self.x))])
        outputs, width = self.family.outputs, x.shape[1]
        covariance = self.family.covariance(self.logits(theta)) / len(x)
        blocks = np.empty((outputs, width, outputs, width))
        for k in range(outputs):
            for j in range(k + 1):
                blocks[k, :, j] = blocks[j, :, k] = x.T @ (covariance[:, k, j, None] * x)
        index = np.arange(theta.size).reshape(outputs, width)
        order = np.concatenate([index[:, :-1].ravel(), index[:, -1]])  # from one [w_k, b_k] per output to theta's order
        result: Array = blocks.reshape(theta.size, theta.size)[np.ix_(order, order)]
        weights = np.arange(theta.size - outputs)
        result[weights, weights] += self.l2
        if self.pull is not None:
            result[np.diag_indices_from(result)] += self.pull.mu
        return result

    def stepper(self, theta: Array, rate: float) -> Callable[[Array | slice], None]:
        """The function `step(rows)`, which writes to theta: one proximal gradient step on F over those rows alone.

            theta <- prox(theta - rate * gradient(theta)),   prox = soft threshold of W at rate * l1

        This is the inner loop of all training on small batches, hence the shared buffer and no further temporaries.
        """
        w, b = self.views(theta)
        direction = np.empty_like(w)
        shrink = 1.0 - rate * self.l2

        def step(rows: Array | slice) -> None:
            pulled = None if self.pull is None else rate * self.pull.gradient(theta)
            x = self.x[rows]
            z = x @ w.T
            np.add(z, b, out=z)
            residual = self.family.mean(z)
            np.subtract(residual, self.targets[rows], out=residual)
            np.multiply(residual, rate / len(x), out=residual)
            np.matmul(residual.T, x, out=direction)
            if self.l2:
                np.multiply(w, shrink, out=w)
            np.subtract(w, direction, out=w)
            np.subtract(b, np.add.reduce(residual, axis=0), out=b)
            if pulled is not None:
                np.subtract(theta, pulled, out=theta)
            if self.l1:
                w[...] = soft_threshold(w, rate * self.l1)

        return step

    def smoothness(self) -> float:
        """A Lipschitz constant of `gradient`: descent with a rate of 1 / smoothness never fails."""
        x = np.column_stack([self.x, np.ones(len(self.x))])
        largest = float(np.linalg.eigvalsh(x.T @ x / len(x))[-1])
        return self.family.curvature_bound * largest + self.l2 + (self.pull.mu if self.pull else 0.0)


def soft_threshold(w: Array, threshold: float) -> Array:
    """The proximal operator of threshold * ||w||_1: towards 0 by `threshold`, and exactly 0 within it."""
    return np.sign(w) * np.maximum(np.abs(w) - threshold, 0.0)
