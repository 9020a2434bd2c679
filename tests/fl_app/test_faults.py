"""A bad client costs its own update, never the run; too few good ones fail it and keep the last good model."""

import json
import time

import numpy as np
import pytest
from extensions import FAULTS, REASONS
from flwr.app import ConfigRecord, Message, RecordDict
from runs import run
from safetensors.numpy import load_file

from fl_app import client_app
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from strategies.base import TooFewClients

TASK = "extensions:FaultyTask"


def lines(folder):
    return [json.loads(line) for line in folder.rounds.read_text().splitlines()]


# Where the server holds the test rows clients send no metrics, and what they return is not looked at.
CASES = [(fault, "extensions:HeldByClients") for fault in FAULTS] + [
    (fault, "breast-cancer") for fault in FAULTS if not fault.startswith("metric") and fault != "hangs"
]


@pytest.mark.parametrize(("fault", "data"), CASES)
def test_each_kind_of_bad_client_is_dropped_with_its_reason_and_the_others_are_used(tmp_path, fault, data):
    timeout = {"round_timeout_s": 2.0} if fault == "hangs" else {}
    summary, folder = run(tmp_path / "out", task=TASK, task_args=f"fault={fault}", data=data, rounds=2, **timeout)
    assert summary["status"] == "completed"
    assert summary["client_updates"] == 18
    assert summary["dropped"] == 2
    for line in lines(folder):
        assert line["dropped"] == [{"client": "03", "reason": REASONS[fault]}]
        assert (line["good"], line["expected_clients"]) == (9, 10)
    assert all(np.isfinite(array).all() for array in load_file(folder.model).values())


def test_a_dropped_client_leaves_no_trace_in_the_model(tmp_path):
    """Two ways of being absent, one model."""
    models = [
        run(tmp_path / fault, task=TASK, task_args=f"fault={fault}")[0]["params_sha256"]
        for fault in ("raises", "nan", "weight-absurd", "shape")
    ]
    assert len(set(models)) == 1
    assert models[0] != run(tmp_path / "all", task="logistic")[0]["params_sha256"]


def test_a_hanging_client_costs_the_node_half_of_what_is_left_and_not_its_neighbours(tmp_path):
    began = time.monotonic()
    summary, folder = run(
        tmp_path / "out",
        task=TASK,
        task_args="fault=hangs clients=00,02,04",
        nodes=2,
        rounds=1,
        round_timeout_s=6.0,
    )
    assert time.monotonic() - began < 12
    assert [d["client"] for d in lines(folder)[0]["dropped"]] == ["00", "02", "04"]
    assert summary["client_updates"] == 7


def test_why_a_client_failed_is_said_at_the_node_and_does_not_travel(tmp_path, caplog):
    _, folder = run(tmp_path / "out", task=TASK, task_args="fault=raises", rounds=1)
    assert "patient 17" in caplog.text
    assert not any(b"patient 17" in path.read_bytes() for path in folder.path.rglob("*") if path.is_file())


def test_clients_whose_rows_cannot_be_used_stay_out_and_their_neighbours_take_part(tmp_path):
    summary, folder = run(tmp_path, data="extensions:Unreadable", enrol_timeout_s=0.3, nodes=2)
    assert (summary["status"], summary["clients"]) == ("completed", 8)
    assert not any(b"John Smith" in path.read_bytes() for path in folder.path.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["train", "evaluate", "query.enrol"])
def test_what_goes_wrong_at_a_node_leaves_it_as_an_error_without_its_text(kind):
    config = RunConfig.parse({}).values() | {"task": "patient-17"}
    grid = InlineGrid(client_app.app, config, 1)
    (node,) = grid.get_node_ids()
    content = RecordDict({"config": ConfigRecord({"job": "patient-17"})})
    (reply,) = grid.send_and_receive([Message(content, node, kind)])
    assert reply.has_error()
    assert reply.error.reason == "see the log of the node"


def test_too_few_good_clients_fail_the_run_and_keep_the_last_good_model(tmp_path):
    nine = ",".join(f"{i:02}" for i in range(9))
    good, _ = run(tmp_path / "good", rounds=2, task=TASK, task_args="fault=nan clients=none")
    with pytest.raises(
        TooFewClients, match=r"round 3: 1 of 10 clients gave a good update, min-clients=2; dropped: 00 \(non-finite\)"
    ):
        run(tmp_path / "bad", rounds=5, task=TASK, task_args=f"fault=nan clients={nine} from-round=3")
    summary = json.loads((tmp_path / "bad" / "summary.json").read_text())
    assert (summary["status"], summary["stop_reason"], summary["rounds"]) == ("failed", "too-few-clients", 2)
    assert "round 3: 1 of 10" in summary["error"]
    assert summary["params_sha256"] == good["params_sha256"]
    assert (tmp_path / "bad" / "model.safetensors").read_bytes() == (
        tmp_path / "good" / "model.safetensors"
    ).read_bytes()


def test_a_round_with_too_few_is_tried_once_more_with_the_same_cohort(tmp_path, monkeypatch):
    import extensions

    calls = []

    def flaky(arrays, n, metrics):
        calls.append(n)
        if len(calls) <= 9:
            raise RuntimeError("not yet")
        return arrays, n, metrics

    monkeypatch.setitem(extensions.FAULTS, "flaky", flaky)
    nine = ",".join(f"{i:02}" for i in range(9))
    keys = {"rounds": 1, "task": TASK, "task_args": f"fault=flaky clients={nine}", "standard_errors": False}
    summary, folder = run(tmp_path / "out", **keys)
    assert summary["status"] == "completed"
    assert len(calls) == 18
    assert lines(folder)[0]["dropped"] == []
    assert lines(folder)[0]["attempts"] == 2
    assert summary["params_sha256"] == run(tmp_path / "plain", rounds=1)[0]["params_sha256"]


class Stragglers(InlineGrid):
    """Two nodes that enrol and then never have an answer ready."""

    def pull_messages(self, message_ids):
        slow = list(self.get_node_ids())[:2]
        ready = [
            i
            for i in message_ids
            if (m := self._messages[i]).metadata.message_type != "train" or m.metadata.dst_node_id not in slow
        ]
        return super().pull_messages(ready)


def test_over_selected_clients_that_are_not_needed_are_late_and_nobody_waits_for_them(tmp_path):
    keys = {"nodes": 10, "rounds": 4, "clients_per_round": 6, "round_timeout_s": 60.0}
    began = time.monotonic()
    summary, folder = run(tmp_path / "out", grid=Stragglers, over_selection=0.4, **keys)
    assert time.monotonic() - began < 30
    assert summary["client_updates"] == 24
    for line in lines(folder):
        assert (line["expected_clients"], line["good"], line["online"], line["attempts"]) == (9, 6, 10, 1)
        assert len(line["dropped"]) == 3
        assert {drop["reason"] for drop in line["dropped"]} == {"late"}
    asked = [{drop["client"] for drop in line["dropped"]} & {"00", "01"} for line in lines(folder)]
    assert all(asked)  # of ten clients nine are asked, so that a straggler is always among them


class Eager(InlineGrid):
    """Every node works on what it is sent, whether anybody waits for the answer or not."""

    def push_messages(self, messages):
        ids = list(super().push_messages(messages))
        self.__dict__.setdefault("replies", {}).update({i: self._work(self._messages.pop(i)) for i in ids})
        return ids

    def pull_messages(self, message_ids):
        return [self.replies.pop(i) for i in list(message_ids)[:1]]


def test_the_work_of_a_late_client_leaves_no_trace(tmp_path):
    """Its control variates stay those of its last update that was used."""
    keys = {"strategy": "scaffold", "nodes": 10, "rounds": 6, "clients_per_round": 5, "over_selection": 0.6}
    summary, folder = run(tmp_path / "worked", grid=Eager, **keys)
    assert all(line["good"] == 5 and len(line["dropped"]) == 3 for line in lines(folder))
    assert len({drop["client"] for line in lines(folder) for drop in line["dropped"]}) > 3
    assert summary["params_sha256"] == run(tmp_path / "idle", **keys)[0]["params_sha256"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"over_selection": 0.3}, "clients-per-round=0"),
        ({"over_selection": -0.1, "clients_per_round": 5}, "greater than or equal to 0"),
        (
            {
                "over_selection": 0.3,
                "clients_per_round": 5,
                "strategy": "dp-fedavg",
                "strategy_args": "target-epsilon=8",
            },
            "the fastest clients decide",
        ),
    ],
)
def test_over_selection_without_a_cohort_or_beside_a_promise_of_privacy_is_refused(tmp_path, keys, words):
    with pytest.raises(Refused, match=words):
        run(tmp_path / "out", **keys)


def test_all_clients_failing_from_the_start_leaves_the_initial_model(tmp_path):
    everyone = ",".join(f"{i:02}" for i in range(10))
    with pytest.raises(TooFewClients):
        run(tmp_path / "out", task=TASK, task_args=f"fault=raises clients={everyone}")
    assert not any(array.any() for array in load_file(tmp_path / "out" / "model.safetensors").values())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["metrics"]) == ("failed", 0, None)


def test_newton_recovers_from_a_client_that_was_missing_once(tmp_path, monkeypatch):
    import extensions

    def once(arrays, n, metrics):
        raised.append(n)
        if len(raised) == 4:
            raise RuntimeError("once")
        return arrays, n, metrics

    raised = []
    monkeypatch.setitem(extensions.FAULTS, "once", once)
    keys = {"strategy": "fednewton", "partition": "dirichlet", "partition_args": "alpha=0.3", "rounds": 10}
    whole, _ = run(tmp_path / "whole", **keys)
    hit, folder = run(tmp_path / "hit", task=TASK, task_args="fault=once clients=09", **keys)
    assert [len(line["dropped"]) for line in lines(folder)] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert hit["metrics"]["log_loss"] == pytest.approx(whole["metrics"]["log_loss"], abs=1e-6)


@pytest.mark.parametrize("fault", ["metric-nan", "raises"])
def test_a_client_that_cannot_evaluate_is_left_out_of_the_metrics(tmp_path, fault):
    summary, _ = run(tmp_path / "out", task=TASK, task_args=f"fault={fault}", data="extensions:HeldByClients")
    assert summary["metrics_on"] == "clients"
    assert 0.5 < summary["metrics"]["accuracy"] <= 1


@pytest.mark.parametrize(
    "claim",
    [
        {"examples": 10, "correct": 11},
        {"examples": 10, "correct": -1},
        {"examples": -1, "correct": 0},
        {"examples": 2.5, "correct": 1},
        {"log_loss": -1.0},
        {"log_loss": 1.7e308},
        {"brier": 1e9},
    ],
    ids=str,
)
def test_metrics_that_no_rows_can_give_are_refused(tmp_path, monkeypatch, claim):
    import extensions

    monkeypatch.setitem(extensions.FAULTS, "claim", lambda arrays, n, metrics: (arrays, n, {**metrics, **claim}))
    _, folder = run(tmp_path, task=TASK, task_args="fault=claim", data="extensions:HeldByClients", rounds=1)
    assert lines(folder)[0]["dropped"] == [{"client": "03", "reason": "metrics"}]


def test_clients_may_write_into_what_they_receive(tmp_path):
    polite, _ = run(tmp_path / "polite")
    rude, _ = run(tmp_path / "rude", task="extensions:WritingTask")
    assert rude["params_sha256"] == polite["params_sha256"]


def test_a_baseline_that_cannot_be_trained_costs_the_run_nothing(tmp_path):
    summary, folder = run(tmp_path, task="extensions:NoBaselineTask")
    assert summary["status"] == "completed"
    assert (summary["baselines"]["pooled"], summary["baselines"]["local_mean"]) == (None, None)
    sites = folder.read_json(folder.sites)["sites"]
    assert all(site["alone"] is None and site["federated"] for site in sites)
