"""Learning-rate schedules across rounds, each written as one line: `constant`, `step every=10 factor=0.5`,
`cosine floor=0.1`, `inv-sqrt`.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from tasks.suggest import unknown


def learning_rate(schedule: str, base: float, round: int, rounds: int) -> float:
    """The learning rate of a round: a pure function. `round` counts from 1 to `rounds`.

    Raises ValueError for a schedule or an argument that does not exist (with the near match), has no value, or one of
    another type or out of range.
    """
    if not 1 <= round <= rounds:
        raise ValueError(f"round must be within 1 and rounds = {rounds}, got {round}")
    name, *words = schedule.split() or [""]
    if name not in SCHEDULES:
        raise ValueError(unknown("lr-schedule", name, SCHEDULES))
    return base * SCHEDULES[name](round, rounds, **_arguments(name, words))


def _arguments(name: str, words: list[str]) -> dict[str, float]:
    """`key=value` words by the types of the schedule's own keyword parameters."""
    parameters = inspect.signature(SCHEDULES[name]).parameters
    types = {key: type(p.default) for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    arguments: dict[str, float] = {}
    for word in words:
        key, _, text = word.partition("=")
        if key not in types:
            raise ValueError(unknown(f"argument of lr-schedule {name}", key, types))
        if key in arguments:
            raise ValueError(f"lr-schedule {name}: {key} is given twice: keep one")
        try:
            arguments[key] = types[key](text)
        except ValueError:
            kind = "a whole number" if types[key] is int else "a number"
            raise ValueError(f"lr-schedule {name}: {key} must be {kind}, written {key}=VALUE, got {word!r}") from None
    return arguments


def _constant(round: int, rounds: int) -> float:
    return 1.0


def _step(round: int, rounds: int, *, every: int = 10, factor: float = 0.5) -> float:
    """Times `factor` after every `every` rounds."""
    if every < 1 or not 0 < factor <= 1:
        raise ValueError(f"lr-schedule step needs every >= 1 and 0 < factor <= 1, got every={every} factor={factor}")
    return float(factor ** ((round - 1) // every))


def _cosine(round: int, rounds: int, *, floor: float = 0.0, warmup: int = 0) -> float:
    """Up in equal steps to 1 in round `warmup`, then from 1 along a half cosine towards `floor`, which round
    `rounds` + 1 would have.

    Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts; `floor` is a share of the base rate.
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"lr-schedule cosine needs 0 <= floor <= 1, a share of the learning rate, got floor={floor}")
    if not 0 <= warmup < rounds:
        raise ValueError(f"lr-schedule cosine needs 0 <= warmup < rounds = {rounds}, got warmup={warmup}")
    if round <= warmup:
        return round / warmup
    return floor + (1 - floor) * (1 + math.cos(math.pi * (round - 1 - warmup) / (rounds - warmup))) / 2


def _inv_sqrt(round: int, rounds: int) -> float:
    return 1 / math.sqrt(round)


SCHEDULES: Mapping[str, Callable[..., float]] = MappingProxyType(
    {"constant": _constant, "step": _step, "cosine": _cosine, "inv-sqrt": _inv_sqrt}
)
