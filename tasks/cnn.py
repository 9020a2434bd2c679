"""A small convolutional network for images, as a federated task."""

import math
from collections import OrderedDict
from typing import Any

from torch import nn

from tasks.base import Schema
from tasks.torch_task import TorchTask

KERNEL = 5


class CnnTask(TorchTask):
    """Two convolutions of 5 x 5 with ReLU and 2 x 2 max pooling, a hidden layer and the output layer.

    With channels=32,64 hidden=512 on 28 x 28 pixels and ten classes it is the CNN of McMahan et al. 2017
    (arXiv:1602.05629), with 1,663,370 parameters. An image comes as one row, channel by channel and line by line.

    Args:
        shape: of an image: channels, height and width, separated by commas; empty = one channel, as high as wide
        channels: of the two convolutions, separated by a comma
        hidden: units of the hidden layer
    """

    def __init__(
        self, schema: Schema, *, shape: str = "", channels: str = "16,32", hidden: int = 128, **training: Any
    ) -> None:
        """Raises ValueError for a shape that is not that of the rows, and counts that are not above 0."""
        self.shape = _shape(shape, len(schema.features))
        self.channels = _numbers("channels", channels, 2)
        if hidden < 1:
            raise ValueError(f"hidden={hidden}: expected at least 1")
        self.hidden = hidden
        super().__init__(schema, **training)

    def build(self) -> nn.Module:
        """With PyTorch's own initial weights."""
        depth, height, width = self.shape
        first, second = self.channels
        flat = second * (height // 4) * (width // 4)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            image=nn.Unflatten(1, self.shape),
            conv1=nn.Conv2d(depth, first, KERNEL, padding=KERNEL // 2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, KERNEL, padding=KERNEL // 2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(flat, self.hidden),
            relu3=nn.ReLU(),
            output=nn.Linear(self.hidden, len(self.schema.classes) or 1),
        )
        return nn.Sequential(layers)


def _shape(text: str, pixels: int) -> tuple[int, int, int]:
    if text:
        depth, height, width = _numbers("shape", text, 3)
    else:
        depth, height = 1, math.isqrt(pixels)
        width = height
    if depth * height * width != pixels:
        wanted = f"{depth} x {height} x {width} = {depth * height * width}"
        raise ValueError(f"shape={text}: a row has {pixels} features, an image of {wanted}: set shape=CHANNELS,H,W")
    if min(height, width) < 4:
        raise ValueError(f"shape={text or 'auto'}: images of {height} x {width} are too small to be pooled twice")
    return depth, height, width


def _numbers(name: str, text: str, count: int) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if len(words) != count or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{name}={text}: expected {count} whole numbers above 0, separated by commas")
    return tuple(int(word) for word in words)
