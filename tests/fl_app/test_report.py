"""The end of a run in words."""

from pathlib import Path
from typing import Any, get_args

import pytest

from fl_app.findings import gain_on_own_rows
from fl_app.report import REASONS, closing_lines
from strategies.stopping import StopReason


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "status": "completed",
        "stop_reason": "rounds",
        "rounds": 20,
        "seconds": {"total": 12.34},
        "metrics": {"accuracy": 0.97654, "log_loss": 0.1, "auc": None},
        "metrics_on": "server",
        "baselines": None,
        "params_sha256": "0" * 64,
        "out": "/data/caller/runs/1",
    } | changes


HERE = Path("/data/caller")


def test_the_end_is_told_with_its_metrics_and_where_everything_is() -> None:
    assert closing_lines(summary(), HERE) == [
        "completed after 20 rounds in 12.3 s: all rounds done",
        "accuracy 0.977  log_loss 0.100  (server's test rows)",
        "results in runs/1; report.html shows them",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"status": "failed", "stop_reason": "error"}, True),
        ({"status": "stopped", "stop_reason": "interrupted"}, True),
        ({"status": "failed", "stop_reason": "error", "params_sha256": None}, False),
        ({}, False),
    ],
)
def test_a_run_that_broke_off_with_a_checkpoint_says_how_to_go_on(changes: dict[str, Any], told: bool) -> None:
    said = closing_lines(summary(**{**changes, "out": "/data/caller/my runs/1"}), HERE)
    assert ("go on with: fl-app run --resume 'my runs/1'" in said) is told


BASELINES = {
    "pooled": None, "local_mean": None, "local_worst": None, "local_best": None, "clients": 0,
    "test_rows": 148, "majority": 0.65,
}  # fmt: skip


def test_the_test_rows_are_counted_and_the_most_frequent_class_is_told() -> None:
    said = closing_lines(summary(baselines=BASELINES), HERE)
    assert said[1:3] == [
        "accuracy 0.977  log_loss 0.100  (server's 148 test rows)",
        "saying the most frequent class of everybody would reach 0.650",
    ]


def test_the_most_frequent_class_is_not_told_of_a_label_that_is_a_number() -> None:
    said = closing_lines(summary(metrics={"mse": 0.2}, baselines={**BASELINES, "majority": None}), HERE)
    assert "(server's 148 test rows)" in said[1]
    assert not [line for line in said if "frequent" in line]


def test_a_gain_on_own_rows_is_upwards_of_a_share_and_downwards_of_a_loss() -> None:
    pairs = [(0.5, 0.25), (0.5, 0.5), (0.0, 1.0), (0.5, 1.0), (float("nan"), 1.0)]
    sites = [{"federated": {"accuracy": a, "mse": a}, "alone": {"accuracy": b, "mse": b}} for a, b in pairs]
    sites.append({"federated": None, "alone": None})
    assert gain_on_own_rows(sites, "accuracy") == {"better": 1, "same": 1, "worse": 2, "gain": -0.3125}
    assert gain_on_own_rows(sites, "mse") == {"better": 2, "same": 1, "worse": 1, "gain": 0.3125}
    assert gain_on_own_rows(sites[-2:], "mse") is None
    own = {"own_rows": gain_on_own_rows(sites, "mse")}
    said = closing_lines(summary(metrics={"mse": 0.2}, baselines={**BASELINES, **own}), HERE)
    assert "on their own test rows clients gain +0.312: 2 better, 1 the same, 1 worse" in said


@pytest.mark.parametrize("reason", [*get_args(StopReason), "too-few-clients", "error", "interrupted"])
def test_every_reason_of_the_interface_has_words(reason: str) -> None:
    assert closing_lines(summary(stop_reason=reason), HERE)[0].endswith(REASONS[reason])


def test_one_round_is_no_plural() -> None:
    assert "after 1 round in" in closing_lines(summary(rounds=1), HERE)[0]
    assert "after 0 rounds in" in closing_lines(summary(rounds=0), HERE)[0]


@pytest.mark.parametrize("metrics", [None, {}, {"accuracy": None}])
def test_without_a_metric_there_is_no_line_of_metrics(metrics: dict[str, Any] | None) -> None:
    assert len(closing_lines(summary(metrics=metrics), HERE)) == 2


def test_a_metric_of_the_clients_says_so() -> None:
    assert "(clients' test rows)" in closing_lines(summary(metrics_on="clients"), HERE)[1]


def test_a_folder_elsewhere_is_named_in_full() -> None:
    assert closing_lines(summary(out="/elsewhere/r"), HERE)[-1] == "results in /elsewhere/r; report.html shows them"
