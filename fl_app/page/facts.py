"""Reading JSON of which anything may be null, absent or of another version."""

from collections.abc import Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]
_LARGEST = 1e300
Points = tuple[tuple[int, float], ...]


def number(value: object) -> float | None:
    """The value as a float; None where it is no finite number, or one so large that sums of it might not be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if abs(found) <= _LARGEST else None


def whole(value: object) -> int | None:
    """The value where it is an int, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def mapping(value: object) -> Facts:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: object) -> list[Facts]:
    """The objects of a list."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [item for item in value if isinstance(item, Mapping)]


def seconds_of(lines: Sequence[Facts], key: str) -> list[float]:
    """A key of `seconds` in each round; 0 where a round does not tell it."""
    return [number(mapping(line.get("seconds")).get(key)) or 0.0 for line in lines]


def total(lines: Sequence[Facts], key: str) -> float:
    """The sum of a key of `seconds` over all rounds."""
    return sum(seconds_of(lines, key))


def over_rounds(lines: Sequence[Facts], source: str, key: str) -> Points:
    """(rounds that the model has behind it, value) of a metric, for each line of rounds.jsonl that tells it.

    `source` is metrics or train_metrics; the latter describe the model that a round began with.
    """
    before = 1 if source == "train_metrics" else 0
    found = ((whole(line.get("round")), number(mapping(line.get(source)).get(key))) for line in lines)
    return tuple((round_ - before, value) for round_, value in found if round_ is not None and value is not None)
