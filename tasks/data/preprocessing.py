"""Standardisation with the statistics of all clients' training rows, none of which leave their owner.

A client sends the count, mean and sum of squared deviations of each column, and these are merged. Raw sums of squares
are never formed: for a column of timestamps (1.7e9) they lose every digit of the variance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import Arrays, Rows, Shard

Array = NDArray[Any]

CONSTANT = 8 * np.finfo(np.float64).eps
"""A column whose standard deviation is within this share of its mean varies by rounding alone."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations from the mean, per column: n, then (d,) float64 each.

    The mean is `mean + tail`, where `tail` holds the digits that float64 cannot: with values near 1e12 that differ by
    1 the rounding of the mean alone would cost 1e-5 of a merged `m2`. With it a merge is exact to some 1e-15 of the
    pooled result.
    """

    n: int
    mean: Array
    m2: Array
    tail: Array

    def __post_init__(self) -> None:
        columns = (self.mean, self.m2, self.tail)
        if self.n < 0 or self.mean.ndim != 1 or any(column.shape != self.mean.shape for column in columns):
            shapes = ", ".join(str(column.shape) for column in columns)
            raise ValueError(f"moments need n >= 0 and mean, m2 and tail of one length, got n={self.n} and {shapes}")
        bad = ~np.isfinite(self.mean + self.m2 + self.tail) | (self.m2 < 0)
        if bad.any():
            raise ValueError(
                f"moments of column {int(bad.argmax())} are not finite, or m2 is negative: the column holds a missing, "
                "infinite or absurdly large value: clean or drop it"
            )

    @classmethod
    def of(cls, x: Array) -> "Moments":
        """The moments of the columns of x (n, d), in two passes; n = 0 gives zeros.

        Raises ValueError, naming the column, for a value that is missing, infinite or too large to square.
        """
        n, d = x.shape
        if n == 0:
            return cls(0, np.zeros(d), np.zeros(d), np.zeros(d))
        with np.errstate(over="ignore", invalid="ignore"):  # refused by name in __post_init__
            near = x.mean(axis=0)
            deviation = x - near
            rest = deviation.mean(axis=0)
            m2 = ((deviation - rest) ** 2).sum(axis=0)
            mean = near + rest
            return cls(n, mean, m2, (near - mean) + rest)

    @classmethod
    def merge(cls, parts: Sequence["Moments"]) -> "Moments":
        """The moments of all rows together, by the pairwise update of Chan, Golub & LeVeque 1983, doi:10.2307/2683386.

            delta = mean_b - mean_a,  mean = mean_a + delta n_b / n,  m2 = m2_a + m2_b + delta^2 n_a n_b / n

        Merged in the order given: another order agrees to rounding, the same order to the bit. Raises ValueError for
        no parts and for parts of different widths.
        """
        if not parts:
            raise ValueError("no moments to merge: at least one client must send its own")
        return reduce(cls._pair, parts)

    @staticmethod
    def _pair(a: "Moments", b: "Moments") -> "Moments":
        if a.mean.shape != b.mean.shape:
            raise ValueError(f"cannot merge moments of {len(a.mean)} and {len(b.mean)} columns: compare the schemas")
        if not a.n or not b.n:
            return a if a.n else b
        n = a.n + b.n
        delta = (b.mean - a.mean) + (b.tail - a.tail)
        rest = a.tail + delta * (b.n / n)
        mean = a.mean + rest
        m2 = a.m2 + b.m2 + delta**2 * (a.n * b.n / n)
        return Moments(n, mean, m2, _two_sum_error(a.mean, rest, mean))

    def to_arrays(self) -> Arrays:
        """As sent by a client: n as int64 (1,), then mean, m2 and tail."""
        return np.array([self.n], dtype=np.int64), self.mean, self.m2, self.tail

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "Moments":
        """The inverse of `to_arrays`. Raises ValueError for anything that cannot be moments."""
        if len(arrays) != 4 or arrays[0].shape != (1,):
            raise ValueError(f"moments come as 4 arrays, n of shape (1,) first, got {[a.shape for a in arrays]}")
        count, mean, m2, tail = arrays
        return cls(int(count[0]), mean, m2, tail)


def _two_sum_error(a: Array, b: Array, total: Array) -> Array:
    """a + b - total exactly, where total = fl(a + b) (Knuth, The Art of Computer Programming, vol. 2, 4.2.2)."""
    b_part = total - a
    error: Array = (a - (total - b_part)) + (b - b_part)
    return error


@dataclass(frozen=True, slots=True)
class Standardizer:
    """x -> (x - mean) / scale per column; mean and scale are (d,)."""

    mean: Array
    scale: Array

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.scale.shape:
            raise ValueError(f"mean and scale must be of one length, got {self.mean.shape} and {self.scale.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("mean and scale must be finite and scale above 0: were these statistics computed here?")

    @classmethod
    def of(cls, moments: Moments) -> "Standardizer":
        """To mean 0 and population standard deviation 1 over the rows that the moments describe.

        A constant column, one that varies by no more than rounding, keeps its scale and becomes 0. Raises ValueError
        for moments of no rows.
        """
        if not moments.n:
            raise ValueError("no rows to standardise by: every client's training shard is empty")
        stddev = np.sqrt(moments.m2 / moments.n)
        constant = stddev <= CONSTANT * np.abs(moments.mean)
        return cls(moments.mean, np.where(constant, 1.0, stddev))

    @classmethod
    def from_lists(cls, mean: Sequence[float], scale: Sequence[float]) -> "Standardizer":
        """From numbers as they travel in a message; raises ValueError for what cannot be a mean and a scale."""
        return cls(np.array(mean, dtype=np.float64), np.array(scale, dtype=np.float64))

    @property
    def digest(self) -> str:
        """Equal for equal statistics, in hexadecimal: a key for what was computed with them."""
        return sha256(self.mean.tobytes() + self.scale.tobytes()).hexdigest()

    def apply(self, x: Array) -> Array:
        """Standardised copies of rows x (n, d)."""
        result: Array = (x - self.mean) / self.scale
        return result

    def apply_rows(self, rows: Rows) -> Rows:
        return Rows(self.apply(rows.x), rows.y)

    def apply_shard(self, shard: Shard) -> Shard:
        """The shard with train and test rows standardised alike."""
        return Shard(shard.client, self.apply_rows(shard.train), self.apply_rows(shard.test))
