"""report.html: right whatever is missing, and safe whatever a file says."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

import fl_app.page
from fl_app.config import RunConfig
from fl_app.page import page
from fl_app.page.axes import round_axis, spread, value_axis
from fl_app.page.headline import ENDINGS
from fl_app.page.losses import DROP_REASONS
from fl_app.page.markup import Html, el
from fl_app.page.words import DASH, MINUS, count, duration, percent, ranges, shorten, signed, significant, size
from strategies.stopping import StopReason
from strategies.update import DROP_REASONS as REASONS

SCRIPT = "<script>alert(1)</script>"
CLASSES = {"accuracy": 0.9454545, "log_loss": 0.123456, "brier": 0.0377, "auc": 0.98984}
NUMBERS = {"mse": 2912.3, "mae": 44.21, "r2": 0.4789}
OVER_PAYLOAD = "accuracy over payload_up"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "log_loss": 1 - accuracy, "brier": 0.1, "auc": 0.9}


def line(number: int, **changes: Any) -> dict[str, Any]:
    seconds = {"send": 0.1, "wait": 2.0, "fold": 0.2, "evaluate": 0.1, "checkpoint": 0.05, "total": 2.5}
    return {
        "round": number,
        "metrics": metrics(0.9 + number / 100),
        "train_metrics": None,
        "online": 10,
        "expected_clients": 10,
        "attempts": 1,
        "good": 10,
        "dropped": [],
        "bytes_up": 1766,
        "bytes_down": 2818,
        "payload_up": 5040,
        "payload_down": 5040,
        "params_change": 0.1,
        "seconds": seconds,
        "epsilon": None,
    } | changes


def summary(**changes: Any) -> dict[str, Any]:
    sides = {"pooled": 0.955, "local_mean": 0.931, "local_worst": 0.89, "local_best": 0.951}
    return {
        "schema": 1,
        "status": "completed",
        "stop_reason": "rounds",
        "error": None,
        "rounds": 3,
        "clients": 10,
        "client_updates": 29,
        "dropped": 1,
        "metrics_on": "server",
        "metrics": dict(CLASSES),
        "baselines": {name: metrics(value) for name, value in sides.items()} | {"clients": 10},
        "bytes_up": 35375,
        "bytes_down": 56415,
        "payload_up": 100800,
        "payload_down": 100800,
        "seconds": {"startup": 1.5, "rounds": 7.5, "total": 9.0},
        "params_sha256": "c43e",
        "privacy": None,
        "resumed_from": None,
        "config": RunConfig.parse({"rounds": 3}).values(),
        "versions": {"app": "0.1.0", "python": "3.11.7", "torch": None},
        "out": "/runs/1",
    } | changes


def site(client: str, federated: float, alone: float) -> dict[str, Any]:
    return {
        "client": client,
        "train": 45,
        "test": 11,
        "federated": metrics(federated),
        "alone": metrics(alone),
        "alone_everywhere": metrics(alone - 0.01),
        "calibration": {"predicted": 0.371, "observed": 0.364},
    }


def sites(number: int = 3, **changes: Any) -> dict[str, Any]:
    found = [site(f"site-{i:04d}", 0.9 + (i % 7) / 100, 0.88 + (i % 11) / 100) for i in range(number)]
    return {"schema": 1, "metric": "accuracy", "sites": found, "left_out": 0} | changes


def coefficient(feature: str, value: float, output: str = "malignant") -> dict[str, Any]:
    error = abs(value) / 4
    interval = {"low": value - 2 * error, "high": value + 2 * error}
    odds = {"odds_ratio": 1.1, "odds_low": 0.9, "odds_high": 1.3}
    return {"output": output, "feature": feature, "coefficient": value, "standard_error": error} | interval | odds


def model(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "task": "logistic",
        "features": [
            {"name": "radius", "kind": "number", "mean": 14.1, "scale": 3.5},
            {"name": "smoker", "kind": "boolean"},
        ],
        "label": "diagnosis",
        "classes": ["benign", "malignant"],
        "config_sha256": "e720",
        "coefficients": [coefficient("radius", 0.5), coefficient("smoker", -1.0), coefficient("(intercept)", 0.2)],
        "coefficients_note": "Of the optimum.",
    } | changes


DROP = [{"client": "site-0001", "reason": "timeout"}]
ROUNDS = [line(1), line(2, dropped=DROP), line(3)]


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, texts by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.sources: list[str | None] = []
        self.charts: list[str | None] = []
        self.points: dict[tuple[str | None, str | None], list[tuple[int, float]]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag != "meta":
            self.open.append(tag)
        if "data-metric" in found:
            self.charts.append(found["data-metric"])
        if "data-source" in found:
            self.sources.append(found["data-source"])
        if "data-value" in found:
            points = self.points.setdefault((self.charts[-1], self.sources[-1]), [])
            points.append((int(found["data-round"] or ""), float(found["data-value"] or "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1:] != ["style"]:
            self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]

    def text(self) -> str:
        return " ".join("".join(text for _, text in self.texts).split())


def everything(**changes: Any) -> str:
    return page(summary(**changes), ROUNDS, sites(), model())


def test_the_verdict_tells_rounds_clients_metric_and_what_the_others_reach() -> None:
    verdict = (
        "10 clients trained one model in 3 rounds. It is right on 94.5 % of test rows; "
        "on average a client alone reaches 93.1 %, all rows in one place 95.5 %."
    )
    assert verdict in Page(everything()).text()


def test_a_failed_run_says_so_with_its_error_and_what_is_known_last() -> None:
    failed = summary(status="failed", stop_reason="too-few-clients", error="nobody there", metrics=None, baselines=None)
    failed["config"] = RunConfig.parse({"rounds": 8}).values()
    text = Page(page(failed, [line(1), line(2, metrics=None, train_metrics=metrics(0.875))], None, None)).text()
    assert "The run failed after 3 of 8 rounds: too few clients took part." in text
    assert "before round 2 the model is right on 87.5 % of test rows." in text
    assert "nobody there" in text


def test_a_run_without_a_round_has_no_model_and_no_empty_chart() -> None:
    failed = summary(status="failed", stop_reason="error", rounds=0, clients=0, metrics=None, baselines=None)
    found = Page(page(failed | {"params_sha256": None}, [], None, None))
    assert "The run failed before its first round was complete: an error ended it. There is no model." in found.text()
    assert found.charts == []


@pytest.mark.parametrize("reason", [*get_args(StopReason), "too-few-clients", "error", "interrupted"])
def test_every_reason_of_the_interface_has_words(reason: str) -> None:
    assert reason in ENDINGS
    assert set(DROP_REASONS) == set(REASONS)


def test_the_gain_over_training_alone_is_told_for_the_rows_of_all_and_for_own_rows() -> None:
    own = {"better": 0, "same": 1, "worse": 4, "gain": -0.058}
    text = Page(page(summary(baselines=summary()["baselines"] | {"own_rows": own}), ROUNDS, None, None)).text()
    assert "Gain over alone+1.4 pointson the test rows of all" in text
    assert "Gain, own rows\N{MINUS SIGN}5.8 points" in text


def test_the_curves_have_exactly_the_points_of_the_rounds() -> None:
    before = metrics(0.5)
    rounds = [
        line(1, train_metrics=before),
        line(2, metrics=None),
        line(3, train_metrics=before, metrics=None),
        line(4),
    ]
    rounds[3]["metrics"]["log_loss"] = None
    points = Page(page(summary(), rounds, None, None)).points
    assert points == {
        ("accuracy", "metrics"): [(1, 0.91), (4, 0.9 + 4 / 100)],
        ("accuracy", "train_metrics"): [(0, 0.5), (2, 0.5)],
        ("log_loss", "metrics"): [(1, 1 - 0.91)],
        ("log_loss", "train_metrics"): [(0, 0.5), (2, 0.5)],
        (OVER_PAYLOAD, "metrics"): [(1, 0.91), (4, 0.9 + 4 / 100)],
    }


def arrays(*shapes: list[int], dtype: str = "<f8") -> list[dict[str, Any]]:
    return [{"name": str(place), "dtype": dtype, "shape": shape} for place, shape in enumerate(shapes)]


def test_payload_is_told_against_the_plain_model() -> None:
    """3 rounds of 10 clients with a model of 8 * (600 + 25) = 5,000 bytes."""
    rounds = [line(i, expected_clients=10) for i in (1, 2, 3)]
    about = model(arrays=arrays([20, 30], [25]))
    told = summary(client_updates=30, payload_up=15_000, payload_down=30_000, metrics_on="server")
    text = Page(page(told, rounds, None, about)).text()
    assert "The update of one client takes 500 B on average, the plain model 10.0 times as much." in text
    assert "What it is sent for a round takes 1.00 kB on average, the plain model 5.00 times as much." in text


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"payload_up": 155_000, "payload_down": 155_000}, model(arrays=arrays([20, 30], [25]))),
        ({}, model()),
        ({}, model(arrays=arrays([-1]))),
        ({}, model(arrays=[{"name": "w", "dtype": "object", "shape": [3]}])),
        ({}, None),
    ],
    ids=["plain", "no arrays", "a negative size", "no width", "no model"],
)
def test_nothing_is_compared_where_it_is_as_large_or_the_model_is_not_known(changes: Any, about: Any) -> None:
    rounds = [line(i, expected_clients=10) for i in (1, 2, 3)]
    told = summary(client_updates=30, metrics_on="server", payload_up=15_000, payload_down=30_000)
    assert "plain model" not in Page(page(told | changes, rounds, None, about)).text()


def test_what_clients_are_sent_is_not_compared_where_the_model_also_went_to_be_measured() -> None:
    rounds = [line(i, expected_clients=10) for i in (1, 2, 3)]
    told = summary(client_updates=30, payload_up=15_000, payload_down=30_000, metrics_on="clients")
    text = Page(page(told, rounds, None, model(arrays=arrays([20, 30], [25])))).text()
    assert "500 B on average, the plain model" in text
    assert "is sent for a round" not in text


def test_the_metric_is_drawn_over_the_payload_that_was_sent_up_to_then() -> None:
    ups = (3_000_000, 500_000, 500_000, 1_000_000)
    rounds = [line(i, payload_up=up) for i, up in enumerate(ups, 1)]
    text = page(summary(), rounds, None, None)
    assert Page(text).points[OVER_PAYLOAD, "metrics"] == Page(text).points["accuracy", "metrics"]
    drawn = text[text.index(f'data-metric="{OVER_PAYLOAD}"') :]
    drawn = drawn[: drawn.index("</svg>")]
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', drawn)]
    steps = [b - a for a, b in pairwise(places)]
    assert steps == pytest.approx([steps[2] / 2, steps[2] / 2, steps[2]], rel=0.01)
    assert places[0] - steps[2] * 3 == pytest.approx(62, abs=0.5), "nothing sent is at the left end"
    assert ">MB</text>" in drawn
    assert "over payload sent by clients, 4 points" in text


@pytest.mark.parametrize(
    "changes", [{"payload_up": None}, {"payload_up": 0}, {"metrics": None}], ids=["secret", "nothing", "no metric"]
)
def test_no_curve_over_the_payload_where_one_of_the_two_is_unknown(changes: dict[str, Any]) -> None:
    found = Page(page(summary(), [line(1, **changes), line(2, **changes)], None, None))
    assert OVER_PAYLOAD not in found.charts
    assert "Communication" in found.of("h2")


def test_a_round_of_which_the_payload_is_unknown_leaves_the_curve_over_it_out() -> None:
    found = Page(page(summary(), [line(1), line(2, payload_up=None), line(3)], None, None))
    assert found.charts == ["log_loss", "accuracy"]


def test_a_regression_is_drawn_by_mse_and_r2() -> None:
    rounds = [line(i, metrics=NUMBERS | {"r2": 0.1 * i}) for i in (1, 2)]
    found = Page(page(summary(metrics=NUMBERS, baselines=None), rounds, None, None))
    assert found.charts == ["mse", "r2", "r2 over payload_up"]
    assert found.points["r2", "metrics"] == [(1, 0.1), (2, 0.2)]
    assert "reaches an R² of 0.479 on test rows" in found.text()


def test_epsilon_is_drawn_and_told_in_words() -> None:
    rounds = [line(i, epsilon=i / 10, good=None, expected_clients=None) for i in (1, 2, 3)]
    privacy = {"unit": "client", "epsilon": 0.3, "delta": 1e-5, "accountant": "pld"}
    found = Page(page(summary(privacy=privacy), rounds, None, None))
    assert found.points["epsilon", "epsilon"] == [(1, 0.1), (2, 0.2), (3, 3 / 10)]
    assert f"Spent: epsilon 0.300 at delta 1e{MINUS}5" in found.text()
    assert f"at most {math.exp(0.3):.3g} times as likely" in found.text()
    assert "no differential privacy" not in found.text()


def test_a_bound_that_is_not_finite_protects_nothing() -> None:
    privacy = {"unit": "client", "epsilon": None, "delta": 1e-5, "accountant": "pld"}
    assert "take the run as unprotected" in Page(everything(privacy=privacy)).text()


def test_without_a_mechanism_the_page_says_what_is_not_protected() -> None:
    text = Page(everything()).text()
    assert "The server could read rows itself, as in a simulation" in text
    assert "Rows never left their clients." not in text
    deployed = Page(page(summary(metrics_on="clients", baselines=None), ROUNDS, None, None)).text()
    assert "Rows never left their clients." in deployed
    assert "The server could read rows" not in deployed
    for line in (text, deployed):
        assert "the count, mean and variance of each number" in line
    assert "A gradient of one row is that row, up to scale" in text
    assert "Who must be trusted" in text


def test_many_rounds_thin_the_marks_but_not_the_line() -> None:
    rounds = [line(i, metrics=metrics(0.5 + 0.4 * i / 300)) for i in range(1, 301)]
    found = Page(page(summary(), rounds, None, None))
    marks = found.points["accuracy", "metrics"]
    assert len(marks) < 100
    assert set(marks) < {(r["round"], r["metrics"]["accuracy"]) for r in rounds}
    assert (marks[0][0], marks[-1][0]) == (1, 300)
    lines = [attrs["points"] or "" for tag, attrs in found.elements if tag == "polyline"]
    assert [len(points.split()) for points in lines] == [300, 300, 30], "that over the payload is thinned too"


def test_sites_stand_in_the_order_of_their_ids_with_their_gain() -> None:
    shuffled = sites(sites=[site("b", 0.9, 0.92), site("a", 0.95, 0.9)])
    text = Page(page(summary(), ROUNDS, shuffled, None)).text()
    assert "a 45 11 90.0 % 95.0 % +5.0 89.0 % 37.1 % 36.4 %".replace(" ", "") in text.replace(" ", "")
    assert text.index("89.0 %37.1 %") < text.index(f"92.0 %90.0 %{MINUS}2.0")
    assert "1 of 2 clients do better with the common model than alone; 1 worse." in text


def test_sites_beyond_two_hundred_are_counted() -> None:
    text = Page(page(summary(), ROUNDS, sites(230, left_out=5), None)).text()
    assert "site-0199" in text
    assert "site-0200" not in text
    assert "35 more clients in this run, not in the table." in text


def test_the_strongest_forty_coefficients_are_shown_and_the_rest_counted() -> None:
    weak = [coefficient(f"weak-{i}", 0.1) | {"standard_error": 1.0} for i in range(30)]
    strong = [coefficient(f"strong-{i}", 0.001) | {"standard_error": 0.0001} for i in range(40)]
    found = model(coefficients=[*weak, *strong, coefficient("(intercept)", 0.2)])
    text = Page(page(summary(), ROUNDS, None, found)).text()
    assert all(f"strong-{i}" in text for i in range(40))
    assert "weak-" not in text
    assert "(intercept)" in text
    assert "30 weaker ones left out" in text


def test_dropped_clients_are_named_with_reason_and_rounds() -> None:
    rounds = [line(i, dropped=DROP if i != 4 else []) for i in range(1, 8)]
    text = Page(page(summary(dropped=8), rounds, None, None)).text()
    assert "6 updates of 1 client not used" in text
    assert "2 more updates not used, whose clients are not named" in text
    assert f"no answer in time1{DASH}3, 5{DASH}7" in text


def test_clients_that_the_strategy_left_out_or_clipped_are_named_with_their_rounds() -> None:
    rounds = [line(1, left_out=["x"], clipped=[]), line(2, left_out=["x", "<y>"], clipped=["z"]), line(3, left_out=[])]
    text = Page(page(summary(), rounds, None, None)).text()
    assert f"x1{DASH}2<y>2z2" in text
    for nobody in ([], None):
        assert "Left out" not in Page(page(summary(), [line(1, left_out=nobody)], None, None)).text()


def test_rounds_that_were_tried_twice_and_clients_that_came_and_went_are_told() -> None:
    rounds = [line(1), line(2, attempts=2, online=9), line(3, attempts=2), line(4)]
    text = Page(page(summary(), rounds, None, None)).text()
    assert f"Tried once more, as too few updates were good: rounds 2{DASH}3." in text
    assert "From 9 to 10 clients could be asked." in text
    text = Page(page(summary(), ROUNDS, None, None)).text()
    assert "Tried once more" not in text
    assert "could be asked" not in text


def test_the_time_of_a_round_is_told_by_phase() -> None:
    waits = (6.25, 5.5, 31.0)
    rounds = [line(i, seconds={"send": 0.2, "wait": w, "evaluate": 0, "total": w + 1}) for i, w in enumerate(waits)]
    text = Page(page(summary(), rounds, None, None)).text()
    assert "Waiting for clients6.2 s31.0 s" in text
    assert "The whole round7.2 s32.0 s" in text
    assert "Sending200 ms200 ms" in text
    assert "Evaluating" not in text
    assert "Time of a round" not in Page(page(summary(), rounds[:1], None, None)).text()


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    found = Page(everything())
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "a", "form", "base", "use", "image"}
    names = {name for _, attributes in found.elements for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in {"src", "href", "style", "xlink:href"}}
    assert not re.search(r"url\(|@import|https?://|javascript:", everything())
    policy = [a["content"] for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_page_is_headed_titled_and_in_english() -> None:
    found = Page(everything())
    assert ("html", {"lang": "en"}) in found.elements
    assert found.of("title")[0] == found.of("h1")[0] == "Federated learning: logistic on breast-cancer"
    assert found.of("h2") == [
        "How good the model is",
        "Spread over clients",
        "What the model weighs",
        "Communication",
        "Time",
        "Dropped clients",
        "What this run does not protect",
        "Configuration and versions",
    ]
    drawings = [attributes for tag, attributes in found.elements if tag == "svg"]
    assert all(a.get("aria-hidden") == "true" or (a["role"] == "img" and a["aria-label"]) for a in drawings)


def poisoned(value: Any, poison: str) -> Any:
    """The same with every text, and every key that is not known, replaced."""
    if isinstance(value, str):
        return poison
    if isinstance(value, list):
        return [poisoned(item, poison) for item in value]
    if isinstance(value, dict):
        return {key: poisoned(item, poison) for key, item in value.items()} | {poison: poison}
    return value


@pytest.mark.parametrize(
    "poison", [SCRIPT, "\"'><img src=x onerror=alert(1)>", "</title></style><script>1</script>", "\ud800\0\x1b"]
)
def test_text_of_the_files_is_escaped_wherever_it_stands(poison: str) -> None:
    privacy = {"unit": "client", "epsilon": 1.0, "delta": 1e-5, "accountant": "pld"}
    found = summary(privacy=privacy, error="e", metrics=CLASSES | {poison: 1.0})
    rounds = [line(1, metrics=CLASSES | {poison: 1.0}), line(2, dropped=DROP)]
    changed = [poisoned(part, poison) for part in (found, rounds, sites(), model())]
    text = page(changed[0] | {"metrics": found["metrics"]}, *changed[1:])
    tags = {tag for tag, _ in Page(text).elements}
    assert not tags & {"script", "img"}
    assert tags <= {tag for tag, _ in Page(everything()).elements} | {"p", "li"}
    assert SCRIPT not in text
    if poison == SCRIPT:
        assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    text.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)


def test_only_an_element_turns_text_into_markup() -> None:
    bold = el("b", SCRIPT)
    assert bold == "<b>&lt;script&gt;alert(1)&lt;/script&gt;</b>"
    assert el("p", bold) == f"<p>{bold}</p>"
    assert el("p", f"{bold}", bold + "<i>").count("&lt;b&gt;") == 2
    assert el("p", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;"></p>'
    package = Path(fl_app.page.__file__).parent
    makers = {path.name for path in package.glob("*.py") if re.search(r"\bHtml\(", path.read_text(encoding="utf-8"))}
    assert makers == {"markup.py", "document.py"}
    assert isinstance(bold, Html)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything within."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value, or with nothing where `new` is Ellipsis, at a path."""
    copy = deepcopy(value)
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


@pytest.mark.parametrize("new", [None, ..., "text", -7, 1e308, 5e-324, [], {}], ids=str)
def test_the_page_is_whole_whatever_is_null_absent_or_odd(new: Any) -> None:
    privacy = {"unit": "client", "epsilon": 1.0, "delta": 1e-5, "accountant": "pld"}
    config = {"task": "logistic", "data": "csv", "rounds": 3}
    rounds = [line(1, epsilon=0.1, dropped=DROP, train_metrics=CLASSES), line(2, epsilon=0.2)]
    files = [summary(privacy=privacy, config=config), rounds, sites(2), model()]
    for path in places(files):
        if len(path) > 1:
            Page(page(*changed(files, path, new)))


def test_every_choice_of_missing_files_makes_a_page() -> None:
    for found in (
        summary(),
        summary(metrics=None),
        summary(baselines=None),
        summary(status="failed", metrics=None),
        {},
    ):
        for rounds in ([], [line(1)], ROUNDS, [line(1, metrics=None)]):
            for of_sites in (None, sites(0), sites(1), sites()):
                for about in (None, {}, model(coefficients=[]), model()):
                    Page(page(found, rounds, of_sites, about))


@pytest.mark.parametrize(
    "values", [(1e300, -1e300), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0 + 1e-15), (0.0, 5e-324), (1e-9, 1.0)]
)
def test_an_axis_holds_its_values_between_its_ticks(values: tuple[float, float]) -> None:
    axis = value_axis(values, 100.0, 0.0, (None, None))
    assert len(axis.ticks) <= 9
    assert all(0.0 <= axis.at(value) <= 100.0 for value in values)
    assert axis.ticks == tuple(sorted(set(axis.ticks)))


def test_an_axis_of_rounds_is_marked_on_whole_rounds_with_both_ends() -> None:
    assert round_axis([1, 20], 0.0, 100.0).ticks == (1, 5, 10, 15, 20)
    assert round_axis([7], 0.0, 100.0).ticks == (7,)
    ticks = round_axis(range(1001), 0.0, 100.0).ticks
    assert (ticks[0], ticks[-1]) == (0, 1000)


def test_labels_that_would_overlap_move_apart() -> None:
    placed = spread([50.0, 51.0, 100.0], 15.0, 0.0, 100.0)
    assert placed == sorted(placed)
    assert min(b - a for a, b in pairwise(placed)) >= 15.0
    assert max(placed) <= 100.0


def test_numbers_are_written_for_people() -> None:
    assert [percent(0.94545), percent(-0.00001), percent(1)] == ["94.5 %", "0.0 %", "100.0 %"]
    assert [significant(x) for x in (0.12293, 2912.3, 0.99996, -0.5, 0, 1e-5)] == [
        "0.123",
        "2,910",
        "1.00",
        f"{MINUS}0.500",
        "0",
        f"1e{MINUS}5",
    ]
    assert [signed("1.4"), signed(f"{MINUS}1.4"), signed("0.0")] == ["+1.4", f"{MINUS}1.4", "0.0"]
    assert [count(1234567), size(64), size(35375), size(1.2e9)] == ["1,234,567", "64 B", "35.4 kB", "1.20 GB"]
    assert [duration(s) for s in (0.0065, 0.443, 12.94, 185, 7620)] == [
        "6.5 ms",
        "443 ms",
        "12.9 s",
        "3 min 05 s",
        "2 h 07 min",
    ]
    assert ranges([7, 1, 2, 3]) == f"1{DASH}3, 7"
    assert ranges(range(1, 41, 2), most=3) == "1, 3, 5 and 17 more"
    assert len(shorten("x" * 1000)) == 64


def test_a_thousand_rounds_and_sites_with_the_longest_names_stay_below_300_kb() -> None:
    name = '"&' * 100
    rounds = [
        line(i, epsilon=i / 7, train_metrics=metrics(i / 1001), dropped=[{"client": f"{name}{i}", "reason": "timeout"}])
        for i in range(1, 1001)
    ]
    coefficients = [coefficient(f"{name}{i}", 0.1 + i / 977, output=name) for i in range(1000)]
    about = model(coefficients=coefficients, classes=["a", "b"])
    for number in (100, 1000):
        many = sites(sites=[site(f"{name}{i}", (i * 37 % 1000) / 1000, (i * 91 % 1000) / 1000) for i in range(number)])
        assert len(page(summary(), rounds, many, about).encode()) < 300_000


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_a_browser_reads_the_page_and_executes_nothing(tmp_path: Path) -> None:
    attack = "<script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\">"
    hostile = [site(attack, 0.9, 0.8), site("b", 0.9, 0.8)]
    found = summary(error=attack, config={"task": attack, "data": "csv"})
    file = tmp_path / "report.html"
    file.write_text(page(found, ROUNDS, sites(sites=hostile), model(label=attack)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [str(CHROMIUM), *flags, "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = Page(re.sub(r"<!DOCTYPE[^>]*>", "", dom))
    assert seen.of("title")[0].startswith("Federated learning: <script>document")
    assert seen.of("h2")[:2] == ["How good the model is", "Spread over clients"]
    assert {tag for tag, _ in seen.elements}.isdisjoint({"script", "img"})
    assert seen.points == Page(file.read_text(encoding="utf-8")).points


def test_the_page_does_not_change_what_it_is_given() -> None:
    given: list[Any] = [summary(), deepcopy(ROUNDS), sites(), model()]
    kept = json.dumps(given)
    page(*given)
    assert json.dumps(given) == kept
