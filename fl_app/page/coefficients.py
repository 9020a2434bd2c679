"""What the model weighs: coefficients in original units, with a small forest plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fl_app.page.axes import Axis
from fl_app.page.facts import Facts, mapping, mappings, number
from fl_app.page.markup import Child, Html, el
from fl_app.page.strips import Estimate, forest_axis, forest_row
from fl_app.page.tables import Column, table
from fl_app.page.words import NONE, counted, shorten, significant

MOST_COEFFICIENTS = 40
_INTERCEPT = "(intercept)"


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A line of model.json's `coefficients`; `scale` is one standard deviation of the feature, or 1."""

    output: str
    feature: str
    value: float
    error: float | None
    low: float | None
    high: float | None
    odds: float | None
    odds_low: float | None
    odds_high: float | None
    scale: float

    def strength(self) -> float:
        """What rows are ordered by: the estimate over its standard error, or the effect of one standard deviation."""
        return abs(self.value) / self.error if self.error else abs(self.value) * self.scale

    def effect(self) -> Estimate:
        """Per standard deviation of the feature, so that features of different units can stand on one axis."""
        low, high = (None if end is None else number(end * self.scale) for end in (self.low, self.high))
        return Estimate(self.value * self.scale, low, high)


def coefficients_section(model: Facts | None) -> Html | None:
    """None where the model has no coefficients."""
    about = mapping(model)
    found = _read(about)
    if not found:
        return None
    slopes = sorted((c for c in found if c.feature != _INTERCEPT), key=Coefficient.strength, reverse=True)
    shown = [*slopes[:MOST_COEFFICIENTS], *(c for c in found if c.feature == _INTERCEPT)][: 2 * MOST_COEFFICIENTS]
    left_out = len(found) - len(shown)
    note = about.get("coefficients_note")
    return el(
        "section",
        el("h2", "What the model weighs"),
        el("p", _introduction(about, found)),
        _table(shown, slopes[:MOST_COEFFICIENTS]),
        el("p", f"The strongest come first; {counted(left_out, 'weaker one')} left out.", class_="note")
        if left_out
        else None,
        el("p", shorten(note, 1000), class_="note") if note else None,
    )


def _read(about: Facts) -> list[Coefficient]:
    scales = {str(f.get("name")): scale for f in mappings(about.get("features")) if (scale := number(f.get("scale")))}
    found = (_coefficient(line, scales) for line in mappings(about.get("coefficients")))
    return [c for c in found if c is not None]


def _coefficient(line: Facts, scales: Mapping[str, float]) -> Coefficient | None:
    value = number(line.get("coefficient"))
    if value is None:
        return None
    feature = str(line.get("feature"))
    scale = scales.get(feature, 1.0)
    return Coefficient(
        output=str(line.get("output")),
        feature=feature,
        value=value,
        error=number(line.get("standard_error")),
        low=number(line.get("low")),
        high=number(line.get("high")),
        odds=number(line.get("odds_ratio")),
        odds_low=number(line.get("odds_low")),
        odds_high=number(line.get("odds_high")),
        scale=1.0 if number(value * scale) is None else scale,
    )


def _introduction(about: Facts, found: Sequence[Coefficient]) -> str:
    outputs = list(dict.fromkeys(c.output for c in found))
    target = f" for {shorten(outputs[0])}" if len(outputs) == 1 else " for each class"
    what = "how the log odds change" if about.get("classes") else "how the prediction changes"
    scaled = (
        " The drawing shows the effect of one standard deviation of a number, and of a category against the reference."
        if _scaled(found)
        else ""
    )
    return f"A coefficient says {what}{target} when a feature grows by one of its own units.{scaled}"


def _scaled(found: Sequence[Coefficient]) -> bool:
    return any(c.scale != 1.0 for c in found)


def _table(shown: Sequence[Coefficient], slopes: Sequence[Coefficient]) -> Html:
    axis = forest_axis([c.effect() for c in slopes])
    drawing = "Effect of one standard deviation" if _scaled(slopes) else "Estimate and interval"
    columns = [Column("Feature"), Column("For"), Column(drawing, "p"), Column("Coefficient", "n")]
    columns += [Column("Standard error", "n"), Column("95 % interval", "n")]
    columns += [Column("Odds ratio", "n"), Column("95 % interval", "n")]
    rows = [_row(c, axis) for c in shown]
    several = len({c.output for c in shown}) > 1
    kept = [i for i in range(len(columns)) if (i != 1 or several) and any(row[i] not in (NONE, None) for row in rows)]
    return table("Coefficients in original units", [columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _row(c: Coefficient, axis: Axis) -> list[Child]:
    drawn = None if c.feature == _INTERCEPT else forest_row(axis, c.effect())
    return [
        shorten(c.feature, 48),
        shorten(c.output, 24),
        drawn,
        significant(c.value),
        _text(c.error),
        _interval(c.low, c.high),
        _text(c.odds),
        _interval(c.odds_low, c.odds_high),
    ]


def _text(value: float | None) -> str:
    return NONE if value is None else significant(value)


def _interval(low: float | None, high: float | None) -> str:
    return NONE if low is None or high is None else f"{significant(low)} to {significant(high)}"
