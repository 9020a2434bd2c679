"""What a task is: a model, how a client trains it, and what is measured about it.

A task knows nothing of rounds, servers or the wire. It turns the rows of one client into a `NumPyClient`, and metric
sums into means. Parameters are a tuple of arrays in the order of `Task.array_names`.

A strategy may ask more of fit than training, by a key of the fit config. A task lists in `fit_options` which of these
keys its clients support:

`proximal-mu` (float): mu/2 ||w - w_0||^2 is added to the objective, over all parameters; w_0 are the received ones.
`correction` (bool): fit receives the params, and behind them as many arrays again, h, of the same shapes and dtypes.
    Every step goes along gradient + h. fit returns the new params, and behind them as many arrays again: the mean over
    its steps of the gradients without h. After K steps of rate r from x to y that mean is (x - y) / (K r) - h. It is
    zeros for a parameter that is not trained by gradients. `FitConfig.split` takes params and h apart. evaluate
    receives the params alone.
`record-clip-norm`, `record-noise-multiplier`, `record-rate` (float, all or none), `record-rows` (int): every single row
    is protected (tasks/dp_sgd.py). A step draws each training row independently with probability record-rate. The
    gradient of the loss of each drawn row, over all that is trained, is clipped to the norm. To the sum of these
    gradients Gaussian noise is added, of standard deviation multiplier * norm in every coordinate. The result is
    divided by record-rate * record-rows (where that key is missing or 0, by record-rate times the client's own number
    of rows, which then is public), and the gradients of penalties are added. Sampling and noise come from the operating
    system. There are local-steps steps, or local-epochs * ceil(1 / record-rate). batch-size is not used.

A model may have arrays that do not travel. The task then *holds* them (`Task.holding`), the same in every process:

`frozen_names`: arrays that are neither trained nor sent.
`personal_names`: arrays of which every client trains its own. They stay on the client's node, which keeps them from
    round to round; the task holds the values that they begin with. The client object has an attribute `state`, which
    is set before fit and evaluate: to the client's own arrays, or to () where they still have the first values. fit
    leaves the trained ones there. Both measure the model with the ones that they found. The params that fit receives
    and returns, and corrections, do not contain them; a proximal term pulls them to where they began the round.
    Wherever a task takes the arrays of a model, the personal ones may stand behind the others; where they are left
    out, they have the first values.
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
"""A constructor parameter of this type names a Python object as `module:attribute`. In a simulation the module may also
lie in the folder from which the run is started."""


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
    """The names of a model's columns. `classes` are those of the label, in the order of their indices; () for numbers.

    shift, scale: a label that is a number has had `shift` subtracted and was then divided by `scale`.
    """

    features: tuple[str, ...]
    label: str
    classes: tuple[str, ...] = ()
    shift: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class CurvatureSums:
    """Objective, gradient and Hessian (`strategies.work.Curvature`), averaged over the `examples` rows of all clients.

    l2: the weight of the L2 penalty that they include.
    """

    arrays: Arrays
    examples: int
    l2: float


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The coefficients of a linear model, one row for each, and a note for their reader; both go into model.json."""

    rows: tuple[dict[str, Any], ...]
    note: str


class KeepsState(Protocol):
    """What a client of a task with personal arrays has, besides being a NumPyClient."""

    state: Arrays


class Task(ABC):
    """A model to be learned from rows that stay where they are.

    Further constructor parameters of a subclass are keyword-only; they are what a run sets with `task-args`.
    """

    target: ClassVar[Target] = "class"
    """Whether it predicts a class or a number."""
    schema: Schema
    array_names: tuple[str, ...]
    """Names of the parameter arrays, in order."""
    frozen_names: tuple[str, ...] = ()
    """Names of the arrays that are neither trained nor sent."""
    personal_names: tuple[str, ...] = ()
    """Names of the arrays that stay at each client."""
    statistics_names: tuple[str, ...] = ()
    """Names of the params that are statistics of rows and not trained, as those of batch normalisation."""
    held: Arrays = ()
    """The arrays of `held_names`."""
    fit_options: tuple[str, ...] = ()
    """Which of the keys above its clients support: `proximal-mu`, `correction`, the `record-` ones."""
    metric_names: tuple[str, ...]
    """Names of the sums that `measure` returns, and so fit and evaluate of the clients."""

    reports: tuple[str, ...]
    """Names of the metrics that `summarise` gives."""
    server_reports: tuple[str, ...] = ()
    """Names of further metrics that `evaluate` gives, on rows that lie in one place."""
    metric_ranges: Mapping[str, tuple[float, float]] = MappingProxyType({})
    """The metrics that `measure_rows` gives, each with its least and greatest value: where metrics are released with
    noise, the value of a row is clipped to this range. It follows from what is declared, never from rows."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    @classmethod
    def wants(cls, arguments: Mapping[str, str]) -> Target:
        """Whether a label that can be read either way is to be read as classes or as numbers.

        Asked before the task is built; `arguments` are the run's task-args.
        """
        return cls.target

    @abstractmethod
    def initial_arrays(self, seed: int) -> Arrays:
        """The parameters that training starts from. They depend on the task and `seed` alone."""

    @property
    def held_names(self) -> tuple[str, ...]:
        """Names of the arrays that do not travel: first the frozen ones, then the personal ones."""
        return self.frozen_names + self.personal_names

    @property
    def personal_start(self) -> Arrays:
        """The first values of the personal arrays."""
        return self.held[len(self.frozen_names) :]

    def initial_held(self, seed: int) -> Arrays:
        """The first values of the arrays that do not travel. They depend on the task and `seed` alone."""
        return ()

    def holding(self, held: Arrays) -> "Task":
        """A copy of this task that holds other values of the arrays that do not travel."""
        if held:
            raise NotImplementedError(f"{type(self).__name__} holds no arrays")
        return self

    @abstractmethod
    def make_client(self, shard: Shard) -> "NumPyClient":
        """The Flower client of one data owner. Its fit and evaluate never write to what they receive."""

    def fits_many(self, config: Config) -> bool:
        """Whether clients are trained by `fit_many` under this fit config. Depends on the task and the config alone.

        A subclass whose clients train in another way has to override `fit_many` as well, or return False here.
        """
        return False

    def fit_many(
        self, params: Arrays, shards: Sequence[Shard], config: Config, seeds: Sequence[int]
    ) -> Sequence[Fit | Exception]:
        """Train many clients at once: for each, what its fit would return or raise.

        All start from `params`; `seeds` holds the `seed` of each client's fit config. Arrays equal those of fit to
        1e-5. What one client gets is the same to the bit, whichever other clients are trained with it. Never called
        with corrections or for a model with personal arrays.
        """
        raise NotImplementedError(f"{type(self).__name__} trains one client at a time")

    def check_device(self, name: str, *, here: bool = False) -> None:
        """Raise ValueError for a value of the run's `device` that clients cannot train on.

        With `here` also for one that this machine does not have.
        """
        if name not in ("auto", "cpu"):
            raise ValueError("expected auto or cpu")

    @abstractmethod
    def check_config(self, config: Config) -> None:
        """Raise ValueError for a fit config that the clients would refuse. Called before a run starts."""

    @abstractmethod
    def measure(self, arrays: Arrays, rows: Rows) -> dict[str, float | int]:
        """Metric sums of the model over `rows`, one per name in `metric_names`.

        Sums over disjoint rows add up to the sum over all of them: counts are ints and add exactly.
        """

    def measure_rows(self, arrays: Arrays, rows: Rows) -> dict[str, NDArray[Any]]:
        """The metrics of each row, (n,) for each name of `metric_ranges`: of that row and the model alone."""
        return {}

    def check_sums(self, sums: Sums) -> None:
        """Raise ValueError for sums that no rows can have: they come from other machines.

        This class checks that the number of examples is a whole number from 0 on.
        """
        examples = sums.get("examples", 0)
        if examples < 0 or examples != int(examples):
            raise ValueError(f"examples={float(examples)}: expected a whole number from 0 on")

    @abstractmethod
    def summarise(self, sums: Sums) -> dict[str, float]:
        """Metrics from the sums over all clients; all nan where there are no examples."""

    def train_alone(self, rows: Rows, configs: Iterable[Config]) -> Arrays:
        """The model trained on rows that lie in one place: the baseline that a federated model is compared with.

        `configs` are the fit configs of the run, round by round. This class trains as the only client of a federation
        would, and returns the params with the personal arrays behind them. Raises whatever fit raises; the run then
        has no such baseline.
        """
        arrays = self.initial_arrays(0)
        client = self.make_client(Shard("alone", rows, rows))
        for config in configs:
            arrays = tuple(client.fit(list(arrays), dict(config))[0])
        return (*arrays, *cast(KeepsState, client).state) if self.personal_names else arrays

    def predict(self, arrays: Arrays, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """For rows x (n, d): class indices (n,) and the probability of every class (n, K), or numbers (n,) and None.

        Raises NotImplementedError for a task that cannot predict.
        """
        raise NotImplementedError(f"{type(self).__name__} does not predict")

    def add_to_graph(self, arrays: Arrays, graph: "Graph", rows: str) -> str:
        """Add the model to a graph of ONNX operators (tasks/graph.py). Returns the name of the tensor with its output.

        `rows` is the name of the input tensor, (n, d) float64: the x that `predict` gets. The output holds either
        logits (n, K), whose softmax are the probabilities of `predict`; or numbers, (n,) or (n, 1), from which those of
        `predict` come by multiplying with the schema's scale and adding its shift. Raises NotImplementedError for a
        task that cannot be exported.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no add_to_graph")

    def calibration(self, arrays: Arrays, rows: Rows) -> tuple[float, float] | None:
        """(what the model predicts on average, what is observed): equal for a calibrated model.

        With two classes: the mean probability of the second class, and its share of the rows. With more: the mean
        probability of the predicted class, and the share of right predictions. None where it has no meaning, as for
        numbers.
        """
        return None

    def coefficients(
        self, arrays: Arrays, scaling: Scaling | None, survey: CurvatureSums | None
    ) -> Coefficients | None:
        """The coefficients of a linear model; None for any other model.

        They are in the units of the raw columns where `scaling`, (shift, scale) of the features, is known. With
        `survey` they have standard errors.
        """
        return None

    def evaluate(self, arrays: Arrays, rows: Rows) -> dict[str, float]:
        """Metrics of the model on rows that lie in one place: those of `summarise`, and those of `server_reports`."""
        return self.summarise(self.measure(arrays, rows))
