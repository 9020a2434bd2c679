"""What the metrics of a run are called, how they are written and which way is up."""

from collections.abc import Iterable
from dataclasses import dataclass

from fl_app.page.words import percent, shorten, signed, significant


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of summary.json. `limits` are those of its values."""

    key: str
    name: str
    percent: bool = False
    higher_is_better: bool = False
    limits: tuple[float | None, float | None] = (0.0, None)
    of_classes: bool = False

    def text(self, value: float | None) -> str:
        """The value for a person; a dash where there is none."""
        if value is None:
            return "\N{EN DASH}"
        return percent(value) if self.percent else significant(value)

    def gain(self, new: float, old: float) -> float:
        """How much better `new` is; negative where it is worse."""
        return new - old if self.higher_is_better else old - new

    def gain_text(self, gain: float, unit: bool = True) -> str:
        """A gain with its sign, in percentage points for a share."""
        if not self.percent:
            return signed(significant(gain))
        return signed(percent(gain).removesuffix(" %")) + (" points" if unit else "")

    def spread_text(self, spread: float) -> str:
        """A standard deviation, in percentage points for a share."""
        return f"{significant(100 * spread)} points" if self.percent else significant(spread)


_KNOWN = {
    metric.key: metric
    for metric in (
        Metric("accuracy", "Accuracy", True, True, (0.0, 1.0), True),
        Metric("log_loss", "Log loss", of_classes=True),
        Metric("brier", "Brier score", of_classes=True),
        Metric("auc", "AUC", True, True, (0.0, 1.0), True),
        Metric("r2", "R\N{SUPERSCRIPT TWO}", higher_is_better=True, limits=(None, 1.0)),
        Metric("mse", "Mean squared error"),
        Metric("mae", "Mean absolute error"),
    )
}
_MAIN = ("accuracy", "r2", "auc", "mse", "log_loss")
_LOSS = ("log_loss", "mse")


def metric_of(key: object) -> Metric:
    """The metric of that name; one that is not known here is written as it is called."""
    name = str(key)
    return _KNOWN.get(name) or Metric(name, shorten(name.replace("_", " "), 24))


def main_metric(keys: Iterable[str]) -> Metric | None:
    """The one that a reader asks for first; None among none."""
    return _first(_MAIN, list(keys))


def loss_metric(keys: Iterable[str]) -> Metric | None:
    """The loss among these; None where there is none."""
    known = [key for key in keys if key in _LOSS]
    return _first(_LOSS, known)


def _first(order: Iterable[str], keys: list[str]) -> Metric | None:
    for key in [*order, *keys]:
        if key in keys:
            return metric_of(key)
    return None
