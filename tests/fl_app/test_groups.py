"""Clients of a node in groups: the same results as one by one, and a bad one costs its own."""

import threading

import numpy as np
import pytest
from runs import run

from fl_app import groups
from fl_app.deadline import Worker
from fl_app.groups import Groups
from tasks.generalized_linear import GeneralizedLinearTask
from tasks.logistic import LogisticTask

NAMES = tuple("abcdefghij")


class Trainer:
    """Answers with the client's name; notes the groups. Clients in `bad` break the group that they are in."""

    def __init__(self, bad=(), hang=None):
        self.calls, self.bad, self.hang = [], bad, hang

    def __call__(self, clients):
        self.calls.append(tuple(clients))
        if self.hang is not None and set(self.bad) & set(clients):
            self.hang.wait(30)
        if set(self.bad) & set(clients):
            raise ValueError("bad")
        return [([np.array(ord(client))], 1, {}) for client in clients]


def take_all(trainer):
    made, taken, failed = Groups(trainer, NAMES, 8), [], []
    with Worker() as worker:
        for client in NAMES:
            made.prepare(client, worker, 60.0)
            try:
                assert int(made.take(client)[0][0]) == ord(client)
                taken.append(client)
            except ValueError:
                failed.append(client)
    return taken, failed


def test_the_first_group_is_one_client_and_the_next_what_time_and_memory_allow(monkeypatch):
    trainer = Trainer()
    assert take_all(trainer) == (list(NAMES), [])
    assert trainer.calls == [NAMES[:1], NAMES[1:]]
    monkeypatch.setattr(groups, "MOST_BYTES", 24)
    trainer = Trainer()
    take_all(trainer)
    assert [len(call) for call in trainer.calls] == [1, 3, 3, 3]
    trainer = Trainer()
    monkeypatch.setattr(groups, "SHARE_OF_TIME", 1e-9)
    take_all(trainer)
    assert [len(call) for call in trainer.calls] == [1] * 10


def test_a_client_that_breaks_its_group_costs_its_own_result():
    trainer = Trainer(bad=("d",))
    assert take_all(trainer) == ([name for name in NAMES if name != "d"], ["d"])
    assert trainer.calls == [NAMES[:1], NAMES[1:], *((name,) for name in NAMES[1:])]


def test_the_log_of_a_group_that_is_given_up_does_not_tell_its_size(monkeypatch):
    told = []
    monkeypatch.setattr(groups, "log", lambda level, text, *values: told.append(text % values))
    take_all(Trainer(bad=("d",)))
    assert told == ["clients are trained one by one: ValueError: bad"]


def test_a_first_client_that_fails_alone_is_not_tried_again():
    trainer = Trainer(bad=("a",))
    assert take_all(trainer) == (list(NAMES[1:]), ["a"])
    assert trainer.calls.count(("a",)) == 1


def test_a_group_that_overruns_is_given_up_in_time():
    gate = threading.Event()
    trainer = Trainer(bad=("d",), hang=gate)
    made = Groups(trainer, NAMES, 8)
    with Worker() as worker:
        made.prepare("a", worker, 5.0)
        made.prepare("b", worker, 0.2)
        assert int(made.take("b")[0][0]) == ord("b")
    gate.set()


# ------------------------------------------------------------------------------------------------------- whole runs


CASES = {
    "logistic": {},
    "softmax on clients of many sizes": {
        "data": "synthetic", "data_args": "features=6 classes=4 examples=30 size-skew=1", "batch_size": 8,
    },
    "mlp": {"task": "mlp", "task_args": "hidden=5 momentum=0.5"},
    "mlp by vmap": {"task": "mlp", "task_args": "hidden=5 together=3"},
    "fedprox": {"strategy": "fedprox", "strategy_args": "mu=1"},
    "with state of the pipeline": {"strategy": "extensions:ResidualAvg"},
    "clients measure": {"data": "extensions:HeldByClients"},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_params_are_the_same_for_any_number_of_nodes(tmp_path, case):
    shas = {run(tmp_path / str(nodes), nodes=nodes, **case)[0]["params_sha256"] for nodes in (1, 2, 5)}
    assert len(shas) == 1


def test_they_are_those_of_the_loop(tmp_path, monkeypatch):
    together, _ = run(tmp_path / "together")
    monkeypatch.setattr(GeneralizedLinearTask, "fits_many", lambda self, config: False)
    assert run(tmp_path / "loop")[0]["params_sha256"] == together["params_sha256"]


def test_groups_are_used_where_the_task_offers_them_and_the_work_keeps_no_state(tmp_path, monkeypatch):
    sizes = []
    original = GeneralizedLinearTask.fit_many

    def fit_many(self, params, shards, config, seeds):
        sizes.append(len(shards))
        return original(self, params, shards, config, seeds)

    monkeypatch.setattr(GeneralizedLinearTask, "fit_many", fit_many)
    run(tmp_path / "fedavg", nodes=1)
    assert sizes == [1, 9] * 3
    sizes.clear()
    run(tmp_path / "scaffold", nodes=1, strategy="scaffold")
    run(tmp_path / "lbfgs", nodes=1, solver="lbfgs")
    assert sizes == []


class OneRaises(LogisticTask):
    """fit_many trips over client 04, and returns nonsense for 06 and numbers that are none for 07."""

    def fit_many(self, params, shards, config, seeds):
        names = [shard.client for shard in shards]
        if "04" in names:
            raise RuntimeError("client 04")
        results = list(super().fit_many(params, shards, config, seeds))
        for index, name in enumerate(names):
            arrays, examples, metrics = results[index]
            if name == "06":
                results[index] = (arrays[:1], examples, metrics)
            if name == "07":
                results[index] = ([array * np.nan for array in arrays], examples, metrics)
        return results


@pytest.mark.parametrize("nodes", [1, 3])
def test_every_result_is_checked_and_a_client_that_fails_is_dropped_alone(tmp_path, nodes):
    summary, folder = run(tmp_path, nodes=nodes, task="test_groups:OneRaises", rounds=1)
    line = folder.rounds.read_text()
    assert summary["client_updates"] == 7
    for client, reason in (("04", "raised"), ("06", "keys"), ("07", "non-finite")):
        assert client in line
        assert reason in line
