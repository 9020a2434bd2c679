"""The coefficients of a linear model as a person reads them: in original units, with standard errors.

The model is learned on scaled columns, so that what is read is a linear map of what was learned, c = A theta. With I
the mean of the rows' Hessians (the observed information per row) at the optimum of a loss with an L2 penalty, whose
Hessian is H = I + l2 on the weights,

    Cov(theta) = H^+ I H^+ / n,    Cov(c) = A Cov(theta) A^T

(Huber 1967's sandwich with the model's own information). Without a penalty this is the inverse of the information, what
statistical packages print. With one, coefficients are shrunk towards 0, which no standard error shows.

Where the residuals' variance is not known (linear regression), I is in its units and Cov(theta) is multiplied by
sigma^2 = RSS / (n - f), with f = tr(H^+ I) the parameters that the rows determine; intervals are then Student's.
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
    """Of one feature for one output; low and high bound the 95 % interval, `width` standard errors to each side.

    Null: not determined by the rows, or not computed. A penalised estimate has no interval (`width` None): shrunk
    towards 0 as it is, an interval around it would hold the true value less often than it says. Odds ratios,
    exp(coefficient), are of classifiers only.
    """

    output: str
    feature: str
    coefficient: float
    standard_error: float | None = None
    odds: bool = False
    width: float | None = NORMAL_975

    def to_json(self) -> dict[str, Any]:
        """A dict for json.dumps; what overflows is null."""
        error, value = self.standard_error, self.coefficient
        low = high = None
        if error is not None and self.width is not None:
            low, high = value - self.width * error, value + self.width * error
        entry = {name: given for name, given in asdict(self).items() if name not in ("odds", "width")}
        entry |= {"low": low, "high": high}
        for name, given in (("odds_ratio", value), ("odds_low", low), ("odds_high", high)):
            entry[name] = np.exp(given).item() if self.odds and given is not None and abs(given) < 700 else None
        return entry


@dataclass(frozen=True, slots=True)
class Evidence:
    """Gradient (P,) and Hessian (P, P) of the penalised mean loss over `examples` rows; penalty: (P,) its diagonal.

    residual: the mean squared residual where the residuals' variance is to be estimated, in the units of the loss.
    """

    gradient: Array
    hessian: Array
    penalty: Array
    examples: int
    residual: float | None = None

    @classmethod
    def of(cls, curvature: Arrays, penalty: Array, examples: int, residual: float | None = None) -> "Evidence":
        """From objective, gradient and upper triangle of the Hessian."""
        _, gradient, triangle = curvature
        size = len(gradient)
        hessian = np.zeros((size, size))
        hessian[np.triu_indices(size)] = triangle
        hessian += np.triu(hessian, 1).T
        return cls(gradient, hessian, penalty, examples, residual)


@dataclass(frozen=True, slots=True)
class Inference:
    """errors: standard errors of m coefficients; None where the rows do not determine one.

    unsettled: by how many of them further training would move one at most; infinity where the rows determine none.
    width: of them the 95 % interval has so many to each side.
    """

    errors: list[float | None]
    unsettled: float
    width: float | None = NORMAL_975


def inference(a: Array, evidence: Evidence) -> Inference:
    """Of each of A theta (m,).

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
    width = NORMAL_975
    if evidence.residual is not None:
        freedom = evidence.examples - float(np.vdot(inverse, information))
        variance_of_residuals = evidence.residual * evidence.examples / freedom if freedom >= 1 - ESTIMABLE else 0.0
        covariance, width = covariance * variance_of_residuals, _student_975(max(1.0, freedom))
    variance = ((a @ covariance) * a).sum(axis=1)
    span = information @ np.linalg.pinv(information, rcond=RANK, hermitian=True)
    outside = np.linalg.norm(a - a @ span, axis=1) / np.maximum(np.linalg.norm(a, axis=1), np.finfo(float).tiny)
    known = (outside < ESTIMABLE) & (variance > 0)
    errors = np.sqrt(np.where(known, variance, 1.0))
    moves = np.abs(a @ (inverse @ gradient))
    unsettled = float((moves / errors)[known].max(initial=0.0)) if known.any() else np.inf
    return Inference([float(e) if k else None for e, k in zip(errors, known, strict=True)], unsettled, width)


def _student_975(freedom: float) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # not at the top: a deployed node pays its imports in every round

    return float(stdtrit(freedom, 0.975))


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
    outputs: Sequence[str],
    features: Sequence[str],
    values: Array,
    found: Inference | None,
    *,
    odds: bool,
    penalised: bool,
) -> tuple[Coefficient, ...]:
    """Values (outputs, d + 1), and what was found of them in C order, with their names."""
    errors = [None] * values.size if found is None else found.errors
    width = None if found is None or penalised else found.width
    computed = any(error is not None for error in errors)
    noise = computed & np.array([error is None for error in errors]) & (np.abs(values.ravel()) < NOISE)
    names = [(output, feature) for output in outputs for feature in (INTERCEPT, *features)]
    return tuple(
        Coefficient(output, feature, float(value), error, odds, width)
        for (output, feature), value, error in zip(names, np.where(noise, 0.0, values.ravel()), errors, strict=True)
    )


def remarks(unsettled: float, *, rows: int | None, penalised: bool, original: bool, classes: bool = True) -> str:
    """What a reader of the coefficients should know. rows: those that the standard errors come from."""
    said = [] if original else ["The coefficients are for columns that each client scaled by its own statistics."]
    if rows is not None:
        said.append(f"From {rows} training rows.")
    if penalised:
        said.append(
            "A penalty (l2) shrinks coefficients towards 0, which standard errors do not show: so there are no "
            "intervals. For these set strategy=fednewton, l2=0 and, to use all rows, test-fraction=0."
        )
    if unsettled == np.inf and not classes:
        said.append(
            "The rows determine no coefficient: there are no more of them than columns, or they leave no residual. "
            "There are no standard errors."
        )
    elif unsettled == np.inf:
        said.append(
            "The rows determine no coefficient, as where some column tells the classes apart without error: the "
            "coefficients grow with each round. A penalty, such as l2=0.01, keeps them finite."
        )
    elif unsettled > UNSETTLED:
        unless = ", unless some column tells the classes apart" if classes else ""
        said.append(
            f"The model is not at its optimum: further training would move a coefficient by up to {unsettled:.2g} "
            f"times its standard error. strategy=fednewton gets there{unless}."
        )
    return " ".join(said)
