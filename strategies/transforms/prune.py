"""A model of which ever fewer weights are not zero."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.transform import Opens, Public, Round, Transform
from strategies.transforms.payload import (
    check_payload,
    count_real,
    flat,
    in_dtypes,
    is_real,
    real_dtype,
    unflat,
    whole,
)
from strategies.transforms.sparsify import largest
from strategies.update import Arrays, InvalidUpdate, Template, Update

MASK = "pruning-mask"
"""What the announced mask is called."""


@dataclass(frozen=True)
class Prune(Transform):
    """Magnitude pruning of the global model on a schedule (Zhu & Gupta 2017, arXiv:1710.01878). After round t the share

        s(t) = sparsity (1 - (1 - p)^3),   p = (t - first_round + 1) / (last_round - first_round + 1) within 0 and 1

    of the weights, those of smallest magnitude, is zero. Weights are the elements of real arrays of two or more
    dimensions, all together; of all real arrays in a model that has none such.

    The server chooses in `settle`, after its step, and announces the mask, an eighth of a byte for each real number.
    Clients send what is kept, then as many zeros as coordinates were pruned, which `EntropyCoding` to the right makes
    next to nothing: shapes stay the same in all rounds. Linear: it can be opened on the sum.
    """

    sparsity: float = 0.8
    first_round: int = 1
    last_round: int = 10
    opens: ClassVar[Opens] = Opens.EITHER
    num_server_arrays: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity:g}: expected above 0 and below 1, such as 0.8")
        if self.first_round < 1:
            raise ValueError(f"prune-from={self.first_round}: expected at least 1")
        if self.last_round < self.first_round:
            raise ValueError(f"prune-to={self.last_round}: expected at least prune-from={self.first_round}")

    def begin(self) -> Arrays:
        """No mask: nothing is pruned. Later (bytes,) uint8, one bit for each real number."""
        return (np.zeros(0, np.uint8),)

    def announce(self, state: Arrays, round: Round) -> Public:
        """The mask."""
        return {MASK: state[0].tobytes()}

    def settle(self, params: Arrays, state: Arrays, round: Round) -> tuple[Arrays, Arrays]:
        """The params after the server's step with zeros where they are pruned, and the mask for the next round."""
        share = self.sparsity_after(round.number)
        if not share:
            return params, state
        vector, others = flat(params)
        template = tuple((array.shape, array.dtype) for array in params)
        weights = np.flatnonzero(_are_weights(params))
        mask = np.ones(vector.size, bool)
        mask[weights] = False
        mask[weights[largest(vector[weights], weights.size - int(share * weights.size))]] = True
        pruned = unflat(np.where(mask, vector, 0), others, template)
        return in_dtypes(pruned, template), (np.packbits(mask),)

    def sparsity_after(self, round: int) -> float:
        """s(t)."""
        progress = (round - self.first_round + 1) / (self.last_round - self.first_round + 1)
        return self.sparsity * (1 - (1 - min(max(progress, 0.0), 1.0)) ** 3)

    def chooses(self) -> bool:
        """It does."""
        return True

    def encodes(self, template: Template) -> Template:
        """All real numbers (n,), and what is not real."""
        return ((count_real(template),), real_dtype(template)), *whole(template)

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Kept coordinates to the front, zeros behind. Raises InvalidUpdate("decode") for a mask of another model."""
        vector, others = flat(update.arrays)
        kept = vector[_mask(round, vector.size)]
        return replace(update, arrays=(np.append(kept, np.zeros(vector.size - kept.size, kept.dtype)), *others)), state

    def decode_each(self, update: Update, round: Round) -> Update:
        """Everything back in its place, zeros elsewhere. Raises InvalidUpdate("decode")."""
        check_payload(update.arrays, self.encodes(round.template))
        if update.arrays[0][np.count_nonzero(_mask(round, update.arrays[0].size)) :].any():
            raise InvalidUpdate("decode", "values for pruned coordinates")
        return replace(update, arrays=in_dtypes(_spread(update.arrays, round), round.template))

    def decode_sum(self, total: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """The same on the sum: exact."""
        return replace(total, arrays=_spread(total.arrays, round)), state


def _spread(arrays: Arrays, round: Round) -> Arrays:
    values, *others = arrays
    mask = _mask(round, values.size)
    vector = np.zeros(values.size, values.dtype)
    vector[mask] = values[: np.count_nonzero(mask)]
    return unflat(vector, others, round.template)


def _mask(round: Round, size: int) -> NDArray[np.bool_]:
    """(size,): what is kept. Raises InvalidUpdate("decode")."""
    mask = round.public.get(MASK)
    if mask == b"":
        return np.ones(size, bool)
    if not isinstance(mask, bytes) or len(mask) != -(-size // 8):
        raise InvalidUpdate("decode", f"{MASK}: expected a bit for each of {size} numbers from the server")
    return np.unpackbits(np.frombuffer(mask, np.uint8), count=size).astype(bool)


def _are_weights(params: Arrays) -> NDArray[Any]:
    """(n,): which real numbers of a model may be pruned."""
    real = [array for array in params if is_real(array.dtype)]
    several = any(array.ndim >= 2 for array in real)
    flags = [np.full(array.size, array.ndim >= 2 or not several) for array in real]
    return np.concatenate(flags) if flags else np.zeros(0, bool)
