"""Real numbers in few bits."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.transform import Opens, Round, Transform
from strategies.transforms.payload import check_payload, in_dtypes, is_real
from strategies.update import Arrays, InvalidUpdate, Template, Update

Rounding = Literal["stochastic", "nearest"]

BITS = (1, 2, 4, 8, 16)
LEAST_BLOCK, MOST_BLOCK = 2**3, 2**20
LARGEST = float(np.finfo(np.float32).max)
IN_CACHE = 2**15  # elements rounded at a time: the temporaries stay in the processor's cache


@dataclass(frozen=True)
class Quantize(Transform):
    """Every block of an array is one float32 scale s and a code of `bits` for each element (Alistarh et al. 2017,
    arXiv:1610.02132; with 1 bit Suresh et al. 2017, arXiv:1611.00429).

    With s = max |x| over the block, codes 0 to m - 1 stand for evenly spaced levels from -s to s:

        value(c) = s (c - t) / t,   t = (m - 1) / 2

    m is odd from 4 bits on, so that zeros stay zero, and 2^bits below: those want `Rotate` to their left.
    "stochastic" rounds to one of the two levels around x with an expectation of x, up to float rounding; its error is
    below s / t. "nearest" has at most s / (2t), and is biased. One bit and "nearest" is the sign times s = mean |x|,
    which never lengthens a block. Elements beyond the range of float32 become its ends.
    """

    bits: int = 8
    block: int = 1024
    rounding: Rounding = "stochastic"
    opens: ClassVar[Opens] = Opens.EACH

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits}: expected 1, 2, 4, 8 or 16")
        if not LEAST_BLOCK <= self.block <= MOST_BLOCK:
            raise ValueError(f"block={self.block}: expected {LEAST_BLOCK} to {MOST_BLOCK}")
        if self.rounding not in ("stochastic", "nearest"):
            raise ValueError(f"rounding={self.rounding}: expected stochastic or nearest")

    @property
    def levels(self) -> int:
        """m: how many codes there are."""
        return (1 << self.bits) - (self.bits > 2)

    @property
    def top(self) -> float:
        """t: the code of 0, and how many steps it is from there to the scale."""
        return (self.levels - 1) / 2

    def encodes(self, template: Template) -> Template:
        """For each real array its codes, in uint8 (16 bits: uint16), and its scales, (blocks,) float32."""
        encoded: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        for shape, dtype in template:
            if is_real(dtype):
                size = int(np.prod(shape, dtype=np.int64))
                encoded += [_codes(size, self.bits), ((self._blocks(size)[0],), np.dtype(np.float32))]
            else:
                encoded.append((shape, dtype))
        return tuple(encoded)

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Quantises, with random numbers of the round's seed. Raises InvalidUpdate("non-finite")."""
        rng = np.random.Generator(np.random.SFC64(round.seed))
        encoded: list[NDArray[Any]] = []
        for array in update.arrays:
            encoded += self._quantized(array, rng) if is_real(array.dtype) else [array]
        return replace(update, arrays=tuple(encoded)), state

    def decode_each(self, update: Update, round: Round) -> Update:
        """The values of the codes. Raises InvalidUpdate("decode") for scales and codes that no update has."""
        check_payload(update.arrays, self.encodes(round.template))
        received = iter(update.arrays)
        arrays = tuple(
            self._values(next(received), next(received), shape, dtype) if is_real(dtype) else next(received)
            for shape, dtype in round.template
        )
        return replace(update, arrays=in_dtypes(arrays, round.template))

    def bound(self, before: float | None) -> float | None:
        """Every element of a block may move by a step of its scale, which is no longer than the block."""
        if before is None or self._signs:
            return before
        step = (1.0 if self.rounding == "stochastic" else 0.5) / self.top
        return before * (1 + sqrt(self.block) * step) * (1 + 2.0**-20)

    def _quantized(self, array: NDArray[Any], rng: np.random.Generator) -> list[NDArray[Any]]:
        blocks, sizes = self._in_blocks(array)
        codes, scales = np.empty(blocks.shape, self._code_dtype), np.empty(len(blocks), np.float32)
        at_once = max(1, IN_CACHE // blocks.shape[1])
        for start in range(0, len(blocks), at_once):
            part = slice(start, start + at_once)
            scales[part] = self._scales(blocks[part], sizes[part])
            codes[part] = self._rounded(blocks[part], scales[part], rng)
        return [pack(codes.reshape(-1)[: array.size], self.bits), scales]

    @property
    def _code_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.bits == 16 else np.uint8)

    @property
    def _signs(self) -> bool:
        return self.bits == 1 and self.rounding == "nearest"

    def _blocks(self, size: int) -> tuple[int, int]:
        """How many blocks there are, and their width: a short array is one block of its own size."""
        width = max(1, min(self.block, size))
        return -(-size // width), width

    def _in_blocks(self, array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(blocks, width), the last one filled up with zeros, and how many elements each has."""
        work = np.float32 if self.bits < 16 and array.dtype.itemsize <= 4 else np.float64
        count, width = self._blocks(array.size)
        blocks, sizes = np.zeros((count, width), work), np.full(count, width)
        blocks.reshape(-1)[: array.size] = array.reshape(-1)
        sizes[-1:] -= count * width - array.size
        return blocks, sizes

    def _scales(self, blocks: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
        """(blocks,) float32: the largest magnitude, rounded up; for signs their mean, rounded down.

        Brings what is beyond the range of float32 back into it, in place.
        """
        largest = np.maximum(blocks.max(axis=1), -blocks.min(axis=1)).astype(np.float64)
        if not np.isfinite(largest).all():
            raise InvalidUpdate("non-finite", "an update with a NaN or an infinity")
        np.clip(blocks, -LARGEST, LARGEST, out=blocks)
        if self._signs:
            return _towards(np.abs(blocks).sum(axis=1, dtype=np.float64) / sizes, 0.0)
        return _towards(np.minimum(largest, LARGEST), LARGEST)

    def _rounded(self, blocks: NDArray[Any], scales: NDArray[np.float32], rng: np.random.Generator) -> NDArray[Any]:
        """The codes, as real numbers."""
        if self._signs:
            return blocks >= 0
        places = blocks / np.where(scales > 0, scales, 1).astype(blocks.dtype)[:, None]
        places *= self.top
        places += self.top
        if self.rounding == "nearest":
            return np.asarray(np.rint(places))
        below: NDArray[Any] = np.floor(places)
        places -= below
        below += rng.random(places.shape, np.float32) < places
        return below

    def _values(
        self, codes: NDArray[Any], scales: NDArray[np.float32], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        if (scales < 0).any():
            raise InvalidUpdate("decode", "a negative scale")
        size = int(np.prod(shape, dtype=np.int64))
        each = unpack(codes, self.bits)
        if each[size:].any() or (size and int(each.max()) >= self.levels):
            raise InvalidUpdate("decode", f"a code that {self.bits} bits do not have, or more codes than elements")
        count, width = self._blocks(size)
        values = np.zeros((count, width), np.promote_types(dtype, np.float32))
        values.reshape(-1)[:size] = each[:size]
        values -= self.top
        values /= self.top
        values *= scales[:, None]
        return values.reshape(-1)[:size].reshape(shape)


def pack(codes: NDArray[Any], bits: int) -> NDArray[Any]:
    """Codes of 1 to 8 bits side by side in uint8, the first in the lowest bits; of 16 bits in uint16."""
    (length,), dtype = _codes(codes.size, bits)
    if bits >= 8:
        return codes.astype(dtype)
    each = 8 // bits
    padded = np.zeros(length * each, np.uint8)
    padded[: codes.size] = codes
    packed = np.zeros(length, np.uint8)
    for place in range(each):
        packed |= padded[place::each] << (place * bits)
    return packed


def unpack(packed: NDArray[Any], bits: int) -> NDArray[Any]:
    """The inverse of `pack`, with zeros behind the codes."""
    if bits >= 8:
        return packed
    each = 8 // bits
    codes = np.empty((packed.size, each), np.uint8)
    for place in range(each):
        codes[:, place] = (packed >> (place * bits)) & (2**bits - 1)
    return codes.reshape(-1)


def _codes(size: int, bits: int) -> tuple[tuple[int], np.dtype[Any]]:
    """The template of packed codes."""
    return (-(-size * min(bits, 8) // 8),), np.dtype(np.uint16 if bits == 16 else np.uint8)


def _towards(values: NDArray[np.float64], end: float) -> NDArray[np.float32]:
    """The nearest float32 that is not on the other side."""
    near = values.astype(np.float32)
    wrong = near < values if end > 0 else near > values
    return np.where(wrong, np.nextafter(near, np.float32(end)), near)
