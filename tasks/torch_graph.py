"""A PyTorch module as a graph of ONNX operators."""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.graph import OPSET, Graph
from tasks.torch_layout import to_array

LAYERS = (nn.Linear, nn.ReLU, nn.Dropout, nn.Identity, nn.Flatten, nn.Unflatten, nn.Conv2d, nn.MaxPool2d)


def write_module(module: nn.Module, features: int, graph: Graph, rows: str) -> str:
    """What the module gives, in evaluation mode, for `rows` (n, features), float32: the name of that tensor.

    A chain of layers that are known here is written operator by operator. Any other module is traced by
    torch.onnx.export on two rows of zeros. Raises NotImplementedError where that fails.
    """
    layers = list(_flat(module))
    if not all(_known(layer, first=number == 0) for number, layer in enumerate(layers)):
        return graph.add_traced(_traced(module, features), rows)
    for layer in layers:
        rows = _write(layer, graph, rows)
    return rows


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a chain, of chains in it too; of any other module the module itself."""
    if type(module) is nn.Sequential:
        for layer in module:
            yield from _flat(layer)
    else:
        yield module


def _known(layer: nn.Module, *, first: bool) -> bool:
    """Whether `_write` writes it. A subclass may compute anything, so the type counts, not what it inherits."""
    if type(layer) not in LAYERS or layer._forward_pre_hooks:  # which compute weights, as spectral_norm does
        return False
    match layer:
        case nn.Flatten():
            return (layer.start_dim, layer.end_dim) == (1, -1)
        case nn.Unflatten():
            return first and layer.dim == 1
        case nn.Conv2d():
            return layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)
        case nn.MaxPool2d():
            return (layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices) == (0, 1, False, False)
    return True


def _write(layer: nn.Module, graph: Graph, x: str) -> str:
    match layer:
        case nn.Linear():
            product = graph.add("MatMul", x, to_array(layer.weight).T)
            return product if layer.bias is None else graph.add("Add", product, to_array(layer.bias))
        case nn.ReLU():
            return graph.add("Relu", x)
        case nn.Flatten():
            return graph.add("Flatten", x, axis=1)
        case nn.Unflatten():
            return graph.add("Reshape", x, np.array([0, *layer.unflattened_size]))  # 0: as many rows
        case nn.Conv2d():
            return _write_convolution(layer, graph, x)
        case nn.MaxPool2d():
            return graph.add("MaxPool", x, kernel_shape=_pair(layer.kernel_size), strides=_pair(layer.stride))
    return x  # Identity, and Dropout, which leaves nothing out in evaluation mode


def _write_convolution(layer: nn.Conv2d, graph: Graph, x: str) -> str:
    arrays = [to_array(tensor) for tensor in (layer.weight, layer.bias) if tensor is not None]
    return graph.add(
        "Conv",
        x,
        *arrays,
        strides=layer.stride,
        pads=(*layer.padding, *layer.padding),
        dilations=layer.dilation,
        group=layer.groups,
    )


def _pair(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _traced(module: nn.Module, features: int) -> bytes:
    """By the exporter that needs no package beside PyTorch, which PyTorch calls its old one."""
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), _no_standard_output():
            warnings.simplefilter("ignore")  # that it is old; and of values that were traced as constants
            torch.onnx.export(
                module,
                (torch.zeros(2, features),),
                file,  # type: ignore[arg-type]  # this exporter also takes an open file
                input_names=["rows"],
                output_names=["outputs"],
                dynamic_axes={"rows": {0: "n"}, "outputs": {0: "n"}},
                opset_version=OPSET,
                dynamo=False,
            )
    except Exception as error:  # a module of somebody else's may raise anything
        raise NotImplementedError(
            f"torch.onnx.export cannot write {type(module).__name__} ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]})"
        ) from error
    return file.getvalue()


@contextmanager
def _no_standard_output() -> Iterator[None]:
    """Of C++ code neither: when it fails the exporter prints the module there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
