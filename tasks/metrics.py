"""Metrics of classifiers: sums that add over clients, their means, and the area under the ROC curve."""

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import Sums

CLASS_SUMS = ("examples", "correct", "log_loss", "brier")
"""The sums of a classifier. `brier` sums (p - t)^2 over the classes, for two classes over the positive one alone."""


def class_means(sums: Sums) -> dict[str, float]:
    """`accuracy`, `log_loss` and `brier` per example; all nan without examples.

    Sums given as Fractions are divided exactly and rounded once.
    """
    examples = sums["examples"]
    names = {"accuracy": "correct", "log_loss": "log_loss", "brier": "brier"}
    return {mean: float(sums[name] / examples) if examples else float("nan") for mean, name in names.items()}


def auc(positive: NDArray[np.bool_], scores: NDArray[Any]) -> float | None:
    """The chance that a positive example scores above a negative one, ties counted half (Mann-Whitney).

    None where it does not exist: without positives or without negatives, or with scores that are not finite.
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative or not np.isfinite(scores).all():
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = counts.cumsum() - (counts - 1) / 2.0
    wins = mean_rank[inverse][positive].sum() - num_positive * (num_positive + 1) / 2.0
    return float(wins / (num_positive * num_negative))


def macro_auc(y: NDArray[Any], scores: NDArray[Any]) -> float | None:
    """The mean over classes of the AUC of one class against the rest; scores: (n, classes). None if one has none."""
    per_class = [auc(y == k, scores[:, k]) for k in range(scores.shape[1])]
    known = [value for value in per_class if value is not None]
    return sum(known) / len(known) if len(known) == len(per_class) else None


def number_means(sums: Sums) -> dict[str, float]:
    """`r2`, `mse` and `mae`; all nan without examples, r2 also where the label does not vary.

    r2 = 1 - squared_error / (target_squared - target^2 / examples). Sums given as Fractions are divided exactly.
    """
    n = sums["examples"]
    if not n:
        return dict.fromkeys(("r2", "mse", "mae"), float("nan"))
    spread = sums["target_squared"] - Fraction(sums["target"]) ** 2 / Fraction(n)
    r2 = float(1 - Fraction(sums["squared_error"]) / Fraction(spread)) if spread > 0 else float("nan")
    return {"r2": r2, "mse": float(sums["squared_error"] / n), "mae": float(sums["absolute_error"] / n)}
