"""Logistic regression, binary and multinomial, as a federated task."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from numpy.typing import NDArray

from tasks.base import (
    Arrays,
    Coefficients,
    Config,
    CurvatureSums,
    Rows,
    Scalar,
    Scaling,
    Schema,
    Shard,
    Sums,
    Task,
)
from tasks.coefficients import Evidence, in_original_units, original_units_map, remarks, standard_errors, table
from tasks.families import Bernoulli, Categorical, Family
from tasks.fit_config import FitConfig
from tasks.metrics import CLASS_SUMS, auc, class_means, macro_auc
from tasks.objective import Objective, Pull
from tasks.optimum import optimum
from tasks.solvers import MAX_HESSIAN_BYTES, SOLVERS, mean_gradient

Array = NDArray[Any]

ALONE_TOLERANCE = 1e-6
"""The largest gradient entry of a baseline: its predictions are settled to more digits than are shown."""


class LogisticTask(Task):
    """Logistic regression with L1 and L2 penalties: binary with two classes, multinomial with more.

    Minimises, with class probabilities p_i = softmax(W x_i + b) (binary: the logit W x_i + b is that of class 1),

        F(W, b) = -1/n sum_i log p_i[y_i] + l2/2 ||W||_F^2 + l1 ||W||_1

    where the intercept b is not penalised. Parameters, float64: `weights` (K, d) and `intercept` (K,), with K = 1 for
    two classes. F is convex, so training starts from zeros whatever the seed.

    The pooled optimum is that of scikit-learn's LogisticRegression with C = 1 / (n l2).
    """

    array_names = ("weights", "intercept")
    metric_names = CLASS_SUMS
    reports = ("accuracy", "log_loss", "brier")
    server_reports = ("auc",)
    fit_options = ("proximal-mu", "correction")

    def __init__(self, schema: Schema) -> None:
        """Raises ValueError for a schema with fewer than two classes."""
        if len(schema.classes) < 2:
            raise ValueError(
                f"task logistic needs a label with at least 2 classes, got {len(schema.classes)} in label "
                f"{schema.label!r}: choose data with classes, or another task"
            )
        super().__init__(schema)
        num_classes = len(schema.classes)
        self.family: Family = Bernoulli() if num_classes == 2 else Categorical(num_classes)

    def initial_arrays(self, seed: int) -> Arrays:
        """Zeros; `seed` changes nothing."""
        return self.unflatten(np.zeros(self.family.outputs * (len(self.schema.features) + 1)))

    def make_client(self, shard: Shard) -> "LogisticClient":
        """Raises ValueError for a shard whose columns are not the schema's in number."""
        expected = len(self.schema.features)
        for rows in (shard.train, shard.test):
            if rows.x.shape[1] != expected:
                raise ValueError(
                    f"client {shard.client!r} has {rows.x.shape[1]} feature columns, the schema has {expected}: "
                    "give it the columns that the others have"
                )
        return LogisticClient(self, shard)

    def check_config(self, config: Config) -> None:
        """Beside what `FitConfig` refuses, solvers of other tasks and a Hessian beyond `MAX_HESSIAN_BYTES`."""
        asked = FitConfig.read(config)
        if asked.solver not in SOLVERS:
            raise ValueError(f"task logistic has no solver {asked.solver!r}: it has {', '.join(SOLVERS)}")
        size = 8 * self.flatten(self.initial_arrays(0)).size ** 2
        if size > MAX_HESSIAN_BYTES and (
            asked.work == "curvature" or (asked.work, asked.solver) == ("train", "newton")
        ):
            raise ValueError(
                f"a Hessian of this model takes {size / 1e9:.1f} GB, more than {MAX_HESSIAN_BYTES / 1e9:.1f} GB: "
                "set solver=lbfgs, or use a strategy that needs no Hessian"
            )

    def flatten(self, arrays: Arrays) -> Array:
        """`weights` and `intercept` as one new vector (P,); ValueError for any other number or shape of arrays."""
        outputs, features = self.family.outputs, len(self.schema.features)
        got = tuple(array.shape for array in arrays)
        if got != ((outputs, features), (outputs,)):
            raise ValueError(
                f"task logistic expects weights {(outputs, features)} and intercept {(outputs,)}, got {got}: "
                "do server and client run the same task on the same columns?"
            )
        return np.concatenate([array.ravel() for array in arrays], dtype=np.float64)

    def unflatten(self, theta: Array) -> Arrays:
        """The inverse of `flatten`, as views."""
        outputs = self.family.outputs
        return theta[:-outputs].reshape(outputs, -1), theta[-outputs:]

    def logits(self, arrays: Arrays, x: Array) -> Array:
        """W x + b: (n, K)."""
        weights, intercept = self.unflatten(self.flatten(arrays))
        return x @ weights.T + intercept

    def objective(self, rows: Rows, *, l1: float, l2: float, pull: Pull | None = None) -> Objective:
        """F over `rows`."""
        return Objective(self.family, rows.x, self.family.targets(rows.y), l1, l2, pull)

    def train_alone(self, rows: Rows, configs: Iterable[Config]) -> Arrays:
        """The optimum of F over `rows`: what any number of rounds leads to."""
        last = FitConfig.read(deque(configs, maxlen=1).pop())
        return self.solve(rows, l1=last.l1, l2=last.l2, tolerance=ALONE_TOLERANCE)

    def solve(self, rows: Rows, *, l1: float = 0.0, l2: float, tolerance: float = 1e-8) -> Arrays:
        """The optimum of F over `rows`, to a largest gradient entry of `tolerance`: the baseline of a federated run.

        Raises RuntimeError where that cannot be reached (tasks/optimum.py).
        """
        start = self.flatten(self.initial_arrays(0))
        return self.unflatten(optimum(self.objective(rows, l1=l1, l2=l2), start, tolerance=tolerance))

    def probabilities(self, arrays: Arrays, x: Array) -> Array:
        """The probability of every class for rows x (n, d): (n, number of classes)."""
        return self.family.probabilities(self.logits(arrays, x))

    def measure(self, arrays: Arrays, rows: Rows) -> dict[str, float | int]:
        """The sums of `CLASS_SUMS` over `rows`. A tie between classes goes to the one with the lower index."""
        z, targets = self.logits(arrays, rows.x), self.family.targets(rows.y)
        return {
            "examples": len(rows),
            "correct": int(np.count_nonzero(_predicted(z) == rows.y)),
            "log_loss": float(self.family.loss(z, targets).sum()),
            "brier": float(((self.family.mean(z) - targets) ** 2).sum()),
        }

    def check_sums(self, sums: Sums) -> None:
        """Also 0 <= correct <= examples and losses from 0 on; a Brier score is at most 2 an example."""
        super().check_sums(sums)
        if not 0 <= sums["correct"] <= sums["examples"]:
            raise ValueError(f"correct={float(sums['correct'])} of {float(sums['examples'])} examples")
        if sums["log_loss"] < 0 or not 0 <= sums["brier"] <= 2 * sums["examples"]:
            raise ValueError(f"log_loss={float(sums['log_loss'])}, brier={float(sums['brier'])}")

    def summarise(self, sums: Sums) -> dict[str, float]:
        return class_means(sums)

    def predict(self, arrays: Arrays, x: Array) -> tuple[Array, Array]:
        """As `measure` counts: a tie goes to the lower class."""
        z = self.logits(arrays, x)
        return _predicted(z), self.family.probabilities(z)

    def calibration(self, arrays: Arrays, rows: Rows) -> tuple[float, float] | None:
        if not len(rows):
            return None
        probabilities = self.probabilities(arrays, rows.x)
        if probabilities.shape[1] == 2:
            return float(probabilities[:, 1].mean()), float((rows.y == 1).mean())
        return float(probabilities.max(axis=1).mean()), float((probabilities.argmax(axis=1) == rows.y).mean())

    def coefficients(
        self, arrays: Arrays, scaling: Scaling | None, survey: CurvatureSums | None
    ) -> Coefficients | None:
        """Binary: log odds of the second class. Multinomial: log odds of each class against the first."""
        outputs, features, classes = self.family.outputs, self.schema.features, self.schema.classes
        shift, scale = scaling or (np.zeros(len(features)), np.ones(len(features)))
        weights, intercept = arrays
        values = in_original_units(weights, intercept, shift, scale)
        contrast = np.eye(1) if outputs == 1 else np.eye(outputs)[1:] - np.eye(outputs)[0]
        errors: list[float | None] = [None] * (len(contrast) * (len(features) + 1))
        unsettled = 0.0
        if survey is not None:
            penalty = self.flatten((np.full((outputs, len(features)), survey.l2), np.zeros(outputs)))
            a = np.kron(contrast, np.eye(len(features) + 1)) @ original_units_map(outputs, shift, scale)
            errors, unsettled = standard_errors(a, Evidence.of(survey.arrays, penalty, survey.examples))
        rows = table(classes[1:], features, contrast @ values, errors, odds=True)
        note = remarks(unsettled, penalised=survey is not None and survey.l2 > 0, original=scaling is not None)
        return Coefficients(tuple(row.to_json() for row in rows), note)

    def evaluate(self, arrays: Arrays, rows: Rows) -> dict[str, float]:
        """`summarise(measure(...))` and `auc`: with more than two classes the mean of one against the rest.

        `auc` is left out when a class has no row here, or every row.
        """
        z = self.logits(arrays, rows.x)
        area = auc(rows.y == 1, z[:, 0]) if z.shape[1] == 1 else macro_auc(rows.y, self.family.mean(z))
        means = super().evaluate(arrays, rows)
        return means if area is None else {**means, "auc": area}


class LogisticClient(NumPyClient):
    """One data owner of a `LogisticTask`. `FitConfig` says what the config of `fit` holds."""

    def __init__(self, task: LogisticTask, shard: Shard) -> None:
        self.task = task
        self.shard = shard

    def fit(self, parameters: list[Array], config: dict[str, Scalar]) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Do the work that the config asks for, on the training rows and from the received parameters.

        `train` gives new parameters. `gradient` gives the received ones minus the learning rate times the gradient of
        F (with l1 a subgradient). `curvature` gives F (1,), its gradient (P,) and the upper triangle of its Hessian
        (P (P + 1) / 2,) in np.triu_indices order, over the P parameters of `weights` and then `intercept` in C order.
        With a `correction` to train by, parameters come and arrays go back as tasks/base.py says.

        Returns also the number of training rows and, with `metrics`, the sums of the received model on the test rows.
        Raises ValueError without training rows and for a config or parameters that do not fit.
        """
        asked, train = FitConfig.read(config), self.shard.train
        if not len(train):
            raise ValueError(f"client {self.shard.client!r} has no training rows: give it data or leave it out")
        params, correction = asked.split(parameters)
        theta = self.task.flatten(params)
        objective = self.task.objective(train, l1=asked.l1, l2=asked.l2)
        with np.errstate(over="ignore", invalid="ignore"):  # divergence shows in the arrays, where the node refuses it
            if asked.work == "curvature":
                result = _curvature(objective, theta)
            elif asked.work == "gradient":
                result = self.task.unflatten(theta - asked.learning_rate * objective.subgradient(theta))
            else:
                result = self._train(theta, correction, asked)
            metrics: dict[str, Scalar] = {}
            if asked.metrics:
                metrics.update(self.task.measure(params, self.shard.test))
        return list(result), len(train), metrics

    def _train(self, theta: Array, correction: Arrays, asked: FitConfig) -> Arrays:
        """New parameters; with a correction also the mean gradient of the way there."""
        slope = self.task.flatten(correction) if asked.correction else np.zeros_like(theta)
        pulled = asked.correction or asked.proximal_mu > 0
        pull = Pull(theta, asked.proximal_mu, slope) if pulled else None
        objective = self.task.objective(self.shard.train, l1=asked.l1, l2=asked.l2, pull=pull)
        new = SOLVERS[asked.solver](objective, theta, asked)
        if not asked.correction:
            return self.task.unflatten(new)
        mean = mean_gradient(objective, theta, new, asked) - slope
        return *self.task.unflatten(new), *self.task.unflatten(mean)

    def evaluate(self, parameters: list[Array], config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """The mean log loss on the test rows (nan without any), their number, and the metric sums."""
        with np.errstate(over="ignore", invalid="ignore"):
            sums = self.task.measure(tuple(parameters), self.shard.test)
        return self.task.summarise(sums)["log_loss"], len(self.shard.test), {**sums}


def _predicted(z: Array) -> Array:
    """The class of each row of logits (n, K)."""
    return z.argmax(axis=1) if z.shape[1] > 1 else (z[:, 0] > 0).astype(np.int64)


def _curvature(objective: Objective, theta: Array) -> Arrays:
    """F, its gradient and the upper triangle of its Hessian."""
    hessian = objective.hessian(theta)
    return np.array([objective.value(theta)]), objective.gradient(theta), hessian[np.triu_indices(theta.size)]
