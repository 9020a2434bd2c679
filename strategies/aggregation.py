"""From the good updates of a round to one step for the server optimiser."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from strategies.update import Arrays, ExactSum, FixedPoint, Update


class Fold(Protocol):
    """A running aggregate of one round: clients' updates go in as they come.

    The strategy closes it with `total`, lets the pipeline open that, and hands it to `Aggregator.finish`.
    """

    def add(self, update: Update) -> None:
        """Take in one client's update or a partial sum. Raises InvalidUpdate and is then unchanged."""

    def total(self) -> Update:
        """Everything taken in; of an aggregator that needs each update, its aggregate already."""

    def __len__(self) -> int:
        """How many clients' updates it holds."""


class Aggregator(ABC):
    """A fold over updates."""

    needs_each: ClassVar[bool]  # sees every client's update: nodes must not fold, pipelines must not seal
    divisor_is_public: ClassVar[bool]  # False: the divisor depends on who replied and with how many rows

    @property
    def fewest(self) -> int:
        """The fewest updates that can be aggregated, whatever min-clients says."""
        return 0

    @abstractmethod
    def start(self, grid: FixedPoint) -> Fold:
        """An empty aggregate."""

    @abstractmethod
    def finish(self, total: Update, grid: FixedPoint) -> Arrays:
        """The aggregate in float64."""


class WeightedMean(Aggregator):
    """sum(w_i x_i) / sum(w_i) over the clients whose updates were good."""

    needs_each = False
    divisor_is_public = False

    def start(self, grid: FixedPoint) -> ExactSum:
        """An empty exact sum."""
        return ExactSum(grid)

    def finish(self, total: Update, grid: FixedPoint) -> Arrays:
        """Divides once, by the total weight."""
        return tuple(grid.to_float(array, total.weight) for array in total.arrays)


@dataclass(frozen=True)
class FixedDivisor(Aggregator):
    """sum(w_i x_i) / divisor. The divisor is fixed before the round: a client that does not answer counts as zero."""

    divisor: float

    needs_each = False
    divisor_is_public = True

    def start(self, grid: FixedPoint) -> ExactSum:
        """An empty exact sum."""
        return ExactSum(grid)

    def finish(self, total: Update, grid: FixedPoint) -> Arrays:
        """Divides once."""
        return tuple(grid.to_float(array, self.divisor) for array in total.arrays)
