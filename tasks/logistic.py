"""Logistic regression, binary and multinomial, as a federated task."""

from typing import Any

import numpy as np
from flwr.client import NumPyClient
from numpy.typing import NDArray

from tasks.base import Arrays, Config, Rows, Scalar, Schema, Shard, Sums, Task
from tasks.families import Bernoulli, Categorical, Family
from tasks.fit_config import FitConfig
from tasks.metrics import CLASS_SUMS, auc, class_means, macro_auc
from tasks.objective import Objective
from tasks.optimum import optimum
from tasks.solvers import MAX_HESSIAN_BYTES, SOLVERS

Array = NDArray[Any]


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
        """Beside what `FitConfig` refuses, a Hessian beyond `MAX_HESSIAN_BYTES`."""
        asked = FitConfig.read(config)
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

    def objective(self, rows: Rows, *, l1: float, l2: float) -> Objective:
        """F over `rows`."""
        return Objective(self.family, rows.x, self.family.targets(rows.y), l1, l2)

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
        predicted = z.argmax(axis=1) if z.shape[1] > 1 else z[:, 0] > 0
        return {
            "examples": len(rows),
            "correct": int(np.count_nonzero(predicted == rows.y)),
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

        Returns also the number of training rows and, with `metrics`, the sums of the received model on the test rows.
        Raises ValueError without training rows and for a config or parameters that do not fit.
        """
        asked, train = FitConfig.read(config), self.shard.train
        if not len(train):
            raise ValueError(f"client {self.shard.client!r} has no training rows: give it data or leave it out")
        theta = self.task.flatten(tuple(parameters))
        objective = self.task.objective(train, l1=asked.l1, l2=asked.l2)
        with np.errstate(over="ignore", invalid="ignore"):  # divergence shows in the arrays, where the node refuses it
            if asked.work == "curvature":
                result = _curvature(objective, theta)
            elif asked.work == "gradient":
                result = self.task.unflatten(theta - asked.learning_rate * objective.subgradient(theta))
            else:
                result = self.task.unflatten(SOLVERS[asked.solver](objective, theta, asked))
            metrics: dict[str, Scalar] = {}
            if asked.metrics:
                metrics.update(self.task.measure(tuple(parameters), self.shard.test))
        return list(result), len(train), metrics

    def evaluate(self, parameters: list[Array], config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """The mean log loss on the test rows (nan without any), their number, and the metric sums."""
        with np.errstate(over="ignore", invalid="ignore"):
            sums = self.task.measure(tuple(parameters), self.shard.test)
        return self.task.summarise(sums)["log_loss"], len(self.shard.test), {**sums}


def _curvature(objective: Objective, theta: Array) -> Arrays:
    """F, its gradient and the upper triangle of its Hessian."""
    hessian = objective.hessian(theta)
    return np.array([objective.value(theta)]), objective.gradient(theta), hessian[np.triu_indices(theta.size)]
