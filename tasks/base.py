"""What a task is: a model, how a client trains it, and what is measured about it.

A task knows nothing of rounds, servers or the wire. It turns the rows of one client into a `NumPyClient`, and metric
sums into means. Parameters are a tuple of arrays in the order of `Task.array_names`.

What strategies may ask of fit beside training, by a key of its config; a task names in `fit_options` those it heeds:

`proximal-mu` (float): the objective has mu/2 ||w - w_0||^2 added, over all parameters, w_0 being the received ones.
`correction` (bool): fit receives the params and then as many arrays again, h, of their shapes and dtypes. Every step
    goes along gradient + h. fit returns the new params and then, as many arrays again, the mean over its steps of the
    gradients without h. After K steps of rate r from x to y that is (x - y) / (K r) - h. A parameter that is not
    trained by gradients has zeros there. `FitConfig.split` takes the two apart. evaluate receives the params alone.
`record-clip-norm`, `record-noise-multiplier`, `record-rate` (float, all or none), `record-rows` (int): every row is
    protected (tasks/dp_sgd.py). A step takes each training row independently with probability record-rate; the gradient
    of the loss of each, over all that is trained, is clipped to the norm; to their sum comes Gaussian noise of standard
    deviation multiplier * norm in every coordinate; record-rate * record-rows divides it (without the key or at 0, the
    client's own number of rows, which then is public), and the gradients of penalties are added. Sampling and noise
    come from the operating system. Steps: local-steps, or local-epochs * ceil(1 / record-rate). batch-size is not used.

A model may have arrays that do not travel, which a task then *holds* (`Task.holding`), the same in every process:

`frozen_names`: neither trained nor sent.
`personal_names`: every client trains its own; they stay on its node, which keeps them from round to round. The task
    holds how they begin. The client has an attribute `state`, which is set before fit and evaluate: the client's own
    arrays, or () where they are as they begin. fit leaves the new ones there; both measure the model with those that
    they found. The parameters that come and go, and corrections, are without them; a proximal term pulls them to where
    they began the round. Wherever a task takes the arrays of a model, those of `personal_names` may stand behind the
    others; without them they are as they begin.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NewType, Protocol, cast

from numpy.typing import NDArray

if TYPE_CHECKING:
    from flwr.client import NumPyClient

    from tasks.graph import Graph

Arrays = tuple[NDArray[Any], ...]
Scalar = bool | bytes | float | int | str
Config = Mapping[str, Scalar]
Sums = Mapping[str, float | int | Fraction]
Fit = tuple[list[NDArray[Any]], int, dict[str, Scalar]]
"""What fit of a NumPyClient returns."""
Target = Literal["class", "number"]
Scaling = tuple[NDArray[Any], NDArray[Any]]


ObjectPath = NewType("ObjectPath", str)
"""A constructor parameter of this type names an object as module:attribute; a simulation also finds those in the folder
that it is started in."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples of one data owner.

    x: (n, d) float64 features. y: (n,) int64 class indices, or float64 targets for regression.
    """

    x: NDArray[Any]
    y: NDArray[Any]

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.y.shape != self.x.shape[:1]:
            raise ValueError(f"rows need x (n, d) and y (n,), got x {self.x.shape} and y {self.y.shape}")

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class Shard:
    """What one client holds: its rows to train on and its rows to test on."""

    client: str
    train: Rows
    test: Rows


@dataclass(frozen=True, slots=True)
class Schema:
    """What a table's columns are called. `classes` names the label's values in index order; empty for regression.

    shift, scale: what a label that is a number was shifted and divided by.
    """

    features: tuple[str, ...]
    label: str
    classes: tuple[str, ...] = ()
    shift: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class CurvatureSums:
    """Objective, gradient and Hessian as clients return them for `curvature`, averaged over `examples` rows.

    l2: the weight of the penalty that is in them.
    """

    arrays: Arrays
    examples: int
    l2: float


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Rows for model.json, and what their reader should know."""

    rows: tuple[dict[str, Any], ...]
    note: str


class KeepsState(Protocol):
    """What the client of a task with personal arrays is, besides a NumPyClient."""

    state: Arrays


class Task(ABC):
    """A model to be learned from rows that stay where they are.

    Further constructor parameters of a subclass are keyword-only; they are what a run sets with `task-args`.
    """

    target: ClassVar[Target] = "class"
    """What it predicts."""
    schema: Schema
    array_names: tuple[str, ...]
    """Names of the parameter arrays, in order."""
    frozen_names: tuple[str, ...] = ()
    """Names of the arrays that are neither trained nor sent."""
    personal_names: tuple[str, ...] = ()
    """Names of the arrays that stay at each client."""
    statistics_names: tuple[str, ...] = ()
    """Names of the params that are statistics of rows and not trained."""
    held: Arrays = ()
    """The arrays of `held_names`."""
    fit_options: tuple[str, ...] = ()
    """Which of these keys of a fit config its clients heed: `proximal-mu`, `correction`, the `record-` ones."""
    metric_names: tuple[str, ...]
    """Names of the sums that `measure`, and with it fit and evaluate of the clients, return."""

    reports: tuple[str, ...]
    """Names of the metrics that `summarise` gives."""
    server_reports: tuple[str, ...] = ()
    """Names of the metrics that `evaluate` gives besides, on rows held in one place."""
    metric_ranges: Mapping[str, tuple[float, float]] = MappingProxyType({})
    """Of the metrics that `measure_rows` gives: the least and the greatest value of a row that counts where they are
    released with noise. From what is declared, never from rows."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    @classmethod
    def wants(cls, arguments: Mapping[str, str]) -> Target:
        """What the label is to be, where data can be read either way: by the run's task-args, before it is built."""
        return cls.target

    @abstractmethod
    def initial_arrays(self, seed: int) -> Arrays:
        """The parameters that training starts from: a pure function of the task and `seed`."""

    @property
    def held_names(self) -> tuple[str, ...]:
        """Names of the arrays that do not travel: first the frozen ones, then the personal ones."""
        return self.frozen_names + self.personal_names

    @property
    def personal_start(self) -> Arrays:
        """How the personal arrays begin."""
        return self.held[len(self.frozen_names) :]

    def initial_held(self, seed: int) -> Arrays:
        """The arrays that do not travel, as they begin: a pure function of the task and `seed`."""
        return ()

    def holding(self, held: Arrays) -> "Task":
        """This task with other arrays that do not travel."""
        if held:
            raise NotImplementedError(f"{type(self).__name__} holds no arrays")
        return self

    @abstractmethod
    def make_client(self, shard: Shard) -> "NumPyClient":
        """The Flower client of one data owner. Its fit and evaluate never write to what they receive."""

    def fits_many(self, config: Config) -> bool:
        """Whether `fit_many` trains the clients under this fit config: a pure function of the task and the config.

        A subclass that changes what its clients do must change both, or give False.
        """
        return False

    def fit_many(
        self, params: Arrays, shards: Sequence[Shard], config: Config, seeds: Sequence[int]
    ) -> Sequence[Fit | Exception]:
        """What fit of each client would return, or raise, from the same params and with its own `seed` in the config.

        Equal to it to 1e-5. What one client gets is the same to the bit whoever else is there. Neither corrections nor
        personal arrays come here.
        """
        raise NotImplementedError(f"{type(self).__name__} trains one client at a time")

    def check_device(self, name: str, *, here: bool = False) -> None:
        """Refuse a value of the run's `device` that clients cannot train on; `here`: on this machine (ValueError)."""
        if name not in ("auto", "cpu"):
            raise ValueError("expected auto or cpu")

    @abstractmethod
    def check_config(self, config: Config) -> None:
        """Refuse, before a run starts, a fit config that the clients would refuse in every round (ValueError)."""

    @abstractmethod
    def measure(self, arrays: Arrays, rows: Rows) -> dict[str, float | int]:
        """Metric sums of the model over `rows`, one per name in `metric_names`.

        Sums over disjoint rows add up to the sum over all of them: counts are ints and add exactly.
        """

    def measure_rows(self, arrays: Arrays, rows: Rows) -> dict[str, NDArray[Any]]:
        """The metrics of each row, (n,) for each name of `metric_ranges`: of that row and the model alone."""
        return {}

    def check_sums(self, sums: Sums) -> None:
        """Refuse sums that no rows can give (ValueError): they come from elsewhere, and a mean is made of them.

        Here: a number of examples that is not a whole number from 0 on.
        """
        examples = sums.get("examples", 0)
        if examples < 0 or examples != int(examples):
            raise ValueError(f"examples={float(examples)}: expected a whole number from 0 on")

    @abstractmethod
    def summarise(self, sums: Sums) -> dict[str, float]:
        """Means from sums over all clients. The division is exact where the sums are; all nan with no examples."""

    def train_alone(self, rows: Rows, configs: Iterable[Config]) -> Arrays:
        """The model trained on rows held in one place: what a federated result is compared with.

        `configs` are the fit configs of the run, round by round. Here: as the only client of a federation, with its
        personal arrays behind the others. Raises whatever fit raises; a run then has no such baseline.
        """
        arrays = self.initial_arrays(0)
        client = self.make_client(Shard("alone", rows, rows))
        for config in configs:
            arrays = tuple(client.fit(list(arrays), dict(config))[0])
        return (*arrays, *cast(KeepsState, client).state) if self.personal_names else arrays

    def predict(self, arrays: Arrays, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """For rows x (n, d): class indices (n,) and the probability of every class (n, K), or numbers (n,) and None.

        Raises NotImplementedError for a task that cannot say.
        """
        raise NotImplementedError(f"{type(self).__name__} does not predict")

    def add_to_graph(self, arrays: Arrays, graph: "Graph", rows: str) -> str:
        """Write the model as ONNX operators (tasks/graph.py), for the tensor `rows` (n, d), float64, that predict gets.

        The name of the tensor that holds logits (n, K), whose softmax are the probabilities that `predict` gives; or
        numbers, (n,) or (n, 1), which times the schema's scale and plus its shift are what `predict` gives. Raises
        NotImplementedError for a task that cannot.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no add_to_graph")

    def calibration(self, arrays: Arrays, rows: Rows) -> tuple[float, float] | None:
        """What the model predicts on average, and what is: equal for a calibrated model. None where it has no meaning.

        Of two classes: the mean probability of the second one, and its share. Of more: the mean probability of the
        predicted class, and the share of right predictions.
        """
        return None

    def coefficients(
        self, arrays: Arrays, scaling: Scaling | None, survey: CurvatureSums | None
    ) -> Coefficients | None:
        """Of a linear model, in the units of the raw columns where `scaling` (shift, scale) is known; else None."""
        return None

    def evaluate(self, arrays: Arrays, rows: Rows) -> dict[str, float]:
        """Metrics of the model on rows held in one place: the means, and what no sum over clients can give."""
        return self.summarise(self.measure(arrays, rows))
