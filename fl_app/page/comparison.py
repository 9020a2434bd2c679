"""comparison.html: several configurations side by side, each the mean of its seeds."""

from collections.abc import Mapping, Sequence
from os.path import relpath
from statistics import fmean
from typing import Any

from fl_app.page.charts import Chart, Curve
from fl_app.page.document import whole_page
from fl_app.page.facts import Facts, Points, mapping, mappings, number, over_rounds
from fl_app.page.headline import known
from fl_app.page.markup import Child, Html, el
from fl_app.page.metric import Metric, main_metric, metric_of
from fl_app.page.settings import settings
from fl_app.page.tables import Column, table
from fl_app.page.words import NONE, count, counted, duration, percent, shorten, significant, size

MOST_CURVES = 8
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_LONGEST_NAME = 80
_LIGHT = ("#0a64a4", "#b34700", "#0f7a5c", "#8a4a86", "#8a6100", "#3d4750", "#b3266b", "#5b6b00")
_DARK = ("#6ab4ee", "#f2955c", "#52c7a1", "#d79ed3", "#e8b54a", "#c3ccd5", "#ff8fbf", "#c2d34f")
_DASHES = ("none", "7 4", "2 3", "9 3 2 3", "12 3", "4 2", "1 2", "6 2 2 2")


def _style(i: int, colour: str) -> str:
    own = f".c{i}"
    return (
        f".line{own} {{ stroke: {colour}; stroke-dasharray: {_DASHES[i]}; }}\n"
        f".mark{own} circle, text{own}, .area{own} {{ fill: {colour}; }}\n"
    )


CSS = (
    ".area { fill-opacity: 0.14; stroke: none; }\n.wide { max-width: 620px; }\n"
    + "".join(_style(i, f"var(--c{i})") for i in range(MOST_CURVES))
    + ":root { "
    + " ".join(f"--c{i}: {colour};" for i, colour in enumerate(_LIGHT))
    + " }\n"
    + "@media screen and (prefers-color-scheme: dark) { :root { "
    + " ".join(f"--c{i}: {colour};" for i, colour in enumerate(_DARK))
    + " } }\n"
)


def comparison_page(found: Mapping[str, Any], rounds: Mapping[str, Sequence[Facts]]) -> str:
    """One HTML file from the content of comparison.json and, by the folder of each run, its lines of rounds.jsonl."""
    configurations = mappings(found.get("configurations"))
    metrics = [metric_of(key) for key in _metrics(configurations)]
    main = main_metric([metric.key for metric in metrics])
    metrics.sort(key=lambda metric: metric != main)
    body = el(
        "body",
        _header(found, configurations, main),
        el(
            "main",
            _averages(configurations, metrics),
            _curves(configurations, rounds, main) if main else None,
            _every_run(found, configurations, metrics),
            settings({"config": found.get("config"), "versions": found.get("versions")}, None),
        ),
        el("footer", el("p", "Written by fl-app from comparison.json and the runs, which hold the exact numbers.")),
    )
    return whole_page(_title(found), body, CSS)


def _title(found: Facts) -> str:
    config = mapping(found.get("config"))
    return f"Comparison: {shorten(config.get('task'))} on {shorten(config.get('data'))}"


def _metrics(configurations: Sequence[Facts]) -> list[str]:
    return list(dict.fromkeys(key for c in configurations for key in known(mapping(c.get("mean")))))


def _runs(configuration: Facts, status: str | None = None) -> list[Facts]:
    """The runs of a configuration, or those of them that ended so."""
    return [run for run in mappings(configuration.get("runs")) if status in (None, run.get("status"))]


def _name(configuration: Facts) -> str:
    return shorten(" ".join(str(configuration.get("name")).split()) or "the common configuration", _LONGEST_NAME)


def _header(found: Facts, configurations: Sequence[Facts], main: Metric | None) -> Html:
    runs = [run for c in configurations for run in _runs(c)]
    done = sum(run.get("status") == "completed" for run in runs)
    broken = any(run.get("status") in ("stopped", "not-run") for run in runs)
    kind = "completed" if done == len(runs) else "stopped" if broken else "failed"
    told = kind.capitalize() if done == len(runs) else f"{count(done)} of {counted(len(runs), 'run')} completed"
    seeds = max((len(_runs(c)) for c in configurations), default=0)
    what = f"{counted(len(configurations), 'configuration')}, {counted(seeds, 'seed')} each"
    above = [el("span", told, class_=f"status {kind}"), el("span", what), el("span", shorten(found.get("out"), 80))]
    verdict = _verdict(configurations, main)
    return el(
        "header",
        el("p", above, class_="above"),
        el("h1", _title(found)),
        el("p", verdict, class_="verdict") if verdict else None,
    )


def _verdict(configurations: Sequence[Facts], main: Metric | None) -> list[Child]:
    """Which configuration has the best mean, and for how many seeds it is ahead of all others."""
    if main is None:
        return ["No run was completed and measured: there is nothing to compare."]
    values = [(c, value) for c in configurations if (value := number(mapping(c.get("mean")).get(main.key))) is not None]
    if len(values) < 2:
        return []
    best = max(values, key=lambda pair: main.gain(pair[1], values[0][1]))[0]
    said: list[Child] = [
        "The best mean ",
        main.name,
        " is that of ",
        el("b", _name(best)),
        ": ",
        _mean(best, main),
        ".",
    ]
    ahead, seeds = _ahead(best, [c for c, _ in values if c is not best], main)
    return [*said, f" It is ahead of all others for {count(ahead)} of {counted(seeds, 'seed')}."] if seeds else said


def _ahead(best: Facts, others: Sequence[Facts], metric: Metric) -> tuple[int, int]:
    """For how many seeds it is better than each other, and how many seeds all have.

    A seed deals the same rows to all, so that this tells more than whether spreads overlap.
    """
    own, *rest = ({run.get("seed"): _value(run, metric) for run in _runs(c, "completed")} for c in (best, *others))
    gains = [
        [metric.gain(value, other) for of in rest if (other := of.get(seed)) is not None]
        for seed, value in own.items()
        if value is not None
    ]
    common = [gain for gain in gains if len(gain) == len(rest)]
    return sum(min(gain) > 0 for gain in common), len(common)


def _value(run: Facts, metric: Metric) -> float | None:
    return number(mapping(run.get("metrics")).get(metric.key))


def _mean(configuration: Facts, metric: Metric) -> str:
    """``95.3 ± 0.4 %``, ``0.123 ± 0.004``."""
    mean = number(mapping(configuration.get("mean")).get(metric.key))
    deviation = number(mapping(configuration.get("sd")).get(metric.key))
    if mean is None or deviation is None:
        return metric.text(mean)
    if metric.percent:
        return f"{percent(mean).removesuffix(' %')} {_PLUS_MINUS} {percent(deviation)}"
    text = significant(mean)
    decimals = len(text.partition(".")[2])
    plain = "e" not in text and 0.5 * 10**-decimals <= deviation < 1e5
    return f"{text} {_PLUS_MINUS} {f'{deviation:,.{decimals}f}' if plain else significant(deviation)}"


def _averages(configurations: Sequence[Facts], metrics: Sequence[Metric]) -> Html:
    costs = ("Rounds", "Payload up", "Payload down", "Time")
    columns = [Column("Configuration"), Column("Runs", "n"), *(Column(name, "n") for name in _names(metrics, costs))]
    rows = [[_name(c), _counted_runs(c), *(_mean(c, metric) for metric in metrics), *_costs(c)] for c in configurations]
    note = (
        f"{_PLUS_MINUS} is the sample standard deviation over the completed runs; rounds, payload and the time of all "
        "rounds are the mean of one run. Payload counts every client as if it had a node of its own."
    )
    return el(
        "section",
        el("h2", "Mean over the seeds"),
        table("On the test rows", columns, rows),
        el("p", note, class_="note"),
    )


def _names(metrics: Sequence[Metric], others: Sequence[str]) -> list[str]:
    return [*(metric.name for metric in metrics), *others]


def _counted_runs(configuration: Facts) -> str:
    done, planned = len(_runs(configuration, "completed")), len(_runs(configuration))
    return count(done) if done == planned else f"{count(done)} of {count(planned)}"


def _costs(configuration: Facts) -> list[str]:
    runs = _runs(configuration, "completed")
    if not runs:
        return [NONE] * 4
    rounds, up, down = (fmean(number(run.get(key)) or 0.0 for run in runs) for key in _COSTS)
    return [f"{rounds:,.1f}".removesuffix(".0"), size(up), size(down), duration(fmean(map(_seconds, runs)))]


_COSTS = ("rounds", "payload_up", "payload_down")


def _seconds(run: Facts) -> float:
    return number(mapping(run.get("seconds")).get("rounds")) or 0.0


def _curves(configurations: Sequence[Facts], rounds: Mapping[str, Sequence[Facts]], metric: Metric) -> Html | None:
    """One line for each configuration, with an area from the lowest to the highest of its seeds."""
    curves = [
        curve
        for i, configuration in enumerate(configurations[:MOST_CURVES])
        if (curve := _curve(configuration, rounds, metric, f"c{i}"))
    ]
    if not curves:
        return None
    chart = Chart(
        name=f"{metric.name}, mean over the seeds",
        metric=metric.key,
        curves=curves,
        text=metric.text,
        percent=metric.percent,
        limits=metric.limits,
        remarks=["higher is better" if metric.higher_is_better else "lower is better"],
        label_each=True,
    )
    note = (
        "The area reaches from the lowest to the highest of the seeds. A line ends where the first of its runs ended."
    )
    if len(configurations) > MOST_CURVES:
        note += f" Drawn are the first {MOST_CURVES} of {len(configurations)} configurations."
    drawn = el("div", chart.figure(), class_="wide")
    return el("section", el("h2", f"{metric.name} over rounds"), drawn, el("p", note, class_="note"))


def _curve(configuration: Facts, rounds: Mapping[str, Sequence[Facts]], metric: Metric, style: str) -> Curve | None:
    runs = [_points(rounds.get(str(run.get("out")), ()), metric) for run in _runs(configuration, "completed")]
    if not runs:
        return None
    shared = sorted(set.intersection(*(set(points) for points in runs)))
    if not shared:
        return None
    values = {number_: [points[number_] for points in runs] for number_ in shared}

    def over(summary: Any) -> Points:
        return tuple((number_, summary(found)) for number_, found in values.items())

    several = len(runs) > 1
    low, high = (over(min), over(max)) if several else ((), ())
    return Curve(_name(configuration), style, "mean", over(fmean), low, high)


def _points(lines: Sequence[Facts], metric: Metric) -> dict[int, float]:
    """The metric after each round, where it was measured then or by the clients before the next round."""
    before = dict(over_rounds(lines, "train_metrics", metric.key))
    return {**before, **dict(over_rounds(lines, "metrics", metric.key))}


def _every_run(found: Facts, configurations: Sequence[Facts], metrics: Sequence[Metric]) -> Html:
    columns = [
        Column("Configuration"),
        Column("Seed", "n"),
        Column("Status"),
        *(Column(name, "n") for name in _names(metrics, ("Rounds", "Time"))),
        Column("Model (sha256)"),
    ]
    rows = [_run_row(found, c, run, metrics) for c in configurations for run in _runs(c)]
    return el("section", el("h2", "Every run"), table("Each links to its own report", columns, rows))


def _run_row(found: Facts, configuration: Facts, run: Facts, metrics: Sequence[Metric]) -> list[Child]:
    measured = mapping(run.get("metrics"))
    played = run.get("status") != "not-run"
    error = run.get("error")
    status = str(run.get("status")).replace("-", " ") + (f": {shorten(error, 120)}" if error else "")
    report = f"{relpath(str(run.get('out')), str(found.get('out')))}/report.html"
    rounds = number(run.get("rounds"))
    return [
        _name(configuration),
        str(run.get("seed")),
        el("a", status, href=report) if played else status,
        *(metric.text(number(measured.get(metric.key))) for metric in metrics),
        NONE if rounds is None else count(rounds),
        duration(_seconds(run)) if played else NONE,
        str(run.get("params_sha256") or NONE)[:12],
    ]
