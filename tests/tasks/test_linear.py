"""The linear task against scikit-learn and statsmodels, in the label's own units."""

from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.linear_model import ElasticNet, LinearRegression, Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from tasks.base import CurvatureSums, Rows, Schema, Shard
from tasks.data.bundled import Diabetes
from tasks.families import Gaussian
from tasks.linear import LinearTask

CONFIG = {
    "solver": "gd", "local-epochs": 1, "local-steps": 0, "batch-size": 0, "learning-rate": 0.1,
    "l1": 0.0, "l2": 0.0, "seed": 0, "metrics": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return Diabetes().table()


@pytest.fixture(scope="module")
def job(table):
    """The task, scaled rows, and what the columns were shifted and divided by."""
    shift, scale = table.x.mean(axis=0), table.x.std(axis=0)
    mean, stddev = float(table.y.mean()), float(table.y.std())
    task = LinearTask(Schema(table.columns.names, table.columns.label, (), mean, stddev))
    return task, Rows((table.x - shift) / scale, (table.y - mean) / stddev), (shift, scale)


def part(rows, start, stop):
    return Rows(rows.x[start:stop], rows.y[start:stop])


def client(task, rows):
    return task.make_client(Shard("00", rows, part(rows, 0, 0)))


# ------------------------------------------------------------------------------------------------------ the optimum


def test_without_a_penalty_the_optimum_is_ordinary_least_squares(job):
    task, rows, _ = job
    reference = LinearRegression().fit(rows.x, rows.y)
    weights, intercept = task.solve(rows, l2=0.0)
    np.testing.assert_allclose(weights[0], reference.coef_, atol=1e-9)
    np.testing.assert_allclose(intercept[0], reference.intercept_, atol=1e-9)


def test_with_l2_it_is_ridge_whose_alpha_is_n_times_l2(job):
    task, rows, _ = job
    reference = Ridge(alpha=len(rows) * 0.3).fit(rows.x, rows.y)
    weights, intercept = task.solve(rows, l2=0.3)
    np.testing.assert_allclose(weights[0], reference.coef_, atol=1e-9)
    np.testing.assert_allclose(intercept[0], reference.intercept_, atol=1e-9)


def test_with_l1_it_is_the_elastic_net_and_some_weights_are_zero(job):
    task, rows, _ = job
    reference = ElasticNet(alpha=0.15, l1_ratio=0.1 / 0.15, tol=1e-12, max_iter=100_000).fit(rows.x, rows.y)
    weights, _ = task.solve(rows, l1=0.1, l2=0.05)
    np.testing.assert_allclose(weights[0], reference.coef_, atol=1e-7)
    assert 0 < (weights == 0).sum() < weights.size


def test_the_baseline_of_a_label_in_the_millions_that_nobody_scaled_is_found(table):
    task = LinearTask(Schema(table.columns.names, "y"))
    rows = Rows(table.x, 1e6 * table.y)
    weights, _ = task.train_alone(rows, [CONFIG])
    np.testing.assert_allclose(weights[0], LinearRegression().fit(rows.x, rows.y).coef_, rtol=1e-4)


def test_one_newton_step_on_the_mean_of_the_clients_curvature_is_least_squares(job):
    task, rows, _ = job
    parts = [part(rows, start, start + 100) for start in range(0, len(rows), 100)]
    replies = [client(task, own).fit(list(task.initial_arrays(0)), {**CONFIG, "work": "curvature"}) for own in parts]
    _, gradient, packed = (sum(r[0][i] * r[1] for r in replies) / len(rows) for i in range(3))
    hessian = np.zeros((11, 11))
    hessian[np.triu_indices(11)] = packed
    hessian += np.triu(hessian, 1).T
    theta = -np.linalg.solve(hessian, gradient)
    np.testing.assert_allclose(theta[:-1], LinearRegression().fit(rows.x, rows.y).coef_, atol=1e-10)


@pytest.mark.parametrize("solver", ["gd", "sgd", "lbfgs", "newton"])
def test_every_solver_comes_to_the_optimum(job, solver):
    task, rows, _ = job
    asked = {**CONFIG, "solver": solver, "local-epochs": 400, "l2": 0.1, "learning-rate": 0.2}
    arrays, _, _ = client(task, rows).fit(list(task.initial_arrays(0)), asked)
    np.testing.assert_allclose(arrays[0], task.solve(rows, l2=0.1)[0], atol=1e-5)


def test_the_loss_is_half_the_squared_residual_and_its_derivatives_are_those_of_the_family():
    family, rng = Gaussian(), np.random.default_rng(0)
    z, t = rng.normal(size=(50, 1)), rng.normal(size=(50, 1))
    np.testing.assert_allclose(family.loss(z, t), (z - t)[:, 0] ** 2 / 2)
    step = 1e-6
    slope = (family.loss(z + step, t) - family.loss(z - step, t)) / (2 * step)
    np.testing.assert_allclose(slope, (family.mean(z) - t)[:, 0], atol=1e-9)
    assert (family.covariance(z) == 1).all()
    assert (family.loss(1e8 + z, 1e8 + z) == 0).all()


# ------------------------------------------------------------------------------------------------ metrics, predictions


def test_metrics_are_those_of_scikit_learn_in_the_labels_units(table, job):
    task, rows, _ = job
    arrays = task.solve(part(rows, 0, 300), l2=0.01)
    predicted, probabilities = task.predict(arrays, rows.x)
    assert probabilities is None
    found = task.evaluate(arrays, rows)
    assert list(found) == ["r2", "mse", "mae"]
    assert found["r2"] == pytest.approx(r2_score(table.y, predicted), rel=1e-12)
    assert found["mse"] == pytest.approx(mean_squared_error(table.y, predicted), rel=1e-12)
    assert found["mae"] == pytest.approx(mean_absolute_error(table.y, predicted), rel=1e-12)


def test_metrics_of_a_label_far_from_zero_keep_their_digits():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(500, 1)), rng.normal(size=500)
    y = 1.7e9 + x[:, 0] + 0.1 * noise
    task = LinearTask(Schema(("x",), "y", (), 1.7e9, 2.0))
    found = task.evaluate((np.array([[0.5]]), np.zeros(1)), Rows(x, (y - 1.7e9) / 2.0))
    assert found["r2"] == pytest.approx(1 - 0.01 * np.mean(noise**2) / np.var(y - 1.7e9), rel=1e-5)


def test_r2_is_nan_where_the_label_does_not_vary():
    task = LinearTask(Schema(("x",), "y"))
    found = task.evaluate(task.initial_arrays(0), Rows(np.ones((3, 1)), np.full(3, 2.0)))
    assert np.isnan(found["r2"])
    assert (found["mse"], found["mae"]) == (4.0, 2.0)


# ------------------------------------------------------------------------------------------------------- coefficients


def coefficients(job, rows, l2=0.0, schema=None):
    task, _, scaling = job
    task = task if schema is None else LinearTask(schema)
    arrays = task.solve(rows, l2=l2)
    survey, count, _ = client(task, rows).fit(list(arrays), {**CONFIG, "work": "curvature", "l2": l2})
    return task.coefficients(arrays, scaling, CurvatureSums(tuple(survey), count, l2))


def test_coefficients_errors_and_intervals_are_those_of_statsmodels_in_original_units(table, job):
    fitted = sm.OLS(table.y, sm.add_constant(table.x)).fit()
    found = coefficients(job, job[1])
    rows = found.rows
    assert [row["feature"] for row in rows] == ["(intercept)", *table.columns.names]
    assert {row["output"] for row in rows} == {"progression"}
    np.testing.assert_allclose([row["coefficient"] for row in rows], fitted.params, rtol=1e-8)
    np.testing.assert_allclose([row["standard_error"] for row in rows], fitted.bse, rtol=1e-8)
    np.testing.assert_allclose([[row["low"], row["high"]] for row in rows], fitted.conf_int(), rtol=1e-7)
    assert all(row["odds_ratio"] is None for row in rows)
    assert "optimum" not in found.note


def test_few_rows_have_students_intervals(table, job):
    fitted = sm.OLS(table.y[:15], sm.add_constant(table.x[:15])).fit()
    rows = coefficients(job, part(job[1], 0, 15)).rows
    np.testing.assert_allclose([row["standard_error"] for row in rows], fitted.bse, rtol=1e-5)
    np.testing.assert_allclose([[row["low"], row["high"]] for row in rows], fitted.conf_int(), rtol=1e-4)


def test_no_more_rows_than_coefficients_have_no_standard_errors(job):
    found = coefficients(job, part(job[1], 0, 11))
    assert {row["standard_error"] for row in found.rows} == {None}
    assert "no more of them than columns" in found.note


def test_a_column_that_repeats_another_costs_no_degree_of_freedom(table, job):
    task, rows, (shift, scale) = job
    schema = Schema((*task.schema.features, "again"), "progression", (), task.schema.shift, task.schema.scale)
    twice = Rows(np.column_stack([rows.x, rows.x[:, 2]]), rows.y)
    job = (task, twice, (np.append(shift, shift[2]), np.append(scale, scale[2])))
    found = coefficients(job, twice, schema=schema).rows
    fitted = sm.OLS(table.y, sm.add_constant(table.x)).fit()
    assert [row["feature"] for row in found if row["standard_error"] is None] == ["bmi", "again"]
    known = [index for index in range(11) if index != 3]
    np.testing.assert_allclose([found[i]["standard_error"] for i in known], fitted.bse[known], rtol=1e-6)


def test_a_penalty_shrinks_errors_and_is_remarked_on(job):
    free, shrunk = coefficients(job, job[1]), coefficients(job, job[1], l2=1.0)
    pairs = zip(free.rows[1:], shrunk.rows[1:], strict=True)
    assert all(b["standard_error"] < a["standard_error"] for a, b in pairs)
    assert "shrinks coefficients" in shrunk.note


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_label_of_classes_is_refused():
    with pytest.raises(ValueError, match="needs a label that is a number, label 'y' has 2 classes"):
        LinearTask(Schema(("a",), "y", ("no", "yes")))


def test_sums_that_no_rows_can_give_are_refused(job):
    task, rows, _ = job
    sums = task.measure(task.initial_arrays(0), rows)
    task.check_sums(sums)
    for wrong in ({"squared_error": -1.0}, {"absolute_error": -1.0}, {"target": 1e9}, {"target_squared": -1e-3}):
        with pytest.raises(ValueError, match=r"sum|target"):
            task.check_sums({**sums, **wrong})


def test_columns_of_another_number_and_solvers_of_others_are_refused_by_the_tasks_name(job):
    task, rows, _ = job
    with pytest.raises(ValueError, match="9 feature columns, the schema has 10"):
        client(task, replace(rows, x=rows.x[:, 1:]))
    with pytest.raises(ValueError, match="task linear has no solver 'adam'"):
        task.check_config({**CONFIG, "solver": "adam"})
    with pytest.raises(ValueError, match="task linear expects weights"):
        task.flatten((np.zeros(11),))
