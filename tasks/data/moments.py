"""Mean and variance of columns whose rows lie with many owners, none of which leave them.

A client sends the count, mean and sum of squared deviations of each column, and these are merged. Raw sums of squares
are never formed: for a column of timestamps (1.7e9) they lose every digit of the variance. The same rows give the same
bits, in whatever order they stand and whoever holds them under which name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import Arrays

Array = NDArray[Any]

CONSTANT = 8 * np.finfo(np.float64).eps
"""A column whose standard deviation is within this share of its mean varies by rounding alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations from the mean, per column: (d,) each, n int64, the others float64.

    The mean is `mean + tail`, where `tail` holds the digits that float64 cannot: with values near 1e12 that differ by
    1 the rounding of the mean alone would cost 1e-5 of a merged `m2`. With it a merge is exact to some 1e-15 of the
    pooled result. A column of which nothing is known has n = 0 and zeros.
    """

    n: Array
    mean: Array
    m2: Array
    tail: Array

    def __post_init__(self) -> None:
        if self.n.ndim != 1 or any(column.shape != self.n.shape for column in (self.mean, self.m2, self.tail)):
            shapes = ", ".join(str(column.shape) for column in self.to_arrays())
            raise ValueError(f"moments need n, mean, m2 and tail of one length, got {shapes}")
        if self.n.dtype.kind != "i" or (self.n < 0).any():
            raise ValueError("moments need counts that are whole numbers of 0 or more")
        bad = ~np.isfinite(self.mean + self.m2 + self.tail) | (self.m2 < 0)
        if bad.any():
            raise ValueError(
                f"moments of column {int(bad.argmax())} are not finite, or m2 is negative: the column holds an "
                "infinite or absurdly large value: clean or drop it"
            )

    @classmethod
    def of(cls, x: Array) -> "Moments":
        """The moments of the columns of x (n, d), in two passes; NaN cells are missing and not counted.

        Raises ValueError, naming the column, for a value that is infinite or too large to square.
        """
        x = np.sort(np.ascontiguousarray(x), axis=0)  # sums must not depend on row order or layout; NaN comes last
        known = ~np.isnan(x)
        n = known.sum(axis=0)
        count = np.maximum(n, 1)
        with np.errstate(over="ignore", invalid="ignore"):  # refused by name in __post_init__
            near = np.where(known, x, 0.0).sum(axis=0) / count
            deviation = np.where(known, x - near, 0.0)
            rest = deviation.sum(axis=0) / count
            m2 = (np.where(known, deviation - rest, 0.0) ** 2).sum(axis=0)
            mean = near + rest
            return cls(n, mean, m2, (near - mean) + rest)

    @classmethod
    def merge(cls, parts: Sequence["Moments"]) -> "Moments":
        """The moments of all rows together, by the pairwise update of Chan, Golub & LeVeque 1983, doi:10.2307/2683386.

            delta = mean_b - mean_a,  mean = mean_a + delta n_b / n,  m2 = m2_a + m2_b + delta^2 n_a n_b / n

        In an order that the parts' own content gives: the same parts give the same bits, in whatever order they come.
        Raises ValueError for no parts and for parts of different widths.
        """
        if not parts:
            raise ValueError("no moments to merge: at least one client must send its own")
        return reduce(cls._pair, sorted(parts, key=lambda part: [array.tobytes() for array in part.to_arrays()]))

    @staticmethod
    def _pair(a: "Moments", b: "Moments") -> "Moments":
        if a.mean.shape != b.mean.shape:
            raise ValueError(f"cannot merge moments of {len(a.mean)} and {len(b.mean)} columns: compare the schemas")
        n = a.n + b.n
        share = b.n / np.maximum(n, 1)
        delta = (b.mean - a.mean) + (b.tail - a.tail)
        rest = a.tail + delta * share
        mean = a.mean + rest
        m2 = a.m2 + b.m2 + delta**2 * (a.n * share)
        merged = mean, m2, _two_sum_error(a.mean, rest, mean)
        known = zip((a.mean, a.m2, a.tail), (b.mean, b.m2, b.tail), merged, strict=True)
        return Moments(n, *(np.where(b.n == 0, left, np.where(a.n == 0, right, both)) for left, right, both in known))

    def where(self, wanted: Array) -> "Moments":
        """Of the wanted columns (d,) as they are, of the others as if nothing were known."""
        n, *rest = self.to_arrays()
        return Moments(np.where(wanted, n, 0), *(np.where(wanted, array, 0.0) for array in rest))

    def scale(self) -> Array:
        """The population standard deviation (d,); 1 for a column that is constant up to rounding, or unknown."""
        scale: Array = np.where(self.vary(), self._stddev(), 1.0)
        return scale

    def vary(self) -> Array:
        """Which columns (d,) are not constant up to rounding."""
        varying: Array = self._stddev() > CONSTANT * np.abs(self.mean)
        return varying

    def variance(self) -> Array:
        """The population variance (d,)."""
        variance: Array = self.m2 / np.maximum(self.n, 1)
        return variance

    def _stddev(self) -> Array:
        stddev: Array = np.sqrt(self.variance())
        return stddev

    def to_arrays(self) -> Arrays:
        """n, mean, m2 and tail."""
        return self.n, self.mean, self.m2, self.tail


def _two_sum_error(a: Array, b: Array, total: Array) -> Array:
    """a + b - total exactly, where total = fl(a + b) (Knuth, The Art of Computer Programming, vol. 2, 4.2.2)."""
    b_part = total - a
    error: Array = (a - (total - b_part)) + (b - b_part)
    return error
