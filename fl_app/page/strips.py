"""Small drawings as SVG: dots of many clients, estimates with intervals, bars."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fl_app.page.axes import Axis, Limits, tick_texts, value_axis
from fl_app.page.markup import Child, Html, el, length

_WIDTH, _LEFT, _RIGHT = 460.0, 18.0, 438.0
_HEADING, _HIGHEST, _AXIS = 26.0, 80.0, 26.0
FOREST_WIDTH, _ROW = 200.0, 20.0
_BAR = 120.0
_MOST_NAMED = 200


@dataclass(frozen=True, slots=True)
class Lane:
    """A row of dots: (who, value) each, at least one."""

    name: str
    style: str
    dots: Sequence[tuple[str, float]]

    def mean(self) -> float:
        """Every dot counts the same."""
        return sum(value / len(self.dots) for _, value in self.dots)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Places within every lane: dots of like value stand on each other, `rise` apart."""

    xs: Axis
    radius: float
    height: float
    rise: float
    text: Callable[[float], str]


def dot_strips(
    name: str, lanes: Sequence[Lane], text: Callable[[float], str], *, percent: bool, limits: Limits
) -> Html:
    """Lanes of dots over one axis; dots of like value stand on each other. A line across marks the mean of a lane."""
    layout = _layout(lanes, text, limits)
    pitch = _HEADING + layout.height
    drawn = [_lane(layout, lane, pitch * i) for i, lane in enumerate(lanes)]
    told = "; ".join(f"{lane.name}: {len(lane.dots)} clients, mean {text(lane.mean())}" for lane in lanes)
    box = f"0 0 {length(_WIDTH)} {length(pitch * len(lanes) + _AXIS)}"
    ticks = _ticks(layout.xs, percent, pitch * len(lanes) + 18)
    return el("svg", *drawn, ticks, viewBox=box, role="img", aria_label=f"{name}. {told}")


def _layout(lanes: Sequence[Lane], text: Callable[[float], str], limits: Limits) -> _Layout:
    xs = value_axis((value for lane in lanes for _, value in lane.dots), _LEFT, _RIGHT, limits, 5)
    number = sum(len(lane.dots) for lane in lanes)
    radius = next(radius for radius, most in ((4.2, 120), (3.2, 400), (2.4, number)) if number <= most)
    piles = [Counter(_pile(xs, radius, value) for _, value in lane.dots) for lane in lanes]
    highest = max(max(pile.values()) for pile in piles)
    rise = min(2 * radius, (_HIGHEST - 2 * radius) / highest)
    return _Layout(xs, radius, max(highest * rise + 2 * radius, 24.0), rise, text)


def _pile(xs: Axis, radius: float, value: float) -> int:
    """Which pile a dot of that value stands in, from the left."""
    return round((xs.at(value) - xs.start) / (2 * radius))


def _ticks(xs: Axis, percent: bool, y: float) -> Html:
    texts = zip(xs.ticks, tick_texts(xs, percent), strict=True)
    return el("g", [el("text", text, x=xs.at(tick), y=y, class_="tick x") for tick, text in texts])


def _lane(layout: _Layout, lane: Lane, top: float) -> Html:
    xs, roof, floor = layout.xs, top + _HEADING, top + _HEADING + layout.height
    mean = xs.at(lane.mean())
    return el(
        "g",
        [el("line", x1=xs.at(tick), x2=xs.at(tick), y1=roof, y2=floor, class_="grid") for tick in xs.ticks],
        el("line", x1=_LEFT, x2=_RIGHT, y1=floor, y2=floor, class_="floor"),
        el("line", x1=mean, x2=mean, y1=roof, y2=floor, class_=f"mean {lane.style}"),
        _dots(layout, lane, floor - layout.radius - 1),
        el("text", f"{lane.name}, mean {layout.text(lane.mean())}", x=_LEFT, y=roof - 8, class_=f"label {lane.style}"),
    )


def _dots(layout: _Layout, lane: Lane, lowest: float) -> Html:
    """Circles that tell whose they are; of very many, the round ends of lines without length, which take less room."""
    stacked, dots = Counter[int](), []
    for who, value in lane.dots:
        pile = _pile(layout.xs, layout.radius, value)
        dots.append(
            (_LEFT + pile * 2 * layout.radius, lowest - stacked[pile] * layout.rise, f"{who}: {layout.text(value)}")
        )
        stacked[pile] += 1
    if len(dots) * 2 > _MOST_NAMED:
        drawn = "".join(f"M{length(x)} {length(y)}h0" for x, y, _ in dots)
        return el("path", d=drawn, class_=f"crowd {lane.style}", stroke_width=1.8 * layout.radius)
    circles = [el("circle", el("title", who), cx=x, cy=y, r=layout.radius) for x, y, who in dots]
    return el("g", circles, class_=f"dots {lane.style}")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and, where it is known, its interval."""

    value: float
    low: float | None = None
    high: float | None = None


def forest_axis(estimates: Sequence[Estimate]) -> Axis:
    """One axis for all rows, nought among it. Intervals far wider than the largest estimate are cut off."""
    furthest = max((abs(e.value) for e in estimates), default=0.0) or 1.0
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if end is not None]
    low, high = max(min([*ends, 0.0]), -3 * furthest), min(max([*ends, 0.0]), 3 * furthest)
    margin = max((high - low) * 0.03, 1e-3 * furthest)
    return Axis(low - margin, high + margin, 6.0, FOREST_WIDTH - 6, ())


def forest_row(xs: Axis, estimate: Estimate) -> Html:
    """The estimate as a dot, its interval as a line, nought as a line across."""
    middle, zero = _ROW / 2, xs.at(0.0)
    parts: list[Child] = [el("line", x1=zero, x2=zero, y1=0.0, y2=_ROW, class_="zero")]
    if estimate.low is not None and estimate.high is not None:
        low, high = xs.at(estimate.low), xs.at(estimate.high)
        parts.append(el("line", x1=low, x2=high, y1=middle, y2=middle, class_="interval"))
        parts.append(_arrow(low, -1) if estimate.low < xs.low else None)
        parts.append(_arrow(high, 1) if estimate.high > xs.high else None)
    parts.append(el("circle", cx=xs.at(estimate.value), cy=middle, r=3.4, class_="estimate"))
    return el("svg", *parts, viewBox=f"0 0 {length(FOREST_WIDTH)} {length(_ROW)}", class_="forest", aria_hidden="true")


def _arrow(x: float, outwards: int) -> Html:
    middle, back = _ROW / 2, x - 4.0 * outwards
    places = f"{length(back)},{length(middle - 3)} {length(x)},{length(middle)} {length(back)},{length(middle + 3)}"
    return el("polyline", points=places, class_="interval")


def bar(share: float, style: str) -> Html:
    """A bar within a table; `share` of its full length, 0 to 1."""
    width = max(share * _BAR, 1.0)
    drawn = el("rect", x=0.0, y=2.0, width=width, height=10.0, rx=1.5, class_=f"bar {style}")
    return el("svg", drawn, viewBox=f"0 0 {length(_BAR)} 14", class_="inbar", aria_hidden="true")


def stacked_bar(name: str, parts: Sequence[tuple[str, float, str]]) -> Html:
    """(what, amount, style) side by side; the amounts add up to the full width."""
    whole, x, drawn = sum(amount for _, amount, _ in parts), 0.0, []
    for what, amount, style in parts:
        width = 1000 * amount / whole
        drawn.append(el("rect", el("title", what), x=x, y=0.0, width=max(width - 2, 0.5), height=10.0, class_=style))
        x += width
    return el(
        "svg", *drawn, viewBox="0 0 1000 10", preserveAspectRatio="none", class_="stack", role="img", aria_label=name
    )
