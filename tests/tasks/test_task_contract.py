"""What holds for every registered task is fl_app.contracts.tasks; here it is applied, with what is ours alone."""

import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any, Literal, get_origin

import numpy as np
import pytest

from fl_app.contracts import TaskContract
from fl_app.registry import arguments
from tasks import DATA, PARTITIONS, TASKS
from tasks.base import ObjectPath, Rows, Schema
from tasks.data.base import PathText

CONFIG = {
    "solver": "sgd", "local-epochs": 2, "local-steps": 0, "batch-size": 4, "learning-rate": 0.1,
    "l1": 0.0, "l2": 0.01, "seed": 5, "work": "train", "metrics": True,
}  # fmt: skip

# What a task's contract needs beside its name: schema and rows, args, keys of a run (fl_app/contracts/tasks.py).
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {
        "schema": lambda self: Schema(("a", "b", "c"), "y", (), 150.0, 77.0),
        "rows": lambda self: Rows(
            np.random.default_rng(0).normal(size=(30, 3)), np.random.default_rng(1).normal(size=30)
        ),
        "keys": {"data": "synthetic", "data-args": "features=3 examples=30", "batch-size": 8},
    },
    "torch": {"args": "model=torch_models:small_net"},
    "cnn": {
        "schema": lambda self: Schema(tuple(f"pixel{i}" for i in range(16)), "y", ("no", "yes", "maybe")),
        "rows": lambda self: Rows(np.random.default_rng(0).normal(size=(30, 16)), np.arange(30) % 3),
        "args": "channels=2,3 hidden=5",
        "keys": {"data": "synthetic", "data-args": "features=16 classes=3 examples=30", "batch-size": 8},
    },
}

for name in TASKS:
    globals()[f"Test_{name}"] = type(f"Test_{name}", (TaskContract,), {"target": name, **SETTINGS.get(name, {})})

for name, args in {
    "frozen": "model=torch_models:small_net freeze=0",
    "personal": "model=torch_models:small_net personal=3 freeze=0.bias",
    "local_normalisation": "model=torch_models:small_net batch-norm=local",
}.items():
    globals()[f"Test_torch_{name}"] = type(f"Test_torch_{name}", (TaskContract,), {"target": "torch", "args": args})


def load(path):
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


class TestMiniBatches(TaskContract):
    """Of logistic regression: their order comes from the seed."""

    target = "logistic"

    def test_another_seed_gives_another_model(self, task, shard, config):
        start = [array.copy() for array in task.initial_arrays(0)]
        first, other = (task.make_client(shard).fit(start, {**config, "seed": seed})[0] for seed in (5, 6))
        assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("path", [*TASKS.values(), *DATA.values(), *PARTITIONS.values()])
def test_every_registered_class_is_built_by_keyword_and_documents_each_argument(path):
    cls = load(path)
    plain = (int, float, str, bool, PathText, ObjectPath)
    given = arguments(cls)
    assert all(a.hint in plain or get_origin(a.hint) is Literal for a in given)
    assert all(a.doc for a in given)
    assert inspect.getdoc(cls).splitlines()[0].endswith(".")


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
