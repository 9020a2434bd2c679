"""Curves over rounds, or over what rounds cost, as SVG: numbers in, markup out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fl_app.page.axes import Axis, Limits, round_axis, round_texts, spread, tick_texts, value_axis
from fl_app.page.facts import Points
from fl_app.page.markup import Html, el, length

WIDTH, HEIGHT = 460.0, 236.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 394.0, 10.0, 206.0
_MOST_MARKS, _THINNED_MARKS = 60, 30
_LABEL_GAP = 15.0
Places = Callable[[int], float]
"""Where a round lies, from left to right."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of rounds.jsonl: `source` is their key there, `style` a class of the style sheet, `name` for the key.

    `low` and `high`, where they are given, are the edges of an area around it, in the same rounds.
    """

    name: str
    style: str
    source: str
    points: Points
    low: Points = ()
    high: Points = ()


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line to compare with; `label` stands beside it, `name` in the key."""

    name: str
    label: str
    style: str
    value: float


@dataclass(frozen=True, slots=True)
class Amounts:
    """What grows with the rounds: `after` each round, 0 being before the first, so many of `unit`."""

    name: str
    unit: str
    after: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing of at least one curve with at least one point.

    Rounds lie side by side; with `over` as far to the right as the amount after them, which knows all of them.
    """

    name: str
    metric: str
    curves: Sequence[Curve]
    text: Callable[[float], str]
    percent: bool = False
    limits: Limits = (None, None)
    levels: Sequence[Level] = ()
    band: tuple[float, float] | None = None
    band_name: str = ""
    remarks: Sequence[str] = field(default_factory=tuple)
    label_each: bool = False
    over: Amounts | None = None

    def figure(self) -> Html:
        """The drawing with its title above and its key below."""
        title = el("h3", self.name, *(el("span", remark, class_="remark") for remark in self.remarks))
        return el("figure", el("figcaption", title), self._drawing(), _key(self), class_="chart")

    def last(self) -> tuple[int, float, str]:
        """(round, value, style) of the point that stands furthest to the right."""
        ends = [(*curve.points[-1], curve.style) for curve in self.curves]
        return max(ends, key=lambda end: end[0])

    def _drawing(self) -> Html:
        values = [value for curve in self.curves for _, value in (*curve.points, *curve.low, *curve.high)]
        compared = [*(level.value for level in self.levels), *(self.band or ())]
        ys = value_axis([*values, *compared], _BOTTOM, _TOP, self.limits)
        below, at = self._across()
        parts = [_grid(ys, tick_texts(ys, self.percent)), below, _band(ys, self.band)]
        parts += [_level(ys, level) for level in self.levels]
        parts += [_area(at, ys, curve) for curve in self.curves if len(curve.low) > 1]
        parts += [_line(at, ys, curve) for curve in self.curves]
        parts += [_marks(at, ys, curve, self.text) for curve in self.curves]
        box = f"0 0 {length(WIDTH)} {length(HEIGHT)}"
        return el(
            "svg", *parts, self._labels(ys), viewBox=box, role="img", aria_label=_told(self), data_metric=self.metric
        )

    def _across(self) -> tuple[Html, Places]:
        """What is written below, and where each round lies."""
        rounds = {x for curve in self.curves for x, _ in curve.points}
        start, end = _LEFT + 10, _RIGHT - 8
        if self.over is None:
            xs = round_axis(rounds, start, end)
            return _below(xs, round_texts(xs), "round"), xs.at
        after = self.over.after
        xs = value_axis((0.0, *(after[x] for x in rounds)), start, end, (0.0, None))
        return _below(xs, tick_texts(xs, percent=False), self.over.unit), lambda x: xs.at(after[x])

    def _labels(self, ys: Axis) -> Html:
        """The last value and the names of the levels at the right, moved apart where they would overlap."""
        ends = [(*curve.points[-1], curve.style) for curve in self.curves] if self.label_each else [self.last()]
        texts = [(value, self.text(value), f"label last {style}") for _, value, style in ends]
        texts += [(level.value, level.label, f"label {level.style}") for level in self.levels]
        places = spread([ys.at(value) for value, _, _ in texts], _LABEL_GAP, _TOP, _BOTTOM)
        return el(
            "g",
            [
                el("text", text, x=_RIGHT + 6, y=place + 4, class_=css)
                for (_, text, css), place in zip(texts, places, strict=True)
            ],
        )


def _grid(ys: Axis, texts: Sequence[str]) -> Html:
    lines = [
        (
            el("line", x1=_LEFT, x2=_RIGHT, y1=ys.at(tick), y2=ys.at(tick), class_="grid"),
            el("text", text, x=_LEFT - 7, y=ys.at(tick) + 4, class_="tick y"),
        )
        for tick, text in zip(ys.ticks, texts, strict=True)
    ]
    return el("g", lines)


def _below(xs: Axis, texts: Sequence[str], unit: str) -> Html:
    ticks = [
        el("text", text, x=xs.at(tick), y=_BOTTOM + 19, class_="tick x")
        for tick, text in zip(xs.ticks, texts, strict=True)
    ]
    return el("g", ticks, el("text", unit, x=WIDTH, y=_BOTTOM + 19, class_="tick y"))


def _band(ys: Axis, band: tuple[float, float] | None) -> Html | None:
    if band is None:
        return None
    top, bottom = ys.at(max(band)), ys.at(min(band))
    return el("rect", x=_LEFT, y=top, width=_RIGHT - _LEFT, height=max(bottom - top, 1.0), class_="band")


def _level(ys: Axis, level: Level) -> Html:
    y = ys.at(level.value)
    return el("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_=f"level {level.style}")


def _line(at: Places, ys: Axis, curve: Curve) -> Html | None:
    if len(curve.points) < 2:
        return None
    return el("polyline", points=_path(at, ys, curve.points), class_=f"line {curve.style}")


def _area(at: Places, ys: Axis, curve: Curve) -> Html:
    around = _path(at, ys, (*curve.low, *reversed(curve.high)))
    return el("polygon", points=around, class_=f"area {curve.style}")


def _path(at: Places, ys: Axis, points: Points) -> str:
    return " ".join(f"{length(at(x))},{length(ys.at(y))}" for x, y in points)


def _marks(at: Places, ys: Axis, curve: Curve, text: Callable[[float], str]) -> Html:
    """A dot for each point, or for some of many; the line goes through all of them."""
    marks = [
        el(
            "circle",
            el("title", f"round {x}: {text(value)}"),
            cx=at(x),
            cy=ys.at(value),
            r=2.7,
            data_round=str(x),
            data_value=repr(value),
        )
        for x, value in thinned(curve.points)
    ]
    return el("g", marks, class_=f"mark {curve.style}", data_source=curve.source)


def thinned(points: Points) -> Points:
    """All points, or evenly chosen ones of many with the first and the last among them."""
    if len(points) <= _MOST_MARKS:
        return points
    last = len(points) - 1
    chosen = {round(i * last / (_THINNED_MARKS - 1)) for i in range(_THINNED_MARKS)}
    return tuple(points[i] for i in sorted(chosen))


def _key(chart: Chart) -> Html | None:
    """What the lines mean and their values."""
    items = [_entry(f"mark {curve.style}", curve.name, chart.text(curve.points[-1][1])) for curve in chart.curves]
    items += [_entry(f"level {level.style}", level.name, chart.text(level.value)) for level in chart.levels]
    if chart.band is not None:
        low, high = sorted(chart.band)
        items.append(_entry("band", chart.band_name, f"{chart.text(low)} to {chart.text(high)}"))
    return el("ul", items, class_="key")


def _entry(style: str, name: str, value: str) -> Html:
    if style == "band":
        sign = el("rect", x=1.0, y=1.0, width=22.0, height=10.0, class_=style)
    elif style.startswith("level"):
        sign = el("line", x1=0.0, x2=24.0, y1=6.0, y2=6.0, class_=style)
    else:
        line = el("line", x1=0.0, x2=24.0, y1=6.0, y2=6.0, class_=style.replace("mark", "line"))
        sign = el("g", line, el("circle", cx=12.0, cy=6.0, r=3.0), class_=style)
    drawing = el("svg", sign, viewBox="0 0 24 12", aria_hidden="true")
    return el("li", drawing, el("span", name), " ", el("b", value))


def _told(chart: Chart) -> str:
    """The drawing in words, for those who do not see it."""
    first = min((curve.points[0] for curve in chart.curves), key=lambda point: point[0])
    last, value, _ = chart.last()
    number = sum(len(curve.points) for curve in chart.curves)
    over = chart.over.name if chart.over else "rounds"
    text = f"{chart.name} over {over}, {number} points: {chart.text(first[1])} at round {first[0]}"
    text += f", {chart.text(value)} at round {last}" if number > 1 else ""
    return "; ".join([text, *(f"{level.name} {chart.text(level.value)}" for level in chart.levels)])
