"""What holds for every registered strategy is fl_app.contracts.strategies; here it is applied, with golden runs that
notice when what is computed changes."""

from typing import Any

import numpy as np
import pytest
from runs import run

from fl_app.contracts import StrategyContract
from fl_app.registry import arguments, build, resolve
from strategies import STRATEGIES
from strategies.base import Basics
from strategies.transform import Round
from strategies.update import FixedPoint, Update
from strategies.work import template_of

# What a strategy's contract needs beside its name (fl_app/contracts/strategies.py).
# Noise so small that ten clients can learn under it; what it promises then is not for anybody to rely on.
LITTLE_NOISE = {"args": "noise-multiplier=0.1 clip-norm=2"}
SETTINGS: dict[str, dict[str, Any]] = {
    "compressed-dp-fedavg": LITTLE_NOISE,
    "dp-fedavg": LITTLE_NOISE,
    "dp-fedavg-adaptive": {"args": "noise-multiplier=0.1 initial-clip-norm=2"},
    "dp-ftrl": LITTLE_NOISE,
    "local-dp-fedavg": LITTLE_NOISE,
    "record-dp-fedavg": LITTLE_NOISE,
}

for name in STRATEGIES:
    globals()[f"Test_{name}"] = type(f"Test_{name}", (StrategyContract,), {"target": name, **SETTINGS.get(name, {})})

CAPPED = [name for name in STRATEGIES if "max-weight" in {a.name for a in arguments(resolve("strategy", name))}]


@pytest.mark.parametrize("name", CAPPED)
def test_a_cap_on_weights_is_the_weight_of_a_client_with_more_rows(name):
    pipeline = build("strategy", name, "max-weight=50", Basics()).pipeline
    for examples in (1, 49, 50, 51, 10**9):
        update = Update((np.ones(2),), ("a",), num_examples=examples)
        info = Round(1, 0, FixedPoint(20), template=template_of(update.arrays))
        weight = pipeline.encode(update, (), info)[0].weight
        assert weight == pipeline.max_weight(examples) == min(examples, 50)


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
