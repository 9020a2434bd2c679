"""Generalised linear models as federated tasks: a family of distributions, and what is measured of its predictions."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from flwr.client import NumPyClient
from numpy.typing import NDArray

from privacy.entropy import SYSTEM, Entropy
from tasks.base import Arrays, Coefficients, Config, CurvatureSums, Fit, Rows, Scalar, Scaling, Schema, Shard
from tasks.coefficients import Evidence, in_original_units, inference, original_units_map, remarks, table
from tasks.dp_sgd import OPTIONS as RECORD_OPTIONS
from tasks.families import Family
from tasks.fit_config import GRADIENT_SOLVERS, FitConfig
from tasks.graph import Graph
from tasks.linear_dp_sgd import private_descent
from tasks.linear_together import descend
from tasks.measured_task import MeasuredTask
from tasks.measures import Measures
from tasks.objective import Objective, Pull
from tasks.optimum import optimum
from tasks.solvers import MAX_HESSIAN_BYTES, SOLVERS, mean_gradient
from tasks.together import Scratch, fit_in_blocks

Array = NDArray[Any]

ALONE_TOLERANCE = 1e-6
"""The largest gradient entry of a baseline: its predictions are settled to more digits than are shown."""


class GeneralizedLinearTask(MeasuredTask):
    """Minimises, over weights W (K, d) and the intercept b (K,), which is not penalised,

        F(W, b) = 1/n sum_i loss(W x_i + b, y_i) + l2/2 ||W||_F^2 + l1 ||W||_1

    where the loss is that of a family (tasks/families.py). Parameters, float64: `weights` and `intercept`. F is convex,
    so training starts from zeros whatever the seed.
    """

    name: ClassVar[str]
    """For messages."""
    array_names = ("weights", "intercept")
    fit_options = ("proximal-mu", "correction", *RECORD_OPTIONS)
    entropy: Entropy = SYSTEM
    """Where sampling and noise of record-level privacy come from."""

    def __init__(self, schema: Schema, family: Family, measures: Measures) -> None:
        super().__init__(schema, measures)
        self.family = family

    def initial_arrays(self, seed: int) -> Arrays:
        """Zeros; `seed` changes nothing."""
        return self.unflatten(np.zeros(self.family.outputs * (len(self.schema.features) + 1)))

    def make_client(self, shard: Shard) -> "GeneralizedLinearClient":
        """Raises ValueError for a shard whose columns are not the schema's in number."""
        self.check_columns(shard)
        return GeneralizedLinearClient(self, shard)

    def fits_many(self, config: Config) -> bool:
        """With solver sgd or gd, without record-level privacy; not in a subclass with another client or objective."""
        asked, base = FitConfig.read(config), GeneralizedLinearTask
        plain = (type(self).make_client, type(self).objective) == (base.make_client, base.objective)
        known = asked.work == "train" and asked.solver in GRADIENT_SOLVERS and not asked.correction
        return plain and known and asked.record is None

    def fit_many(
        self, params: Arrays, shards: Sequence[Shard], config: Config, seeds: Sequence[int]
    ) -> list[Fit | Exception]:
        """To the bit what fit gives."""
        asked, start = FitConfig.read(config), self.unflatten(self.flatten(params))
        scratch = Scratch(), Scratch()

        def train(block: Sequence[Rows], seeds: Sequence[int]) -> list[Arrays]:
            return list(zip(*descend(self.family, start, block, seeds, asked, scratch), strict=True))

        with np.errstate(over="ignore", invalid="ignore"):  # as in fit
            return fit_in_blocks(self, params, shards, seeds, asked, train)

    def check_config(self, config: Config) -> None:
        """Beside what `FitConfig` refuses, solvers of other tasks and a Hessian beyond `MAX_HESSIAN_BYTES`."""
        asked = FitConfig.read(config)
        if asked.solver not in SOLVERS:
            raise ValueError(f"task {self.name} has no solver {asked.solver!r}: it has {', '.join(SOLVERS)}")
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
                f"task {self.name} expects weights {(outputs, features)} and intercept {(outputs,)}, got {got}: "
                "do server and client run the same task on the same columns?"
            )
        return np.concatenate([array.ravel() for array in arrays], dtype=np.float64)

    def unflatten(self, theta: Array) -> Arrays:
        """The inverse of `flatten`, as views."""
        outputs = self.family.outputs
        return theta[:-outputs].reshape(outputs, -1), theta[-outputs:]

    def outputs(self, arrays: Arrays, x: Array) -> Array:
        """W x + b: (n, K)."""
        weights, intercept = self.unflatten(self.flatten(arrays))
        result: Array = x @ weights.T + intercept
        return result

    def add_to_graph(self, arrays: Arrays, graph: Graph, rows: str) -> str:
        """One product; of two classes the first has the logit 0."""
        weights, intercept = self.unflatten(self.flatten(arrays))
        if len(self.schema.classes) == 2:
            weights, intercept = np.pad(weights, ((1, 0), (0, 0))), np.pad(intercept, (1, 0))
        return graph.add("Gemm", rows, weights, intercept, transB=1)

    def objective(self, rows: Rows, *, l1: float, l2: float, pull: Pull | None = None) -> Objective:
        """F over `rows`."""
        return Objective(self.family, rows.x, self.family.targets(rows.y), l1, l2, pull)

    def train_alone(self, rows: Rows, configs: Iterable[Config]) -> Arrays:
        """The optimum of F over `rows`: what any number of rounds leads to."""
        last = FitConfig.read(deque(configs, maxlen=1).pop())
        unit = max(1.0, float(self.family.targets(rows.y).std()))  # of a label that is not scaled
        return self.solve(rows, l1=last.l1, l2=last.l2, tolerance=ALONE_TOLERANCE * unit)

    def solve(self, rows: Rows, *, l1: float = 0.0, l2: float, tolerance: float = 1e-8) -> Arrays:
        """The optimum of F over `rows`, to a largest gradient entry of `tolerance`: the baseline of a federated run.

        Raises RuntimeError where that cannot be reached (tasks/optimum.py).
        """
        start = self.flatten(self.initial_arrays(0))
        return self.unflatten(optimum(self.objective(rows, l1=l1, l2=l2), start, tolerance=tolerance))

    def coefficients(
        self, arrays: Arrays, scaling: Scaling | None, survey: CurvatureSums | None
    ) -> Coefficients | None:
        """In units of columns and label. With several outputs, the coefficients of each minus those of the first."""
        outputs, features, unit = self.family.outputs, self.schema.features, self.schema.scale
        shift, scale = scaling or (np.zeros(len(features)), np.ones(len(features)))
        weights, intercept = arrays
        values = in_original_units(weights, intercept, shift, scale) * unit
        values[:, 0] += self.schema.shift
        contrast = np.eye(1) if outputs == 1 else np.eye(outputs)[1:] - np.eye(outputs)[0]
        found = None
        if survey is not None:
            a = np.kron(contrast, np.eye(len(features) + 1)) @ original_units_map(outputs, shift, scale) * unit
            found = inference(a, self._evidence(weights, survey))
        classes, penalised = bool(self.schema.classes), survey is not None and survey.l2 > 0
        rows = table(self._output_names(), features, contrast @ values, found, odds=classes, penalised=penalised)
        note = remarks(
            0.0 if found is None else found.unsettled,
            rows=None if survey is None else survey.examples,
            penalised=penalised,
            original=scaling is not None,
            classes=classes,
        )
        return Coefficients(tuple(row.to_json() for row in rows), note)

    def _evidence(self, weights: Array, survey: CurvatureSums) -> Evidence:
        penalty = self.flatten((np.full(weights.shape, survey.l2), np.zeros(len(weights))))
        residual = None
        if self.family.estimates_variance:  # the loss is half the squared residual
            residual = max(0.0, 2 * float(survey.arrays[0][0]) - survey.l2 * float(np.vdot(weights, weights)))
        return Evidence.of(survey.arrays, penalty, survey.examples, residual)

    def _output_names(self) -> Sequence[str]:
        return self.schema.classes[1:] or (self.schema.label,)


class GeneralizedLinearClient(NumPyClient):
    """One data owner of a `GeneralizedLinearTask`. `FitConfig` says what the config of `fit` holds."""

    def __init__(self, task: GeneralizedLinearTask, shard: Shard) -> None:
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
        solver = SOLVERS[asked.solver]
        if asked.record is not None:  # here sgd and gd are one, and there are no others
            return self.task.unflatten(private_descent(objective, theta, asked, asked.record, self.task.entropy))
        new = solver(objective, theta, asked)
        if not asked.correction:
            return self.task.unflatten(new)
        mean = mean_gradient(objective, theta, new, asked) - slope
        return *self.task.unflatten(new), *self.task.unflatten(mean)

    def evaluate(self, parameters: list[Array], config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """The mean loss on the test rows (nan without any), their number, and the metric sums."""
        with np.errstate(over="ignore", invalid="ignore"):
            sums = self.task.measure(tuple(parameters), self.shard.test)
        return self.task.mean_loss(sums), len(self.shard.test), {**sums}


def _curvature(objective: Objective, theta: Array) -> Arrays:
    """F, its gradient and the upper triangle of its Hessian."""
    hessian = objective.hessian(theta)
    return np.array([objective.value(theta)]), objective.gradient(theta), hessian[np.triu_indices(theta.size)]
