"""Local solvers: where they go, how far, and what they draw."""

from itertools import islice, pairwise

import numpy as np
import pytest

from tasks.families import Bernoulli, Categorical
from tasks.fit_config import FitConfig
from tasks.objective import Objective
from tasks.optimum import optimum, stationarity
from tasks.solvers import SOLVERS, batches, newton_step


def config(**changes):
    fields = {
        "solver": "gd", "local_epochs": 1, "local_steps": 0, "batch_size": 0, "learning_rate": 0.5,
        "l1": 0.0, "l2": 0.1, "seed": 0,
    }  # fmt: skip
    return FitConfig(**{**fields, **changes})


def problem(num_classes=3, l1=0.0, l2=0.1, n=40, d=5):
    rng = np.random.default_rng(1)
    family = Bernoulli() if num_classes == 2 else Categorical(num_classes)
    x = rng.normal(size=(n, d))
    y = (x @ rng.normal(size=(d, num_classes)) + rng.gumbel(size=(n, num_classes))).argmax(axis=1)
    return Objective(family, x, family.targets(y), l1, l2), np.zeros(family.outputs * (d + 1))


def test_one_gd_step_from_zero_by_hand():
    x, y = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([1, 0])
    objective = Objective(Bernoulli(), x, Bernoulli().targets(y), 0.0, 0.1)
    # At zero every probability is 1/2, so the residuals are -1/2 and 1/2 and the gradient is
    # 1/2 (-1/2 [1, 2, 1] + 1/2 [3, -1, 1]) = [0.5, -0.75, 0].
    result = SOLVERS["gd"](objective, np.zeros(3), config(learning_rate=0.4))
    np.testing.assert_allclose(result, [-0.2, 0.3, 0.0], atol=1e-16)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize(("solver", "iterations"), [("gd", 3000), ("lbfgs", 200), ("newton", 20)])
def test_smooth_solvers_reach_the_optimum(num_classes, solver, iterations):
    objective, zero = problem(num_classes)
    result = SOLVERS[solver](objective, zero, config(solver=solver, local_steps=iterations))
    assert stationarity(objective, result) < 1e-8
    assert stationarity(objective, zero) > 1e-2


def test_sgd_with_a_falling_rate_comes_near_the_optimum():
    objective, theta = problem()
    for round in range(1, 200):
        how = config(solver="sgd", batch_size=8, learning_rate=0.5 / round, local_epochs=2, seed=round)
        theta = SOLVERS["sgd"](objective, theta, how)
    best = objective.value(optimum(objective, 0 * theta))
    assert 0 <= objective.value(theta) - best < 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
def test_iterations_are_bounded_and_counted(solver):
    objective, zero = problem()
    once = SOLVERS[solver](objective, zero, config(solver=solver, local_epochs=1))
    thrice = SOLVERS[solver](objective, zero, config(solver=solver, local_epochs=3))
    steps = SOLVERS[solver](objective, zero, config(solver=solver, local_epochs=99, local_steps=3))
    assert objective.value(zero) > objective.value(once) > objective.value(thrice)
    np.testing.assert_array_equal(thrice, steps)


@pytest.mark.parametrize("batch_size", [0, 40, 41])
def test_sgd_on_one_batch_is_gd_to_the_bit(batch_size):
    objective, zero = problem()
    how = config(solver="sgd", batch_size=batch_size, local_epochs=4)
    np.testing.assert_array_equal(SOLVERS["sgd"](objective, zero, how), SOLVERS["gd"](objective, zero, how))


def test_sgd_is_the_plain_loop_over_shuffled_batches():
    objective, zero = problem(l1=0.05)
    how = config(solver="sgd", batch_size=16, local_epochs=2, seed=7, learning_rate=0.2)
    rng, theta = np.random.default_rng(7), zero.copy()
    for _ in range(2):
        order = rng.permutation(40)
        for rows in (order[:16], order[16:32], order[32:]):
            batch = Objective(objective.family, objective.x[rows], objective.targets[rows], 0.05, 0.1)
            theta = theta - 0.2 * batch.gradient(theta)
            w, _ = batch.views(theta)
            w[...] = np.sign(w) * np.maximum(np.abs(w) - 0.2 * 0.05, 0)
    np.testing.assert_allclose(SOLVERS["sgd"](objective, zero, how), theta, rtol=1e-12)


def test_seeds_decide_the_shuffle():
    objective, zero = problem()
    results = [SOLVERS["sgd"](objective, zero, config(solver="sgd", batch_size=7, seed=s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_batches_cover_each_epoch_once_and_differ_between_epochs():
    epochs = [np.concatenate(list(islice(stream, 4))) for stream in [batches(10, 3, np.random.default_rng(0))] * 2]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("solver", ["gd", "sgd"])
def test_l1_gives_exact_zeros_where_the_subgradient_says_so(solver):
    objective, zero = problem(l1=0.08)
    result = SOLVERS[solver](objective, zero, config(solver=solver, l1=0.08, local_steps=3000, learning_rate=0.4))
    w, _ = objective.views(result)
    slope, _ = objective.views(objective.gradient(result))
    assert 3 <= (w == 0).sum() < w.size
    assert (np.abs(slope[w == 0]) <= 0.08).all()
    assert stationarity(objective, result) < 1e-8


@pytest.mark.parametrize("num_classes", [2, 3])
def test_newton_does_not_diverge_from_a_bad_start_and_is_done_in_a_few_steps(num_classes):
    objective, zero = problem(num_classes, l2=1e-3)
    theta = zero + np.linspace(-30, 30, zero.size)
    values = [objective.value(theta)]
    for _ in range(25):
        theta = newton_step(objective, theta)
        values.append(objective.value(theta))
    assert all(later <= sooner + 1e-14 for sooner, later in pairwise(values))
    assert stationarity(objective, theta) < 1e-12


def test_newton_gives_back_what_it_got_when_that_is_not_a_number():
    objective, zero = problem()
    with np.errstate(invalid="ignore"):
        result = SOLVERS["newton"](objective, zero + np.nan, config(solver="newton"))
    assert np.isnan(result).all()


@pytest.mark.parametrize("n", range(20, 60))
def test_newton_is_exact_to_rounding(n):
    objective, zero = problem(n=n, l2=1e-3)
    assert stationarity(objective, optimum(objective, zero, tolerance=1e-14)) < 1e-13


@pytest.mark.parametrize("l1", [0.0, 0.05])
def test_optimum_cannot_be_improved_in_any_direction(l1):
    objective, zero = problem(l1=l1)
    best = optimum(objective, zero, tolerance=1e-10)
    rng = np.random.default_rng(0)
    moved = [objective.value(best + 1e-3 * rng.normal(size=best.size)) for _ in range(200)]
    assert min(moved) > objective.value(best)
    assert stationarity(objective, best) <= 1e-10


def test_optimum_of_a_large_model_agrees_with_newton(monkeypatch):
    objective, zero = problem()
    exact = optimum(objective, zero)
    monkeypatch.setattr("tasks.optimum.NEWTON_MAX_PARAMETERS", 1)
    np.testing.assert_allclose(optimum(objective, zero, tolerance=1e-8), exact, atol=1e-6)


def test_optimum_says_what_to_do_when_there_is_none():
    objective, zero = problem(l1=1e-3, l2=0.0)
    with pytest.raises(RuntimeError, match=r"no optimum found: .* raise l2"):
        optimum(objective, zero, max_iterations=3)
