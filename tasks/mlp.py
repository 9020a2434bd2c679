"""A multilayer perceptron, as a federated task."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tasks.base import Arrays, Config, Fit, Rows, Schema, Shard
from tasks.fit_config import GRADIENT_SOLVERS, FitConfig
from tasks.mlp_together import train_block
from tasks.together import Scratch, Trained, fit_in_blocks
from tasks.torch_task import TorchTask, choose_device


class MlpTask(TorchTask):
    """A multilayer perceptron: layers of ReLU units, for classes or for a number.

    Args:
        hidden: units of each hidden layer, separated by commas; empty = none, a linear model
        dropout: share of the units that each training step leaves out
    """

    def __init__(self, schema: Schema, *, hidden: str = "64", dropout: float = 0.0, **training: Any) -> None:
        """Raises ValueError for widths that are no numbers above 0, and a share outside 0 to 1."""
        self.widths = _widths(hidden)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: expected at least 0 and below 1")
        self.dropout = dropout
        super().__init__(schema, **training)

    def fits_many(self, config: Config) -> bool:
        """With `together` above 1, as any PyTorch model; and where numpy can train clients (tasks/mlp_together.py).

        That is on the CPU, with the solvers sgd and gd, where all layers are trained, in float32 and without dropout or
        clipping of gradients.
        """
        asked, options, base = FitConfig.read(config), self.options, MlpTask
        plain = (type(self).make_client, type(self).build) == (base.make_client, base.build) and not self.held_names
        known = plain and not self.dropout and not options.gradient_clip and options.precision == "float32"
        training = asked.work == "train" and asked.solver in GRADIENT_SOLVERS and not asked.correction
        if asked.record is not None:
            return False
        return super().fits_many(config) or (known and training and choose_device(asked.device).type == "cpu")

    def fit_many(
        self, params: Arrays, shards: Sequence[Shard], config: Config, seeds: Sequence[int]
    ) -> list[Fit | Exception]:
        """What fit gives, up to rounding."""
        if self.together > 1:
            return super().fit_many(params, shards, config, seeds)
        asked, cpu, scratch = FitConfig.read(config), torch.device("cpu"), Scratch()

        def train(block: Sequence[Rows], seeds: Sequence[int]) -> list[Trained]:
            held = [self.resident(rows, cpu) for rows in block]
            xs, ys = [x.numpy() for x, _ in held], [y.numpy() for _, y in held]
            return train_block(params, xs, ys, seeds, asked, self.options, scratch)

        return fit_in_blocks(self, params, shards, seeds, asked, train)

    def build(self) -> nn.Module:
        """Linear layers with PyTorch's own initial weights."""
        return nn.Sequential(*self._layers())

    def _layers(self) -> Iterator[nn.Module]:
        widths = (len(self.schema.features), *self.widths)
        for inputs, outputs in pairwise(widths):
            yield nn.Linear(inputs, outputs)
            yield nn.ReLU()
            if self.dropout:
                yield nn.Dropout(self.dropout)
        yield nn.Linear(widths[-1], len(self.schema.classes) or 1)


def _widths(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"hidden={text!r}: expected whole numbers above 0, such as 64,32")
    return tuple(int(word) for word in words)
