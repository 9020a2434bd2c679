"""Axes: from values to places of a drawing, and the few values that are written beside them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fl_app.page.words import MINUS, count, step_decimals

Limits = tuple[float | None, float | None]
_HUGE, _TINY = 1e200, 1e-200  # beyond these, arithmetic with the ends of an axis could overflow or come to nought


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis from `low` at place `start` to `high` at place `end`; `ticks` are values."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The place of a value; one beyond the axis lies at its end."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)


def value_axis(values: Iterable[float], start: float, end: float, limits: Limits, intervals: int = 4) -> Axis:
    """An axis that holds all values (at least one) and begins and ends on a round value."""
    clipped = [min(max(value, -_HUGE), _HUGE) for value in values]
    low, high = _apart(min(clipped), max(clipped), limits)
    step = _round_step((high - low) / intervals)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def round_axis(rounds: Iterable[int], start: float, end: float, intervals: int = 5) -> Axis:
    """An axis of whole rounds (at least one); its first and last round are written."""
    known = list(rounds)
    low, high = min(known), max(known)
    if low == high:
        return Axis(low - 1, high + 1, start, end, (low,))
    step = max(1, round(_round_step((high - low) / intervals)))
    inner = [i for i in range(-(-low // step) * step, high, step) if high - i > 0.7 * step and i - low > 0.7 * step]
    return Axis(low, high, start, end, (low, *inner, high))


def tick_texts(axis: Axis, percent: bool) -> list[str]:
    """The ticks of a value axis with as many decimals as tell them apart."""
    factor = 100 if percent else 1
    step = (axis.ticks[1] - axis.ticks[0]) * factor
    largest = max(abs(axis.low), abs(axis.high)) * factor
    unit = " %" if percent else ""
    if largest >= 1e5 or step < 1e-4:
        digits = min(10, max(3, math.ceil(math.log10(largest / step)) + 1))
        texts = [
            f"{tick * factor:.{digits}g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
            for tick in axis.ticks
        ]
    else:
        texts = [f"{tick * factor:,.{step_decimals(step)}f}" for tick in axis.ticks]
    return [text.replace("-", MINUS) + unit for text in texts]


def round_texts(axis: Axis) -> list[str]:
    """The ticks of an axis of rounds."""
    return [count(tick) for tick in axis.ticks]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, in their order, at least `gap` apart and as far as possible within low..high."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    floor = low
    for i in order:
        placed[i] = max(wanted[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def _apart(low: float, high: float, limits: Limits) -> tuple[float, float]:
    """The same, or a little more where there is next to nothing between them."""
    size = max(abs(low), abs(high))
    if high - low > max(1e-6 * size, _TINY):
        return low, high
    margin = max(0.05 * size, 1e-6)
    lowest, highest = limits
    low = low - margin if lowest is None else max(low - margin, min(lowest, low))
    high = high + margin if highest is None else min(high + margin, max(highest, high))
    return low, high


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least that."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= least * (1 - 1e-9))
