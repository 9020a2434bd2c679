"""What holds for every registered task is fl_app.contracts.tasks; here it is applied, with what is ours alone."""

import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any, Literal, get_origin

import numpy as np
import pytest

from fl_app.contracts import TaskContract
from tasks import DATA, PARTITIONS, TASKS
from tasks.data.base import PathText

CONFIG = {
    "solver": "sgd", "local-epochs": 2, "local-steps": 0, "batch-size": 4, "learning-rate": 0.1,
    "l1": 0.0, "l2": 0.01, "seed": 5, "work": "train", "metrics": True,
}  # fmt: skip

# What a task's contract needs beside its name: schema and rows, args, keys of a run (fl_app/contracts/tasks.py).
SETTINGS: dict[str, dict[str, Any]] = {}

for name in TASKS:
    globals()[f"Test_{name}"] = type(f"Test_{name}", (TaskContract,), {"target": name, **SETTINGS.get(name, {})})


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
    parameters = list(inspect.signature(cls).parameters.values())
    own = parameters[1:] if path in TASKS.values() else parameters
    plain = (int, float, str, bool, PathText)
    assert all(p.kind is p.KEYWORD_ONLY for p in own)
    assert all(p.annotation in plain or get_origin(p.annotation) is Literal for p in own)
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
