"""What steps that compress have in common: which arrays they encode, and the checks of what comes back.

They encode arrays of real numbers. Whole numbers (counters of a model, positions and codes of a step to the left) pass
through as they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.update import Arrays, InvalidUpdate, Template
from strategies.work import check_template


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether a step encodes arrays of this dtype."""
    return dtype.kind == "f"


def count_real(template: Template) -> int:
    """How many real numbers there are, in all arrays together."""
    return sum(int(np.prod(shape, dtype=np.int64)) for shape, dtype in template if is_real(dtype))


def real_dtype(template: Template) -> np.dtype[Any]:
    """The dtype that holds all real arrays; float32 where there are none."""
    found = [dtype for _, dtype in template if is_real(dtype)]
    return np.result_type(*found) if found else np.dtype(np.float32)


def whole(template: Template) -> Template:
    """The entries that are not real."""
    return tuple((shape, dtype) for shape, dtype in template if not is_real(dtype))


def flat(arrays: Arrays) -> tuple[NDArray[Any], Arrays]:
    """All real numbers as one vector, and the arrays that are not real."""
    real = [array.reshape(-1) for array in arrays if is_real(array.dtype)]
    vector = np.concatenate(real) if real else np.zeros(0, np.float32)
    return vector, tuple(array for array in arrays if not is_real(array.dtype))


def unflat(vector: NDArray[Any], others: Sequence[NDArray[Any]], template: Template) -> Arrays:
    """The inverse of `flat`, but for the dtypes: those of the vector and of the others."""
    rest, start, arrays = iter(others), 0, []
    for shape, dtype in template:
        if is_real(dtype):
            stop = start + int(np.prod(shape, dtype=np.int64))
            arrays.append(vector[start:stop].reshape(shape))
            start = stop
        else:
            arrays.append(next(rest))
    return tuple(arrays)


def in_dtypes(arrays: Arrays, template: Template) -> Arrays:
    """Decoded arrays in the dtypes of the template. Raises InvalidUpdate("decode") where a value is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # what a narrower dtype cannot hold becomes infinite: refused
        cast = tuple(array.astype(dtype, copy=False) for array, (_, dtype) in zip(arrays, template, strict=True))
    for array in cast:
        if is_real(array.dtype) and not np.isfinite(array).all():
            raise InvalidUpdate("decode", "decoded values that are not finite")
    return cast


def check_payload(arrays: Arrays, expected: Template) -> None:
    """Raises InvalidUpdate("decode") for arrays of other shapes or dtypes, or real ones that are not finite."""
    try:
        check_template(arrays, expected)
    except InvalidUpdate as error:
        raise InvalidUpdate("decode", f"an encoding of another form: {error}") from error
    if not all(np.isfinite(array).all() for array in arrays if is_real(array.dtype)):
        raise InvalidUpdate("decode", "an encoding with a NaN or an infinity")


def check_finite(array: NDArray[Any]) -> None:
    """Raises InvalidUpdate("non-finite") at the client that would have to encode a NaN or an infinity."""
    if not np.isfinite(array).all():
        raise InvalidUpdate("non-finite", "an update with a NaN or an infinity, or one too large to encode")
