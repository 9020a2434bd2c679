"""Whole runs in which clients lie: plain averaging is ruined, robust strategies keep what honest clients learn."""

import json

import numpy as np
import pytest
from extensions import FaultyTask
from runs import run

from fl_app.contracts import StrategyContract
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from fl_app.job import check_config
from fl_app.profiles import load_profile
from fl_app.registry import build
from strategies.base import Basics, TooFewClients
from strategies.optimizers import SGD
from strategies.transforms.weighting import ByExamples
from tasks.base import Rows, Shard
from tasks.logistic import LogisticTask

KEYS = {"data": "digits", "num_clients": 10, "rounds": 8, "baselines": False, "standard_errors": False}
LIARS = 3
ROBUST = {"median": "", "trimmed-mean": "trimmed=0.3", "krum": "liars=3", "norm-bound": ""}


class LyingTask(LogisticTask):
    """Softmax regression whose clients 00, 01, ... lie.

    Args:
        lie: how
        liars: how many of them
    """

    def __init__(self, schema, *, lie: str, liars: int = LIARS) -> None:
        super().__init__(schema)
        self.lie, self.liars = lie, liars

    def make_client(self, shard):
        if int(shard.client) >= self.liars:
            return super().make_client(shard)
        if self.lie == "wrong-labels":
            shard = Shard(shard.client, Rows(shard.train.x, len(self.schema.classes) - 1 - shard.train.y), shard.test)
        return Liar(super().make_client(shard), LIES[self.lie])


class Liar:
    def __init__(self, client, lie):
        self.client, self.lie = client, lie

    def fit(self, parameters, config):
        learned, n, metrics = self.client.fit(parameters, config)
        rng = np.random.default_rng(config["seed"])
        sent = [x + self.lie(y - x, rng) for x, y in zip(parameters, learned, strict=True)]
        return sent, n, metrics

    def evaluate(self, parameters, config):
        return self.client.evaluate(parameters, config)


LIES = {
    "opposite": lambda delta, rng: -10 * delta,
    "much-too-long": lambda delta, rng: -1000 * delta,
    "noise": lambda delta, rng: rng.normal(scale=10.0, size=delta.shape),
    "wrong-labels": lambda delta, rng: 10 * delta,
}


def accuracy(out, strategy, args="", lie="opposite", liars=LIARS, **keys):
    task = {"task": f"{__name__}:LyingTask", "task_args": f"lie={lie} liars={liars}"}
    summary, _ = run(out, strategy=strategy, strategy_args=args, **task, **{**KEYS, **keys})
    return summary["metrics"]["accuracy"]


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The accuracy of plain averaging when nobody lies."""
    return accuracy(tmp_path_factory.mktemp("honest") / "out", "fedavg", liars=0)


@pytest.mark.parametrize("lie", LIES)
def test_liars_ruin_plain_averaging(tmp_path, honest, lie):
    assert accuracy(tmp_path / "out", "fedavg", lie=lie) < honest - 0.25


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("strategy", ROBUST)
def test_a_robust_strategy_stays_within_some_points_of_a_federation_without_liars(tmp_path, honest, strategy, lie):
    assert accuracy(tmp_path / "out", strategy, ROBUST[strategy], lie) > honest - 0.08


@pytest.mark.parametrize("strategy", ROBUST)
def test_without_liars_a_robust_strategy_costs_little_on_alike_rows(tmp_path, honest, strategy):
    assert accuracy(tmp_path / "out", strategy, ROBUST[strategy], liars=0) > honest - 0.03


def test_with_most_clients_lying_the_median_is_ruined_too(tmp_path, honest):
    assert accuracy(tmp_path / "out", "median", liars=6) < honest - 0.25


@pytest.mark.parametrize("strategy", ROBUST)
def test_rate_and_momentum_of_the_server_are_those_of_fedavg(strategy):
    args = "server-learning-rate=0.5 momentum=0.9"
    assert build("strategy", strategy, args, Basics()).server_optimizer == SGD(0.5, 0.9)
    assert build("strategy", strategy, "", Basics()).server_optimizer == SGD(1.0, 0.0)


class Backwards(InlineGrid):
    """Hands replies over in the opposite order."""

    def pull_messages(self, message_ids):
        return list(super().pull_messages(list(message_ids)[::-1]))


@pytest.mark.parametrize("strategy", ROBUST)
def test_neither_the_order_of_replies_nor_the_spread_over_nodes_changes_a_bit(tmp_path, strategy):
    task = {"task": f"{__name__}:LyingTask", "task_args": "lie=noise"}
    keys = {**KEYS, **task, "strategy": strategy, "strategy_args": ROBUST[strategy], "rounds": 2}
    ends = {
        run(tmp_path / f"{nodes}-{grid.__name__}", nodes=nodes, grid=grid, **keys)[0]["params_sha256"]
        for nodes in (1, 4, 10)
        for grid in (InlineGrid, Backwards)
    }
    assert len(ends) == 1


@pytest.mark.parametrize("strategy", ROBUST)
def test_a_client_whose_values_are_no_numbers_is_dropped_and_named(tmp_path, strategy):
    task = {"task": f"extensions:{FaultyTask.__name__}", "task_args": "fault=nan"}
    summary, folder = run(tmp_path, strategy=strategy, strategy_args=ROBUST[strategy], **task)
    assert summary["status"] == "completed"
    for line in folder.rounds.read_text().splitlines():
        assert json.loads(line)["dropped"] == [{"client": "03", "reason": "non-finite"}]


def test_a_client_that_claims_many_rows_counts_no_more_than_others(tmp_path, monkeypatch):
    """Robust strategies leave weights alone; norm-bound has them on request, up to a cap."""
    seen = {}
    encode = ByExamples.encode

    def watched(self, update, state, round):
        update, state = encode(self, update, state, round)
        seen.setdefault(self.cap, set()).add(update.weight)
        return update, state

    monkeypatch.setattr(ByExamples, "encode", watched)
    accuracy(tmp_path / "alike", "norm-bound", rounds=1)
    accuracy(tmp_path / "capped", "norm-bound", "max-weight=100", rounds=1, partition="dirichlet")
    assert seen[1] == {1}
    assert max(seen[100]) == 100
    assert len(seen[100]) > 1


def test_whom_krum_left_out_is_in_the_line_of_the_round(tmp_path):
    task = {"task": f"{__name__}:LyingTask", "task_args": "lie=opposite"}
    summary, folder = run(tmp_path, strategy="krum", strategy_args="liars=3", **task, **{**KEYS, "rounds": 2})
    lines = [json.loads(line) for line in folder.rounds.read_text().splitlines()]
    assert all({"00", "01", "02"} <= set(line["left_out"]) and len(line["left_out"]) == 5 for line in lines)
    assert all((line["good"], line["dropped"]) == (10, []) for line in lines)
    assert summary["dropped"] == 0


# ----------------------------------------------------------------------------------------- too few for krum


def test_krum_with_too_few_clients_is_refused_before_the_start(small_config, tmp_path):
    local = load_profile("simulation", tmp_path)
    with pytest.raises(Refused, match="strategy=krum needs 5 clients in a round: 4 clients: have more take part"):
        check_config(small_config(strategy="krum"), local)
    drawn = small_config(num_clients=12, clients_per_round=8, strategy="krum", strategy_args="liars=3")
    with pytest.raises(Refused, match="strategy=krum needs 9 clients in a round: clients-per-round=8"):
        check_config(drawn, local)
    check_config(small_config(strategy="krum", strategy_args="liars=0"), local)


def test_a_deployment_is_refused_where_the_number_of_clients_is_known(small_config, tmp_path):
    far = load_profile("deployment", tmp_path)
    keys = {"data": "csv", "data_args": "", "num_clients": 4, "strategy": "krum"}
    with pytest.raises(Refused, match="strategy=krum needs 5 clients in a round: 4 clients"):
        check_config(small_config(**keys), far)


def test_a_cohort_that_is_too_small_for_krum_is_not_asked(tmp_path):
    with pytest.raises(TooFewClients, match="round 1: a cohort of 4 clients, Krum needs 5"):
        run(tmp_path, strategy="krum", num_clients=4)


def test_a_round_that_ends_with_too_few_updates_for_krum_fails_and_says_what_it_needs(tmp_path):
    task = {"task": "extensions:FaultyTask", "task_args": "fault=raises clients=03,04 from-round=2"}
    expected = r"round 2: 4 of 6 clients gave a good update, Krum needs 5; dropped: 03 \(raised\), 04 \(raised\)"
    with pytest.raises(TooFewClients, match=expected):
        run(tmp_path, strategy="krum", num_clients=6, **task)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["stop_reason"], summary["rounds"]) == ("failed", "too-few-clients", 1)


def test_the_contract_covers_all_four():
    import test_strategy_contract as contracts

    for name in ROBUST:
        assert issubclass(getattr(contracts, f"Test_{name}"), StrategyContract)
