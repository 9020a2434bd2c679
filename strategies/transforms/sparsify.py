"""Sending some coordinates only: the largest, which have to be named, or random ones, which both sides know."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.transform import Opens, Public, Round, Transform
from strategies.transforms.payload import (
    check_finite,
    check_payload,
    count_real,
    flat,
    in_dtypes,
    real_dtype,
    unflat,
    whole,
)
from strategies.transforms.shared_seed import announced, shared_words
from strategies.update import Arrays, InvalidUpdate, Template, Update

SEED = "random-k-seed"
"""What the announced seed is called."""

MOST_ELEMENTS = 2**32 - 1
SAMPLE = 2**14


@dataclass(frozen=True)
class TopK(Transform):
    """The k = ceil(fraction n) coordinates of largest magnitude, out of all n real numbers of the update; at least one.

    Biased, and meant for the inside of `ErrorFeedback` (arXiv:1809.07599), which sends the others later. What is sent
    is exact. The positions ascend and end with n, as the offsets of a ragged array do: an entropy coder can tell from
    them how far they may go.
    """

    fraction: float = 0.01
    opens: ClassVar[Opens] = Opens.EACH

    def __post_init__(self) -> None:
        check_fraction("top-k", self.fraction)

    def chooses(self) -> bool:
        """It does."""
        return True

    def encodes(self, template: Template) -> Template:
        """Positions (k + 1,) uint32, values (k,), and what is not real."""
        size = count_real(template)
        if size > MOST_ELEMENTS:
            raise ValueError(f"top-k: a model of {size} numbers, expected at most {MOST_ELEMENTS}")
        k = how_many(self.fraction, size)
        return ((k + 1,), np.dtype(np.uint32)), ((k,), real_dtype(template)), *whole(template)

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Selects. Raises InvalidUpdate("non-finite")."""
        vector, others = flat(update.arrays)
        check_finite(vector)
        chosen = largest(vector, how_many(self.fraction, vector.size))
        positions = np.append(chosen, vector.size).astype(np.uint32)
        return replace(update, arrays=(positions, vector[chosen], *others)), state

    def decode_each(self, update: Update, round: Round) -> Update:
        """Zeros, and the values in their places. Raises InvalidUpdate("decode")."""
        check_payload(update.arrays, self.encodes(round.template))
        positions, values, *others = update.arrays
        size = count_real(round.template)
        if positions[-1] != size or (positions[1:] <= positions[:-1]).any():
            raise InvalidUpdate("decode", f"positions that do not ascend to {size}")
        vector = np.zeros(size, values.dtype)
        vector[positions[:-1]] = values
        return replace(update, arrays=in_dtypes(unflat(vector, others, round.template), round.template))


@dataclass(frozen=True)
class RandomK(Transform):
    """k = ceil(fraction n) coordinates out of all n real numbers, at least one, the same for all clients of a round;
    drawn, all choices equally likely, from a seed that the server announces (Konecny et al. 2016, arXiv:1610.05492).

    With `scaled`, values are multiplied by n / k at the client, which makes the decoded update unbiased, with a mean
    squared error of n / k - 1 squared norms: what is not drawn is lost. Without, they are sent as they are, for the
    inside of `ErrorFeedback`. Linear: it can be opened on the sum, and be summed under masks.
    """

    fraction: float = 0.1
    scaled: bool = True
    opens: ClassVar[Opens] = Opens.EITHER

    def __post_init__(self) -> None:
        check_fraction("random-k", self.fraction)

    def announce(self, state: Arrays, round: Round) -> Public:
        """The seed of the choice."""
        return announced(SEED, round)

    def chooses(self) -> bool:
        """It does."""
        return True

    def encodes(self, template: Template) -> Template:
        """Values (k,), and what is not real."""
        return ((how_many(self.fraction, count_real(template)),), real_dtype(template)), *whole(template)

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Selects and scales. Raises InvalidUpdate("non-finite")."""
        vector, others = flat(update.arrays)
        positions = self._positions(vector.size, round)
        factor = vector.size / max(1, positions.size) if self.scaled else 1.0
        with np.errstate(over="ignore"):  # refused below
            values = vector[positions] * vector.dtype.type(factor)
        check_finite(values)
        return replace(update, arrays=(values, *others)), state

    def decode_each(self, update: Update, round: Round) -> Update:
        """Zeros, and the values in their places. Raises InvalidUpdate("decode")."""
        check_payload(update.arrays, self.encodes(round.template))
        return replace(update, arrays=in_dtypes(self._spread(update.arrays, round), round.template))

    def decode_sum(self, total: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """The same on the sum: exact."""
        return replace(total, arrays=self._spread(total.arrays, round)), state

    def bound(self, before: float | None) -> float | None:
        """All of an update may be in the chosen coordinates, which are scaled."""
        return before if before is None or not self.scaled else before / self.fraction * (1 + 2.0**-20)

    def _positions(self, size: int, round: Round) -> NDArray[np.intp]:
        """(k,), ascending: where the smallest of n random words are."""
        k, words = how_many(self.fraction, size), shared_words(SEED, round, size)
        return np.sort(np.argpartition(words, k - 1)[:k]) if k else np.zeros(0, np.intp)

    def _spread(self, arrays: Arrays, round: Round) -> Arrays:
        values, *others = arrays
        vector = np.zeros(count_real(round.template), values.dtype)
        vector[self._positions(vector.size, round)] = values
        return unflat(vector, others, round.template)


def check_fraction(name: str, fraction: float) -> None:
    """Raises ValueError unless it is above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise ValueError(f"{name}={fraction:g}: expected above 0 and at most 1, such as 0.01")


def how_many(fraction: float, size: int) -> int:
    """ceil(fraction * size), at least 1, of none 0. A product that exceeds a whole number by rounding only is one."""
    return min(size, max(1, ceil(fraction * size * (1 - 2.0**-50))))


def largest(vector: NDArray[Any], k: int) -> NDArray[np.intp]:
    """(k,), ascending: where the k largest magnitudes are.

    A sample tells which elements are out of the question, so that few are ordered; where it tells wrong, all are.
    """
    magnitudes = np.abs(vector)
    sample = magnitudes[:: max(1, vector.size // SAMPLE)]
    rank = 2 * k * sample.size // max(1, vector.size) + 8
    if rank < sample.size:
        candidates = np.flatnonzero(magnitudes >= np.partition(sample, -rank)[-rank])
        if k <= candidates.size:
            return candidates[_top(magnitudes[candidates], k)]
    return _top(magnitudes, k)


def _top(magnitudes: NDArray[Any], k: int) -> NDArray[np.intp]:
    """(k,), ascending: where the k largest are."""
    first = magnitudes.size - k
    return np.sort(np.argpartition(magnitudes, first)[first:]) if k else np.zeros(0, np.intp)
