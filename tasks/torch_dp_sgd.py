"""DP-SGD for PyTorch modules (tasks/dp_sgd.py): which rows a step takes, and the noisy gradient it goes along."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.entropy import Entropy
from tasks.dp_sgd import RecordPrivacy, poisson
from tasks.torch_per_example import PerExample, widened


@dataclass(frozen=True, slots=True)
class PoissonBatches:
    """Rows on the device of the model, each in a batch with the probability that the privacy asks for."""

    x: Tensor
    y: Tensor
    privacy: RecordPrivacy
    entropy: Entropy

    @property
    def per_epoch(self) -> int:
        """Batches that take every row once on average."""
        return self.privacy.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Without end; some batches may have no rows."""
        while True:
            if self.privacy.rate >= 1:
                yield self.x, self.y
                continue
            rows = torch.from_numpy(poisson(len(self.x), self.privacy.rate, self.entropy)).to(self.x.device)
            yield self.x.index_select(0, rows), self.y.index_select(0, rows)


@dataclass(frozen=True, slots=True)
class PrivateGradient:
    """Puts the noisy mean of the clipped gradients of a batch into the parameters. num_rows: those of the client."""

    per_example: PerExample
    privacy: RecordPrivacy
    entropy: Entropy
    num_rows: int

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """For the rows of one step: (sum of clipped gradients + noise) / divisor becomes each parameter's grad."""
        share = 1 / self.privacy.divisor(self.num_rows)
        means = self._noise(self.privacy.stddev * share, x.device)
        self.per_example.add_clipped(means, x, y, self.privacy.clip_norm, share)
        for parameter, mean in zip(self.per_example.trained.values(), means, strict=True):
            parameter.grad = mean.to(parameter.dtype)

    def _noise(self, stddev: float, device: torch.device) -> list[Tensor]:
        values = self.per_example.trained.values()
        sizes = [value.numel() for value in values]
        parts = torch.split(normals(sum(sizes), stddev, self.entropy, device), sizes)
        return [part.view_as(value).to(widened(value.dtype)) for part, value in zip(parts, values, strict=True)]


def normals(size: int, stddev: float, entropy: Entropy, device: torch.device) -> Tensor:
    """Independent normals of mean 0 (size,), float32, by Box & Muller 1958 (doi:10.1214/aoms/1177706645).

    float32, since training is: `privacy.gaussian.normal`, in float64, would take longer than a step. Of a word the
    upper 39 bits give a radius and the lower 24 an angle, so that numbers come out to 7.4 standard deviations; the mass
    beyond is 1e-13. As said there of float64, which numbers can occur is no real Gaussian.
    """
    if not stddev:
        return torch.zeros(size, device=device)
    half = (size + 1) // 2
    words = entropy.words(half)
    # From 0 up, not down from 1, since float32 has its digits near 0, where the logarithm needs them.
    uniform = _floats(words >> np.uint64(25), device).add_(0.5).mul_(2.0**-39)
    diameter = uniform.log_().mul_(-8).sqrt_().mul_(stddev)  # not under the root: float32 holds no square of 1e-23
    turn = _floats(words & np.uint64(2**24 - 1), device).mul_(math.pi * 2.0**-24)
    tangent = turn.tan_()  # of half the angle: a tangent costs half of a sine and a cosine
    share = tangent.square().add_(1).reciprocal_().mul_(diameter)
    drawn = torch.empty(2, half, device=device)
    torch.sub(share, diameter, alpha=0.5, out=drawn[0])
    torch.mul(tangent, share, out=drawn[1])
    return drawn.flatten()[:size]


def _floats(numbers: NDArray[np.uint64], device: torch.device) -> Tensor:
    """Whole numbers below 2^63 as float32."""
    return torch.from_numpy(numbers.view(np.int64).astype(np.float32)).to(device)
