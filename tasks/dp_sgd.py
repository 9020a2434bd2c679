"""Record-level differential privacy inside a client: what is asked of DP-SGD, and which rows take part in a step.

Abadi et al. 2016 (arXiv:1607.00133), algorithm 1. The unit is one row. A step takes every row independently with
probability `rate`, clips the gradient of each, adds Gaussian noise to their sum and divides by a number fixed in
advance. Sampling and noise come from an `Entropy`, never from the seed of a run: who knows the seed would know both.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.entropy import Entropy
from tasks.base import Config
from tasks.suggest import unknown

PREFIX = "record-"
NEEDED = ("record-clip-norm", "record-noise-multiplier", "record-rate")
OPTIONS = (*NEEDED, "record-rows")
"""The keys of a fit config that this file reads."""


@dataclass(frozen=True, slots=True)
class RecordPrivacy:
    """How the steps of a client protect each of its rows.

    clip_norm: largest L2 norm of one row's gradient, over all trained parameters jointly. noise_multiplier: standard
    deviation of the noise on the sum of a step, per coordinate, in units of clip_norm. rate: the probability with which
    a row takes part in a step. rows: the public number of rows that a mean is taken over; 0 = the client's own number,
    which the released parameters then tell, so that it counts as public.
    """

    clip_norm: float
    noise_multiplier: float
    rate: float
    rows: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < math.inf:
            raise ValueError(f"record-clip-norm must be a finite number above 0, got {self.clip_norm!r}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"record-noise-multiplier must be a finite number of 0 or more: {self.noise_multiplier!r}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"record-rate must be above 0 and at most 1, got {self.rate!r}")
        if self.rows < 0:
            raise ValueError(f"record-rows must be a whole number of 0 or more, got {self.rows!r}")

    @classmethod
    def read(cls, config: Config) -> "RecordPrivacy | None":
        """From a fit config; None where no key begins with `record-`.

        Raises ValueError for one that is missing, unknown, of another type or out of range: half of a protection, or
        one under a misspelt key, would be none.
        """
        given = [key for key in config if key.startswith(PREFIX)]
        if not given:
            return None
        for key in given:
            if key not in OPTIONS:
                raise ValueError(unknown("key", key, OPTIONS))
        if missing := [key for key in NEEDED if key not in config]:
            raise ValueError(f"the fit config has {given[0]} but lacks {', '.join(missing)}: send all of them, or none")
        rows = config.get("record-rows", 0)
        if isinstance(rows, bool) or not isinstance(rows, int):
            raise ValueError(f"record-rows must be a whole number of 0 or more, got {rows!r}")
        clip_norm, noise_multiplier, rate = (_number(config, key) for key in NEEDED)
        return cls(clip_norm, noise_multiplier, rate, rows)

    @property
    def stddev(self) -> float:
        """That of the noise on the sum of a step."""
        return self.noise_multiplier * self.clip_norm

    @property
    def steps_per_epoch(self) -> int:
        """How many steps take every row once on average: a public number, whatever the number of rows."""
        return math.ceil(1 / self.rate)

    def divisor(self, num_rows: int) -> float:
        """What makes a mean of the sum of a step: the expected batch, never the drawn one, whose size is private."""
        return self.rate * (self.rows or num_rows)


def poisson(num_rows: int, rate: float, entropy: Entropy) -> NDArray[np.intp]:
    """The rows of one step (m,), ascending, each there independently with probability `rate`, rounded down to 2^-32."""
    if rate >= 1:
        return np.arange(num_rows)
    words = entropy.words((num_rows + 1) // 2).view(np.uint32)[:num_rows]
    return np.flatnonzero(words < np.uint32(int(rate * 2.0**32)))


def shrinking(norms: NDArray[Any], clip_norm: float) -> NDArray[Any]:
    """By what to multiply rows of these norms so that none is above the clip: 1 for all below it, zero included."""
    result: NDArray[Any] = clip_norm / np.maximum(norms, clip_norm)
    return result


def _number(config: Config, key: str) -> float:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number, got {value!r}")
    return float(value)
