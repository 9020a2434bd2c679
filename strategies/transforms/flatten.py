"""One array on the wire instead of many."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.transform import Opens, Round, Transform
from strategies.transforms.payload import check_payload
from strategies.update import Arrays, Template, Update


@dataclass(frozen=True)
class Flatten(Transform):
    """All arrays of one dtype become one vector, in the order in which their dtypes appear; most models have one.

    Every array on the wire costs a header of about 128 bytes, and steps to the right see one long vector, whose blocks
    do not end where a layer does. Exact, and linear: it can be opened on the sum.
    """

    opens: ClassVar[Opens] = Opens.EITHER

    def encodes(self, template: Template) -> Template:
        """(elements of a dtype,) for each dtype."""
        sizes = {dtype: 0 for _, dtype in template}
        for shape, dtype in template:
            sizes[dtype] += _size(shape)
        return tuple(((size,), dtype) for dtype, size in sizes.items())

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Concatenates."""
        groups: dict[np.dtype[Any], list[NDArray[Any]]] = {}
        for array in update.arrays:
            groups.setdefault(array.dtype, []).append(array.reshape(-1))
        return replace(update, arrays=tuple(np.concatenate(group) for group in groups.values())), state

    def decode_each(self, update: Update, round: Round) -> Update:
        """Cuts the vectors up. Raises InvalidUpdate("decode") for vectors of other lengths or dtypes."""
        check_payload(update.arrays, self.encodes(round.template))
        return replace(update, arrays=_cut(update.arrays, round.template))

    def decode_sum(self, total: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Cuts the vectors of the sum up."""
        return replace(total, arrays=_cut(total.arrays, round.template)), state


def _cut(vectors: Arrays, template: Template) -> Arrays:
    order = list(dict.fromkeys(dtype for _, dtype in template))
    start, arrays = dict.fromkeys(order, 0), []
    for shape, dtype in template:
        stop = start[dtype] + _size(shape)
        arrays.append(vectors[order.index(dtype)][start[dtype] : stop].reshape(shape))
        start[dtype] = stop
    return tuple(arrays)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
