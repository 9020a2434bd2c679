"""The local training of a PyTorch module: mini-batches cut from tensors that stay where the model is.

There is no DataLoader: for rows in memory its processes and collation cost more than the training of a small model.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import unwrap
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.fit_config import FitConfig

Loss = Callable[[Tensor, Tensor], Tensor]
SetGradients = Callable[[Tensor, Tensor], None]
"""Puts the gradient of a batch's mean loss, inputs and targets given, into the parameters."""


class Dealer(Protocol):
    """The batches of a training."""

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, without end."""
        ...


@dataclass(frozen=True, slots=True)
class Batches:
    """Rows on the device of the model, dealt in a fresh order every epoch."""

    x: Tensor
    y: Tensor
    size: int
    generator: torch.Generator

    @classmethod
    def of(cls, x: Tensor, y: Tensor, config: FitConfig) -> "Batches":
        """As the config says: its batch size, its seed; solver gd takes all rows at once."""
        size = len(x) if config.solver == "gd" else min(config.batch_size or len(x), len(x))
        return cls(x, y, size, torch.Generator().manual_seed(config.seed))

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch; the last one may be shorter."""
        return math.ceil(len(self.x) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Without end. The rows are put in order once an epoch; a batch is then a slice and copies nothing."""
        while True:
            x, y = self.x, self.y
            if self.size < len(x):
                order = torch.randperm(len(x), generator=self.generator).to(x.device)
                x, y = x[order], y[order]
            for start in range(0, len(x), self.size):
                yield x[start : start + self.size], y[start : start + self.size]


@dataclass(frozen=True, slots=True)
class Options:
    """How a task trains, beside what the run says. gradient_clip: a norm, 0 for none."""

    momentum: float = 0.0
    nesterov: bool = False
    gradient_clip: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: expected at least 0 and below 1")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=true without momentum: set momentum, such as 0.9")
        if not 0 <= self.gradient_clip < math.inf:
            raise ValueError(f"gradient-clip={self.gradient_clip}: expected a norm of 0 (none) or more")


class Diverged(ArithmeticError):
    """Parameters that are no numbers any more."""


def train(
    module: nn.Module,
    batches: Dealer,
    config: FitConfig,
    options: Options,
    loss: Loss,
    correction: Mapping[str, Tensor] = MappingProxyType({}),
    set_gradients: SetGradients | None = None,
) -> int:
    """Train the module in place, on rows that lie on its device; the number of steps.

    The objective of a batch is its mean loss + l2/2 ||w||^2 + l1 ||w||_1 + proximal_mu/2 ||w - w_0||^2 over the
    trainable parameters, biases included; AdamW decays weights by l2 instead. `correction`, by the parameters' names,
    is added to the gradient of every step. `set_gradients` puts another gradient in the place of the mean loss's.
    Raises Diverged, naming the learning rate, where parameters are not finite.
    """
    module.train()
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    trained = [parameter for _, parameter in named]
    received = [parameter.detach().clone() for parameter in trained] if config.proximal_mu else []
    added = [(parameter, correction[name]) for name, parameter in named if name in correction]
    optimizer = _optimizer(trained, config, options, fused=_steps_can_be_fused(module, trained))
    torch.manual_seed(config.seed)  # dropout
    steps = config.iterations(batches.per_epoch)
    for inputs, targets in islice(batches, steps):
        optimizer.zero_grad(set_to_none=True)
        if set_gradients is None:
            with precision(options, inputs.device):
                objective = loss(module(inputs), targets)
            if config.l1:
                objective = objective + config.l1 * sum(parameter.abs().sum() for parameter in trained)
            objective.backward()  # type: ignore[no-untyped-call]
        else:
            set_gradients(inputs, targets)
            _add_l1(trained, config.l1)
        for parameter, start in zip(trained, received, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=config.proximal_mu)
        for parameter, h in added:
            if parameter.grad is not None:
                parameter.grad.add_(h)
        if options.gradient_clip:
            nn.utils.clip_grad_norm_(trained, options.gradient_clip)
        optimizer.step()
    if not all(_is_finite(parameter) for parameter in trained):
        raise diverged(config)
    return steps


def _is_finite(parameter: nn.Parameter) -> bool:
    """Whether all elements are: a NaN or an infinity is the least or the greatest one."""
    return not parameter.numel() or bool(torch.isfinite(torch.stack(parameter.detach().aminmax())).all())


def _add_l1(trained: list[nn.Parameter], l1: float) -> None:
    for parameter in trained:
        if l1 and parameter.grad is not None:
            parameter.grad.add_(parameter.detach().sign(), alpha=l1)


def diverged(config: FitConfig) -> Diverged:
    """What to raise where training left the real numbers."""
    return Diverged(f"training left the real numbers with learning-rate={config.learning_rate:g}: lower it")


def _uncompiled(optimizer: type[torch.optim.Optimizer]) -> Any:
    """The optimiser without what torch.compile asks of it: the first step of a process imports torch._dynamo, which
    takes as long as all of PyTorch, and a node starts a process for every message."""
    methods: dict[str, Any] = {name: unwrap(getattr(optimizer, name)) for name in ("add_param_group", "zero_grad")}
    return type(optimizer.__name__, (optimizer,), {**methods, "step": torch.no_grad()(unwrap(optimizer.step))})


SGD, Adam, AdamW = map(_uncompiled, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))


def _optimizer(trained: list[nn.Parameter], config: FitConfig, options: Options, *, fused: bool) -> Any:
    """`fused`: a step is one pass over parameters and gradients."""
    rate, l2, way = config.learning_rate, config.l2, {"fused" if fused else "foreach": True}
    if config.solver == "adam":
        return Adam(trained, lr=rate, weight_decay=l2, **way)
    if config.solver == "adamw":
        return AdamW(trained, lr=rate, weight_decay=l2, **way)
    return SGD(trained, lr=rate, momentum=options.momentum, weight_decay=l2, nesterov=options.nesterov, **way)


def _steps_can_be_fused(module: nn.Module, trained: list[nn.Parameter]) -> bool:
    """Whether parameters and gradients are dense and lie in memory in the same order.

    PyTorch's fused step takes that for granted: of other orders it makes other parameters without a word, sparse
    gradients it refuses. A gradient is in the order of its parameter where that is contiguous, not where it is a part
    of another tensor.
    """
    sparse = any(getattr(layer, "sparse", False) for layer in module.modules())  # embeddings
    return not sparse and all(parameter.is_contiguous() for parameter in trained)


def precision(options: Options, device: torch.device) -> AbstractContextManager[object]:
    """Autocast where asked for: the parameters stay as they are, products are computed in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if options.precision == "bfloat16" else nullcontext()


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of logits (n, K) and class indices (n,)."""
    return functional.cross_entropy(outputs.float(), targets)


def _half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of numbers (n, 1) or (n,)."""
    return functional.mse_loss(outputs.float().reshape(len(targets)), targets) / 2


LOSSES: Mapping[str, Loss] = MappingProxyType({"cross_entropy": _cross_entropy, "squared_error": _half_squared_error})
