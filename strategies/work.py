"""What a strategy asks of a client's `NumPyClient.fit`, and what of its answer is the contribution."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from strategies.update import Arrays, InvalidUpdate

Template = tuple[tuple[tuple[int, ...], np.dtype[np.generic]], ...]


def template_of(arrays: Arrays) -> Template:
    """Shapes and dtypes of arrays: what is checked of those that come from elsewhere."""
    return tuple((array.shape, array.dtype) for array in arrays)


def check_template(arrays: Arrays, expected: Template) -> None:
    """Raises InvalidUpdate("keys"), ("shape") or ("dtype") where arrays are not as expected."""
    if len(arrays) != len(expected):
        raise InvalidUpdate("keys", f"{len(arrays)} arrays, expected {len(expected)}")
    for index, (array, (shape, dtype)) in enumerate(zip(arrays, expected, strict=True)):
        if array.shape != shape:
            raise InvalidUpdate("shape", f"array {index}: shape {array.shape}, expected {shape}")
        if array.dtype != dtype:
            raise InvalidUpdate("dtype", f"array {index}: dtype {array.dtype}, expected {dtype}")


class LocalWork(ABC):
    """`request` is the value of the fit config's `work` key."""

    request: ClassVar[str]

    @abstractmethod
    def returns(self, params: Arrays) -> Template:
        """Shapes and dtypes of the arrays that fit returns."""

    @abstractmethod
    def contribution(self, received: Arrays, returned: Arrays) -> Arrays:
        """What is summed, computed in the dtypes of the params."""


class Delta(LocalWork):
    """The client's params minus the params it received, after local training."""

    request = "train"

    def returns(self, params: Arrays) -> Template:
        """Those of the params."""
        return template_of(params)

    def contribution(self, received: Arrays, returned: Arrays) -> Arrays:
        """returned - received."""
        return tuple(np.asarray(new - old) for old, new in zip(received, returned, strict=True))


class Gradient(Delta):
    """Minus the learning rate times the gradient of the whole local objective at the received params."""

    request = "gradient"


class Curvature(LocalWork):
    """Objective, gradient and Hessian of the whole local objective at the received params."""

    request = "curvature"

    def returns(self, params: Arrays) -> Template:
        """(1,), (P,) and the Hessian's upper triangle (P(P+1)/2,), float64."""
        size = sum(array.size for array in params)
        real = np.dtype(np.float64)
        return ((1,), real), ((size,), real), ((size * (size + 1) // 2,), real)

    def contribution(self, received: Arrays, returned: Arrays) -> Arrays:
        """As returned."""
        return returned
