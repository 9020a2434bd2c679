"""What a fit config may hold, and how it is refused."""

import math

import numpy as np
import pytest

from tasks.fit_config import FitConfig

VALID = {
    "solver": "sgd", "local-epochs": 2, "local-steps": 0, "batch-size": 10, "learning-rate": 0.1,
    "l1": 0, "l2": 0.01, "seed": 3,
}  # fmt: skip


def test_a_valid_config_is_read_and_what_belongs_to_others_is_left():
    config = FitConfig.read({**VALID, "round": 7})
    assert config == FitConfig("sgd", 2, 0, 10, 0.1, 0.0, 0.01, 3, "train", False)
    assert config.iterations(batches_per_epoch=6) == 12
    assert FitConfig.read({**VALID, "local-steps": 5}).iterations(6) == 5


def test_what_strategies_and_devices_add_may_be_absent():
    config = FitConfig.read(VALID)
    assert (config.proximal_mu, config.correction, config.device, config.threads) == (0.0, False, "auto", 1)
    config = FitConfig.read({**VALID, "proximal-mu": 1, "correction": True, "device": "cuda:1", "threads": 4})
    assert (config.proximal_mu, config.correction, config.device, config.threads) == (1.0, True, "cuda:1", 4)
    assert FitConfig.read({**VALID, "solver": "adamw", "proximal-mu": 50}).solver == "adamw"


def test_params_and_their_correction_are_told_apart():
    arrays = [np.full(2, i) for i in range(4)]
    params, correction = FitConfig.read({**VALID, "correction": True}).split(arrays)
    assert ([a[0] for a in params], [a[0] for a in correction]) == ([0, 1], [2, 3])
    assert FitConfig.read(VALID).split(arrays)[1] == ()
    with pytest.raises(ValueError, match="3 arrays: with a correction there is one more for each"):
        FitConfig.read({**VALID, "correction": True}).split(arrays[:3])


@pytest.mark.parametrize("key", VALID)
def test_a_missing_key_is_named(key):
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        FitConfig.read({k: v for k, v in VALID.items() if k != key})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "newtn"}, "unknown solver 'newtn': did you mean 'newton'"),
        ({"work": "gradients"}, "unknown work 'gradients': did you mean 'gradient'"),
        ({"local-epochs": 0}, "set one of them"),
        ({"local-epochs": -1}, "local-epochs must be a whole number"),
        ({"local-steps": 1.5}, "local-steps must be a whole number"),
        ({"batch-size": True}, "batch-size must be a whole number"),
        ({"seed": "1"}, "seed must be a whole number"),
        ({"learning-rate": math.inf}, "learning-rate must be a finite number"),
        ({"learning-rate": math.nan}, "learning-rate must be a finite number"),
        ({"l2": -1.0}, "l2 must be a finite number"),
        ({"l1": "0"}, "l1 must be a finite number"),
        ({"l1": 0.1, "solver": "lbfgs"}, "solver 'lbfgs' cannot do"),
        ({"l1": 0.1, "solver": "newton"}, "solver 'newton' cannot do"),
        ({"l1": 0.1, "work": "curvature"}, "no curvature"),
        ({"proximal-mu": -0.1}, "proximal-mu must be a finite number"),
        ({"proximal-mu": 20}, "proximal-mu 20 times learning-rate 0.1 is 2 or more"),
        ({"correction": True, "solver": "lbfgs"}, "'lbfgs' takes steps that cannot be corrected: set solver=sgd or gd"),
        ({"correction": True, "solver": "adam"}, "'adam' takes steps that cannot be corrected"),
        ({"correction": True, "learning-rate": 0}, "learning-rate is 0"),
        ({"threads": -1}, "threads must be a whole number"),
    ],
)
def test_a_wrong_value_is_refused_with_what_to_do(changes, message):
    with pytest.raises(ValueError, match=message):
        FitConfig.read({**VALID, **changes})


def test_l1_goes_with_the_solvers_and_works_that_can_do_it():
    for changes in ({"solver": "gd"}, {"solver": "sgd"}, {"solver": "newton", "work": "gradient"}):
        FitConfig.read({**VALID, "l1": 0.1, **changes})
