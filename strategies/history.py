"""What is known of a round once it is over: the report that becomes a line of rounds.jsonl."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any, Protocol

from strategies.update import DropReason

Metrics = Mapping[str, float]


class MetricSpec(Protocol):
    """Which metric sums clients return, and what they mean (a Task is one)."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the sums."""

    def check_sums(self, sums: Mapping[str, Fraction]) -> None:
        """Refuse sums that no rows can have (ValueError)."""

    def summarise(self, sums: Mapping[str, Fraction]) -> Mapping[str, float]:
        """Metrics from sums over all examples."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A client whose update was not used, and why."""

    client: str
    reason: DropReason


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One line of rounds.jsonl.

    `metrics` describe the model after the round, where it was evaluated. `train_metrics` came back with the updates
    and describe the model the round began with, on the test rows of its cohort. `params_change` is
    ||new - old|| / max(||old||, 1) over all params. `online` clients could be asked and `expected_clients` were, in as
    many `attempts` as it took to have enough good updates. Of a cohort that is secret the size is the expected one, and
    what would tell the real one is None. `epsilon`: spent up to and with this round, where privacy is promised.
    """

    round: int
    metrics: Metrics | None
    train_metrics: Metrics | None
    online: int | None
    expected_clients: int
    attempts: int
    good: int | None
    dropped: tuple[Dropped, ...]
    bytes_up: int | None
    bytes_down: int | None
    payload_up: int | None
    payload_down: int | None
    params_change: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    epsilon: float | None = None
    clipped: tuple[str, ...] | None = ()
    left_out: tuple[str, ...] | None = ()

    def metric(self, name: str) -> float | None:
        """A metric of the model after the round; else of the model that the round began with; else None."""
        for known in (self.metrics, self.train_metrics):
            value = (known or {}).get(name)
            if value is not None and math.isfinite(value):
                return value
        return None

    def to_json(self) -> dict[str, Any]:
        """A dict for json.dumps: numbers that are not finite become None."""
        return {name: finite(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "RoundReport":
        """The inverse of `to_json`. Raises KeyError where a key is missing."""
        values = {f.name: line[f.name] for f in fields(cls)}
        values["dropped"] = tuple(Dropped(**d) for d in line["dropped"])
        for name in ("clipped", "left_out"):
            values[name] = None if line[name] is None else tuple(line[name])
        return cls(**values)


def finite(value: Any) -> Any:
    """The value for json.dumps: numbers that are not finite become None, tuples lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [finite(v) for v in value]
    return value
