"""Bounding what one client can contribute: clipping to an L2 norm, fixed or following the clients' norms."""

from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.transform import Public, Round, Transform
from strategies.update import BLOCK, Arrays, InvalidUpdate, Template, Update

CLIP = "clip-norm"
"""What the announced norm is called."""

SMALLEST_SQUARES, LARGEST_SQUARES = 1e-200, 1e300
"""Between these no element that counts has lost its square."""


def norm(arrays: Arrays) -> float:
    """The L2 norm over all elements of all arrays together, in float64; nan or inf where an element is."""
    squares = _square_sum(arrays, 1.0)
    if SMALLEST_SQUARES < squares < LARGEST_SQUARES:
        return sqrt(squares)
    # A square may have over- or underflowed, or something is not finite. By both ends: the smallest integer of a dtype
    # has no absolute value in it.
    largest = max((max(float(array.max()), -float(array.min())) for array in arrays if array.size), default=0.0)
    return largest * sqrt(_square_sum(arrays, largest)) if largest and isfinite(largest) else largest


def _square_sum(arrays: Arrays, unit: float) -> float:
    """Of the elements in this unit; in blocks, whose float64 copies stay in the processor's cache."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for array in arrays:
            flat = array.reshape(-1)
            for start in range(0, flat.size, BLOCK):
                block = flat[start : start + BLOCK].astype(np.float64)
                if unit != 1.0:
                    block /= unit
                total += float(block @ block)
    return total


def clipped(arrays: Arrays, bound: float) -> Arrays:
    """The arrays, scaled down together where their norm exceeds `bound`; then it does not, rounding included.

    Arrays keep their dtypes; what is an integer is rounded towards zero. Idempotent. Raises
    InvalidUpdate("non-finite").
    """
    length = norm(arrays)
    if not isfinite(length):
        raise InvalidUpdate("non-finite", "an update with a NaN or an infinity, which no scaling bounds")
    if length <= bound:
        return arrays
    margin = max((float(np.finfo(array.dtype).eps) for array in arrays if array.dtype.kind == "f"), default=0.0)
    margin = max(margin, 2.0**-50)  # rounding lengthens by less
    while norm(result := tuple(_scaled(array, bound / length * (1 - margin)) for array in arrays)) > bound:
        margin *= 2  # but for the smallest of numbers: after 50 of these steps nothing is left
    return result


def is_longer(arrays: Arrays, bound: float) -> bool:
    """Whether their norm exceeds `bound` by more than floats round: never for what was clipped to it elsewhere.

    Sums of squares of n numbers in blocks, each added up in any order, are off by at most (BLOCK + n / BLOCK) roundings
    of float64, here and there, and norms by half as much. Elements may have been rounded to their dtype once more.
    """
    size = sum(array.size for array in arrays)
    roundings = min(size, BLOCK) + size // BLOCK + len(arrays) + 4
    once_more = max((float(np.finfo(array.dtype).eps) for array in arrays if array.dtype.kind == "f"), default=0.0)
    return norm(arrays) > bound * (1 + roundings * 2.0**-52 + once_more)


def _scaled(array: NDArray[Any], factor: float) -> NDArray[Any]:
    values = array * np.float64(factor)
    return np.asarray(np.trunc(values) if array.dtype.kind in "iu" else values).astype(array.dtype)


def check_clip_norm(value: float, name: str = "clip-norm") -> None:
    """Raises ValueError unless it is above 0."""
    if not value > 0:
        raise ValueError(f"{name}={value:g}: expected above 0, such as 1")


@dataclass(frozen=True)
class Clip(Transform):
    """An update longer than `clip_norm` is scaled down to that L2 norm, over all its arrays together (McMahan et al.
    2018, arXiv:1710.06963). Others stay as they are, a zero update with them."""

    clip_norm: float

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Clips."""
        return replace(update, arrays=clipped(update.arrays, self.clip_norm)), state

    def bound(self, before: float | None) -> float | None:
        """clip_norm, or less."""
        return self.clip_norm if before is None else min(before, self.clip_norm)


@dataclass(frozen=True)
class AdaptiveClip(Transform):
    """A clip norm that follows a quantile of the clients' norms (Andrew et al. 2021, arXiv:1905.03871).

    A client sends its update in units of the announced norm C, clipped to length 1, and behind it whether it was within
    C: the bit b as bit_scale * (b - 1/2). Both are one vector of L2 norm at most sqrt(1 + bit_scale^2 / 4), which gets
    one noise, so the bit needs no entry of its own in the ledger. From the noised sum the server learns the share of
    clients within C, at most one released number a round, and moves C towards the quantile:

        C <- C exp(-learning_rate (share - quantile))

    The share is that of the `expected` number of clients, which is public; who did not answer counts as half.
    """

    initial: float
    quantile: float
    learning_rate: float
    bit_scale: float
    expected: float
    num_server_arrays: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_clip_norm(self.initial, "initial-clip-norm")
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile={self.quantile:g}: expected above 0 and below 1, such as 0.5")
        if not self.learning_rate > 0:
            raise ValueError(f"clip-learning-rate={self.learning_rate:g}: expected above 0, such as 0.2")

    def begin(self) -> Arrays:
        """The first norm."""
        return (np.array(self.initial),)

    def announce(self, state: Arrays, round: Round) -> Public:
        """The norm of this round."""
        return {CLIP: float(state[0])}

    def encodes(self, template: Template) -> Template:
        """The bit comes behind the update, in the widest of its dtypes."""
        return (*template, ((1,), np.result_type(*(dtype for _, dtype in template))))

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Raises InvalidUpdate for an update that is not finite, or a norm that is none."""
        clip_norm = round.public.get(CLIP)
        if not isinstance(clip_norm, float) or not 0 < clip_norm < np.inf:
            raise InvalidUpdate("decode", f"the clip norm announced is {clip_norm!r}")
        if any(array.dtype.kind != "f" for array in update.arrays):
            raise InvalidUpdate("dtype", "whole numbers cannot be sent in units of a norm: use a fixed clip norm")
        within = norm(update.arrays) <= clip_norm
        units = tuple(array / array.dtype.type(clip_norm) for array in clipped(update.arrays, clip_norm))
        bit = np.full(1, self.bit_scale * (within - 0.5), np.result_type(*units))
        return replace(update, arrays=(*clipped(units, 1.0), bit)), state

    def bound(self, before: float | None) -> float | None:
        """Of update and bit together."""
        return float(np.sqrt(1 + self.bit_scale**2 / 4))

    def decode_each(self, update: Update, round: Round) -> Update:
        """The update alone."""
        return replace(update, arrays=tuple(array * round.public[CLIP] for array in update.arrays[:-1]))

    def decode_sum(self, total: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """The sum of the updates; the next norm."""
        *arrays, bits = total.arrays
        clip_norm = state[0]
        share = float(round.grid.to_float(bits, 1.0)[0]) / self.bit_scale / self.expected + 0.5
        after = clip_norm * np.exp(-self.learning_rate * (share - self.quantile))
        return replace(total, arrays=tuple(array * clip_norm for array in arrays)), (np.asarray(after),)
