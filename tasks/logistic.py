"""Logistic regression, binary and multinomial, as a federated task."""

from typing import Any

from numpy.typing import NDArray

from tasks.base import Arrays, Schema
from tasks.generalized_linear import GeneralizedLinearTask
from tasks.measures import ClassMeasures

Array = NDArray[Any]


class LogisticTask(GeneralizedLinearTask):
    """Logistic regression with L1 and L2 penalties: binary with two classes, multinomial with more.

    Minimises, with class probabilities p_i = softmax(W x_i + b) (binary: the logit W x_i + b is that of class 1),

        F(W, b) = -1/n sum_i log p_i[y_i] + l2/2 ||W||_F^2 + l1 ||W||_1

    where the intercept b is not penalised. Parameters, float64: `weights` (K, d) and `intercept` (K,), with K = 1 for
    two classes.

    The pooled optimum is that of scikit-learn's LogisticRegression with C = 1 / (n l2). Coefficients are log odds: of
    the second class, or of each class against the first.
    """

    name = "logistic"

    def __init__(self, schema: Schema) -> None:
        """Raises ValueError for a schema with fewer than two classes."""
        if len(schema.classes) < 2:
            raise ValueError(
                f"task logistic needs a label with at least 2 classes, got {len(schema.classes)} in label "
                f"{schema.label!r}: choose data with classes, or another task"
            )
        measures = ClassMeasures(len(schema.classes))
        self._classes = measures.family
        super().__init__(schema, measures.family, measures)

    def probabilities(self, arrays: Arrays, x: Array) -> Array:
        """The probability of every class for rows x (n, d): (n, number of classes)."""
        return self._classes.probabilities(self.outputs(arrays, x))
