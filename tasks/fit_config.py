"""What a client is asked to do in one round: the fit config that the server sends, read and checked once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from numpy.typing import NDArray

from tasks.base import Arrays, Config
from tasks.dp_sgd import RecordPrivacy
from tasks.suggest import unknown

Solver = Literal["sgd", "gd", "lbfgs", "newton", "adam", "adamw"]
Work = Literal["train", "gradient", "curvature"]

T = TypeVar("T", bound=str)

SMOOTH_SOLVERS: frozenset[str] = frozenset({"lbfgs", "newton"})
"""The solvers that need a gradient everywhere, which |w| does not have at 0."""
GRADIENT_SOLVERS: frozenset[str] = frozenset({"sgd", "gd"})
"""The solvers whose every step is minus the learning rate times a gradient."""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """One client's work in one round.

    `learning_rate` is that of this round, after its schedule. `seed` already belongs to this run, round and client. A
    `batch_size` of 0 is the whole shard. `local_steps` above 0 counts mini-batches (sgd) or iterations (the other
    solvers) and then `local_epochs` is not used; an epoch of a solver other than sgd is one iteration.

    `proximal_mu` adds mu/2 ||w - w_0||^2 to the objective, over all parameters and from the received ones (FedProx).
    `correction`: to the gradient of every step is added what came with the params; see `split` and tasks/base.py.
    `record`: every step protects each row (tasks/dp_sgd.py); the batch size is then not used.
    """

    solver: Solver
    local_epochs: int
    local_steps: int
    batch_size: int
    learning_rate: float
    l1: float
    l2: float
    seed: int
    work: Work = "train"
    metrics: bool = False
    proximal_mu: float = 0.0
    correction: bool = False
    device: str = "auto"
    threads: int = 1
    record: RecordPrivacy | None = None

    def __post_init__(self) -> None:
        if self.local_steps == 0 and self.local_epochs < 1:
            raise ValueError("local-epochs is 0 and local-steps is 0: set one of them to at least 1")
        if self.l1 and self.work == "curvature":
            raise ValueError(f"l1 is {self.l1}, but |w| has no curvature at 0: set l1=0, or use another strategy")
        if self.l1 and self.work == "train" and self.solver in SMOOTH_SOLVERS:
            raise ValueError(f"l1 is {self.l1}, which solver {self.solver!r} cannot do: set l1=0, or solver=gd or sgd")
        if self.record is not None:
            self._check_record()
        if self.correction and self.solver not in GRADIENT_SOLVERS:
            raise ValueError(f"solver {self.solver!r} takes steps that cannot be corrected: set solver=sgd or gd")
        if self.correction and not self.learning_rate:
            raise ValueError("learning-rate is 0, which gives no gradient to correct the next steps by: set it above 0")
        if self.solver in GRADIENT_SOLVERS and self.learning_rate * self.proximal_mu >= 2:
            raise ValueError(
                f"proximal-mu {self.proximal_mu:g} times learning-rate {self.learning_rate:g} is 2 or more, at which"
                " gradient steps move away from the received params: lower one of them"
            )

    def _check_record(self) -> None:
        """Refuse what would release more of the rows than the steps of DP-SGD do."""
        if self.work != "train":
            raise ValueError(f"work {self.work!r} has no record-level privacy: use a strategy that trains")
        if self.solver in SMOOTH_SOLVERS:
            raise ValueError(f"solver {self.solver!r} has no record-level privacy: set solver=sgd")
        if self.correction:
            raise ValueError("a strategy that corrects gradients has no record-level privacy: use another one")

    @classmethod
    def read(cls, config: Config) -> "FitConfig":
        """Read a fit config (keys in kebab case); keys that are not this class's are left to others.

        Raises ValueError, naming the key, for one that is missing, of another type or out of range. Those after
        `seed` may be absent.
        """
        optional = {"work": "train", "proximal-mu": 0.0, "threads": 1, **config}
        return cls(
            solver=_choice(config, "solver", get_args(Solver)),
            local_epochs=_count(config, "local-epochs"),
            local_steps=_count(config, "local-steps"),
            batch_size=_count(config, "batch-size"),
            learning_rate=_real(config, "learning-rate"),
            l1=_real(config, "l1"),
            l2=_real(config, "l2"),
            seed=_count(config, "seed"),
            work=_choice(optional, "work", get_args(Work)),
            metrics=bool(config.get("metrics", False)),
            proximal_mu=_real(optional, "proximal-mu"),
            correction=bool(config.get("correction", False)),
            device=str(config.get("device", "auto")),
            threads=_count(optional, "threads"),
            record=RecordPrivacy.read(config),
        )

    def split(self, parameters: Sequence[NDArray[Any]]) -> tuple[Arrays, Arrays]:
        """What fit received as params and their correction, which is empty where none was sent."""
        if not self.correction:
            return tuple(parameters), ()
        half, odd = divmod(len(parameters), 2)
        if odd:
            raise ValueError(f"{len(parameters)} arrays: with a correction there is one more for each of the params")
        return tuple(parameters[:half]), tuple(parameters[half:])

    def iterations(self, batches_per_epoch: int = 1) -> int:
        """How many steps of a solver this is."""
        return self.local_steps or self.local_epochs * batches_per_epoch


def _get(config: Config, key: str) -> object:
    if key not in config:
        raise ValueError(f"the fit config lacks {key!r}: the strategy must send it in every round")
    return config[key]


def _choice(config: Config, key: str, known: tuple[T, ...]) -> T:
    value = _get(config, key)
    for choice in known:
        if value == choice:
            return choice
    raise ValueError(unknown(key, str(value), known))


def _count(config: Config, key: str) -> int:
    value = _get(config, key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} must be a whole number of 0 or more, got {value!r}")
    return value


def _real(config: Config, key: str) -> float:
    value = _get(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{key} must be a finite number of 0 or more, got {value!r}")
    return float(value)
