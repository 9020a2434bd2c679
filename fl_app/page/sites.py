"""The spread over clients: what each gains, as dots and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from fl_app.page.facts import Facts, mapping, mappings, number, whole
from fl_app.page.markup import Child, Html, el
from fl_app.page.metric import Metric, metric_of
from fl_app.page.strips import Lane, dot_strips
from fl_app.page.tables import Column, table
from fl_app.page.words import NONE, count, counted, percent, shorten, significant

MOST_SITES = 200


@dataclass(frozen=True, slots=True)
class Site:
    """A line of sites.json with the one metric that is shown."""

    client: str
    train: int | None
    test: int | None
    alone: float | None
    federated: float | None
    shared: float | None
    finetuned: float | None
    everywhere: float | None
    predicted: float | None
    observed: float | None


def sites_section(sites: Facts | None) -> Html | None:
    """None where no client is known by itself."""
    told = mapping(sites)
    metric = metric_of(told.get("metric") or "accuracy")
    found = sorted((_site(line, metric) for line in mappings(told.get("sites"))), key=lambda site: site.client)
    if not found:
        return None
    drawn = [part for part in (_strips(found, metric), _points(found, metric)) if part]
    spread = el("div", drawn, class_="charts") if drawn else None
    left_out = max(0, len(found) - MOST_SITES) + (whole(told.get("left_out")) or 0)
    note = (
        el("p", f"{counted(left_out, 'more client')} in this run, not in the table.", class_="note")
        if left_out
        else None
    )
    return el("section", el("h2", "Spread over clients"), spread, _table(found[:MOST_SITES], metric), note)


def _site(line: Facts, metric: Metric) -> Site:
    def of(key: str) -> float | None:
        return number(mapping(line.get(key)).get(metric.key))

    calibration = mapping(line.get("calibration"))
    return Site(
        client=str(line.get("client")),
        train=whole(line.get("train")),
        test=whole(line.get("test")),
        alone=of("alone"),
        federated=of("federated"),
        shared=number(mapping(mapping(line.get("personal")).get("without")).get(metric.key)),
        finetuned=of("finetuned"),
        everywhere=of("alone_everywhere"),
        predicted=number(calibration.get("predicted")),
        observed=number(calibration.get("observed")),
    )


def _strips(sites: Sequence[Site], metric: Metric) -> Html | None:
    federated = [(shorten(s.client), s.federated) for s in sites if s.federated is not None]
    alone = [(shorten(s.client), s.alone) for s in sites if s.alone is not None]
    lanes = [
        Lane(name, style, dots)
        for name, style, dots in (("Federated", "federated", federated), ("Alone", "alone", alone))
        if dots
    ]
    if not lanes:
        return None
    name = f"{metric.name} of each client on its own test rows"
    drawing = dot_strips(name, lanes, metric.text, percent=metric.percent, limits=metric.limits)
    return el("figure", el("figcaption", el("h3", name, el("span", "a dot is a client", class_="remark"))), drawing)


def _points(sites: Sequence[Site], metric: Metric) -> Html | None:
    """What the dots say, in words."""
    pairs = [
        (site, site.federated, site.alone) for site in sites if site.federated is not None and site.alone is not None
    ]
    if not pairs:
        return None
    gains = [metric.gain(federated, alone) for _, federated, alone in pairs]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    same = len(gains) - better - worse
    hardest = min(pairs, key=lambda pair: metric.gain(pair[1], 0.0))
    least = min(zip(gains, pairs, strict=True), key=lambda pair: pair[0])
    others = [f"; {count(number)} {how}" for number, how in ((same, "the same"), (worse, "worse")) if number]
    most = el("b", f"{count(better)} of {counted(len(pairs), 'client')}")
    who = el("b", shorten(hardest[0].client, 40))
    told: list[Child] = [
        [most, " do better with the common model than alone", *others, "."],
        [
            "On their own test rows, each client counting alike, the gain is ",
            el("b", metric.gain_text(fmean(gains))),
            " on average.",
        ],
        ["Hardest for the common model: ", who, f" at {metric.text(hardest[1])}, alone {metric.text(hardest[2])}."],
    ]
    if least[0] < 0:
        told.append(
            ["Loses most by it: ", el("b", shorten(least[1][0].client, 40)), f" with {metric.gain_text(least[0])}."]
        )
    return el("ul", [el("li", point) for point in told], class_="points")


def _table(sites: Sequence[Site], metric: Metric) -> Html:
    points = " (points)" if metric.percent else ""
    columns = [
        Column("Client"),
        Column("Rows to train", "n"),
        Column("Rows to test", "n"),
        Column("Alone, own rows", "n"),
    ]
    columns += [Column("Federated, own rows", "n"), Column(f"Gain{points}", "n")]
    columns += [Column("Without its personal layers", "n"), Column("Fine-tuned, own rows", "n")]
    columns += [Column("Alone, rows of all", "n")]
    columns += [Column("Predicted on average", "n"), Column("Observed on average", "n")]
    rows = [_row(site, metric) for site in sites]
    shown = [i for i in range(len(columns)) if any(row[i] != NONE for row in rows)]
    name = f"{metric.name} by client"
    return table(name, [columns[i] for i in shown], [[row[i] for i in shown] for row in rows])


def _row(site: Site, metric: Metric) -> list[Child]:
    gain = NONE
    if site.federated is not None and site.alone is not None:
        gain = metric.gain_text(metric.gain(site.federated, site.alone), unit=False)
    average = percent if metric.of_classes else significant
    rows = [NONE if number is None else count(number) for number in (site.train, site.test)]
    metrics = [metric.text(site.alone), metric.text(site.federated), gain]
    metrics += [metric.text(value) for value in (site.shared, site.finetuned, site.everywhere)]
    averages = [NONE if value is None else average(value) for value in (site.predicted, site.observed)]
    return [shorten(site.client), *rows, *metrics, *averages]
