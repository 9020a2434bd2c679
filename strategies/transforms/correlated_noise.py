"""Noise that later rounds take back in part: privacy without secret sampling (DP-FTRL).

In round t the noise is n_t with C n = Z, where Z is independent Gaussian noise and C the banded Toeplitz matrix of the
first coefficients of the square root of the prefix-sum matrix,

    c_0 = 1,   c_j = c_(j-1) (2j - 1) / (2j)   for j < bands,        so   n_t = Z_t - sum_j c_j n_(t-j).

A model is a sum of all rounds so far, and the noise of that sum grows far slower than that of independent noise
(Kairouz et al. 2021, arXiv:2103.00039; banded square roots: Kalinin & Lampert 2024, arXiv:2405.13763). What is released
is C x + Z up to post-processing. A client that takes part every `separation` >= bands rounds at most moves disjoint
stretches of C x, each by at most ||c|| times its bound: so many releases of the Gaussian mechanism, also where the data
follow what was released before (Denisov et al. 2022, arXiv:2202.08312; Choquette-Choo et al. 2023, arXiv:2306.08153).
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import ceil, sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from privacy.entropy import SYSTEM, Entropy
from privacy.gaussian import discrete_gaussian
from strategies.protection import Protection
from strategies.transform import Opens, PrivacyEvent, Round, Transform
from strategies.transforms.clipping import is_longer
from strategies.transforms.noise import FARTHEST, limited, longest, sensitivity_on_grid
from strategies.update import Arrays, Update

MOST_BANDS = 16
"""The server keeps the noise of so many rounds, each as large as the model."""


def coefficients(bands: int) -> NDArray[np.float64]:
    """c_0 to c_(bands - 1): (bands,)."""
    factors = [1.0, *((2 * j - 1) / (2 * j) for j in range(1, bands))]
    products: NDArray[np.float64] = np.cumprod(np.array(factors))
    return products


@lru_cache(maxsize=64)
def best_bands(rounds: int, separation: int) -> int:
    """The number of bands, at most `separation` and MOST_BANDS, with the least noise in the models of all rounds."""
    return min(range(1, min(separation, MOST_BANDS) + 1), key=lambda bands: error(rounds, bands))


def error(rounds: int, bands: int) -> float:
    """The root mean square, over rounds, of the noise in the sum of all rounds so far, where ||c|| Z has unit variance
    in every element."""
    c = coefficients(bands)
    response = np.zeros(rounds)  # the sums of C^-1 applied to an impulse: of the prefix sums' noise, lag by lag
    for t in range(rounds):
        past = response[max(0, t - bands + 1) : t][::-1]
        response[t] = (t == 0) - c[1 : len(past) + 1] @ past
    return float(np.linalg.norm(c) * np.sqrt(np.cumsum(np.cumsum(response) ** 2).mean()))


@dataclass(frozen=True)
class CorrelatedNoiseOnSum(Transform):
    """Noise on the exact sum of a round, of which the `bands` - 1 rounds before hold a part.

    The noise so far is the server's state, and never on a disk; a resumed run begins anew (`protection` is charged so).
    """

    protection: Protection
    sensitivity: float
    bands: int
    entropy: Entropy = field(default=SYSTEM, compare=False, repr=False)
    opens: ClassVar[Opens] = Opens.SUM
    num_server_arrays: ClassVar[int] = 1

    def begin(self) -> Arrays:
        """No noise so far: (0, 0) int64."""
        return (np.zeros((0, 0), np.int64),)

    def kept(self, state: Arrays) -> Arrays:
        """Nothing: with the noise on a disk, whoever gets it could take it off the model. A new matrix begins."""
        return self.begin()

    def privacy_event(self) -> PrivacyEvent:
        """The noise of one stretch, for what a client moves of it."""
        return PrivacyEvent(self.sensitivity, self.protection)

    def limit(self, update: Update, round: Round) -> Update:
        """Clips what is longer than honest clients' contributions can be."""
        return limited(update, self.sensitivity, round.grid)

    def exceeds(self, update: Update, round: Round) -> bool:
        """Whether it is longer than that, by more than floats round."""
        return is_longer(update.arrays, longest(update, self.sensitivity, round.grid))

    def decode_sum(self, total: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Adds n_t; the state is n_t, n_(t-1), ...: (at most bands - 1, elements) int64, in steps of the grid."""
        sizes = [array.size for array in total.arrays]
        before = state[0] if state[0].size else np.zeros((0, sum(sizes)), np.int64)
        c = coefficients(self.bands)
        taken_back = np.rint(c[1 : len(before) + 1] @ before).astype(np.int64)
        noise = discrete_gaussian(self._sigma(total, round), sum(sizes), self.entropy) - taken_back
        parts = np.split(noise, np.cumsum(sizes)[:-1])
        noisy = tuple(array + part.reshape(array.shape) for array, part in zip(total.arrays, parts, strict=True))
        return replace(total, arrays=noisy), (np.vstack([noise[None], before])[: self.bands - 1],)

    def _sigma(self, total: Update, round: Round) -> int:
        # What is taken back is computed in floats, of whole numbers below 2^56, and rounded: seen from Z, that moves
        # every later round of a stretch by less than 64 steps.
        once = sensitivity_on_grid(total.arrays, self.sensitivity, round.grid)
        steps = once * float(np.linalg.norm(coefficients(self.bands)))
        rounding = 64 * sqrt((self.bands - 1) * sum(array.size for array in total.arrays))
        return ceil(self.protection.noise_multiplier * (steps + rounding))

    def headroom(self) -> float:
        """As far as noise goes: that of a round is less than 1.2 times Z, whatever the bands."""
        return 1.2 * FARTHEST * self.privacy_event().stddev * float(np.linalg.norm(coefficients(self.bands)))
