"""Models of a user's own, by module:function."""

import torch
from torch import Tensor, nn


def small_net(features: int, outputs: int) -> nn.Module:
    """A net with normalisation, whose statistics and counter travel too."""
    return nn.Sequential(nn.Linear(features, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, outputs))


def no_module() -> int:
    """Not a model."""
    return 3


def other_words(inputs: int, classes: int) -> nn.Module:
    """Asks for what nobody gives it."""
    return nn.Linear(inputs, classes)


def one_output(features: int) -> nn.Module:
    """Too few numbers for three classes."""
    return nn.Linear(features, 1)


class Tied(nn.Module):
    """An autoencoder-like net that uses one weight twice."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(features, features, bias=False)
        self.again = nn.Linear(features, features, bias=False)
        self.again.weight = self.inner.weight
        self.output = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Twice through the same layer."""
        result: Tensor = self.output(self.again(self.inner(x).relu()).relu())
        return result


def plain_net(features: int, outputs: int) -> nn.Module:
    """A net without buffers, which uses one weight twice."""
    return Tied(features, outputs)


def _two_layers(features: int, outputs: int, weights: tuple[Tensor, Tensor]) -> nn.Module:
    net = nn.Sequential(nn.Linear(features, 4), nn.Tanh(), nn.Linear(4, outputs))
    net[0].weight, net[2].weight = map(nn.Parameter, weights)
    return net


def in_rows(features: int, outputs: int) -> nn.Module:
    """A net whose weights lie in memory row by row."""
    return _two_layers(features, outputs, (torch.ones(4, features) / 3, torch.eye(outputs, 4)))


def in_other_orders(features: int, outputs: int) -> nn.Module:
    """The same net; one weight lies there column by column, one is a part of a wider tensor."""
    return _two_layers(features, outputs, (torch.ones(features, 4).T / 3, torch.eye(outputs, 6)[:, :4]))


def _looked_up(features: int, outputs: int, sparse: bool) -> nn.Module:
    class LookedUp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(2 * features, outputs, sparse=sparse)

        def forward(self, x: Tensor) -> Tensor:
            return self.table((x > 0).long() + 2 * torch.arange(features))

    return LookedUp()


def dense_table(features: int, outputs: int) -> nn.Module:
    """A net that looks the signs of its features up."""
    return _looked_up(features, outputs, False)


def sparse_table(features: int, outputs: int) -> nn.Module:
    """The same net, with gradients of the rows of its table that were looked up alone."""
    return _looked_up(features, outputs, True)


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that is no mean over rows."""
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")
