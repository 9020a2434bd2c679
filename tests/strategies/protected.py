"""What the tests of privacy share: promises, and rounds of a pipeline without messages."""

from dataclasses import replace

import numpy as np
from scipy.stats import chi2

from privacy.accounting import Sampling
from strategies.protection import Promise, Protection
from strategies.transform import Round
from strategies.update import ExactSum, FixedPoint, Update
from strategies.work import template_of

GRID = FixedPoint(30)
STEP = 2.0**-GRID.fraction_bits


def protection(noise_multiplier=1.0, **changes):
    """A promise with this noise."""
    usual = Protection(
        unit="client",
        relation="add-remove",
        mechanism="noise",
        promise=Promise(target_epsilon=0.0, noise_multiplier=noise_multiplier, delta=1e-5),
        clip_norm=1.0,
        sampling=Sampling("none"),
        rounds=1,
    )
    return replace(usual, **changes)


def empty_sum(*shapes):
    """The exact sum of no updates."""
    return Update(tuple(np.zeros(shape, np.int64) for shape in shapes), (), weight=0, on_grid=True)


def opened(pipeline, arrays, state=None, number=1, grid=GRID):
    """A round in which such arrays travel and the pipeline has announced what it announces."""
    info = Round(number, 0, grid, template=template_of(arrays))
    return replace(info, public=pipeline.announce(pipeline.begin() if state is None else state, info))


def summed(updates, pipeline, info):
    """What the server has added up when all have answered: each update encoded, held to its limit, on the grid."""
    fold = ExactSum(info.grid)
    for update in updates:
        fold.add(pipeline.limit(pipeline.encode(update, (), info)[0], info))
    return fold.total()


def fits(sample, stddev, error=1e-6):
    """Whether a sample may be centred Gaussian noise of this standard deviation: a chi-square test, two-sided."""
    sample = np.ravel(sample)
    low, high = chi2.ppf((error / 2, 1 - error / 2), sample.size)
    return low < np.sum((sample / stddev) ** 2) < high and abs(sample.mean()) < 5 * stddev / np.sqrt(sample.size)


def flat(arrays):
    """All elements, as float64."""
    return np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])
