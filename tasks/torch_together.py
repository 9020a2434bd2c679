"""Any PyTorch module of many clients trained at once, by torch.func.vmap.

Kernels add up in another order for another number of clients, and by where in memory a client's numbers lie. So a block
always has the same shape and a client always the same place in it, which its seed says: free places are filled with
copies of another client, short batches with rows that do not count, and a client that is done stands still.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tasks.fit_config import FitConfig
from tasks.together import Batch, Trained, batch_rows
from tasks.torch_layout import to_array
from tasks.torch_training import Loss, Options, diverged

Data = tuple[Tensor, Tensor]
Values = dict[str, Tensor]


def check_module(module: nn.Module, features: int, loss: Loss, targets: Tensor, width: int) -> None:
    """Refuse (ValueError) a module that cannot be trained so; `targets` are two labels to try it with."""
    remedy = f"together={width}: leave it out"
    if any(True for _ in module.buffers()):
        raise ValueError(f"the model has buffers (batch normalisation?), which {remedy}")
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        raise ValueError(f"the model has parameters that are not float32, for which {remedy}")
    values = {name: value.detach()[None] for name, value in module.named_parameters()}
    rows = torch.zeros(1, len(targets), features)
    try:
        _gradients(module.train(), loss, values, (rows, targets[None]), torch.ones(1, len(targets)))
    except Exception as error:  # a module of somebody else's may raise anything; dropout raises here
        raise ValueError(
            f"the model cannot be trained for many clients at once ({error}), for which {remedy}"
        ) from error


def train_clients(
    module: nn.Module,
    data: Sequence[Data],
    seeds: Sequence[int],
    config: FitConfig,
    options: Options,
    loss: Loss,
    width: int,
) -> list[Trained]:
    """Solver sgd or gd from the module's parameters on the rows of each client, in blocks of `width` clients.

    data: x (n, d) and y (n,) of each, on the module's device. The results are in the order of the parameters.
    """
    sizes = [batch_rows(config, len(y)) for _, y in data]
    results: dict[int, Trained] = {}
    for block in _blocks(sizes, [seed % width for seed in seeds], width):
        other = next(index for index in block if index is not None)
        filled = [other if index is None else index for index in block]
        chosen, their_seeds = [data[index] for index in filled], [seeds[index] for index in filled]
        trained = _train_block(module.train(), chosen, their_seeds, sizes[other], config, options, loss)
        for place, index in enumerate(block):
            if index is not None:
                arrays = tuple(to_array(value[place]) for value in trained.values())
                results[index] = arrays if all(np.isfinite(array).all() for array in arrays) else diverged(config)
    return [results[index] for index in range(len(data))]


def _blocks(sizes: Sequence[int], places: Sequence[int], width: int) -> Iterator[tuple[int | None, ...]]:
    """Clients by their places, None for a free one; all of a block take batches of one size."""
    for size in sorted(set(sizes)):
        queues: list[list[int]] = [[] for _ in range(width)]
        for index, place in enumerate(places):
            if sizes[index] == size:
                queues[place].append(index)
        yield from zip_longest(*queues)


def _train_block(
    module: nn.Module,
    data: Sequence[Data],
    seeds: Sequence[int],
    size: int,
    config: FitConfig,
    options: Options,
    loss: Loss,
) -> Values:
    start = {name: value.detach() for name, value in module.named_parameters()}
    values = {name: value.expand(len(data), *value.shape).clone() for name, value in start.items()}
    momenta = {name: torch.zeros_like(value) for name, value in values.items()} if options.momentum else {}
    streams = [deal(len(y), seed, config) for (_, y), seed in zip(data, seeds, strict=True)]
    while True:
        picked = [next(stream, None) for stream in streams]
        if all(rows is None for rows in picked):
            return values
        batches = [_filled(batch, rows, size) for batch, rows in zip(data, picked, strict=True)]
        x, y, weights = (torch.stack(parts) for parts in zip(*batches, strict=True))
        gradients = _gradients(module, loss, values, (x, y), weights)
        active = torch.tensor([rows is not None for rows in picked], device=x.device)
        for name, value in values.items():
            step = _step(value, gradients[name], start[name], momenta.get(name), config, options)
            value.sub_(torch.where(active.reshape(-1, *[1] * (value.dim() - 1)), config.learning_rate * step, 0.0))


def _filled(data: Data, rows: Batch | None, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of `size` rows, and their weights in its mean: 0 for those that only fill it up."""
    x, y = data
    chosen = np.arange(len(y))[slice(0, 1) if rows is None else rows]
    index = torch.from_numpy(np.resize(chosen, size) if len(chosen) < size else chosen).to(x.device)
    weights = torch.zeros(size, device=x.device)
    weights[: len(chosen)] = 1 / len(chosen)
    return x[index], y[index], weights


def _gradients(module: nn.Module, loss: Loss, values: Values, batch: Data, weights: Tensor) -> Values:
    """Those of the weighted loss of each client's batch."""

    def of_row(outputs: Tensor, target: Tensor) -> Tensor:
        return loss(outputs[None], target[None])

    def objective(values: Values, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return (vmap(of_row)(functional_call(module, values, (x,)), y) * weights).sum()

    result: Values = vmap(grad(objective))(values, *batch, weights)
    return result


def _step(
    value: Tensor, gradient: Tensor, start: Tensor, momentum: Tensor | None, config: FitConfig, options: Options
) -> Tensor:
    """What torch.optim.SGD multiplies by the learning rate."""
    if config.l1:
        gradient = gradient + config.l1 * value.sign()
    if config.proximal_mu:
        gradient = gradient + config.proximal_mu * (value - start)
    if config.l2:
        gradient = gradient + config.l2 * value
    if momentum is None:
        return gradient
    momentum.mul_(options.momentum).add_(gradient)
    return gradient + options.momentum * momentum if options.nesterov else momentum


def deal(num_rows: int, seed: int, config: FitConfig) -> Iterator[Batch]:
    """The rows of each step of one client, as `torch_training.Batches` deals them."""
    size = batch_rows(config, num_rows)
    return islice(_without_end(num_rows, size, seed), config.iterations(-(-num_rows // size)))


def _without_end(num_rows: int, size: int, seed: int) -> Iterator[Batch]:
    while size >= num_rows:
        yield slice(None)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_rows, generator=generator).numpy()
        yield from (order[start : start + size] for start in range(0, num_rows, size))
