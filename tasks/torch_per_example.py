"""Sums of the gradients of single rows of a PyTorch module, each clipped to a norm: what DP-SGD adds noise to.

Two ways, told apart by the modules' types alone:

*By layers*: a `Sequential` of `Linear`, `Conv2d` and layers without parameters that treat every row by itself. One
forward and one backward pass give the input of every layer and the gradient at its output, row by row. Of a linear
layer the gradient of a row is their outer product: its norm is a product of two norms, and the clipped sum one product
of matrices (Goodfellow 2015, arXiv:1510.01799). Where a weight meets many places of a row, as in a convolution, the
gradient of each row is formed. Its norm could be had from Gram matrices without (Li et al. 2022, arXiv:2110.05679), but
where terms cancel float32 loses that norm, and with it the clip: a row could be made that passes unclipped.

*By torch.func*: any other module, under vmap(grad), which calls it with one row. Whatever it does, it mixes no rows.

A row whose gradient is not finite, or too large for its norm to be, adds nothing.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

Loss = Callable[[Tensor, Tensor], Tensor]
Context = Callable[[], AbstractContextManager[object]]

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
ROW_BY_ROW = (nn.Linear, nn.Identity, nn.Dropout, *ACTIVATIONS, *POOLS)
CHUNK_BYTES = 2**26
"""What the gradients of the rows that are worked on at once take: a large batch is worked on in pieces."""


class Gradients(Protocol):
    """Those of n rows, for some of the parameters."""

    def squares(self) -> Tensor:
        """Of each row its squared norm: (n,)."""
        ...

    def only(self, rows: Tensor) -> "Gradients":
        """Those of the rows where a mask (n,) is true."""
        ...

    def add_to(self, sums: Iterator[Tensor], weights: Tensor) -> None:
        """Add the sum over the rows, with these weights (n,), to one tensor of `sums` a parameter."""
        ...


@dataclass(frozen=True, slots=True)
class Formed:
    """Gradients as they are: (n, *shape) a parameter."""

    rows: Sequence[Tensor]

    def squares(self) -> Tensor:
        return torch.stack([each.flatten(1).square().sum(1) for each in self.rows]).sum(0)

    def only(self, rows: Tensor) -> "Formed":
        return Formed([each[rows] for each in self.rows])

    def add_to(self, sums: Iterator[Tensor], weights: Tensor) -> None:
        for each in self.rows:
            next(sums).view(-1).addmv_(each.flatten(1).T, weights)


@dataclass(frozen=True, slots=True)
class Outer:
    """Gradients of a linear layer: at its outputs (n, o) times its inputs (n, i). Says which parameters are trained."""

    at_outputs: Tensor
    inputs: Tensor
    weight: bool
    bias: bool

    def squares(self) -> Tensor:
        factor = self.inputs.square().sum(1) + float(self.bias) if self.weight else 1.0
        return self.at_outputs.square().sum(1) * factor

    def only(self, rows: Tensor) -> "Outer":
        return Outer(self.at_outputs[rows], self.inputs[rows], self.weight, self.bias)

    def add_to(self, sums: Iterator[Tensor], weights: Tensor) -> None:
        scaled = self.at_outputs * weights[:, None]
        if self.weight:
            next(sums).addmm_(scaled.T, self.inputs)
        if self.bias:
            next(sums).add_(scaled.sum(0))


class PerExample:
    """The clipped sums of one module and loss, over the parameters that require gradients.

    `loss` takes the outputs and targets of a batch; of a single row it is that row's loss, and with `mean_of_rows` that
    of a batch is the mean of theirs. `context` is entered around the forward pass.
    """

    def __init__(self, module: nn.Module, loss: Loss, context: Context, *, mean_of_rows: bool = False) -> None:
        self._module, self._loss, self._context, self._mean = module, loss, context, mean_of_rows
        self.trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        """The parameters that the sums are of, in order."""
        names = {id(value): name for name, value in self.trained.items()}
        held = places(module, nn.Module.named_parameters)
        self._places = {place: names[id(value)] for place, value in held if id(value) in names}
        self._layers = layers_of(module)
        self._floats = 0

    def clipped_sum(self, x: Tensor, y: Tensor, clip_norm: float) -> list[Tensor]:
        """Over rows x (m, d) with labels y (m,), m of 0 or more: one tensor, of float32 or wider, a parameter.

        Every row's gradient, over all these parameters jointly, is clipped to `clip_norm`.
        """
        sums = [
            torch.zeros(value.shape, dtype=widened(value.dtype), device=value.device) for value in self.trained.values()
        ]
        self.add_clipped(sums, x, y, clip_norm)
        return sums

    def add_clipped(self, sums: Sequence[Tensor], x: Tensor, y: Tensor, clip_norm: float, share: float = 1.0) -> None:
        """Add the clipped sum, times `share`, to tensors such as `clipped_sum` returns."""
        if not len(x):
            return
        size = max(1, CHUNK_BYTES // (4 * self._floats_of_a_row(x[:1])))
        for rows, labels in zip(torch.split(x, size), torch.split(y, size), strict=True):
            parts = self._gradients(rows, labels)
            norms = torch.stack([part.squares() for part in parts]).sum(0).sqrt_()
            if not math.isfinite(float(norms.sum())):  # left out, not weighted by 0, as 0 times infinity is no number
                finite = norms.isfinite()
                parts, norms = [part.only(finite) for part in parts], norms[finite]
            weights = (clip_norm / norms).clamp_(max=1.0).mul_(share)  # a norm of 0 gives infinity, and so 1
            rest = iter(sums)
            for part in parts:
                part.add_to(rest, weights)

    def _gradients(self, x: Tensor, y: Tensor) -> list[Gradients]:
        return self._by_function(x, y) if self._layers is None else self._by_layers(self._layers, x, y)

    def _by_function(self, x: Tensor, y: Tensor) -> list[Gradients]:
        buffers = dict(places(self._module, nn.Module.named_buffers))

        def loss(values: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
            # Copies of the buffers, so that nothing of a row stays there.
            tensors = {place: buffer.clone() for place, buffer in buffers.items()}
            tensors.update((place, values[name]) for place, name in self._places.items())
            with self._context():
                # Ties are made here: with tie_weights a module that is there twice would not get its own weights back.
                outputs = functional_call(self._module, tensors, (row[None],), tie_weights=False)
                return self._loss(outputs, label[None])

        values = {name: value.detach() for name, value in self.trained.items()}
        found = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(values, x, y)
        return [Formed([_wide(found[name]) for name in values])]

    def _by_layers(self, layers: Sequence[nn.Module], x: Tensor, y: Tensor) -> list[Gradients]:
        with self._context():
            passed, outputs = _forward(layers, x)
            total = self._total(outputs, y)
        slopes = torch.autograd.grad(total, [after for _, _, after in passed])
        return [_of_layer(layer, before, slope) for (layer, before, _), slope in zip(passed, slopes, strict=True)]

    def _total(self, outputs: Tensor, y: Tensor) -> Tensor:
        if self._mean:
            return self._loss(outputs, y) * len(y)
        rows: Tensor = vmap(lambda output, label: self._loss(output[None], label[None]))(outputs, y)
        return rows.sum()

    def _floats_of_a_row(self, x: Tensor) -> int:
        """How many numbers are formed for one row, at most in one layer."""
        if not self._floats and self._layers is None:
            self._floats = sum(value.numel() for value in self.trained.values())
        elif not self._floats:
            with torch.no_grad():
                passed, _ = _forward(self._layers or (), x)
            self._floats = max(_formed_by(*each) for each in passed)
        return self._floats


Weighted = nn.Linear | nn.Conv2d
Passed = tuple[Weighted, Tensor, Tensor]
"""A layer, what went in and what came out."""


def _forward(layers: Sequence[nn.Module], x: Tensor) -> tuple[list[Passed], Tensor]:
    """What passed through the layers that are trained, and the outputs of the last layer."""
    passed = []
    for layer in layers:
        before, x = x, layer(x)
        if isinstance(layer, Weighted) and any(value.requires_grad for value in layer.parameters()):
            passed.append((layer, before, x))
    return passed, x


def _of_layer(layer: Weighted, before: Tensor, slope: Tensor) -> Gradients:
    """From what went into a layer and the gradient at what came out."""
    before, slope = _wide(before.detach()), _wide(slope)
    weight, bias = layer.weight.requires_grad, layer.bias is not None and layer.bias.requires_grad
    if isinstance(layer, nn.Linear) and before.dim() == 2:
        return Outer(slope, before, weight, bias)
    if isinstance(layer, nn.Conv2d):
        before = _patches(layer, before).transpose(1, 2)
        slope = slope.flatten(2).transpose(1, 2)
    places, slopes = before.flatten(1, -2), slope.flatten(1, -2)  # (n, places, inputs) and (n, places, outputs)
    rows = [(slopes.transpose(1, 2) @ places).reshape(len(places), *layer.weight.shape)] if weight else []
    return Formed([*rows, slopes.sum(1)] if bias else rows)


def _patches(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """What the kernel meets at each place: (n, inputs of the kernel, places)."""
    if images.dim() != 4:
        raise ValueError(f"a convolution got {images.dim()} dimensions, expected rows of channels, height and width")
    return functional.unfold(images, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]


def _formed_by(layer: Weighted, before: Tensor, after: Tensor) -> int:
    if isinstance(layer, nn.Conv2d):
        weight = layer.weight.numel()
        return weight + after[0, 0].numel() * (weight // layer.out_channels)
    return before.numel() + (0 if before.dim() == 2 else layer.weight.numel())


def places(module: nn.Module, tensors: Callable[..., Iterable[tuple[str, Tensor]]]) -> Iterator[tuple[str, Tensor]]:
    """The names under which a module's parts hold tensors, tied ones included; a part that is there twice only once."""
    for name, part in module.named_modules():
        yield from tensors(part, prefix=name, recurse=False, remove_duplicate=False)


def _wide(value: Tensor) -> Tensor:
    return value.to(widened(value.dtype))


def widened(dtype: torch.dtype) -> torch.dtype:
    """What norms and sums are computed in: bfloat16 has too few digits for them."""
    return torch.promote_types(dtype, torch.float32)


def layers_of(module: nn.Module) -> list[nn.Module] | None:
    """The layers of a module whose gradients are found layer by layer, in order; None for any other module."""
    layers = list(_flat(module))
    own = [id(value) for layer in layers for value in layer.parameters()]
    known = all(_known(layer) for layer in layers) and not any(_has_hooks(each) for each in module.modules())
    return layers if known and len(own) == len(set(own)) else None


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for child in module:
            yield from _flat(child)
    else:
        yield module


def _known(layer: nn.Module) -> bool:
    """Whether it is of a type, exactly, that treats each row by itself, and is set up to."""
    kind = type(layer)
    if isinstance(layer, nn.Conv2d):
        usual = layer.padding_mode == "zeros" and layer.groups == 1 and not isinstance(layer.padding, str)
        return usual and kind is nn.Conv2d
    if isinstance(layer, nn.Flatten | nn.Unflatten):
        first = layer.start_dim if isinstance(layer, nn.Flatten) else layer.dim
        return isinstance(first, int) and first > 0 and kind in (nn.Flatten, nn.Unflatten)
    # In place, a layer would write over the outputs of the one before, at which the gradient is taken.
    return kind in ROW_BY_ROW and not getattr(layer, "inplace", False)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def batch_statistics(module: nn.Module) -> Iterator[str]:
    """The names of the layers whose outputs for a row depend on other rows, in this batch or in those before."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) or (isinstance(layer, _NormBase) and layer.track_running_stats):
            yield name
