"""A contract suite that lets a fault pass is worth nothing: each fault is found by the test that is for it."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

HEAD = """
from dataclasses import dataclass, replace
from typing import ClassVar
import numpy as np
from fl_app.contracts import StrategyContract, TaskContract, TransformContract
from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.fedavg import FedAvg
from strategies.optimizers import SGD
from strategies.transform import Opens, Transform, chain
from strategies.transforms.weighting import ByExamples
from strategies.work import Delta
from tasks.generalized_linear import GeneralizedLinearClient
from tasks.logistic import LogisticTask
"""

TASK = """
class Client(GeneralizedLinearClient):
    def fit(self, parameters, config):
        arrays, count, metrics = super().fit(parameters, config)
        {fault}
        return arrays, count, metrics

class Faulty(LogisticTask):
    '''Wrong.'''
    calls = 0
    def make_client(self, shard):
        return Client(self, shard)
    {method}

class TestIt(TaskContract):
    target = __name__ + ":Faulty"
"""

STRATEGY = """
class Faulty(ComposedStrategy):
    '''Wrong.'''
    calls = 0
    def __init__(self, basics: Basics, *, step: float = 1.0) -> None:
        type(self).calls += 1
        super().__init__(basics, work=Delta(), pipeline=chain(ByExamples({cap})), aggregator=WeightedMean(),
                         server_optimizer=SGD({step}))
    {method}

class TestIt(StrategyContract):
    target = __name__ + ":Faulty"
"""

TRANSFORM = """
@dataclass(frozen=True)
class Faulty(Transform):
    opens: ClassVar[Opens] = Opens.{opens}
    num_state_arrays: ClassVar[int] = {state}
    {method}

class TestIt(TransformContract):
    transform = Faulty()
"""


def task(fault: str = "pass", method: str = "") -> str:
    return TASK.format(fault=fault, method=method)


def strategy(cap: str = "100", step: str = "1.0", method: str = "") -> str:
    return STRATEGY.format(cap=cap, step=step, method=method)


def transform(method: str, opens: str = "EITHER", state: int = 0) -> str:
    return TRANSFORM.format(method=method.replace("\n", "\n    "), opens=opens, state=state)


DOUBLES = """def encode(self, update, state, round):
    return replace(update, arrays=tuple(2 * a for a in update.arrays)), state
"""

FAULTS = {
    "none in a task": (task(), ""),
    "none in a strategy": (strategy().replace("Wrong.", "Right.\n\n    Args:\n        step: x\n    "), ""),
    "none in a transform": (transform("pass"), ""),
    "a task that writes to what it receives": (task("parameters[0] += 1.0"), "read_only_inputs"),
    "a task that changes a dtype": (task("arrays = [a.astype(np.float32) for a in arrays]"), "shapes_and_dtypes"),
    "a task that counts wrong": (task("count += 1"), "counts_the_training_rows"),
    "a task that remembers": (task("Faulty.calls += 1; arrays[0] = arrays[0] + 1e-3 * Faulty.calls"), "pure_in_what"),
    "a task that draws for itself": (task("arrays[0] = arrays[0] + np.random.default_rng().random()"), "pure_in_what"),
    "a task that always sends metrics": (
        task("metrics = self.task.measure(tuple(parameters), self.shard.test)"), "only_on_demand"),
    "a task that measures what it trained": (
        task("metrics = self.task.measure(tuple(arrays), self.shard.test) if config['metrics'] else {}"),
        "of_the_received_params"),
    "a task that returns means": (
        task(method="def measure(self, arrays, rows):\n        found = super().measure(arrays, rows)\n"
             "        return {**found, 'brier': found['brier'] / max(len(rows), 1)}"), "add_up"),
    "a task that checks no config": (
        task(method="def check_config(self, config):\n        pass"), "refused_before"),
    "a task that checks no sums": (
        task(method="def check_sums(self, sums):\n        pass"), "no_rows_can_give"),
    "a strategy that overrides the loop": (
        strategy(method="def configure_train(self, *args):\n        return super().configure_train(*args)"),
        "overrides_nothing"),
    "a strategy that is another time another": (strategy(cap="100 + self.calls"), "same_pipeline"),
    "a strategy that goes the wrong way": (strategy(step="-0.1"), "learns"),
    "a strategy without docs": (strategy(), "documents"),
    "a transform that writes": (
        transform("def encode(self, update, state, round):\n    update.arrays[0][:] = 0\n    return update, state"),
        "writes_to_nothing"),
    "a transform with half of its halves": (transform(DOUBLES + "def decode_sum(self, total, round):\n"
        "    return replace(total, arrays=tuple(a // 2 for a in total.arrays))"), "opening_the_sum"),
    "a transform that opens to another dtype": (
        transform("def decode_each(self, update, round):\n"
                  "    return replace(update, arrays=tuple(a.astype(np.float64) for a in update.arrays))", "EACH"),
        "shapes_and_dtypes"),
    "a transform that breaks its bound": (transform("def bound(self, before):\n    return 1.0", "EACH"), "bound"),
    "a transform that lengthens": (transform(DOUBLES, "EACH"), "keeps_to_the_bound"),
    "a transform that weighs without saying so": (
        transform("def encode(self, update, state, round):\n    return replace(update, weight=7), state"),
        "weighs_more"),
    "a transform whose state grows": (
        transform("def encode(self, update, state, round):\n    return update, (*state, np.zeros(1))", state=1),
        "state_has"),
    "a transform that divides by zero": (
        transform("def encode(self, update, state, round):\n    with np.errstate(all='ignore'):\n"
                  "        return replace(update, arrays=tuple(a / np.abs(a).max() for a in update.arrays)), state",
                  "EACH"), "shapes_and_dtypes"),
    "a transform that chokes on what is no encoding": (
        transform("def decode_each(self, update, round):\n"
                  "    return replace(update, arrays=(update.arrays[2] * 0 + update.arrays[2],))", "EACH"),
        "no_encoding"),
    "a transform that draws for itself": (
        transform("def encode(self, update, state, round):\n    noise = np.random.default_rng().random()\n"
                  "    return replace(update, arrays=tuple(a + noise for a in update.arrays)), state"), "pure"),
}  # fmt: skip


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """{what is wrong: the tests of its suite that failed}, from one run of pytest over all of them."""
    folder = tmp_path_factory.mktemp("faults")
    files = {f"test_fault_{index}.py": what for index, what in enumerate(FAULTS)}
    for name, what in files.items():
        (folder / name).write_text(HEAD + FAULTS[what][0])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE"]
    environment = {"PYTHONPATH": f"{PROJECT}:{folder}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("ERROR ")], done.stdout
    found: dict[str, list[str]] = {what: [] for what in FAULTS}
    for name, test in (line.split()[1].split("::TestIt::") for line in lines if line.startswith("FAILED ")):
        found[files[name]].append(test)
    return found


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_found_by_the_test_that_is_for_it(failed: dict[str, list[str]], what: str) -> None:
    finder = FAULTS[what][1]
    assert bool(failed[what]) == bool(finder), failed[what]
    assert any(finder in test for test in failed[what]) or not finder, failed[what]
