"""The top of the page: what was run, the verdict in plain words, the key figures."""

from collections.abc import Sequence

from fl_app.page.facts import Facts, mapping, number, whole
from fl_app.page.markup import Child, Html, el
from fl_app.page.metric import Metric, main_metric, metric_of
from fl_app.page.words import count, counted, duration, shorten, significant, size
from fl_app.privacy_words import rounded_up

ENDINGS = {
    "rounds": "",
    "converged": "it converged",
    "target": "the target was reached",
    "patience": "it improved no more",
    "budget": "the privacy budget was spent",
    "too-few-clients": "too few clients took part",
    "error": "an error ended it",
    "interrupted": "it was interrupted",
}
TEST_ROWS = {
    "server": "the server\N{RIGHT SINGLE QUOTATION MARK}s test rows",
    "clients": "the clients\N{RIGHT SINGLE QUOTATION MARK} test rows",
}


def title(summary: Facts) -> str:
    """What was learned from what."""
    config = mapping(summary.get("config"))
    task, data = config.get("task"), config.get("data")
    learned = f"{shorten(task)} on {shorten(data)}" if task and data else "one run"
    return f"Federated learning: {learned}"


def test_rows(summary: Facts) -> str:
    """Whose test rows the metrics are of."""
    noise = ", with noise" if number(mapping(summary.get("config")).get("noisy-metrics")) else ""
    return TEST_ROWS.get(str(summary.get("metrics_on")), "the test rows") + noise


def header(summary: Facts, rounds: Sequence[Facts]) -> Html:
    """Title, status, verdict and, where there was one, the error."""
    status = shorten(summary.get("status") or "unknown", 24)
    kind = status if status in {"completed", "failed", "stopped"} else "unknown"
    error = summary.get("error")
    return el(
        "header",
        el("p", el("span", status.capitalize(), class_=f"status {kind}"), _circumstances(summary), class_="above"),
        el("h1", title(summary)),
        el("p", verdict(summary, rounds), class_="verdict"),
        el("p", el("b", "Error: "), shorten(error, 600), class_="error") if error else None,
    )


def _circumstances(summary: Facts) -> list[Child]:
    config = mapping(summary.get("config"))
    strategy, out = config.get("strategy"), summary.get("out")
    parts = [f"strategy {shorten(strategy)}" if strategy else None, shorten(out, 80) if out else None]
    return [el("span", part) for part in parts if part]


def verdict(summary: Facts, rounds: Sequence[Facts]) -> list[Child]:
    """How the run ended and how good the model is, in plain words."""
    return [_ending(summary), " ", *_quality(summary, rounds)]


def _ending(summary: Facts) -> str:
    done = whole(summary.get("rounds")) or 0
    why = ENDINGS.get(str(summary.get("stop_reason")), "")
    if summary.get("status") == "completed" and done:
        return f"{_clients(summary)} trained one model in {counted(done, 'round')}{', until ' + why if why else ''}."
    how = {"failed": "failed", "stopped": "was stopped"}.get(str(summary.get("status")), "ended")
    return f"The run {how} {_when(summary, done)}{': ' + why if why else ''}."


def _when(summary: Facts, done: int) -> str:
    planned = whole(mapping(summary.get("config")).get("rounds")) or 0
    if not done:
        return "before its first round was complete"
    return (
        f"after {count(done)} of {counted(planned, 'round')}" if planned > done else f"after {counted(done, 'round')}"
    )


def _clients(summary: Facts) -> str:
    clients = whole(summary.get("clients"))
    return counted(clients, "client") if clients else "The clients"


def _quality(summary: Facts, rounds: Sequence[Facts]) -> list[Child]:
    metrics = mapping(summary.get("metrics"))
    metric = main_metric(known(metrics))
    if metric is None:
        return _latest(summary, rounds)
    value = number(metrics.get(metric.key))
    said: list[Child] = [
        "It" if summary.get("status") == "completed" else "The model so far",
        " ",
        *_says(metric, value),
    ]
    return [*said, *_compared(summary, metric), *_noise(summary, metric), "."]


def _says(metric: Metric, value: float | None) -> list[Child]:
    figure = el("b", metric.text(value))
    if metric.key == "accuracy":
        return ["is right on ", figure, " of test rows"]
    if metric.key == "r2":
        return [
            "reaches an R\N{SUPERSCRIPT TWO} of ",
            figure,
            " on test rows (1 is perfect, 0 no better than their mean)",
        ]
    return [f"reaches {metric.name} ", figure, " on test rows"]


def _compared(summary: Facts, metric: Metric) -> list[Child]:
    alone, pooled = baseline(summary, "local_mean", metric), baseline(summary, "pooled", metric)
    said: list[Child] = []
    if alone is not None:
        said += ["; on average a client alone reaches ", el("b", metric.text(alone))]
    if pooled is not None:
        said += [
            ", " if said else "; ",
            "all rows in one place ",
            "" if said else "reach ",
            el("b", metric.text(pooled)),
        ]
    return said


def _noise(summary: Facts, metric: Metric) -> list[Child]:
    """How far the metric can be believed, where it was released with noise."""
    noise = mapping(mapping(summary.get("privacy")).get("metrics"))
    at_most, by_rows = (number(mapping(noise.get(key)).get(metric.key)) for key in ("stddev", "stddev_times_rows"))
    spread = ", give or take noise of a standard deviation of "
    if at_most is not None:
        return [spread, el("b", metric.spread_text(at_most))]
    if by_rows is not None:
        return [spread, el("b", f"{metric.spread_text(by_rows)} / n"), ", where each client has n test rows"]
    return []


def _latest(summary: Facts, rounds: Sequence[Facts]) -> list[Child]:
    """The last that is known of a model that was not evaluated at the end."""
    for line in reversed(rounds):
        for key, when in (("metrics", "after"), ("train_metrics", "before")):
            metrics = mapping(line.get(key))
            metric = main_metric(known(metrics))
            if metric:
                says = _says(metric, number(metrics.get(metric.key)))
                return [f"What is known last: {when} round {line.get('round')} the model ", *says, "."]
    if summary.get("params_sha256") is None and not rounds:
        return ["There is no model."]
    return ["How good the model is was not measured."]


def known(metrics: Facts) -> list[str]:
    """The metrics that have a value."""
    return [str(key) for key, value in metrics.items() if number(value) is not None]


def baseline(summary: Facts, which: str, metric: Metric) -> float | None:
    """The metric of a baseline: pooled, local_mean, local_worst or local_best."""
    return number(mapping(mapping(summary.get("baselines")).get(which)).get(metric.key))


def tiles(summary: Facts) -> Html | None:
    """The key figures; what is not known has no tile."""
    found = [*_metric_tiles(summary), *_gain_tiles(summary), *_size_tiles(summary)]
    return el("dl", [_tile(*tile) for tile in found], class_="tiles") if found else None


def _tile(name: str, value: str, note: str = "") -> Html:
    return el("div", el("dt", name), el("dd", value), el("dd", note, class_="note") if note else None)


def _metric_tiles(summary: Facts) -> list[tuple[str, ...]]:
    metrics = mapping(summary.get("metrics"))
    main = main_metric(known(metrics))
    keys = sorted(known(metrics), key=lambda key: main is None or key != main.key)
    found = [(metric_of(key).name, metric_of(key).text(number(metrics.get(key)))) for key in keys[:6]]
    return [(*found[0], test_rows(summary).removeprefix("the ")), *found[1:]] if found else []


def _gain_tiles(summary: Facts) -> list[tuple[str, ...]]:
    metrics = mapping(summary.get("metrics"))
    metric = main_metric(known(metrics))
    value = number(metrics.get(metric.key)) if metric else None
    if metric is None or value is None:
        return []
    alone, pooled = baseline(summary, "local_mean", metric), baseline(summary, "pooled", metric)
    own = _own_gain(summary, metric)
    found: list[tuple[str, ...]] = []
    if alone is not None:
        found.append(("Gain over alone", metric.gain_text(metric.gain(value, alone)), "on the test rows of all"))
    if own is not None:
        found.append(("Gain, own rows", metric.gain_text(own), "each client on its test rows"))
    if pooled is not None:
        found.append(("Against pooling", metric.gain_text(metric.gain(value, pooled)), "all rows in one place"))
    return found


def _own_gain(summary: Facts, metric: Metric) -> float | None:
    """What federating gains a client on its own test rows, on average; known of the first metric alone."""
    first = next(iter(mapping(summary.get("metrics"))), None)
    own = mapping(mapping(summary.get("baselines")).get("own_rows"))
    return number(own.get("gain")) if metric.key == first else None


def _size_tiles(summary: Facts) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    clients, rounds = whole(summary.get("clients")), whole(summary.get("rounds"))
    updates, dropped = whole(summary.get("client_updates")), whole(summary.get("dropped"))
    if clients:
        found.append(("Clients", count(clients)))
    if rounds is not None:
        found.append(("Rounds", count(rounds)))
    if updates is not None:
        found.append(("Updates used", count(updates), f"{count(dropped)} dropped" if dropped is not None else ""))
    up, down = number(summary.get("bytes_up")), number(summary.get("bytes_down"))
    if up is not None and down is not None and up + down > 0:
        found.append(("Network", size(up + down), "up and down"))
    seconds = number(mapping(summary.get("seconds")).get("total"))
    if seconds:
        found.append(("Time", duration(seconds)))
    return [*found, *_privacy_tiles(summary)]


def _privacy_tiles(summary: Facts) -> list[tuple[str, ...]]:
    privacy = mapping(summary.get("privacy"))
    if not privacy:
        return [("Differential privacy", "none")]
    epsilon, delta = number(privacy.get("epsilon")), number(privacy.get("delta"))
    spent = "no bound" if epsilon is None else f"\N{GREEK SMALL LETTER EPSILON} {significant(rounded_up(epsilon, 3))}"
    at = f"at \N{GREEK SMALL LETTER DELTA} {significant(delta)}" if delta is not None else ""
    if planned := whole(privacy.get("planned_rounds")):
        at += f", all {planned} planned rounds"
    noise = number(privacy.get("noise_to_updates")) or 0.0
    drowned = [("Noise / updates", significant(noise), "above 1: hardly anything learned")] if noise > 1 else []
    return [("Privacy spent", spent, at), *drowned]
