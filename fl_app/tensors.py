"""Arrays as safetensors bytes, and their hash.

The library writes what lies in memory, so a transposed array must be laid out first.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save


def tensor_bytes(arrays: Mapping[str, NDArray[Any]], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of arrays of any layout in memory."""
    return bytes(save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata=metadata))


def params_sha256(names: Sequence[str], params: Sequence[NDArray[Any]]) -> str:
    """sha256 over the arrays in model order of name NUL dtype NUL shape NUL (shape as JSON) and the elements.

    Elements are C-ordered and little-endian; so the hash can be recomputed from model.safetensors and the `arrays` of
    model.json, on any machine.
    """
    digest = hashlib.sha256()
    for name, array in zip(names, params, strict=True):
        little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        digest.update(f"{name}\0{little.dtype.str}\0{json.dumps(list(array.shape))}\0".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()
