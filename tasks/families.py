"""The distributions of generalised linear models, each given by its log-partition function A(z).

With logits z = W x + b and the label coded as a target t, an example's loss is its negative log-likelihood

    loss(z, t) = A(z) - t . z,    gradient in z: mean(z) - t,    Hessian in z: covariance(z)

where mean = grad A and covariance = grad^2 A. Of classes nothing here overflows for finite logits: A is logaddexp or
logsumexp.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Family(Protocol):
    """How logits (n, outputs) become means, losses and curvature."""

    @property
    def outputs(self) -> int:
        """Logits per example."""
        ...

    @property
    def curvature_bound(self) -> float:
        """An upper bound on the largest eigenvalue of `covariance(z)`, for every z."""
        ...

    @property
    def estimates_variance(self) -> bool:
        """Whether the residuals' variance is a parameter of its own, which the mean does not give."""
        ...

    def targets(self, y: Array) -> Array:
        """Class indices or numbers (n,) as targets (n, outputs)."""
        ...

    def mean(self, z: Array) -> Array:
        """Grad A: (n, outputs)."""
        ...

    def covariance(self, z: Array) -> Array:
        """The Hessian of A: (n, outputs, outputs)."""
        ...

    def loss(self, z: Array, targets: Array) -> Array:
        """A(z) - t . z, up to what depends on t alone; never negative: (n,)."""
        ...


class ClassFamily(Family, Protocol):
    """A family of classes."""

    def probabilities(self, z: Array) -> Array:
        """The probability of every class: (n, classes)."""
        ...


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Two classes, one logit: that of class 1. A(z) = log(1 + exp z)."""

    outputs: int = 1
    curvature_bound: float = 0.25
    estimates_variance: bool = False

    def targets(self, y: Array) -> Array:
        return y.astype(np.float64)[:, None]

    def mean(self, z: Array) -> Array:
        result: Array = np.exp(-np.logaddexp(0.0, -z))
        return result

    def covariance(self, z: Array) -> Array:
        variance: Array = self.mean(z) * self.mean(-z)
        return variance[:, :, None]

    def loss(self, z: Array, targets: Array) -> Array:
        losses: Array = np.logaddexp(0.0, z) - targets * z
        return losses[:, 0]

    def probabilities(self, z: Array) -> Array:
        return np.concatenate([self.mean(-z), self.mean(z)], axis=1)


@dataclass(frozen=True, slots=True)
class Categorical:
    """K classes, one logit each. A(z) = log sum_k exp z_k.

    Adding a constant to all logits of an example changes nothing, so A has no curvature in that direction. The largest
    eigenvalue of the covariance is at most 1/2 (Boehning 1992, doi:10.1007/BF00048682).
    """

    outputs: int
    curvature_bound: float = 0.5
    estimates_variance: bool = False

    def targets(self, y: Array) -> Array:
        return np.equal.outer(y, np.arange(self.outputs)).astype(np.float64)

    def mean(self, z: Array) -> Array:
        p: Array = z - np.maximum.reduce(z, axis=1, keepdims=True)
        np.exp(p, out=p)
        p /= np.add.reduce(p, axis=1, keepdims=True)
        return p

    def covariance(self, z: Array) -> Array:
        p = self.mean(z)
        return p[:, :, None] * (np.eye(self.outputs) - p[:, None, :])

    def loss(self, z: Array, targets: Array) -> Array:
        top = z.max(axis=1, keepdims=True)
        log_partition = top[:, 0] + np.log(np.exp(z - top).sum(axis=1))
        losses: Array = log_partition - (targets * z).sum(axis=1)
        return losses

    def probabilities(self, z: Array) -> Array:
        return self.mean(z)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A number with residuals of one variance. A(z) = z^2 / 2; the loss has t^2 / 2 added: half the squared residual.

    In units of that variance, which does not change the optimum.
    """

    outputs: int = 1
    curvature_bound: float = 1.0
    estimates_variance: bool = True

    def targets(self, y: Array) -> Array:
        return y.astype(np.float64)[:, None]

    def mean(self, z: Array) -> Array:
        """z itself."""
        return z

    def covariance(self, z: Array) -> Array:
        return np.ones((len(z), 1, 1))

    def loss(self, z: Array, targets: Array) -> Array:
        losses: Array = np.square(z - targets)[:, 0] / 2
        return losses


def of_classes(count: int) -> ClassFamily:
    """The family of a label with so many classes, two or more."""
    return Bernoulli() if count == 2 else Categorical(count)
