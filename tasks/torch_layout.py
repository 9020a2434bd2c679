"""Which tensors of a PyTorch module travel, and how a module and the arrays of a run become one another.

numpy has no bfloat16: such tensors travel as float32, which holds them exactly. Integer buffers (the counters of
BatchNorm) travel as float64, which holds them exactly below 2^53, are averaged like all else and rounded when they come
back. A tensor that a module knows under two names (tied weights) travels once, under the first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tasks.base import Arrays
from tasks.suggest import unknown


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of the tensors that travel, in the module's own order."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module, leave_out: Iterable[str] = ()) -> "Layout":
        """All parameters and persistent buffers, but those whose name is among `leave_out`."""
        skipped = set(leave_out)
        return cls(tuple(name for name, _ in tensors(module) if name not in skipped))

    def read(self, module: nn.Module) -> Arrays:
        """Copies of the tensors, on the CPU."""
        by_name = dict(tensors(module))
        return tuple(to_array(by_name[name]) for name in self.names)

    def write(self, module: nn.Module, arrays: Arrays) -> None:
        """Overwrite the tensors. Raises ValueError for another number of arrays, or other shapes."""
        by_name = dict(tensors(module))
        if len(arrays) != len(self.names):
            raise ValueError(f"the model has {len(self.names)} arrays, got {len(arrays)}: is it the same task?")
        for name, array in zip(self.names, arrays, strict=True):
            tensor = by_name[name]
            if tuple(tensor.shape) != array.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, got {array.shape}: is it the same task?")
            write_tensor(tensor, array)


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by name; one that is there twice under its first name."""
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def to_array(tensor: Tensor) -> NDArray[Any]:
    """A copy as it travels."""
    detached = tensor.detach()
    if not detached.is_floating_point():
        detached = detached.to(torch.float64)
    elif detached.dtype not in (torch.float32, torch.float64):
        detached = detached.to(torch.float32)
    return np.array(detached.cpu().numpy(), order="C")


def write_tensor(tensor: Tensor, array: NDArray[Any]) -> None:
    """Overwrite a tensor by an array as it travels; whole numbers are rounded to the nearest."""
    with torch.no_grad():
        values = torch.from_numpy(np.require(array, requirements=("C", "W")))
        tensor.copy_(values if tensor.is_floating_point() else values.round())


def normalisation(module: nn.Module) -> tuple[str, ...]:
    """The names of all parameters and statistics of batch (and instance) normalisation layers."""
    layers = (layer for layer in module.modules() if isinstance(layer, _NormBase))
    own = {id(tensor) for layer in layers for tensor in layer.state_dict(keep_vars=True).values()}
    return tuple(name for name, tensor in tensors(module) if id(tensor) in own)


def matching(patterns: str, names: Iterable[str], purpose: str) -> tuple[str, ...]:
    """The names that one of the patterns fits, in order: shell wildcards, separated by commas.

    A pattern also fits whatever lies below a module of that name: `head` is `head.weight` and `head.bias`. Raises
    ValueError for a pattern that fits nothing.
    """
    known = tuple(names)
    chosen: set[str] = set()
    for pattern in (word.strip() for word in patterns.split(",") if word.strip()):
        hits = {name for name in known if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not hits:
            raise ValueError(f"{purpose}={pattern} matches nothing: {unknown('name', pattern, known)}")
        chosen |= hits
    return tuple(name for name in known if name in chosen)
