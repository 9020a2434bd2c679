"""What holds for every registered strategy, and golden runs that notice when what is computed changes."""

import pytest
from runs import run

from fl_app.registry import build, resolve
from strategies import STRATEGIES
from strategies.base import Basics, ComposedStrategy
from strategies.transform import chain
from strategies.update import Update

LOOP = [name for name, member in vars(ComposedStrategy).items() if callable(member) and name != "__init__"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_named_strategy_chooses_parts_and_overrides_nothing(name):
    cls = resolve("strategy", name)
    assert cls.__bases__ == (ComposedStrategy,)
    assert not set(vars(cls)) & set(LOOP)


@pytest.mark.parametrize("name", STRATEGIES)
def test_server_and_node_build_the_same_pipeline_from_the_same_words(name):
    here, there = (build("strategy", name, "max-weight=77", Basics()) for _ in range(2))
    assert here.pipeline == there.pipeline == chain(here.pipeline)
    assert (here.work.request, here.server_optimizer) == (there.work.request, there.server_optimizer)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_client_weighs_more_than_the_bound_that_the_sum_is_scaled_by(name):
    pipeline = build("strategy", name, "max-weight=50", Basics()).pipeline
    for examples in (1, 49, 50, 51, 10**9):
        update = pipeline.encode(Update((), ("a",), num_examples=examples), (), None)[0]
        assert 1 <= update.weight <= pipeline.max_weight(examples) <= 50


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_learns(tmp_path, name):
    summary, folder = run(tmp_path, strategy=name, rounds=8, learning_rate=0.2)
    losses = [report.metrics["log_loss"] for report in folder.read_rounds(8)]
    assert losses[-1] < losses[0] < 0.6931
    assert summary["client_updates"] == 80


GOLDEN = {
    ("fedavg", "breast-cancer"): {
        "accuracy": 0.9545454545454546,
        "log_loss": 0.15608722233952674,
        "brier": 0.04317995795872461,
        "auc": 0.9891456582633054,
    },
    ("fedsgd", "digits"): {
        "accuracy": 0.8611111111111112,
        "log_loss": 1.2924233861628522,
        "brier": 0.5762083787873308,
        "auc": 0.9908808472429177,
    },
    ("fednewton", "breast-cancer"): {
        "accuracy": 0.9454545454545454,
        "log_loss": 0.12313897444587095,
        "brier": 0.03717469365179131,
        "auc": 0.9898459383753502,
    },
}


@pytest.mark.parametrize(("strategy", "data"), GOLDEN)
def test_golden_runs_compute_what_they_always_did(tmp_path, strategy, data):
    """Not to the bit, since libraries differ between machines; a change of the arithmetic shows all the same."""
    metrics = run(tmp_path, strategy=strategy, data=data, rounds=4, learning_rate=0.2)[0]["metrics"]
    assert metrics == pytest.approx(GOLDEN[strategy, data], rel=1e-9)
