"""What the run cost: bytes and seconds."""

import re
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from statistics import median

from fl_app.page.charts import Amounts, Chart, thinned
from fl_app.page.facts import Facts, mapping, mappings, number, seconds_of, total, whole
from fl_app.page.markup import Child, Html, el
from fl_app.page.metric import main_metric
from fl_app.page.strips import bar, stacked_bar
from fl_app.page.tables import Column, table
from fl_app.page.training import curves_of, measured
from fl_app.page.words import duration, percent, significant, size, unit_of

_SMALLER = 1.2  # so many times smaller is worth a word: less than that are headers
_WIDTH = re.compile(r"[0-9]{1,2}$")  # of a dtype as numpy writes it, in bytes
_TRAFFIC = {
    "bytes_up": ("Messages, clients to server", "up"),
    "bytes_down": ("Messages, server to clients", "down"),
    "payload_up": ("Payload, clients to server", "up"),
    "payload_down": ("Payload, server to clients", "down"),
}
PHASES = {
    "send": "Sending",
    "wait": "Waiting for clients",
    "fold": "Adding up",
    "evaluate": "Evaluating",
    "checkpoint": "Saving",
}


def communication(summary: Facts, rounds: Sequence[Facts], model: Facts | None = None) -> Html | None:
    """Bytes both ways, against those of the plain model, and what it was worth after how many; None where none were
    counted."""
    sizes = {key: number(summary.get(key)) or 0.0 for key in _TRAFFIC}
    largest = max(sizes.values())
    if largest <= 0:
        return None
    rows = [_traffic(name, sizes[key], largest, style, len(rounds)) for key, (name, style) in _TRAFFIC.items()]
    columns = [Column("Direction"), Column("", "p"), Column("Whole run", "n"), Column("Per round", "n")]
    note = (
        "Messages are counted as this run sent them: one to each node, which may host many clients. "
        "Payload counts every client as if it had a node of its own."
    )
    plain = _model_bytes(model or {})
    if updates := whole(summary.get("client_updates")):
        note += f" The update of one client takes {_beside(sizes['payload_up'] / updates, plain)}."
    asked = sum(whole(line.get("expected_clients")) or 0 for line in rounds)
    if asked and plain and summary.get("metrics_on") == "server":  # else the model was also sent to be measured
        note += f" What it is sent for a round takes {_beside(sizes['payload_down'] / asked, plain)}."
    sent = table("Bytes sent", columns, rows)
    return el("section", el("h2", "Communication"), sent, el("p", note, class_="note"), _over_payload(summary, rounds))


def _beside(bytes_: float, plain: float) -> str:
    """A size, and how that of the plain model compares where it is another."""
    told = f"{size(bytes_)} on average"
    times = plain / bytes_ if bytes_ else 0.0
    return f"{told}, the plain model {significant(times)} times as much" if times >= _SMALLER else told


def _model_bytes(model: Facts) -> float:
    """Of all arrays of model.json; 0 where they cannot be read."""
    found = 0.0
    for entry in mappings(model.get("arrays")):
        width, shape = _WIDTH.search(str(entry.get("dtype"))), entry.get("shape")
        if width is None or not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
            return 0.0
        found += float(width[0]) * prod(map(float, shape))
    return found


def _over_payload(summary: Facts, rounds: Sequence[Facts]) -> Html | None:
    """The main metric over what clients had sent by then, as it was measured most often; None where one of the two is
    not known."""
    metric, after = main_metric(measured(rounds)), _payload_after(rounds)
    largest = max(after.values(), default=0.0)
    if metric is None or not largest:
        return None
    curves = [
        replace(curve, points=points)
        for curve in curves_of(summary, rounds, metric)
        if (points := thinned(tuple(point for point in curve.points if point[0] in after)))
    ]
    if not curves:
        return None
    unit, bytes_ = unit_of(largest)
    return el(
        "div",
        Chart(
            name=metric.name,
            metric=f"{metric.key} over payload_up",
            curves=[max(curves, key=lambda curve: len(curve.points))],
            text=metric.text,
            percent=metric.percent,
            limits=metric.limits,
            remarks=["by the payload that clients have sent"],
            over=Amounts("payload sent by clients", unit, {x: sent / bytes_ for x, sent in after.items()}),
        ).figure(),
        class_="charts",
    )


def _payload_after(rounds: Sequence[Facts]) -> dict[int, float]:
    """Bytes that clients had sent after each round, 0 being before the first; nothing where a round does not tell."""
    after, sent = {0: 0.0}, 0.0
    for line in rounds:
        round_, payload = whole(line.get("round")), number(line.get("payload_up"))
        if round_ is None or payload is None or payload < 0:
            return {}
        sent += payload
        after[round_] = sent
    return after


def _traffic(name: str, total_bytes: float, largest: float, style: str, rounds: int) -> list[Child]:
    each = size(total_bytes / rounds) if rounds else ""
    return [name, bar(total_bytes / largest, style), size(total_bytes), each]


def time_section(summary: Facts, rounds: Sequence[Facts]) -> Html | None:
    """Where the time went; None where no time is known."""
    startup = number(mapping(summary.get("seconds")).get("startup")) or 0.0
    parts = [("startup", "Starting", startup), *((key, name, total(rounds, key)) for key, name in PHASES.items())]
    rest = total(rounds, "total") - sum(seconds for key, _, seconds in parts if key != "startup")
    parts = [part for part in [*parts, ("rest", "Everything else", rest)] if part[2] > 0]
    whole_time = sum(seconds for _, _, seconds in parts)
    if not whole_time:
        return None
    told = [(f"{name}: {duration(s)}, {percent(s / whole_time)}", s, f"phase {key}") for key, name, s in parts]
    label = "Time by phase: " + "; ".join(what for what, _, _ in told)
    per_round = total(rounds, "total") / len(rounds) if rounds else None
    also = f", {duration(per_round)} a round" if per_round else ""
    intro = el("p", f"{duration(whole_time)} in all{also}.")
    drawing = stacked_bar(label, told)
    return el("section", el("h2", "Time"), intro, drawing, _phase_key(parts, whole_time), _of_a_round(rounds))


def _of_a_round(rounds: Sequence[Facts]) -> Html | None:
    """How long each phase takes in a round; None where there are not several to compare."""
    if len(rounds) < 2:
        return None
    columns = [Column("Phase"), Column("Median", "n"), Column("Longest", "n")]
    found = [(name, seconds_of(rounds, key)) for key, name in (*PHASES.items(), ("total", "The whole round"))]
    rows: list[list[Child]] = [
        [name, duration(median(each)), duration(max(each))] for name, each in found if max(each) > 0
    ]
    return table("Time of a round", columns, rows) if rows else None


def _phase_key(parts: Sequence[tuple[str, str, float]], whole_time: float) -> Html:
    def item(key: str, name: str, seconds: float) -> Html:
        sign = el(
            "svg",
            el("rect", x=0.0, y=0.0, width=12.0, height=12.0, rx=2.0, class_=f"phase {key}"),
            viewBox="0 0 12 12",
            aria_hidden="true",
        )
        share = el("span", percent(seconds / whole_time), class_="remark")
        return el("li", sign, el("span", name), " ", el("b", duration(seconds)), " ", share)

    return el("ul", [item(*part) for part in parts], class_="key phases")
