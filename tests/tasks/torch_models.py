"""Models of a user's own, by module:function."""

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


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that is no mean over rows."""
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")
