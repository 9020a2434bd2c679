"""PyTorch models through whole runs."""

from pathlib import Path

import numpy as np
import pytest
from runs import run
from safetensors.numpy import load_file

from fl_app.errors import Refused
from fl_app.model import Model

NET = """
from torch import nn


def make(features, outputs):
    return nn.Sequential(nn.Linear(features, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs))


def {fault}(features, outputs):
    {body}
"""
DIGITS = {"data": "digits", "l2": 0.0, "batch_size": 32, "rounds": 3}


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("mlp", {"task_args": "hidden=32 momentum=0.9"}),
        ("cnn", {"task_args": "channels=4,8 hidden=16", "solver": "adam", "learning_rate": 0.01}),
    ],
)
def test_a_network_learns_and_predicts_what_it_was_measured_by(tmp_path, task, keys):
    summary, folder = run(tmp_path, task=task, baselines=False, **DIGITS, **keys)
    reports = folder.read_rounds(3)
    assert reports[-1].metrics["log_loss"] < reports[0].metrics["log_loss"] < np.log(10)
    model = Model.load(folder.about_model)
    predictions, probabilities = model.task.predict(model.arrays, np.zeros((3, 64)))
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (predictions == probabilities.argmax(axis=1)).all()
    assert summary["metrics"]["auc"] > 0.5


def test_the_same_seed_gives_the_same_network_whatever_the_number_of_nodes(tmp_path):
    keys = {"task": "mlp", "task_args": "hidden=8 dropout=0.3", "baselines": False, **DIGITS}
    hashes = {run(tmp_path / str(n), nodes=n, **keys)[0]["params_sha256"] for n in (1, 2, 5)}
    assert len(hashes) == 1


def test_fedprox_without_a_pull_is_fedavg_to_the_bit(tmp_path):
    keys = {"task": "mlp", "task_args": "hidden=8", "baselines": False, **DIGITS}
    plain = run(tmp_path / "plain", strategy="fedavg", **keys)[0]
    prox = run(tmp_path / "prox", strategy="fedprox", strategy_args="mu=0", **keys)[0]
    assert plain["params_sha256"] == prox["params_sha256"]


def test_scaffold_trains_a_network(tmp_path):
    keys = {"task": "mlp", "task_args": "hidden=8", "baselines": False, **DIGITS}
    summary, folder = run(tmp_path, strategy="scaffold", **keys)
    losses = [report.metrics["log_loss"] for report in folder.read_rounds(3)]
    assert losses[-1] < losses[0]
    assert summary["dropped"] == 0


def test_frozen_layers_cost_no_bytes(tmp_path):
    keys = {"task": "mlp", "baselines": False, **DIGITS}
    whole, _ = run(tmp_path / "whole", task_args="hidden=32", **keys)
    head, folder = run(tmp_path / "head", task_args="hidden=32 freeze=0", **keys)
    assert head["payload_up"] < whole["payload_up"] / 5
    assert {"2.weight", "2.bias"} <= set(load_file(folder.model))


def test_a_client_that_diverges_costs_its_own_update(tmp_path):
    with pytest.raises(Exception, match="good update"):
        run(tmp_path, task="mlp", task_args="hidden=8", learning_rate=1e30, **{**DIGITS, "rounds": 1})


def test_a_model_of_the_users_own_is_found_in_the_callers_folder(fl_app, caller: Path):
    (caller / "my_own_net.py").write_text(NET.format(fault="broken", body="return 3"))
    words = ["-c", "task=torch", "-c", "data=digits", "-c", "rounds=2", "-c", "baselines=false", "--engine", "inline"]
    done = fl_app("run", *words, "-c", "task-args=model=my_own_net:make", "--out", "out")
    assert done.status == 0, done.err
    assert "the model is of type int" in fl_app("run", *words, "-c", "task-args=model=my_own_net:broken").refusal()
    assert "AttributeError" in fl_app("run", *words, "-c", "task-args=model=my_own_net:nothing").refusal()


def test_a_device_that_is_not_there_is_refused_before_the_start(fl_app, caller: Path):
    words = ["--engine", "inline", "-c", "task=mlp", "-c", "device=cuda:9"]
    assert "this machine has cpu" in fl_app("run", *words).refusal()
    assert "expected auto, cpu, cuda or cuda:N" in fl_app("run", *words[:-1], "device=tpu").refusal()
    assert not list(caller.iterdir())


def test_a_start_that_does_not_fit_is_named(tmp_path):
    run(tmp_path / "first", task="mlp", task_args="hidden=8", baselines=False, **DIGITS)
    init = str(tmp_path / "first" / "model.safetensors")
    again, _ = run(tmp_path / "again", task="mlp", task_args="hidden=8", init=init, baselines=False, **DIGITS)
    assert again["status"] == "completed"
    with pytest.raises(Refused, match=r"0.bias of shape \(8,\).*expected shape \(9,\)|0.weight of shape \(8, 64\)"):
        run(tmp_path / "other", task="mlp", task_args="hidden=9", init=init, baselines=False, **DIGITS)


def test_a_network_predicts_a_number_of_a_csv_file(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    lines = [f"{a:.4f},{b:.4f},{50 + 10 * (a - 2 * b):.3f}" for a, b in x]
    (tmp_path / "all.csv").write_text("\n".join(["a,b,weight", *lines]))
    keys = {"data": "csv", "data_args": f"path='{tmp_path / 'all.csv'}' label=weight", "baselines": False, "l2": 0.0}
    summary, folder = run(
        tmp_path / "out", task="mlp", task_args="hidden=8 predicts=number", rounds=10, num_clients=4, **keys
    )
    assert summary["metrics"]["r2"] > 0.9
    model = Model.load(folder.about_model)
    (first, *_) = model.predict(tmp_path / "all.csv")
    assert abs(first[0] - (50 + 10 * (x[0, 0] - 2 * x[0, 1]))) < 10
    with pytest.raises(Refused, match="the label 'digit' has classes: leave it out"):
        run(tmp_path / "wrong", task="mlp", task_args="predicts=number", baselines=False, **DIGITS)
