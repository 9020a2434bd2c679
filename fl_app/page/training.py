"""How good the model is: curves over rounds, and the same rows by other ways of training."""

from collections.abc import Sequence

from fl_app.page.charts import Chart, Curve, Level
from fl_app.page.facts import Facts, mapping, number, over_rounds
from fl_app.page.headline import baseline, known, test_rows
from fl_app.page.markup import Html, el
from fl_app.page.metric import Metric, loss_metric, main_metric, metric_of
from fl_app.page.tables import Column, table
from fl_app.page.words import counted

_WAYS = (
    ("pooled", "All rows in one place"),
    ("local_mean", "Alone, mean"),
    ("local_worst", "Alone, worst"),
    ("local_best", "Alone, best"),
)


def training(summary: Facts, rounds: Sequence[Facts]) -> Html | None:
    """Curves of the loss and of the main metric, with the baselines; None where there is neither curve nor baseline."""
    keys = measured(rounds)
    metrics = dict.fromkeys(metric for metric in (loss_metric(keys), main_metric(keys)) if metric)
    charts = [figure for metric in metrics if (figure := _figure(summary, rounds, metric))]
    drawn = el("div", charts, class_="charts") if charts else None
    compared = _comparison(summary)
    if drawn is None and compared is None:
        return None
    return el("section", el("h2", "How good the model is"), drawn, compared)


def measured(rounds: Sequence[Facts]) -> list[str]:
    """The metrics that any round tells."""
    keys: dict[str, None] = {}
    for line in rounds:
        for source in ("metrics", "train_metrics"):
            keys.update(dict.fromkeys(known(mapping(line.get(source)))))
    return list(keys)


def curves_of(summary: Facts, rounds: Sequence[Facts], metric: Metric) -> list[Curve]:
    """The metric as it was measured after rounds and before them, where it was."""
    names = {
        "metrics": ("federated", f"federated, after each round, on {test_rows(summary)}"),
        "train_metrics": ("before", "federated, as its clients measured it before they trained"),
    }
    return [
        Curve(name, style, source, points)
        for source, (style, name) in names.items()
        if (points := over_rounds(rounds, source, metric.key))
    ]


def _figure(summary: Facts, rounds: Sequence[Facts], metric: Metric) -> Html | None:
    curves = curves_of(summary, rounds, metric)
    if not curves:
        return None
    worst, best = baseline(summary, "local_worst", metric), baseline(summary, "local_best", metric)
    return Chart(
        name=metric.name,
        metric=metric.key,
        curves=curves,
        text=metric.text,
        percent=metric.percent,
        limits=metric.limits,
        levels=_levels(summary, metric),
        band=None if worst is None or best is None else (worst, best),
        band_name="a client alone, from worst to best",
        remarks=["higher is better" if metric.higher_is_better else "lower is better"],
    ).figure()


def _levels(summary: Facts, metric: Metric) -> list[Level]:
    sides = [
        ("all rows in one place", "pooled", "pooled", "pooled"),
        ("a client alone, on average", "alone", "alone", "local_mean"),
    ]
    return [
        Level(name, label, style, value)
        for name, label, style, which in sides
        if (value := baseline(summary, which, metric)) is not None
    ]


def _comparison(summary: Facts) -> Html | None:
    """Every metric by every way of training; None without baselines."""
    metrics, baselines = mapping(summary.get("metrics")), mapping(summary.get("baselines"))
    ways = [(key, name) for key, name in _WAYS if known(mapping(baselines.get(key)))]
    keys = list(dict.fromkeys([*known(metrics), *(key for way, _ in ways for key in known(mapping(baselines[way])))]))
    if not ways:
        return None
    columns = [Column("Metric"), Column("Federated", "n"), *(Column(name, "n") for _, name in ways)]
    rows = [
        [
            metric.name,
            metric.text(number(metrics.get(key))),
            *(metric.text(baseline(summary, way, metric)) for way, _ in ways),
        ]
        for key in keys
        if (metric := metric_of(key))
    ]
    clients = baselines.get("clients")
    of = f", {counted(clients, 'client')} alone" if isinstance(clients, int) and clients > 0 else ""
    return table(f"Federated, pooled and alone on the same test rows{of}", columns, rows)
