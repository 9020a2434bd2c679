"""Gaussian noise that makes what is sent, or the sum of it, differentially private.

Noise is drawn on a grid of integers, exactly (arXiv:2004.00010), so that no gap between floating-point numbers tells
what it was added to (Mironov 2012, doi:10.1145/2382196.2382264). Rounding to the grid lengthens a contribution by at
most half a step in every element; the noise is made for that too.

The accountant counts continuous noise. A discrete Gaussian of sigma steps and a continuous one that is rounded differ
by less than 0.03 / sigma^2 in total variation, element by element. The grid is that on which the noised sum just fits
an int64 (`FixedPoint.for_reach`), so sigma is above 2^30 steps with a noise multiplier of 0.01 and a million clients:
with 10^7 elements and 1,000 rounds that adds less than 3e-10 to delta in all.
"""

from dataclasses import dataclass, field, replace
from math import ceil, sqrt
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from privacy.entropy import SYSTEM, Entropy
from privacy.gaussian import discrete_gaussian
from strategies.protection import Protection
from strategies.transform import Opens, PrivacyEvent, Round, Transform
from strategies.transforms.clipping import clipped, is_longer
from strategies.update import Arrays, FixedPoint, Update

FARTHEST = 2.0**11
"""Standard deviations that the grid of a round leaves room for. Noise never goes so far; but then its scale in steps
stays below 2^51, and the sampler takes it (`privacy.gaussian.MAX_SIGMA`)."""

LOCAL_STEPS = 2**30
"""Steps of a client's own grid in one clip norm."""


@dataclass(frozen=True)
class NoiseOnSum(Transform):
    """Noise on the exact sum of a round, for a sum that one client moves by at most `sensitivity` (L2, all arrays
    together): the Gaussian mechanism of a trusted server (McMahan et al. 2018, arXiv:1710.06963).

    The server holds everybody to `sensitivity`, a fold of k clients to k times that, whatever their nodes sent.
    """

    protection: Protection
    sensitivity: float
    entropy: Entropy = field(default=SYSTEM, compare=False, repr=False)
    opens: ClassVar[Opens] = Opens.SUM

    def privacy_event(self) -> PrivacyEvent:
        """The noise, for its sensitivity."""
        return PrivacyEvent(self.sensitivity, self.protection)

    def limit(self, update: Update, round: Round) -> Update:
        """Clips what is longer than honest clients' contributions can be."""
        return limited(update, self.sensitivity, round.grid)

    def exceeds(self, update: Update, round: Round) -> bool:
        """Whether it is longer than that, by more than floats round."""
        return is_longer(update.arrays, longest(update, self.sensitivity, round.grid))

    def decode_sum(self, total: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Adds the noise."""
        steps = sensitivity_on_grid(total.arrays, self.sensitivity, round.grid)
        sigma = ceil(self.protection.noise_multiplier * steps)
        noisy = tuple(
            array + discrete_gaussian(sigma, array.size, self.entropy).reshape(array.shape) for array in total.arrays
        )
        return replace(total, arrays=noisy), state

    def headroom(self) -> float:
        """As far as noise goes."""
        return FARTHEST * self.privacy_event().stddev


@dataclass(frozen=True)
class LocalNoise(Transform):
    """Noise that a client adds to its own update of at most `clip_norm` before it leaves: the server need not be
    trusted (Gaussian mechanism; Balle & Wang 2018, arXiv:1805.06530, for its exact privacy at any epsilon).
    """

    protection: Protection
    clip_norm: float
    entropy: Entropy = field(default=SYSTEM, compare=False, repr=False)

    def privacy_event(self) -> PrivacyEvent:
        """The noise, for the clip norm."""
        return PrivacyEvent(self.clip_norm, self.protection)

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Adds the noise, on a grid of the client's own; arrays keep their dtypes."""
        scale = LOCAL_STEPS / self.clip_norm
        steps = LOCAL_STEPS + sqrt(_elements(update.arrays)) / 2
        sigma = ceil(self.protection.noise_multiplier * steps)
        return replace(update, arrays=tuple(self._noisy(array, scale, sigma) for array in update.arrays)), state

    def _noisy(self, array: NDArray[Any], scale: float, sigma: int) -> NDArray[Any]:
        noise = discrete_gaussian(sigma, array.size, self.entropy).reshape(array.shape)
        values = (np.rint(array * np.float64(scale)).astype(np.int64) + noise) / scale
        return np.asarray(np.rint(values) if array.dtype.kind in "iu" else values).astype(array.dtype)

    def bound(self, before: float | None) -> float | None:
        """None: noise has no bound."""
        return None


def limited(update: Update, sensitivity: float, grid: FixedPoint) -> Update:
    """The update, scaled down where it is longer than that of as many clients can be who each keep to `sensitivity`.

    Raises InvalidUpdate("non-finite").
    """
    return replace(update, arrays=clipped(update.arrays, longest(update, sensitivity, grid)))


def longest(update: Update, sensitivity: float, grid: FixedPoint) -> float:
    """The norm that an update, one or a sum of several, can have if each client keeps to `sensitivity`."""
    if not update.on_grid:
        return sensitivity
    return len(update.clients) * sensitivity_on_grid(update.arrays, sensitivity, grid)


def sensitivity_on_grid(arrays: Arrays, sensitivity: float, grid: FixedPoint) -> float:
    """In steps of the grid, rounding to it included."""
    return sensitivity * 2.0**grid.fraction_bits * (1 + 2.0**-40) + sqrt(_elements(arrays)) / 2


def _elements(arrays: Arrays) -> int:
    return sum(array.size for array in arrays)
