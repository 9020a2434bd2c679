"""Half the bytes: real numbers in 16 bits."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.transform import Opens, Round, Transform
from strategies.transforms.payload import check_finite, check_payload, in_dtypes, is_real
from strategies.update import Arrays, Template, Update

Half = Literal["float16", "bfloat16"]

LARGEST: dict[str, float] = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127")}
UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
HALF_SMALLEST = {"float16": 2.0**-25, "bfloat16": 2.0**-134}
MOST_ELEMENTS = 2.0**32


@dataclass(frozen=True)
class Cast(Transform):
    """Real arrays as float16, or as bfloat16 in the bits of uint16; rounded to nearest, ties to even.

    float16 keeps 11 significant bits of numbers up to 65504 and loses those below 3e-8; bfloat16 keeps 8 bits over the
    range of float32. An element x comes back with an error of at most UNIT_ROUNDOFF |x| + HALF_SMALLEST (2^-16 of that
    more from float64 to bfloat16, which rounds twice). What is larger than LARGEST becomes LARGEST.
    """

    dtype: Half = "bfloat16"
    opens: ClassVar[Opens] = Opens.EACH

    def __post_init__(self) -> None:
        if self.dtype not in LARGEST:
            raise ValueError(f"dtype={self.dtype}: expected float16 or bfloat16")

    def encodes(self, template: Template) -> Template:
        """The same shapes."""
        sent = np.dtype(np.float16 if self.dtype == "float16" else np.uint16)
        return tuple((shape, sent if is_real(dtype) else dtype) for shape, dtype in template)

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Rounds. Raises InvalidUpdate("non-finite")."""
        return replace(update, arrays=tuple(self._rounded(array) for array in update.arrays)), state

    def decode_each(self, update: Update, round: Round) -> Update:
        """Widens. Raises InvalidUpdate("decode"), also for what is not finite."""
        check_payload(update.arrays, self.encodes(round.template))
        widened = tuple(
            _from_bfloat16(array) if is_real(dtype) and self.dtype == "bfloat16" else array
            for array, (_, dtype) in zip(update.arrays, round.template, strict=True)
        )
        return replace(update, arrays=in_dtypes(widened, round.template))

    def bound(self, before: float | None) -> float | None:
        """Rounding may lengthen all elements: by their relative error, tiny ones to the double."""
        if before is None:
            return None
        half_smallest = HALF_SMALLEST[self.dtype] * sqrt(MOST_ELEMENTS)
        return min(2 * before, (1 + UNIT_ROUNDOFF[self.dtype] * (1 + 2.0**-16)) * before + half_smallest)

    def _rounded(self, array: NDArray[Any]) -> NDArray[Any]:
        if not is_real(array.dtype):
            return array
        check_finite(array)
        within = np.clip(array.astype(np.promote_types(array.dtype, np.float32)), *_range(self.dtype))
        return np.asarray(within).astype(np.float16) if self.dtype == "float16" else _to_bfloat16(within)


def _range(dtype: Half) -> tuple[float, float]:
    return -LARGEST[dtype], LARGEST[dtype]


def _to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The upper half of float32, the lower half rounded away: half of the last bit kept, less one where it is even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = np.asarray(bits >> 16)
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def _from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return np.asarray(bits.astype(np.uint32) << 16).astype(np.uint32).view(np.float32)
