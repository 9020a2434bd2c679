"""Stop rules read the history and nothing else."""

from dataclasses import replace

import pytest

from strategies.history import Dropped, RoundReport
from strategies.stopping import Converged, Patience, Rounds, Target


def history(losses, changes=None, key="metrics"):
    changes = changes or [0.0] * len(losses)
    return [report(i + 1, loss, change, key) for i, (loss, change) in enumerate(zip(losses, changes, strict=True))]


def report(number, loss, change, key):
    metrics = {
        "metrics": None,
        "train_metrics": None,
        key: None if loss is None else {"log_loss": loss, "accuracy": 1 - loss},
    }
    return RoundReport(number, metrics["metrics"], metrics["train_metrics"], 3, 3, 1, 3, (), 0, 0, 0, 0, change)


def stops_at(rule, reports):
    return next((i + 1 for i in range(len(reports)) if rule(reports[: i + 1])), None)


def test_rounds_never_stops():
    assert stops_at(Rounds(), history([0.5] * 50)) is None


def test_converged_wants_params_and_loss_settled_k_times_in_a_row():
    rule = Converged(tolerance=1e-3, rounds=3)
    assert stops_at(rule, history([0.9, 0.5, 0.5, 0.5, 0.5, 0.5])) == 5
    assert stops_at(rule, history([0.5] * 8, [0, 0, 0, 1, 0, 0, 0, 0])) == 7  # the params still moved in round 4
    assert stops_at(rule, history([0.5, 0.4] * 6)) is None  # the loss still moves
    assert stops_at(rule, history([None] * 9)) is None  # no loss is known


def test_target_is_reached_from_below_and_for_a_loss_from_above():
    losses = [0.9, 0.6, 0.3, 0.1]
    assert stops_at(Target(metric="accuracy", value=0.7), history(losses)) == 3
    assert stops_at(Target(metric="log_loss", value=0.6), history(losses)) == 2
    assert stops_at(Target(metric="unknown", value=0.6), history(losses)) is None


def test_patience_counts_rounds_since_the_best():
    losses = [0.9, 0.5, 0.6, 0.55, 0.4, 0.41, 0.42, 0.43]
    assert stops_at(Patience(rounds=3), history(losses)) == 8
    assert stops_at(Patience(rounds=2), history(losses)) == 4
    assert stops_at(Patience(metric="accuracy", rounds=3), history(losses)) == 8
    assert stops_at(Patience(rounds=3, min_delta=0.2), history(losses)) == 5


@pytest.mark.parametrize("key", ["metrics", "train_metrics"])
def test_a_rule_without_a_metric_reads_what_the_task_reports_first(key):
    def reports(values):
        metrics = [{"r2": 1 - value, "mse": value, "mae": 7.0} for value in values]
        told = [{"metrics": None, "train_metrics": None, key: own} for own in metrics]
        return [replace(report(k + 1, None, 0.0, "metrics"), **own) for k, own in enumerate(told)]

    losses = [0.9, 0.5, 0.6, 0.55, 0.56, 0.57]
    assert stops_at(Target(value=0.45), reports(losses)) == 2  # of r2
    assert stops_at(Patience(rounds=3), reports(losses)) == 5  # of mse
    assert stops_at(Converged(tolerance=0.03, rounds=2), reports(losses)) == 6
    assert stops_at(Converged(), history([None] * 9)) is None
    assert (Target(value=1.0).reads, Patience().reads, Converged().reads) == (("",),) * 3


def test_metrics_of_the_round_before_serve_where_the_round_was_not_evaluated():
    assert stops_at(Target(metric="log_loss", value=0.3), history([0.9, 0.2], key="train_metrics")) == 2


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: Converged(tolerance=0.0), "tolerance"),
        (lambda: Converged(rounds=0), "rounds"),
        (lambda: Patience(rounds=0), "rounds"),
        (lambda: Patience(min_delta=-1.0), "min-delta"),
    ],
)
def test_senseless_arguments_are_refused(build, name):
    with pytest.raises(ValueError, match=name):
        build()


def test_a_report_survives_json_and_loses_only_what_json_cannot_say():
    before = RoundReport(
        1, {"a": float("nan"), "b": 1.5}, None, 3, 2, 1, 1, (Dropped("x", "shape"),), 1, 2, 3, 4, 0.5, {"total": 1.0}
    )
    line = before.to_json()
    assert line["metrics"] == {"a": None, "b": 1.5}
    after = RoundReport.from_json(line)
    assert after.dropped == before.dropped
    assert after.to_json() == line
