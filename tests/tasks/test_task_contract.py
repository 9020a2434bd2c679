"""What holds for every registered task. To check a task of your own, add it to TASKS."""

import inspect
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from flwr.client import NumPyClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import DATA, PARTITIONS, TASKS
from tasks.base import Rows, Schema, Shard, Task

CONFIG = {
    "solver": "sgd", "local-epochs": 2, "local-steps": 0, "batch-size": 4, "learning-rate": 0.1,
    "l1": 0.0, "l2": 0.01, "seed": 5, "work": "train", "metrics": True,
}  # fmt: skip


def load(path):
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@pytest.fixture(params=TASKS.values(), ids=TASKS.keys())
def task(request) -> Task:
    return load(request.param)(Schema(("a", "b", "c"), "y", ("no", "yes", "maybe")))


@pytest.fixture
def shard() -> Shard:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), np.arange(30) % 3
    return Shard("00", Rows(x[:20], y[:20]), Rows(x[20:], y[20:]))


def trained(task, shard, **changes):
    return task.make_client(shard).fit([a.copy() for a in task.initial_arrays(0)], {**CONFIG, **changes})


def test_initial_arrays_have_names_and_are_pure_in_the_seed(task):
    first, again = task.initial_arrays(1), task.initial_arrays(1)
    assert len(first) == len(task.array_names) == len(set(task.array_names))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a is not b
        assert np.isfinite(a).all()


def test_fit_keeps_shapes_and_dtypes_and_counts_training_rows(task, shard):
    assert isinstance(task.make_client(shard), NumPyClient)
    arrays, num_examples, metrics = trained(task, shard)
    assert num_examples == len(shard.train)
    assert tuple(metrics) == task.metric_names
    for new, old in zip(arrays, task.initial_arrays(0), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert any(not np.array_equal(a, b) for a, b in zip(arrays, task.initial_arrays(0), strict=True))


@pytest.mark.parametrize("work", ["train", "gradient", "curvature"])
def test_fit_and_evaluate_write_to_nothing_they_receive(task, shard, work):
    received = list(task.initial_arrays(0))
    for array in (*received, shard.train.x, shard.train.y, shard.test.x, shard.test.y):
        array.setflags(write=False)
    client = task.make_client(shard)
    arrays, _, _ = client.fit(received, {**CONFIG, "work": work})
    client.evaluate(received, {})
    assert not any(np.shares_memory(new, old) for new in arrays for old in received)


def test_fit_is_pure_in_what_it_receives_and_the_seed(task, shard):
    first, again, other = trained(task, shard), trained(task, shard), trained(task, shard, seed=6)
    for a, b in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[1:] == again[1:]
    assert any(not np.array_equal(a, b) for a, b in zip(first[0], other[0], strict=True))


def test_metrics_are_of_the_received_model_and_only_on_demand(task, shard):
    assert trained(task, shard)[2] == task.measure(task.initial_arrays(0), shard.test)
    assert trained(task, shard, metrics=False)[2] == {}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 20))
def test_sums_over_any_split_add_up_to_the_sums_over_all(task, shard, cut):
    arrays = tuple(trained(task, shard)[0])
    rows = shard.train
    whole = task.measure(arrays, rows)
    head, tail = (task.measure(arrays, Rows(rows.x[s], rows.y[s])) for s in (slice(0, cut), slice(cut, None)))
    assert tuple(whole) == task.metric_names
    for name, total in whole.items():
        assert type(head[name]) is type(tail[name]) is type(total)
        if isinstance(total, int):
            assert head[name] + tail[name] == total
        else:
            assert head[name] + tail[name] == pytest.approx(total, rel=1e-13)


def test_evaluation_holds_the_means(task, shard):
    arrays = task.initial_arrays(0)
    means = task.summarise(task.measure(arrays, shard.test))
    assert means.items() <= task.evaluate(arrays, shard.test).items()
    assert all(isinstance(value, float) for value in means.values())


def test_a_config_that_clients_would_refuse_is_refused_before(task):
    task.check_config(CONFIG)
    with pytest.raises(ValueError, match="learning-rate"):
        task.check_config({**CONFIG, "learning-rate": -1.0})


@pytest.mark.parametrize("path", [*TASKS.values(), *DATA.values(), *PARTITIONS.values()])
def test_every_registered_class_is_built_by_keyword_and_documents_each_argument(path):
    cls = load(path)
    parameters = list(inspect.signature(cls).parameters.values())
    own = parameters[1:] if path in TASKS.values() else parameters
    assert all(p.kind is p.KEYWORD_ONLY and p.annotation in (int, float, str, bool) for p in own)
    text = inspect.getdoc(cls)
    assert text.splitlines()[0].endswith(".")
    section = text.partition("Args:\n")[2].splitlines()
    assert [line.split(":")[0].strip() for line in section if ":" in line] == [p.name for p in own]


def test_the_registries_import_nothing():
    code = "import sys, tasks; print(*(m for m in sys.modules if m.startswith(('tasks.', 'numpy', 'flwr', 'sklearn'))))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_a_node_that_trains_by_gradient_steps_imports_neither_scipy_nor_scikit_learn():
    code = (
        "import sys, numpy as np; from tasks.logistic import LogisticTask; from tasks.base import *;"
        "t = LogisticTask(Schema(('a',), 'y', ('n', 'p'))); r = Rows(np.ones((2, 1)), np.array([0, 1]));"
        f"t.make_client(Shard('0', r, r)).fit(list(t.initial_arrays(0)), {CONFIG!r});"
        "print(*(m for m in sys.modules if m.split('.')[0] in ('scipy', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
