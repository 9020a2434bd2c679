"""What a client contributes to a round, and sums of it that are exact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, log2
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray[Any], ...]
Template = tuple[tuple[tuple[int, ...], np.dtype[np.generic]], ...]
"""Shapes and dtypes of arrays."""

DropReason = Literal[
    "raised",
    "timeout",
    "late",
    "non-finite",
    "shape",
    "dtype",
    "keys",
    "metrics",
    "weight",
    "declined",
    "decode",
    "memory",
]
DROP_REASONS: tuple[DropReason, ...] = get_args(DropReason)

NO_METRICS: Mapping[str, Fraction] = MappingProxyType({})


class InvalidUpdate(ValueError):
    """An update that must not enter the sum. `reason` is one of DROP_REASONS; the text is for the log of the
    process that found it and never travels, since it may quote data."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DropReason = reason


@dataclass(frozen=True, slots=True)
class Update:
    """A contribution to a round: one client's, or the sum of several.

    `arrays` hold the contribution itself (a delta, a statistic, or the encoding of one). With `on_grid`, which a sum
    always is, they hold weight * contribution as int64 multiples of the round's `FixedPoint` step.
    """

    arrays: Arrays
    clients: tuple[str, ...]
    weight: int = 1
    num_examples: int = 0
    # Sums over examples. Fractions make them exact: a float is a dyadic rational, and rationals add without rounding.
    metric_sums: Mapping[str, Fraction] = field(default_factory=lambda: NO_METRICS)
    payload_bytes: int = 0
    on_grid: bool = False


# No element of a contribution may reach 2**20. With weighted values in 62 bits, the mean of m clients then carries
# an error of at most m * 2**-42 if the weight bound is tight (2e-12 for 10 clients), whatever the weights are.
MAGNITUDE_BITS = 20
BLOCK = 1 << 15  # elements converted at a time: the temporaries stay in the processor's cache


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """The grid of a round: integers that stand for multiples of 2**-fraction_bits.

    Floating-point addition depends on its order, integer addition does not: on the grid a sum is the same to the bit
    however the clients are spread over nodes and in whichever order the replies come.
    """

    fraction_bits: int

    @classmethod
    def for_weight(cls, weight_bound: int) -> "FixedPoint":
        """The finest grid on which contributions of total weight `weight_bound` cannot overflow an int64."""
        return cls(62 - MAGNITUDE_BITS - weight_bound.bit_length())

    @classmethod
    def for_reach(cls, reach: float) -> "FixedPoint":
        """The finest grid on which sums whose elements stay below `reach` cannot overflow an int64."""
        return cls(62 - ceil(log2(reach)))

    def add_weighted(self, total: NDArray[np.int64], values: NDArray[Any], weight: int) -> None:
        """total += rint(values * weight * 2**fraction_bits), in place; both C-contiguous and of one shape.

        The caller has checked the values with `check_magnitude`.
        """
        scale = weight * 2.0**self.fraction_bits
        flat_total, flat_values = total.reshape(-1), values.reshape(-1)
        for start in range(0, flat_values.size, BLOCK):
            stop = start + BLOCK
            scaled = flat_values[start:stop] * np.float64(scale)
            np.rint(scaled, out=scaled)
            flat_total[start:stop] += scaled.astype(np.int64)

    def check_sum(self, arrays: Arrays, weight: int, clients: int) -> None:
        """Refuse sums that no good updates of this total weight can have. Raises InvalidUpdate("non-finite")."""
        limit = weight * 2.0 ** (MAGNITUDE_BITS + self.fraction_bits) + clients  # each rounding adds at most 1/2
        if any(array.size and max(int(array.max()), -int(array.min())) > limit for array in arrays):
            raise InvalidUpdate("non-finite", f"a sum of weight {weight} beyond its range")

    def to_float(self, total: NDArray[np.int64], divisor: float) -> NDArray[np.float64]:
        """total * 2**-fraction_bits / divisor in float64: the only division of a round."""
        return np.asarray(total * np.float64(2.0**-self.fraction_bits) / divisor, np.float64)


def check_magnitude(arrays: Arrays) -> None:
    """Refuse arrays with a NaN, an infinity or an element of 2**MAGNITUDE_BITS or more.

    Raises InvalidUpdate("non-finite").
    """
    for index, array in enumerate(arrays):
        if array.size == 0:
            continue
        # Comparisons with NaN are false, so one test covers NaN, infinity and size.
        if not max(float(array.max()), -float(array.min())) < 2**MAGNITUDE_BITS:
            raise InvalidUpdate(
                "non-finite",
                f"array {index} holds a NaN, an infinity or a value of {2**MAGNITUDE_BITS} or more"
                " (standardised features and a smaller learning-rate keep values small)",
            )


class ExactSum:
    """A running sum of updates on the grid. Adding commutes and associates exactly.

    Holds one int64 array per array of the model, however many updates come.
    """

    def __init__(self, grid: FixedPoint) -> None:
        self._grid = grid
        self._totals: tuple[NDArray[np.int64], ...] | None = None
        self._clients: list[str] = []
        self._weight = 0
        self._num_examples = 0
        self._payload_bytes = 0
        self._metric_sums: dict[str, Fraction] = {}

    def add(self, update: Update) -> None:
        """Add one client's update, or a sum. The update is checked whole before anything is added.

        Raises InvalidUpdate for a value that is not finite or out of range.
        """
        if not update.on_grid:
            check_magnitude(update.arrays)
        if self._totals is None:
            self._totals = tuple(np.zeros(array.shape, np.int64) for array in update.arrays)
        for total, array in zip(self._totals, update.arrays, strict=True):
            if update.on_grid:
                np.add(total, array, out=total)
            else:
                self._grid.add_weighted(total, np.asarray(array, order="C"), update.weight)
        self._clients.extend(update.clients)
        self._weight += update.weight
        self._num_examples += update.num_examples
        self._payload_bytes += update.payload_bytes
        for name, value in update.metric_sums.items():
            self._metric_sums[name] = self._metric_sums.get(name, Fraction(0)) + value

    def __len__(self) -> int:
        """How many clients' updates are in the sum."""
        return len(self._clients)

    def total(self) -> Update:
        """The sum so far. Its arrays are the accumulator itself: add nothing afterwards."""
        return Update(
            arrays=self._totals or (),
            clients=tuple(self._clients),
            weight=self._weight,
            num_examples=self._num_examples,
            metric_sums=self._metric_sums,
            payload_bytes=self._payload_bytes,
            on_grid=True,
        )
