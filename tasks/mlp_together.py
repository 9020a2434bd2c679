"""Multilayer perceptrons of many clients trained at once, in numpy and without autograd.

The same arithmetic as PyTorch's, in float32, in another order of additions: equal to it up to rounding. PyTorch's own
`bmm` would make a client's result depend on its neighbours; see tasks/together.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import Arrays
from tasks.families import Categorical
from tasks.fit_config import FitConfig
from tasks.together import Scratch, Trained, side_by_side
from tasks.torch_together import deal
from tasks.torch_training import Options, diverged

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights (clients, outputs, inputs) and biases (clients, 1, outputs), with a buffer for the gradients of each, and
    where there is momentum with that of each."""

    values: tuple[Array, Array]
    gradients: tuple[Array, Array]
    momenta: tuple[Array, Array] | None
    start: tuple[Array, Array]

    @classmethod
    def of(cls, weights: Array, bias: Array, clients: int, *, momentum: bool) -> "Layer":
        """As many copies of one layer."""
        start = (weights[None], bias[None, None])
        values = tuple(np.repeat(array, clients, axis=0) for array in start)
        gradients = tuple(np.empty_like(array) for array in values)
        momenta = tuple(np.zeros_like(array) for array in values) if momentum else None
        return cls(values, gradients, momenta, start)  # type: ignore[arg-type]


def train_block(
    params: Arrays,
    xs: Sequence[Array],
    ys: Sequence[Array],
    seeds: Sequence[int],
    config: FitConfig,
    options: Options,
    scratch: Scratch,
) -> list[Trained]:
    """Solver sgd or gd from `params` (weights and bias of each layer in turn) on the rows of each client.

    xs: (n_i, d) float32 each; ys: (n_i,) class indices, or float32 numbers. A client whose params are not finite at the
    end gets a Diverged.
    """
    pairs = zip(params[::2], params[1::2], strict=True)
    layers = [Layer.of(w, b, len(xs), momentum=options.momentum > 0) for w, b in pairs]
    streams = [deal(len(x), seed, config) for x, seed in zip(xs, seeds, strict=True)]
    with np.errstate(over="ignore", invalid="ignore"):
        for which, x, y in side_by_side(xs, ys, streams, scratch):
            _gradients(layers, which, x, y)
            for layer in layers:
                for index in (0, 1):
                    _step(layer, index, which, config, options)
    stacks = [value for layer in layers for value in layer.values]
    return [_result([stack[index] for stack in stacks], params, config) for index in range(len(xs))]


def _result(values: Sequence[Array], params: Arrays, config: FitConfig) -> Trained:
    arrays = tuple(value.reshape(param.shape) for value, param in zip(values, params, strict=True))
    return arrays if all(np.isfinite(array).all() for array in arrays) else diverged(config)


def _gradients(layers: Sequence[Layer], which: slice, x: Array, y: Array) -> None:
    """Those of the mean loss of each client's batch, into the layers' buffers."""
    entering = [x]
    for depth, layer in enumerate(layers):
        z = np.matmul(entering[-1], layer.values[0][which].swapaxes(1, 2))
        np.add(z, layer.values[1][which], out=z)
        if depth < len(layers) - 1:
            np.maximum(z, 0, out=z)
        entering.append(z)
    slope = _residual(entering.pop(), y)
    for layer in reversed(layers):
        received = entering.pop()
        np.matmul(slope.swapaxes(1, 2), received, out=layer.gradients[0][which])
        np.add.reduce(slope, axis=1, keepdims=True, out=layer.gradients[1][which])
        if entering:
            slope = np.matmul(slope, layer.values[0][which])
            np.multiply(slope, received > 0, out=slope)


def _residual(outputs: Array, y: Array) -> Array:
    """The gradient of the mean loss in the outputs (clients, rows, K)."""
    flat = outputs.reshape(-1, outputs.shape[2])
    if y.dtype.kind in "iu":
        residual = Categorical(flat.shape[1]).mean(flat)
        residual[np.arange(len(flat)), y.reshape(-1)] -= 1
    else:
        residual = flat - y.reshape(-1, 1)
    np.divide(residual, np.float32(outputs.shape[1]), out=residual)
    return residual.reshape(outputs.shape)


def _step(layer: Layer, index: int, which: slice, config: FitConfig, options: Options) -> None:
    """One step of torch.optim.SGD, in place."""
    value, gradient = layer.values[index][which], layer.gradients[index][which]
    if config.l1:
        gradient += np.float32(config.l1) * np.sign(value)
    if config.proximal_mu:
        gradient += np.float32(config.proximal_mu) * (value - layer.start[index])
    if config.l2:
        gradient += np.float32(config.l2) * value
    if layer.momenta is not None:
        momentum = layer.momenta[index][which]
        np.multiply(momentum, np.float32(options.momentum), out=momentum)
        np.add(momentum, gradient, out=momentum)
        gradient = gradient + np.float32(options.momentum) * momentum if options.nesterov else momentum
    scratch = layer.gradients[index][which]
    np.multiply(gradient, np.float32(config.learning_rate), out=scratch)
    np.subtract(value, scratch, out=value)
