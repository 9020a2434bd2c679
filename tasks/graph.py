"""A model as a graph of ONNX operators, written down without the onnx package: a file is made of it elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

OPSET = 17
"""The version of the operators; https://onnx.ai/onnx/operators tells what each does."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. `inputs` and `output` are names of tensors; a numpy dtype as an attribute stands for ONNX's."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TracedModel:
    """A serialised ONNX model of one input and one output, in the place of a node."""

    model: bytes
    input: str
    output: str


class Graph:
    """Nodes in the order in which they are computed, and constants by name."""

    def __init__(self) -> None:
        self.nodes: list[Node | TracedModel] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def add(self, operator: str, *inputs: str | NDArray[Any], **attributes: Any) -> str:
        """Add an operator; the name of its output. An input is the name of a tensor, or an array, a constant then."""
        names = tuple(each if isinstance(each, str) else self._constant(each) for each in inputs)
        node = Node(operator, names, self._new_name(operator.lower()), attributes)
        self.nodes.append(node)
        return node.output

    def cast(self, tensor: str, dtype: DTypeLike) -> str:
        """Add the conversion of a tensor to another type; the name of the result."""
        return self.add("Cast", tensor, to=np.dtype(dtype))

    def add_traced(self, model: bytes, tensor: str) -> str:
        """Add a whole model that takes `tensor`; the name of its output."""
        node = TracedModel(model, tensor, self._new_name("traced"))
        self.nodes.append(node)
        return node.output

    def _constant(self, array: NDArray[Any]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.array(array, order="C")
        return name

    def _new_name(self, stem: str) -> str:
        return f"{stem}_{len(self.nodes)}"
