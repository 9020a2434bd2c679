"""The coefficients of a linear model as a person reads them: in original units, with standard errors.

The model is learned on scaled columns, so that what is read is a linear map of what was learned, c = A theta. With I
the mean of the rows' Hessians (the observed information per row) at the optimum of a loss with an L2 penalty, whose
Hessian is H = I + l2 on the weights,

    Cov(theta) = H^+ I H^+ / n,    Cov(c) = A Cov(theta) A^T

(Huber 1967's sandwich with the model's own information). Without a penalty this is the inverse of the information, what
statistical packages print. With one, coefficients are shrunk towards 0, which no standard error shows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import Arrays

Array = NDArray[Any]

INTERCEPT = "(intercept)"
NORMAL_975 = 1.959963984540054
RANK = 1e-10
"""Eigenvalues of the information below this share of the largest count as none: the rows say nothing there."""
ESTIMABLE = 1e-6
"""A coefficient that the rows determine lies in the span of the information to this share of its length."""
NOISE = 1e-12
"""A coefficient below this that the rows do not determine is what rounding left of 0."""
UNSETTLED = 0.05
"""Further training is worth a remark where it would move a coefficient by more than this many standard errors."""


@dataclass(frozen=True, slots=True)
class Coefficient:
    """Of one feature for one output; low and high bound the 95 % interval.

    Null: not determined by the rows, or not computed. Odds ratios, exp(coefficient), are of classifiers only.
    """

    output: str
    feature: str
    coefficient: float
    standard_error: float | None = None
    odds: bool = False

    def to_json(self) -> dict[str, Any]:
        """A dict for json.dumps; what overflows is null."""
        error, value = self.standard_error, self.coefficient
        low, high = (None, None) if error is None else (value - NORMAL_975 * error, value + NORMAL_975 * error)
        entry = {name: given for name, given in asdict(self).items() if name != "odds"} | {"low": low, "high": high}
        for name, given in (("odds_ratio", value), ("odds_low", low), ("odds_high", high)):
            entry[name] = np.exp(given).item() if self.odds and given is not None and abs(given) < 700 else None
        return entry


@dataclass(frozen=True, slots=True)
class Evidence:
    """Gradient (P,) and Hessian (P, P) of the penalised mean loss over `examples` rows; penalty: (P,) its diagonal."""

    gradient: Array
    hessian: Array
    penalty: Array
    examples: int

    @classmethod
    def of(cls, curvature: Arrays, penalty: Array, examples: int) -> "Evidence":
        """From objective, gradient and upper triangle of the Hessian."""
        _, gradient, triangle = curvature
        size = len(gradient)
        hessian = np.zeros((size, size))
        hessian[np.triu_indices(size)] = triangle
        hessian += np.triu(hessian, 1).T
        return cls(gradient, hessian, penalty, examples)


def standard_errors(a: Array, evidence: Evidence) -> tuple[list[float | None], float]:
    """Of each of A theta (m,), and by how many of them further training would move one at most.

    That is infinity where the rows determine none.

    A parameter without any information, that of a column with one value, counts as fixed where it is.
    """
    information = evidence.hessian - np.diag(evidence.penalty)
    own = np.diag(information)
    informed = own > RANK * np.maximum(np.diag(evidence.hessian), 1.0)
    unit = np.sqrt(np.where(informed, own, 1.0))  # the rank is not to depend on the columns' units
    a, gradient = np.where(informed, a, 0.0) / unit, evidence.gradient / unit
    hessian, information = (matrix / np.outer(unit, unit) for matrix in (evidence.hessian, information))
    inverse = np.linalg.pinv(hessian, rcond=RANK, hermitian=True)
    covariance = inverse @ information @ inverse / evidence.examples
    variance = ((a @ covariance) * a).sum(axis=1)
    span = information @ np.linalg.pinv(information, rcond=RANK, hermitian=True)
    outside = np.linalg.norm(a - a @ span, axis=1) / np.maximum(np.linalg.norm(a, axis=1), np.finfo(float).tiny)
    known = (outside < ESTIMABLE) & (variance > 0)
    errors = np.sqrt(np.where(known, variance, 1.0))
    moves = np.abs(a @ (inverse @ gradient))
    unsettled = float((moves / errors)[known].max(initial=0.0)) if known.any() else np.inf
    return [float(e) if k else None for e, k in zip(errors, known, strict=True)], unsettled


def in_original_units(weights: Array, intercept: Array, shift: Array, scale: Array) -> Array:
    """The intercept and the d slopes of each output: (outputs, d + 1).

    A column was shifted and divided: w (x - shift) / scale + b = (w / scale) x + (b - sum w shift / scale).
    """
    slopes = weights / scale
    return np.column_stack([intercept - slopes @ shift, slopes])


def original_units_map(outputs: int, shift: Array, scale: Array) -> Array:
    """`in_original_units`, in C order, as a matrix A on theta = [weights in C order, intercept]."""
    d = len(shift)
    a = np.zeros((outputs, d + 1, outputs * (d + 1)))
    for k in range(outputs):
        own = slice(k * d, (k + 1) * d)
        a[k, 0, own] = -shift / scale
        a[k, 0, outputs * d + k] = 1.0
        a[k, 1:, own] = np.diag(1.0 / scale)
    return a.reshape(outputs * (d + 1), -1)


def table(
    outputs: Sequence[str], features: Sequence[str], values: Array, errors: Sequence[float | None], *, odds: bool
) -> tuple[Coefficient, ...]:
    """Values (outputs, d + 1) and their errors in C order, with their names."""
    computed = any(error is not None for error in errors)
    noise = computed & np.array([error is None for error in errors]) & (np.abs(values.ravel()) < NOISE)
    names = [(output, feature) for output in outputs for feature in (INTERCEPT, *features)]
    return tuple(
        Coefficient(output, feature, float(value), error, odds)
        for (output, feature), value, error in zip(names, np.where(noise, 0.0, values.ravel()), errors, strict=True)
    )


def remarks(unsettled: float, *, penalised: bool, original: bool) -> str:
    """What a reader of the coefficients should know."""
    said = [] if original else ["The coefficients are for columns that each client scaled by its own statistics."]
    if penalised:
        said.append("A penalty (l2, l1) shrinks coefficients towards 0; standard errors do not show that.")
    if unsettled == np.inf:
        said.append(
            "The rows determine no coefficient, as where some column tells the classes apart without error: the "
            "coefficients grow with each round. A penalty, such as l2=0.01, keeps them finite."
        )
    elif unsettled > UNSETTLED:
        said.append(
            f"The model is not at its optimum: further training would move a coefficient by up to {unsettled:.2g} "
            "times its standard error. More rounds, or strategy=fednewton, get there."
        )
    return " ".join(said)
