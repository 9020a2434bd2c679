"""Spreading an update evenly over its coordinates, so that few bits do for each."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.transform import Opens, Public, Round, Transform
from strategies.transforms.payload import check_finite, check_payload, in_dtypes, is_real
from strategies.transforms.shared_seed import announced, shared_words
from strategies.update import Arrays, Template, Update

SEED = "rotation-seed"
"""What the announced seed is called."""

LEAST, MOST = 2**8, 2**20
FARTHEST = 2.0**62


@dataclass(frozen=True)
class Rotate(Transform):
    """x -> H D x: random signs D, then the Hadamard matrix H / sqrt(width), block by block (Suresh et al. 2017,
    arXiv:1611.00429). Server and clients draw D from a seed that the server announces, anew in every round.

    A rotated block looks like Gaussian noise of one size whatever was in it, so that a quantiser to the right needs no
    level for outliers. Orthonormal, and linear: it can be opened on the sum. Real arrays become vectors of whole
    blocks, fewer than LEAST / 2 zeros longer. An element comes back with an error of about 1e-6 (float32) of the norm
    of its block; an update that overflows when it is summed over a block is refused.
    """

    block: int = 2**15
    opens: ClassVar[Opens] = Opens.EITHER

    def __post_init__(self) -> None:
        if not LEAST <= self.block <= MOST or self.block & (self.block - 1):
            raise ValueError(f"rotation-block={self.block}: expected a power of two from {LEAST} to {MOST}")

    def announce(self, state: Arrays, round: Round) -> Public:
        """The seed of the signs."""
        return announced(SEED, round)

    def encodes(self, template: Template) -> Template:
        """(whole blocks,) for each real array."""
        return tuple(
            ((sum(self._widths(shape)),), dtype) if is_real(dtype) else (shape, dtype) for shape, dtype in template
        )

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Rotates. Raises InvalidUpdate("non-finite")."""
        signs = _Signs(self, round)
        arrays = tuple(self._rotated(array, signs) if is_real(array.dtype) else array for array in update.arrays)
        return replace(update, arrays=arrays), state

    def decode_each(self, update: Update, round: Round) -> Update:
        """Rotates back. Raises InvalidUpdate("decode")."""
        check_payload(update.arrays, self.encodes(round.template))
        return replace(update, arrays=in_dtypes(self._rotated_back(update.arrays, round), round.template))

    def decode_sum(self, total: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Rotates the sum back, in float64, and rounds to the grid again.

        That moves each element by half a step and a 2^-48th of the block's norm at most. Noise on the sum to the left
        is not made for it: put the rotation into `EachReply` there.
        """
        arrays = self._rotated_back(total.arrays, round)
        on_grid = tuple(np.rint(np.clip(array, -FARTHEST, FARTHEST)).astype(np.int64) for array in arrays)
        return replace(total, arrays=on_grid), state

    def bound(self, before: float | None) -> float | None:
        """An orthonormal matrix lengthens nothing; the rounding of 20 additions in float32 may."""
        return None if before is None else before * (1 + 2.0**-19)

    def _widths(self, shape: tuple[int, ...]) -> list[int]:
        """Blocks of the full width, then ever smaller powers of two; only the last, if below LEAST, is filled up."""
        full, rest = divmod(int(np.prod(shape, dtype=np.int64)), self.block)
        widths = [self.block] * full
        while rest >= LEAST:
            widths.append(1 << (rest.bit_length() - 1))
            rest -= widths[-1]
        return [*widths, 1 << (rest - 1).bit_length()] if rest else widths

    def _rotated(self, array: NDArray[Any], signs: "_Signs") -> NDArray[Any]:
        widths = self._widths(array.shape)
        padded = np.zeros(sum(widths), np.promote_types(array.dtype, np.float32))
        padded[: array.size] = array.reshape(-1)
        padded *= signs.take(padded.size)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            rotated = _by_blocks(padded, widths).astype(array.dtype, copy=False)
        check_finite(rotated)
        return rotated

    def _rotated_back(self, arrays: Arrays, round: Round) -> Arrays:
        signs, result = _Signs(self, round), []
        for array, (shape, dtype) in zip(arrays, round.template, strict=True):
            if not is_real(dtype):
                result.append(array)
                continue
            wide = array.astype(np.promote_types(dtype, np.float32) if is_real(array.dtype) else np.float64)
            with np.errstate(over="ignore", invalid="ignore"):  # the caller looks
                back = _by_blocks(wide, self._widths(shape)) * signs.take(array.size)
            result.append(back[: int(np.prod(shape, dtype=np.int64))].reshape(shape))
        return tuple(result)


class _Signs:
    """The random signs of a round, one array after the other."""

    def __init__(self, rotate: Rotate, round: Round) -> None:
        size = sum(shape[0] for shape, dtype in rotate.encodes(round.template) if is_real(dtype))
        words = shared_words(SEED, round, -(-size // 64)).astype("<u8")
        self._signs = 1 - 2 * np.unpackbits(words.view(np.uint8), count=size).view(np.int8)
        self._next = 0

    def take(self, count: int) -> NDArray[np.int8]:
        self._next += count
        return self._signs[self._next - count : self._next]


def _by_blocks(vector: NDArray[Any], widths: list[int]) -> NDArray[Any]:
    """The Hadamard transform of every block; neighbours of one width at once."""
    result, start = [vector[:0]], 0
    for width in sorted(set(widths), reverse=True):
        stop = start + width * widths.count(width)
        result.append(hadamard(vector[start:stop].reshape(-1, width)).reshape(-1))
        start = stop
    return np.concatenate(result)


def hadamard(rows: NDArray[Any]) -> NDArray[Any]:
    """Each row, a power of two long, times the Hadamard matrix over the root of the width: its own inverse.

    Butterflies of constant geometry: every pass takes the sums and differences of neighbours and puts them in two
    halves, which turns the bits of the index by one; after all passes they are back in place.
    """
    width = rows.shape[1]
    now, after = rows.copy(), np.empty_like(rows)
    for _ in range(width.bit_length() - 1):
        even, odd = now[:, 0::2], now[:, 1::2]
        np.add(even, odd, out=after[:, : width // 2])
        np.subtract(even, odd, out=after[:, width // 2 :])
        now, after = after, now
    now *= 1 / sqrt(width)
    return now
