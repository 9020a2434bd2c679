"""Aggregates for participants that lie rather than fail: what a few clients make up moves them no further than a bound.

They compare the clients' updates before they put them together, so nodes may not fold and pipelines may not seal. Who
lies about its update can lie about its rows too, so all of them weigh clients alike unless they are told otherwise. A
node that hosts several clients can lie for each of them: it counts as that many liars.

Every result is the same to the bit whatever the order of the replies and the spread of clients over nodes: updates are
sorted by client before anything is computed, in float64.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation import Aggregator, Fold, WeightedMean
from strategies.transforms.clipping import check_clip_norm, norm
from strategies.update import Arrays, ExactSum, FixedPoint, InvalidUpdate, Update, check_magnitude

Table = NDArray[np.float64]

TABLE_SIZE = 1 << 16  # elements of a block of all clients: half a MB, which stays in the processor's cache


class Comparing(Aggregator):
    """An aggregate of updates that are compared with each other.

    The server holds all updates of a round, where a mean holds one sum: the number of clients in the cohort times the
    size of the model. They are put together in blocks of coordinates, which take a few MB besides.
    """

    needs_each = True
    divisor_is_public = False

    def start(self, grid: FixedPoint) -> Fold:
        """No updates."""
        return _Collected(self, grid)

    @abstractmethod
    def combine(self, updates: Sequence[Update], grid: FixedPoint) -> Update:
        """The aggregate in float64, of `fewest` updates or more, sorted by client; its `clients` are those in it."""

    def finish(self, total: Update, grid: FixedPoint) -> Arrays:
        """It is finished."""
        return total.arrays


class _Collected:
    """The updates of a round, each by itself, until the last is in."""

    def __init__(self, aggregator: Comparing, grid: FixedPoint) -> None:
        self._aggregator, self._grid = aggregator, grid
        self._updates: list[Update] = []

    def add(self, update: Update) -> None:
        """Raises InvalidUpdate for a sum of several, and for a value that is not finite or out of range."""
        _check_single(update)
        check_magnitude(update.arrays)
        self._updates.append(replace(update, arrays=tuple(np.asarray(array, order="C") for array in update.arrays)))

    def __len__(self) -> int:
        return len(self._updates)

    def total(self) -> Update:
        """The aggregate; without arrays where there are too few updates for one, as the round then does not count."""
        updates = sorted(self._updates, key=lambda update: update.clients)
        if len(updates) < max(1, self._aggregator.fewest):
            return _about(updates, self._grid)
        return self._aggregator.combine(updates, self._grid)


def _check_single(update: Update) -> None:
    if update.on_grid or len(update.clients) != 1:
        raise InvalidUpdate("keys", "a sum of updates, where each client's own was asked for")


def _about(updates: Sequence[Update], grid: FixedPoint) -> Update:
    """All that the updates say together besides their arrays."""
    total = ExactSum(grid)
    for update in updates:
        total.add(replace(update, arrays=()))
    return replace(total.total(), on_grid=False)


# ------------------------------------------------------------------------------------------- coordinate by coordinate


def _coordinatewise(rule: Callable[[Table], Table], updates: Sequence[Update]) -> Arrays:
    """rule: (n, b) -> (b,), for b coordinates of n updates; it may write into what it gets."""
    result = tuple(np.empty(array.shape) for array in updates[0].arrays)
    for index, array in enumerate(result):
        flat = array.reshape(-1)
        for start, table in _blocks([update.arrays[index] for update in updates]):
            flat[start : start + table.shape[1]] = rule(table)
    return result


def _blocks(arrays: Sequence[NDArray[Any]]) -> Iterator[tuple[int, Table]]:
    """Where a block of coordinates starts, and what n arrays of one shape hold there, (n, b), valid until the next."""
    rows = [array.reshape(-1) for array in arrays]
    width = max(1, TABLE_SIZE // len(rows))
    table = np.empty((len(rows), min(width, rows[0].size)))
    for start in range(0, rows[0].size, width):
        block = table[:, : min(width, rows[0].size - start)]
        for row, values in zip(block, rows, strict=True):
            row[:] = values[start : start + width]
        yield start, block


@dataclass(frozen=True)
class TrimmedMean(Comparing):
    """In every coordinate the mean of what is left without the k largest and the k smallest values (Yin et al. 2018,
    arXiv:1803.01498).

    k is `share` of the n clients, rounded up, as long as one value or two are left: a share of 1/2 gives the
    coordinate-wise median. While at most k clients lie, every coordinate is within the range of the honest ones.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 0.5:
            raise ValueError(f"trimmed={self.share:g}: expected from 0 to 0.5, which is the median")

    def cut(self, n: int) -> int:
        """How many of n values are left out at each end."""
        return min(ceil(round(self.share * n, 9)), (n - 1) // 2)  # 0.07 * 100 is 7, which floats do not know

    def combine(self, updates: Sequence[Update], grid: FixedPoint) -> Update:
        """Of all clients."""
        cut, stop = self.cut(len(updates)), len(updates) - self.cut(len(updates))

        def rule(table: Table) -> Table:
            table.sort(axis=0)
            return np.asarray(table[cut:stop].mean(axis=0))

        return replace(_about(updates, grid), arrays=_coordinatewise(rule, updates))


# -------------------------------------------------------------------------------------------------- the nearest ones


@dataclass(frozen=True)
class Krum(Comparing):
    """The mean of the updates that have the nearest neighbours (multi-Krum; Blanchard et al. 2017, arXiv:1703.02757).

    With n updates of which f = `liars` may lie, the score of one is the sum of its squared distances to the n - f - 2
    others nearest to it; the `kept` of lowest score are averaged, ties going to the client of the lower name. kept = 1
    is Krum, 0 stands for n - f - 2, the most for which its resilience is proved (Damaskinos et al. 2019, AggregaThor).

    Takes n (n - 1) / 2 distances. They are computed from differences, not from inner products, whose rounding a liar
    with large values could make larger than the distances of the others.
    """

    liars: int
    kept: int = 0

    def __post_init__(self) -> None:
        if self.liars < 0:
            raise ValueError(f"liars={self.liars}: expected at least 0")
        if self.kept < 0:
            raise ValueError(f"kept={self.kept}: expected at least 1, or 0 for as many as liars allow")

    @property
    def fewest(self) -> int:
        """2f + 3, and as many as leave `kept` of n - f - 2."""
        return max(2 * self.liars + 3, self.kept + self.liars + 2)

    def combine(self, updates: Sequence[Update], grid: FixedPoint) -> Update:
        """Of the clients that were kept; the metrics are those of all."""
        near = len(updates) - self.liars - 2
        best = np.argsort(scores(updates, near), kind="stable")[: self.kept or near]
        kept = [updates[index] for index in sorted(best)]
        return replace(
            _about(updates, grid),
            arrays=_coordinatewise(lambda table: np.asarray(table.mean(axis=0)), kept),
            clients=tuple(client for update in kept for client in update.clients),
            weight=sum(update.weight for update in kept),
        )


def scores(updates: Sequence[Update], near: int) -> NDArray[np.float64]:
    """Of each update the sum of its squared L2 distances to the `near` others that are nearest: (n,)."""
    distances = np.zeros((len(updates), len(updates)))
    for arrays in zip(*(update.arrays for update in updates), strict=True):
        for _, table in _blocks(arrays):
            for index in range(len(updates) - 1):
                differences = table[index + 1 :] - table[index]
                distances[index, index + 1 :] += np.square(differences, out=differences).sum(axis=1)
    distances += distances.T
    np.fill_diagonal(distances, np.inf)
    distances.sort(axis=1)
    return np.asarray(distances[:, :near].sum(axis=1))


# -------------------------------------------------------------------------------------------------- bounded in length


@dataclass(frozen=True)
class NormBound(Aggregator):
    """The weighted mean of updates that are clipped to an L2 norm, by the server (Sun et al. 2019, arXiv:1911.07963).

    A liar moves the mean by no more than its share of the weights times twice the norm. The sum is exact, and one sum
    is all that is held.
    """

    clip_norm: float

    needs_each = True
    divisor_is_public = False

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)

    def start(self, grid: FixedPoint) -> Fold:
        """An empty exact sum of clipped updates."""
        return _ClippedSum(self.clip_norm, grid)

    def finish(self, total: Update, grid: FixedPoint) -> Arrays:
        """Divides once, by the total weight."""
        return WeightedMean().finish(total, grid)


class _ClippedSum:
    """An exact sum of updates, each clipped as it comes."""

    def __init__(self, bound: float, grid: FixedPoint) -> None:
        self._bound, self._sum = bound, ExactSum(grid)

    def add(self, update: Update) -> None:
        """Raises InvalidUpdate for a sum of several, and for a value that is not finite or out of range."""
        _check_single(update)
        check_magnitude(update.arrays)
        self._sum.add(_clipped(update, norm(update.arrays), self._bound))

    def __len__(self) -> int:
        return len(self._sum)

    def total(self) -> Update:
        """The sum."""
        return self._sum.total()


class MedianNormBound(Comparing):
    """`NormBound` with the median of the norms of the round's updates as the norm.

    It needs no tuning and follows the updates as they become shorter. While fewer than half of the clients lie it is no
    longer than the longest honest update.
    """

    def combine(self, updates: Sequence[Update], grid: FixedPoint) -> Update:
        """Of all clients; half of the honest ones are clipped too."""
        norms = [norm(update.arrays) for update in updates]
        total = ExactSum(grid)
        for update, length in zip(updates, norms, strict=True):
            total.add(_clipped(update, length, float(np.median(norms))))
        return replace(total.total(), arrays=WeightedMean().finish(total.total(), grid), on_grid=False)


def _clipped(update: Update, length: float, bound: float) -> Update:
    """In float64, up to whose rounding it is no longer than the bound."""
    if length <= bound:
        return update
    return replace(update, arrays=tuple(np.asarray(array * np.float64(bound / length)) for array in update.arrays))
