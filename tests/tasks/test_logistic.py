"""The logistic task against scikit-learn, and its client as Flower drives it."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from tasks.base import Rows, Schema, Shard
from tasks.data.bundled import BreastCancer, Digits
from tasks.logistic import LogisticTask
from tasks.optimum import optimum

CONFIG = {
    "solver": "gd", "local-epochs": 1, "local-steps": 0, "batch-size": 0, "learning-rate": 0.1,
    "l1": 0.0, "l2": 0.01, "seed": 0, "metrics": False,
}  # fmt: skip


def standardised(dataset):
    table = dataset.table()
    x = table.x - table.x.mean(axis=0)
    stddev = x.std(axis=0)
    schema = Schema(table.columns.names, table.columns.label, table.columns.classes)
    return LogisticTask(schema), Rows(x / np.where(stddev > 0, stddev, 1.0), table.y)


@pytest.fixture(scope="module", params=[BreastCancer, Digits], ids=lambda dataset: dataset.__name__)
def job(request):
    return standardised(request.param())


def part(rows, start, stop):
    return Rows(rows.x[start:stop], rows.y[start:stop])


def client(task, rows, num_test=0):
    return task.make_client(Shard("00", part(rows, num_test, len(rows)), part(rows, 0, num_test)))


@pytest.mark.parametrize("l2", [0.01, 0.3])
def test_the_optimum_is_that_of_scikit_learn(job, l2):
    task, rows = job
    reference = LogisticRegression(C=1 / (len(rows) * l2), solver="newton-cg", tol=1e-10, max_iter=1000)
    weights, intercept = task.solve(rows, l2=l2)
    reference.fit(rows.x, rows.y)
    np.testing.assert_allclose(weights, reference.coef_, atol=1e-6)
    np.testing.assert_allclose(intercept - intercept.mean() * (len(intercept) > 1), reference.intercept_, atol=1e-6)


def test_l1_optimum_is_that_of_scikit_learn():
    task, rows = standardised(BreastCancer())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        reference = LogisticRegression(
            C=1 / (len(rows) * 0.05), l1_ratio=0.4, penalty="elasticnet", solver="saga", tol=1e-9, max_iter=10_000
        ).fit(rows.x, rows.y)
    weights, _ = task.solve(rows, l1=0.02, l2=0.03)
    np.testing.assert_allclose(weights, reference.coef_, atol=1e-5)
    assert 0 < (weights == 0).sum() < weights.size


def test_l1_optimum_takes_hundreds_of_iterations_not_thousands():
    task, rows = standardised(BreastCancer())
    start = task.flatten(task.initial_arrays(0))
    optimum(task.objective(rows, l1=0.02, l2=0.01), start, max_iterations=1000)


def test_federated_newton_reaches_the_pooled_optimum_in_ten_rounds(job):
    task, rows = job
    clients = [client(task, part(rows, start, start + 100)) for start in range(0, len(rows), 100)]
    theta = task.flatten(task.initial_arrays(0))
    upper = np.triu_indices(theta.size)
    for _ in range(10):
        replies = [each.fit(list(task.unflatten(theta)), {**CONFIG, "work": "curvature"}) for each in clients]
        n = sum(reply[1] for reply in replies)
        _, gradient, packed = (sum(reply[0][index] * reply[1] for reply in replies) / n for index in range(3))
        hessian = np.zeros((theta.size, theta.size))
        hessian[upper] = packed
        hessian += np.triu(hessian, 1).T + 1e-9 * np.eye(theta.size)
        theta = theta - np.linalg.solve(hessian, gradient)
    np.testing.assert_allclose(theta, task.flatten(task.solve(rows, l2=0.01)), atol=1e-6)


def test_curvature_is_objective_gradient_and_hessian_in_the_order_of_the_arrays(job):
    task, rows = job
    rows = part(rows, 0, 60)
    theta = np.random.default_rng(0).normal(size=task.flatten(task.initial_arrays(0)).size) / 10
    arrays, num_examples, metrics = client(task, rows).fit(list(task.unflatten(theta)), {**CONFIG, "work": "curvature"})
    objective = task.objective(rows, l1=0.0, l2=0.01)
    assert [array.shape for array in arrays] == [(1,), theta.shape, (theta.size * (theta.size + 1) // 2,)]
    assert (num_examples, metrics) == (60, {})
    assert arrays[0][0] == objective.value(theta)
    np.testing.assert_array_equal(arrays[1], objective.gradient(theta))
    np.testing.assert_array_equal(arrays[2], objective.hessian(theta)[np.triu_indices(theta.size)])


@pytest.mark.parametrize("l1", [0.0, 0.1])
def test_gradient_work_makes_the_delta_minus_the_learning_rate_times_the_gradient(job, l1):
    task, rows = job
    received = task.solve(rows, l2=0.5)
    (*arrays,), _, _ = client(task, rows).fit(
        list(received), {**CONFIG, "work": "gradient", "l1": l1, "solver": "newton", "learning-rate": 0.5}
    )
    delta = task.flatten(arrays) - task.flatten(received)
    expected = task.objective(rows, l1=l1, l2=0.01).subgradient(task.flatten(received))
    np.testing.assert_allclose(delta, -0.5 * expected, atol=1e-14)
    assert np.abs(delta).max() > 1e-3


def test_metrics_are_those_of_scikit_learn(job):
    task, rows = job
    arrays = task.solve(part(rows, 0, 300), l2=0.01)
    result = task.evaluate(arrays, rows)
    p = task.probabilities(arrays, rows.x)
    scores = p[:, 1] if p.shape[1] == 2 else p
    assert result["accuracy"] == np.mean(p.argmax(axis=1) == rows.y)
    assert result["log_loss"] == pytest.approx(log_loss(rows.y, p), rel=1e-9)
    assert result["auc"] == pytest.approx(roc_auc_score(rows.y, scores, multi_class="ovr"), abs=1e-12)
    assert result["brier"] == pytest.approx(
        brier_score_loss(rows.y, scores, scale_by_half="auto" if p.shape[1] == 2 else False), rel=1e-9
    )


def test_metrics_of_the_received_model_come_back_with_the_fit(job):
    task, rows = job
    received = task.initial_arrays(0)
    each = client(task, rows, num_test=50)
    _, num_examples, metrics = each.fit(list(received), {**CONFIG, "metrics": True})
    assert num_examples == len(rows) - 50
    assert metrics == task.measure(received, each.shard.test)
    loss, num_test, sums = each.evaluate(list(received), {})
    assert (loss, num_test, sums) == (metrics["log_loss"] / 50, 50, metrics)
    assert loss == pytest.approx(np.log(len(task.schema.classes)))


def test_sums_of_a_binary_model_by_hand():
    task = LogisticTask(Schema(("x",), "y", ("no", "yes")))
    rows = Rows(np.array([[0.5], [-0.5], [0.5], [0.0]]), np.array([1, 0, 1, 1]))
    up, down = 1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(0.5))
    sums = task.measure((np.ones((1, 1)), np.zeros(1)), rows)
    assert (sums["examples"], sums["correct"]) == (4, 3)  # logit 0 is a tie, which goes to class 0
    assert sums["log_loss"] == pytest.approx(-3 * np.log(up) - np.log(0.5))
    assert sums["brier"] == pytest.approx(3 * down**2 + 0.25)


def test_auc_is_left_out_without_every_class_and_evaluation_without_rows_is_nan(job):
    task, rows = job
    arrays = task.initial_arrays(0)
    assert "auc" not in task.evaluate(arrays, Rows(rows.x[rows.y == 0], rows.y[rows.y == 0]))
    loss, num_test, _ = client(task, rows).evaluate(list(arrays), {})
    assert np.isnan(loss)
    assert num_test == 0


def test_divergence_is_seen_in_the_arrays_and_warns_of_nothing(job):
    task, rows = job
    config = {**CONFIG, "learning-rate": 1e200, "l2": 1.0, "local-epochs": 5, "metrics": True}
    arrays, _, _ = client(task, rows, num_test=9).fit(list(task.initial_arrays(0)), config)
    assert not np.isfinite(arrays[0]).all()


def test_an_empty_training_shard_is_refused_by_name():
    task, rows = standardised(BreastCancer())
    with pytest.raises(ValueError, match="client '00' has no training rows"):
        client(task, part(rows, 0, 0)).fit(list(task.initial_arrays(0)), CONFIG)


@pytest.mark.parametrize(
    "arrays",
    [[], [np.zeros((1, 30))], [np.zeros((1, 29)), np.zeros(1)], [np.zeros(1), np.zeros((1, 30))], [np.zeros(31)]],
    ids=["none", "one", "width", "order", "flat"],
)
def test_parameters_of_another_shape_are_refused(arrays):
    task, rows = standardised(BreastCancer())
    with pytest.raises(ValueError, match=r"expects weights \(1, 30\) and intercept \(1,\)"):
        client(task, rows).fit(arrays, CONFIG)


def test_other_columns_and_labels_without_classes_are_refused():
    task, rows = standardised(BreastCancer())
    with pytest.raises(ValueError, match="29 feature columns, the schema has 30"):
        client(task, Rows(rows.x[:, 1:], rows.y))
    with pytest.raises(ValueError, match="needs a label with at least 2 classes"):
        LogisticTask(Schema(("a",), "price"))


def test_a_hessian_that_does_not_fit_is_refused_before_the_run():
    task = LogisticTask(Schema(tuple(map(str, range(20_000))), "y", ("a", "b")))
    task.check_config(CONFIG)
    for config in ({**CONFIG, "solver": "newton"}, {**CONFIG, "work": "curvature"}):
        with pytest.raises(ValueError, match=r"3\.2 GB"):
            task.check_config(config)
