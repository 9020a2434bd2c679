"""When a run is over before its last round. A rule reads the history and answers with a reason, or None."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from strategies.history import RoundReport

StopReason = Literal["rounds", "converged", "target", "patience", "budget"]

# Metrics of which less is better; of all others more is.
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "mse", "mae", "loss"})


class StopRule(ABC):
    """Reads the history, never the data."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The metrics it looks at; one without a name is whichever the task reports first."""
        return ()

    @abstractmethod
    def __call__(self, history: Sequence[RoundReport]) -> StopReason | None:
        """The reason to stop after the last round of `history`, or None to go on."""


@dataclass(frozen=True)
class Rounds(StopRule):
    """Run all rounds."""

    def __call__(self, history: Sequence[RoundReport]) -> StopReason | None:
        """Never stops."""
        return None


@dataclass(frozen=True, kw_only=True)
class Converged(StopRule):
    """Stop when params and loss have settled.

    Args:
        tolerance: largest relative change of the params and of the loss that counts as none
        rounds: how many rounds in a row
        loss: the metric that is the loss; empty = the first that the task reports
    """

    tolerance: float = 1e-6
    rounds: int = 3
    loss: str = ""

    def __post_init__(self) -> None:
        _require(self.tolerance > 0, "tolerance", self.tolerance, "above 0")
        _require(self.rounds >= 1, "rounds", self.rounds, "at least 1")

    @property
    def reads(self) -> tuple[str, ...]:
        """The loss."""
        return (self.loss,)

    def __call__(self, history: Sequence[RoundReport]) -> StopReason | None:
        """Stops once both have stayed within the tolerance `rounds` times in a row."""
        if len(history) <= self.rounds:
            return None
        recent = history[-self.rounds - 1 :]
        settled = all(self._settled(a, b) for a, b in pairwise(recent))
        return "converged" if settled else None

    def _settled(self, before: RoundReport, after: RoundReport) -> bool:
        name = self.loss or _first_loss([after])
        old, new = before.metric(name), after.metric(name)
        if old is None or new is None:
            return False
        return after.params_change <= self.tolerance and abs(new - old) <= self.tolerance * max(abs(old), 1e-12)


@dataclass(frozen=True, kw_only=True)
class Target(StopRule):
    """Stop when a metric reaches a value.

    Args:
        metric: name of the metric; empty = the first that the task reports
        value: the value to reach (from below; from above for a loss)
    """

    metric: str = ""
    value: float

    @property
    def reads(self) -> tuple[str, ...]:
        """The metric."""
        return (self.metric,)

    def __call__(self, history: Sequence[RoundReport]) -> StopReason | None:
        """Stops at the first round whose metric is at least (for a loss: at most) the value."""
        name = self.metric or next(_reported(history[-1]), "")
        reached = history[-1].metric(name)
        if reached is None:
            return None
        good = reached <= self.value if name in LOWER_IS_BETTER else reached >= self.value
        return "target" if good else None


@dataclass(frozen=True, kw_only=True)
class Patience(StopRule):
    """Stop when a metric has not improved for some rounds.

    Args:
        metric: name of the metric; empty = the first loss that the task reports
        rounds: how many rounds without improvement
        min_delta: the least change that counts as improvement
    """

    metric: str = ""
    rounds: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        _require(self.min_delta >= 0, "min-delta", self.min_delta, "at least 0")

    @property
    def reads(self) -> tuple[str, ...]:
        """The metric."""
        return (self.metric,)

    def __call__(self, history: Sequence[RoundReport]) -> StopReason | None:
        """Stops `rounds` rounds after the best one."""
        name = self.metric or _first_loss(history)
        sign = 1.0 if name in LOWER_IS_BETTER else -1.0
        best, best_round = float("inf"), 0
        known = [(report.round, report.metric(name)) for report in history]
        for number, value in known:
            if value is not None and sign * value < best - self.min_delta:
                best, best_round = sign * value, number
        return "patience" if best_round and history[-1].round - best_round >= self.rounds else None


def _reported(report: RoundReport) -> Iterator[str]:
    """The names of its metrics, in the task's order."""
    return iter(report.metrics or report.train_metrics or ())


def _first_loss(history: Iterable[RoundReport]) -> str:
    """The first metric of these rounds of which less is better; empty where there is none."""
    names = (name for report in history for name in _reported(report))
    return next((name for name in names if name in LOWER_IS_BETTER), "")


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value}: expected {expected}")
