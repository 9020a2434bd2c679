"""What the tests of compression share: updates of every kind, and the way of one through a step."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from strategies.transform import Round, chain
from strategies.update import FixedPoint, Update
from strategies.work import template_of

GRID = FixedPoint(30)
HUGE = 1e33
KINDS = ("any", "denormal", "huge", "equal", "zero", "outlier")


@st.composite
def vectors(draw, dtype=None, most=HUGE):
    """An array of real numbers: of any shape with 0 to 3 axes, also empty, and one of KINDS."""
    dtype = np.dtype(dtype or draw(st.sampled_from([np.float32, np.float64])))
    shape = draw(st.one_of(st.just(()), array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)))
    kind = draw(st.sampled_from(KINDS))
    width = 8 * dtype.itemsize
    if kind == "any":
        return draw(arrays(dtype, shape, elements=st.floats(-1000, 1000, width=width)))
    if kind == "zero":
        return np.zeros(shape, dtype)
    if kind == "equal":
        return np.full(shape, draw(st.floats(-9, 9, width=width)), dtype)
    array = np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape)
    scale = {"denormal": float(np.finfo(dtype).smallest_subnormal) * 3, "huge": most / 9, "outlier": 1e-3}[kind]
    array = np.asarray(array * scale, dtype)
    if kind == "outlier" and array.size:
        array.reshape(-1)[0] = 500.0
    return array


def updates(dtype=None, most=HUGE):
    """The arrays of an update, among them whole numbers."""
    counters = arrays(np.int64, array_shapes(max_dims=1, max_side=3), elements=st.integers(-9, 9))
    return st.lists(st.one_of(vectors(dtype, most), vectors(dtype, most), counters), min_size=1, max_size=4).map(tuple)


def round_of(step, given, number=1, seed=7):
    """A round in which such arrays travel and the step (or pipeline) has announced what it announces."""
    info = Round(number, seed, GRID, template=template_of(given))
    return replace(info, public=step.announce(step.begin(), info))


def update(given, client="a"):
    """One client's update."""
    return Update(tuple(given), (client,), num_examples=1)


def encoded(step, given, info=None):
    """What one client sends at first."""
    return step.encode(update(given), (), info or round_of(step, given))[0].arrays


def there_and_back(step, given, seed=7):
    """What the server makes of it."""
    info = round_of(step, given, seed=seed)
    return chain(step).decode(update(encoded(step, given, info)), info).arrays


def joined(given):
    """All real numbers of arrays, in float64."""
    return np.concatenate([np.zeros(0), *(a.reshape(-1).astype(np.float64) for a in given if a.dtype.kind == "f")])


def norm(values):
    """L2, whatever the size of the values."""
    largest = np.abs(values).max(initial=0)
    return float(largest * np.linalg.norm(values / largest)) if largest else 0.0
