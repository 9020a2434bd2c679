"""What is measured of a model's outputs: sums that add over clients, and what they mean."""

from abc import ABC, abstractmethod
from math import log
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.base import Schema, Sums
from tasks.families import ClassFamily, of_classes
from tasks.metrics import CLASS_SUMS, auc, class_means, macro_auc, number_means

Array = NDArray[Any]


class Measures(ABC):
    """Of outputs (n, k) against labels (n,)."""

    sums: ClassVar[tuple[str, ...]]
    reports: ClassVar[tuple[str, ...]]
    server_reports: ClassVar[tuple[str, ...]] = ()
    loss: ClassVar[Literal["cross_entropy", "squared_error"]]
    loss_name: ClassVar[str]

    @abstractmethod
    def of(self, outputs: Array, y: Array) -> dict[str, float | int]:
        """The sums, over these rows."""

    @property
    @abstractmethod
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Of what `of_each` gives: to twice the loss of guessing, where a loss has no end of its own."""

    @abstractmethod
    def of_each(self, outputs: Array, y: Array) -> dict[str, Array]:
        """Metrics of each row, (n,)."""

    @abstractmethod
    def check(self, sums: Sums) -> None:
        """Refuse sums that no rows can give (ValueError)."""

    @abstractmethod
    def means(self, sums: Sums) -> dict[str, float]:
        """The metrics, all nan without examples. The division is exact where the sums are."""

    def on_rows(self, outputs: Array, y: Array) -> dict[str, float]:
        """What no sum over clients can give; `server_reports` names it."""
        return {}

    @abstractmethod
    def predict(self, outputs: Array) -> tuple[Array, Array | None]:
        """Class indices (n,) and probabilities (n, K), or numbers (n,) and None."""

    def calibration(self, outputs: Array, y: Array) -> tuple[float, float] | None:
        """What is predicted on average, and what is; None where that has no meaning."""
        return None


class ClassMeasures(Measures):
    """Of logits: (n, 1) with two classes, the one with index 1's against the other's; else (n, K)."""

    sums = CLASS_SUMS
    reports = ("accuracy", "log_loss", "brier")
    server_reports = ("auc",)
    loss = "cross_entropy"
    loss_name = "log_loss"

    def __init__(self, num_classes: int) -> None:
        self.family: ClassFamily = of_classes(num_classes)

    def of(self, outputs: Array, y: Array) -> dict[str, float | int]:
        targets = self.family.targets(y)
        return {
            "examples": len(y),
            "correct": int(np.count_nonzero(self._predicted(outputs) == y)),
            "log_loss": float(self.family.loss(outputs, targets).sum()),
            "brier": float(((self.family.mean(outputs) - targets) ** 2).sum()),
        }

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Guessing all classes alike has a log loss of ln K."""
        classes = max(2, self.family.outputs)
        return {"accuracy": (0.0, 1.0), "log_loss": (0.0, 2 * log(classes)), "brier": (0.0, min(2.0, classes - 1.0))}

    def of_each(self, outputs: Array, y: Array) -> dict[str, Array]:
        targets = self.family.targets(y)
        return {
            "accuracy": (self._predicted(outputs) == y).astype(np.float64),
            "log_loss": self.family.loss(outputs, targets),
            "brier": ((self.family.mean(outputs) - targets) ** 2).sum(axis=1),
        }

    def check(self, sums: Sums) -> None:
        """0 <= correct <= examples and losses from 0 on; a Brier score is at most 2 an example."""
        if not 0 <= sums["correct"] <= sums["examples"]:
            raise ValueError(f"correct={float(sums['correct'])} of {float(sums['examples'])} examples")
        if sums["log_loss"] < 0 or not 0 <= sums["brier"] <= 2 * sums["examples"]:
            raise ValueError(f"log_loss={float(sums['log_loss'])}, brier={float(sums['brier'])}")

    def means(self, sums: Sums) -> dict[str, float]:
        return class_means(sums)

    def on_rows(self, outputs: Array, y: Array) -> dict[str, float]:
        """`auc`: with more than two classes the mean of one against the rest; absent when a class has no row here, or
        every row."""
        binary = outputs.shape[1] == 1
        area = auc(y == 1, outputs[:, 0]) if binary else macro_auc(y, self.family.mean(outputs))
        return {} if area is None else {"auc": area}

    def predict(self, outputs: Array) -> tuple[Array, Array | None]:
        """A tie between classes goes to the one with the lower index."""
        return self._predicted(outputs), self.family.probabilities(outputs)

    def calibration(self, outputs: Array, y: Array) -> tuple[float, float] | None:
        probabilities = self.family.probabilities(outputs)
        if probabilities.shape[1] == 2:
            return float(probabilities[:, 1].mean()), float((y == 1).mean())
        return float(probabilities.max(axis=1).mean()), float((self._predicted(outputs) == y).mean())

    def _predicted(self, outputs: Array) -> Array:
        return outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).astype(np.int64)


class NumberMeasures(Measures):
    """Of predictions (n, 1) of a label that was shifted and divided by what the schema says; in its own units."""

    sums = ("examples", "squared_error", "absolute_error", "target", "target_squared")
    reports = ("r2", "mse", "mae")
    loss = "squared_error"
    loss_name = "mse"

    def __init__(self, shift: float, scale: float) -> None:
        self.shift, self.scale = shift, scale

    def of(self, outputs: Array, y: Array) -> dict[str, float | int]:
        """`target` sums are of the shifted label, which keeps their squares' digits."""
        error, target = self.scale * (outputs[:, 0] - y), self.scale * y
        return {
            "examples": len(y),
            "squared_error": float(error @ error),
            "absolute_error": float(np.abs(error).sum()),
            "target": float(target.sum()),
            "target_squared": float(target @ target),
        }

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Guessing the mean is off by `scale`, in a quadratic mean. R2 has no range, and no sum of it over rows."""
        return {"mse": (0.0, 2 * self.scale**2), "mae": (0.0, 2 * self.scale)}

    def of_each(self, outputs: Array, y: Array) -> dict[str, Array]:
        error = self.scale * (outputs[:, 0] - y)
        return {"mse": error**2, "mae": np.abs(error)}

    def check(self, sums: Sums) -> None:
        """Squares and absolute values from 0 on, and no mean square below the square of the mean."""
        if min(sums[name] for name in ("squared_error", "absolute_error", "target_squared")) < 0:
            raise ValueError("a sum of squares or absolute values below 0")
        if sums["target"] ** 2 > sums["target_squared"] * sums["examples"] * (1 + 1e-9):
            raise ValueError(f"target={float(sums['target'])}, target_squared={float(sums['target_squared'])}")

    def means(self, sums: Sums) -> dict[str, float]:
        return number_means(sums)

    def predict(self, outputs: Array) -> tuple[Array, Array | None]:
        return self.shift + self.scale * outputs[:, 0], None


def measures_for(schema: Schema) -> Measures:
    """By whether the label has classes. Raises ValueError for one with a single class."""
    if not schema.classes:
        return NumberMeasures(schema.shift, schema.scale)
    if len(schema.classes) < 2:
        raise ValueError(
            f"the label {schema.label!r} has one class, {schema.classes[0]!r}: choose data with at least 2 classes"
        )
    return ClassMeasures(len(schema.classes))
