"""Standard errors: the inverse of the information for what the rows determine, whatever the unit of a column."""

import numpy as np
import pytest

from tasks.coefficients import INTERCEPT, Evidence, Inference, inference, original_units_map, remarks, table


def evidence(x, weights, *, l2=0.0, gradient=None):
    """Of logistic regression on rows x (n, d) with an intercept last."""
    design = np.column_stack([x, np.ones(len(x))])
    p = 1 / (1 + np.exp(-design @ weights))
    penalty = np.r_[np.full(x.shape[1], l2), 0.0]
    hessian = (design.T * (p * (1 - p))) @ design / len(x) + np.diag(penalty)
    return Evidence(np.zeros(len(weights)) if gradient is None else gradient, hessian, penalty, len(x))


def errors_of(x, weights, **others):
    """Of the intercept and the slopes."""
    d = x.shape[1]
    return inference(original_units_map(1, np.zeros(d), np.ones(d)), evidence(x, weights, **others)).errors


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(500, 3))


WEIGHTS = np.array([0.5, -1.0, 0.2, 0.3])


def test_they_are_those_of_the_inverse_information(x):
    information = evidence(x, WEIGHTS).hessian * len(x)
    expected = np.sqrt(np.diag(np.linalg.inv(information)))
    np.testing.assert_allclose(errors_of(x, WEIGHTS), np.r_[expected[3], expected[:3]], rtol=1e-9)


@pytest.mark.parametrize("unit", [1e-4, 1e3, 1e6])
def test_they_scale_with_the_unit_of_their_column_and_no_other_does(x, unit):
    scale = np.array([1, unit, 1])
    scaled = errors_of(x * scale, WEIGHTS / np.r_[scale, 1])
    np.testing.assert_allclose(scaled, np.array(errors_of(x, WEIGHTS)) / np.r_[1, scale], rtol=1e-6)


def test_a_column_without_information_has_none_and_the_intercept_keeps_its_own(x):
    constant = np.column_stack([x, np.zeros(len(x))])
    for l2 in (0.0, 0.1):
        a = original_units_map(1, np.array([0, 0, 0, 7.0]), np.ones(4))
        found = inference(a, evidence(constant, np.r_[WEIGHTS[:3], 0, WEIGHTS[3]], l2=l2)).errors
        assert found[4] is None
        np.testing.assert_allclose(found[:4], errors_of(x, WEIGHTS, l2=l2), rtol=1e-9)


def test_collinear_columns_have_none_and_their_neighbours_do(x):
    twice = np.column_stack([x, 2 * x[:, 0]])
    found = errors_of(twice, np.r_[WEIGHTS[:3], 0, WEIGHTS[3]])
    assert [error is None for error in found] == [False, True, False, False, True]
    np.testing.assert_allclose([found[0], *found[2:4]], np.delete(errors_of(x, WEIGHTS), 1), rtol=1e-9)


def test_how_far_training_is_from_its_end_is_counted_in_standard_errors(x):
    gradient = np.array([0.01, 0, 0, 0])
    a = original_units_map(1, np.zeros(3), np.ones(3))
    found = evidence(x, WEIGHTS, gradient=gradient)
    step = np.linalg.solve(found.hessian, gradient)
    expected = np.max(np.abs(np.r_[step[3], step[:3]]) / np.array(errors_of(x, WEIGHTS)))
    assert inference(a, found).unsettled == pytest.approx(expected)
    assert f"{expected:.2g} times its standard error" in remarks(expected, rows=500, penalised=False, original=True)
    assert remarks(0.01, rows=None, penalised=False, original=True) == ""
    assert remarks(0.01, rows=500, penalised=False, original=True) == "From 500 training rows."


def test_rows_that_determine_nothing_are_told(x):
    a = original_units_map(1, np.zeros(3), np.ones(3))
    found = inference(a, Evidence(np.zeros(4), np.zeros((4, 4)), np.zeros(4), 10))
    assert found.errors == [None] * 4
    assert "The rows determine no coefficient" in remarks(found.unsettled, rows=10, penalised=False, original=True)


def test_rounding_noise_of_what_is_not_determined_is_zero_and_all_else_stays():
    noise = 8.44e-16
    found = Inference([0.1, None, 0.1, None], 0.0)
    rows = table(["yes"], ["a", "b", "c"], np.array([[1.0, noise, noise, 0.5]]), found, odds=True, penalised=False)
    assert [row.feature for row in rows] == [INTERCEPT, "a", "b", "c"]
    assert [row.coefficient for row in rows] == [1.0, 0.0, noise, 0.5]
    rows = table(["yes"], ["a"], np.array([[1.0, noise]]), None, odds=True, penalised=False)  # none were asked for
    assert [row.coefficient for row in rows] == [1.0, noise]


@pytest.mark.parametrize("odds", [True, False])
def test_a_penalised_estimate_has_standard_errors_and_no_interval(odds):
    values, found = np.array([[1.0, 0.5]]), Inference([0.1, 0.2], 0.0)
    free, shrunk = (
        [row.to_json() for row in table(["yes"], ["a"], values, found, odds=odds, penalised=penalised)]
        for penalised in (False, True)
    )
    bounds = ("low", "high", "odds_low", "odds_high")
    assert [row["standard_error"] for row in shrunk] == [row["standard_error"] for row in free] == [0.1, 0.2]
    assert all(row[key] is None for row in shrunk for key in bounds)
    assert all((row[key] is None) == (key.startswith("odds") and not odds) for row in free for key in bounds)
    assert [row["odds_ratio"] for row in shrunk] == ([np.exp(1.0), np.exp(0.5)] if odds else [None, None])


def test_the_note_of_a_penalised_estimate_tells_how_to_get_intervals():
    said = remarks(0.01, rows=500, penalised=True, original=True)
    assert said.startswith("From 500 training rows. A penalty (l2) shrinks coefficients towards 0")
    assert (
        "there are no intervals. For these set strategy=fednewton, l2=0 and, to use all rows, test-fraction=0" in said
    )
