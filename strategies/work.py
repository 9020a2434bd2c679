"""What a strategy asks of a client's `NumPyClient.fit`, and what of its answer is the contribution."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from strategies.protection import Protection
from strategies.update import Arrays, InvalidUpdate, Template

Settings = Mapping[str, bool | bytes | float | int | str]

NO_SETTINGS: Settings = MappingProxyType({})


def template_of(arrays: Arrays) -> Template:
    """Shapes and dtypes of arrays: what is checked of those that come from elsewhere."""
    return tuple((array.shape, array.dtype) for array in arrays)


def check_template(arrays: Arrays, expected: Template) -> None:
    """Raises InvalidUpdate("keys"), ("shape") or ("dtype") where arrays are not as expected."""
    if len(arrays) != len(expected):
        raise InvalidUpdate("keys", f"{len(arrays)} arrays, expected {len(expected)}")
    for index, (array, (shape, dtype)) in enumerate(zip(arrays, expected, strict=True)):
        if array.shape != shape:
            raise InvalidUpdate("shape", f"array {index}: shape {array.shape}, expected {shape}")
        if array.dtype != dtype:
            raise InvalidUpdate("dtype", f"array {index}: dtype {array.dtype}, expected {dtype}")


class LocalWork(ABC):
    """`request` is the value of the fit config's `work` key, `settings` are further entries of it.

    A run is refused whose task does not heed the settings (`Task.fit_options`).

    With `stateful` a client keeps arrays from one of its updates to the next. They are stored on its node and never
    travel; the strategy says which of them count, so that lost replies and resumes do not matter.
    """

    request: ClassVar[str]
    stateful: ClassVar[bool] = False
    settings: Settings = NO_SETTINGS
    protection: Protection | None = None
    """The promise of privacy that the work itself keeps, at the client."""

    def asks(self) -> Settings:
        """The settings, those that have to be computed included."""
        return self.settings

    def num_state_arrays(self, params: Arrays) -> int:
        """How many arrays a client keeps."""
        return 0

    def prepare(self, params: Arrays, beside: Arrays, state: Arrays) -> Arrays:
        """What fit receives: the params. `beside` is what the server optimiser broadcasts with them.

        `state` is what `contribution` gave last: none before the client's first update that was used, or if it is lost.
        """
        return params

    @abstractmethod
    def returns(self, params: Arrays) -> Template:
        """Shapes and dtypes of the arrays that fit returns, and of the contribution."""

    @abstractmethod
    def contribution(self, params: Arrays, returned: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        """What is summed, computed in the dtypes of the params, and the client's next state."""


@dataclass(frozen=True)
class Delta(LocalWork):
    """The client's params minus the params it received, after local training."""

    request = "train"
    settings: Settings = field(default_factory=lambda: NO_SETTINGS, kw_only=True)

    def returns(self, params: Arrays) -> Template:
        """Those of the params."""
        return template_of(params)

    def contribution(self, params: Arrays, returned: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        """returned - params."""
        return difference(returned, params), ()


@dataclass(frozen=True, kw_only=True)
class PrivateDelta(Delta):
    """The delta of local training whose every step protects single rows: DP-SGD (Abadi et al. 2016, arXiv:1607.00133).

    `steps` of them in a round, each with the rows that a coin of probability `rate` falls for, each row's gradient
    clipped to the protection's clip norm, and its noise on their sum. The client draws and adds all of it.
    """

    protection: Protection
    rate: float
    steps: int

    def asks(self) -> Settings:
        """What tasks/dp_sgd.py heeds. Calibrates the noise where it has to follow from a target."""
        return {
            "record-clip-norm": float(self.protection.clip_norm or 0.0),
            "record-noise-multiplier": self.protection.noise_multiplier,
            "record-rate": self.rate,
            "local-steps": self.steps,
        }


class Gradient(Delta):
    """Minus the learning rate times the gradient of the whole local objective at the received params."""

    request = "gradient"


class Curvature(LocalWork):
    """Objective, gradient and Hessian of the whole local objective at the received params."""

    request = "curvature"

    def returns(self, params: Arrays) -> Template:
        """(1,), (P,) and the Hessian's upper triangle (P(P+1)/2,), float64."""
        size = sum(array.size for array in params)
        real = np.dtype(np.float64)
        return ((1,), real), ((size,), real), ((size * (size + 1) // 2,), real)

    def contribution(self, params: Arrays, returned: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        """As returned."""
        return returned, ()


class ControlledDelta(LocalWork):
    """Local training whose gradients are corrected by control variates (Karimireddy et al. 2020, arXiv:1910.06378).

    The server broadcasts its variate c, one array like each of the params; a client keeps its own c_i, at first zeros.
    fit receives the params x and the correction c - c_i, and returns its params y after K steps and the mean of their
    uncorrected gradients. That mean is the client's next variate: it is c_i - c + (x - y) / (K * learning rate), the
    paper's option II. The contribution is y - x and the change of c_i.
    """

    request = "train"
    stateful = True
    settings = MappingProxyType({"correction": True})

    def num_state_arrays(self, params: Arrays) -> int:
        """One for each of the params."""
        return len(params)

    def prepare(self, params: Arrays, beside: Arrays, state: Arrays) -> Arrays:
        """The params, and c - c_i."""
        return *params, *difference(beside, state or _zeros(params))

    def returns(self, params: Arrays) -> Template:
        """Those of the params, twice."""
        return template_of(params) * 2

    def contribution(self, params: Arrays, returned: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        """The delta, and the change of the client's variate; the state is the new one."""
        new, variate = returned[: len(params)], returned[len(params) :]
        return (*difference(new, params), *difference(variate, state or _zeros(params))), variate


def difference(minuend: Arrays, subtrahend: Arrays) -> Arrays:
    """minuend - subtrahend, array by array."""
    return tuple(np.asarray(a - b) for a, b in zip(minuend, subtrahend, strict=True))


def _zeros(params: Arrays) -> Arrays:
    return tuple(np.zeros_like(param) for param in params)
