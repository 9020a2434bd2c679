"""Arrays as safetensors bytes. The library writes what lies in memory, so a transposed array must be laid out first."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save


def tensor_bytes(arrays: Mapping[str, NDArray[Any]], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of arrays of any layout in memory."""
    return bytes(save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata=metadata))
