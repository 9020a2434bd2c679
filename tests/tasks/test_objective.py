"""The derivatives of F are the derivatives of F, and nothing overflows."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.families import Bernoulli, Categorical, Family
from tasks.objective import Objective, Pull, soft_threshold

FAMILIES = pytest.mark.parametrize("family", [Bernoulli(), Categorical(2), Categorical(4)], ids=str)


def problem(family: Family, l1: float = 0.0, l2: float = 0.1) -> tuple[Objective, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    y = rng.integers(max(2, family.outputs), size=17)
    objective = Objective(family, rng.normal(size=(17, 3)), family.targets(y), l1, l2)
    return objective, rng.normal(size=family.outputs * 4)


def central_difference(function, theta, h=1e-6):
    steps = h * np.eye(theta.size)
    return np.array([(function(theta + step) - function(theta - step)) / (2 * h) for step in steps])


@FAMILIES
def test_gradient_is_the_slope_of_the_value(family):
    objective, theta = problem(family)
    expected = central_difference(objective.value, theta)
    np.testing.assert_allclose(objective.gradient(theta), expected, atol=1e-9)


@FAMILIES
def test_subgradient_is_the_slope_of_the_value_with_l1(family):
    objective, theta = problem(family, l1=0.3)
    expected = central_difference(objective.value, theta)
    np.testing.assert_allclose(objective.subgradient(theta), expected, atol=1e-9)
    assert np.abs(objective.gradient(theta) - expected).max() > 0.2


@FAMILIES
def test_hessian_is_the_slope_of_the_gradient(family):
    objective, theta = problem(family)
    np.testing.assert_allclose(
        objective.hessian(theta), central_difference(objective.gradient, theta), atol=1e-9, rtol=1e-7
    )


@FAMILIES
def test_value_is_the_formula(family):
    objective, theta = problem(family, l1=0.3, l2=0.7)
    w, b = objective.views(theta)
    z = objective.x @ w.T + b
    if family.outputs == 1:
        losses = [np.log1p(np.exp(-s * zi)) for zi, s in zip(z[:, 0], 2 * objective.targets[:, 0] - 1, strict=True)]
    else:
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        losses = -np.log((p * objective.targets).sum(axis=1))
    expected = np.mean(losses) + 0.35 * (w**2).sum() + 0.3 * np.abs(w).sum()
    assert objective.value(theta) == pytest.approx(expected, rel=1e-12)


@FAMILIES
def test_the_weighted_mean_over_clients_is_the_pooled_objective(family):
    whole, theta = problem(family, l1=0.2)
    parts = [Objective(family, whole.x[s], whole.targets[s], 0.2, 0.1) for s in (slice(0, 5), slice(5, None))]
    for name in ("value", "gradient", "subgradient", "hessian"):
        mean = sum(getattr(part, name)(theta) * len(part.x) for part in parts) / 17
        np.testing.assert_allclose(mean, getattr(whole, name)(theta), rtol=1e-12, atol=1e-14)


@FAMILIES
def test_a_step_is_theta_minus_rate_times_gradient(family):
    objective, theta = problem(family)
    expected = theta - 0.3 * objective.gradient(theta)
    objective.stepper(theta, 0.3)(slice(None))
    np.testing.assert_allclose(theta, expected, rtol=1e-13)


@FAMILIES
@pytest.mark.filterwarnings("error")
def test_logits_of_ten_thousand_neither_overflow_nor_lose_the_answer(family):
    x = np.array([[1e4], [-1e4]])
    theta = np.zeros(2 * family.outputs)
    theta[family.outputs - 1] = 1.0  # the last class's weight
    y = np.array([max(1, family.outputs - 1), 0])
    right = Objective(family, x, family.targets(y), 0.0, 0.0)
    wrong = Objective(family, x, family.targets(y[::-1]), 0.0, 0.0)
    other_classes = max(1, family.outputs - 1)
    assert right.value(theta) == pytest.approx(np.log(other_classes) / 2, abs=1e-9)
    assert wrong.value(theta) == pytest.approx(1e4 + np.log(other_classes) / 2, rel=1e-12)
    for objective in (right, wrong):
        assert np.isfinite(objective.gradient(theta)).all()
        assert np.isfinite(objective.hessian(theta)).all()
    np.testing.assert_allclose(family.probabilities(right.logits(theta)).sum(axis=1), 1.0)


@FAMILIES
def test_smoothness_bounds_every_hessian_and_not_by_much(family):
    objective, theta = problem(family)
    tightest = np.linalg.eigvalsh(objective.hessian(0 * theta))[-1]
    assert tightest <= objective.smoothness() <= 2.1 * tightest


def test_soft_threshold_by_hand():
    np.testing.assert_array_equal(
        soft_threshold(np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]), 1.0), [-2, 0, 0, 0, 0, 0, 2]
    )


def pulled(family: Family, mu: float = 0.7) -> tuple[Objective, NDArray[np.float64], Pull]:
    objective, theta = problem(family)
    rng = np.random.default_rng(2)
    pull = Pull(rng.normal(size=theta.size), mu, rng.normal(size=theta.size))
    return replace(objective, pull=pull), theta, pull


@FAMILIES
def test_a_pull_adds_its_formula_to_the_value_over_all_parameters_and_its_derivatives_follow(family):
    objective, theta, pull = pulled(family)
    away = theta - pull.start
    added = 0.35 * (away**2).sum() + (pull.slope * theta).sum()
    assert objective.value(theta) - replace(objective, pull=None).value(theta) == pytest.approx(added, rel=1e-12)
    np.testing.assert_allclose(objective.gradient(theta), central_difference(objective.value, theta), atol=1e-8)
    np.testing.assert_allclose(
        objective.hessian(theta), central_difference(objective.gradient, theta), atol=1e-8, rtol=1e-7
    )
    without = replace(objective, pull=None)
    np.testing.assert_allclose(objective.hessian(theta) - without.hessian(theta), 0.7 * np.eye(theta.size), atol=1e-14)
    assert objective.smoothness() == pytest.approx(without.smoothness() + 0.7)


@FAMILIES
def test_a_step_goes_along_the_gradient_with_its_pull(family):
    objective, theta, _ = pulled(family)
    stepped = theta.copy()
    objective.stepper(stepped, 0.3)(slice(None))
    np.testing.assert_allclose(stepped, theta - 0.3 * objective.gradient(theta), atol=1e-14)
