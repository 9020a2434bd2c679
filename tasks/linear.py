"""Linear regression as a federated task."""

from tasks.base import Schema
from tasks.families import Gaussian
from tasks.generalized_linear import GeneralizedLinearTask
from tasks.measures import NumberMeasures


class LinearTask(GeneralizedLinearTask):
    """Linear regression with L1 and L2 penalties: least squares, ridge, lasso, elastic net.

    Minimises, with y the label as the run has scaled it,

        F(w, b) = 1/(2n) sum_i (w . x_i + b - y_i)^2 + l2/2 ||w||^2 + l1 ||w||_1

    where the intercept b is not penalised. Parameters, float64: `weights` (1, d) and `intercept` (1,). Metrics,
    predictions and coefficients are in the label's own units.

    The pooled optimum is that of scikit-learn's Ridge with alpha = n l2, of its Lasso with alpha = l1, and without a
    penalty ordinary least squares, to which strategy=fednewton comes in one round.
    """

    name = "linear"
    target = "number"

    def __init__(self, schema: Schema) -> None:
        """Raises ValueError for a label of classes."""
        if schema.classes:
            raise ValueError(
                f"task linear needs a label that is a number, label {schema.label!r} has {len(schema.classes)} "
                "classes: choose data with a number to predict, or task=logistic"
            )
        super().__init__(schema, Gaussian(), NumberMeasures(schema.shift, schema.scale))
