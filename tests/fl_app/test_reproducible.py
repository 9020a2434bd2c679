"""Same seed, same bits: whatever the number of nodes, the order of replies, folding, waves, or a resume."""

import json
import random

import pytest
from grids import losing_a_reply
from runs import run

import strategies.rounds
from fl_app.checkpoint import Checkpoint
from fl_app.inline import InlineGrid

CASES = {
    "fedavg": {},
    "fedavg on a sample": {"clients_per_round": 4},
    "fedsgd with momentum": {"strategy": "fedsgd", "strategy_args": "momentum=0.5"},
    "fednewton": {"strategy": "fednewton"},
    "clients measure": {"data": "extensions:HeldByClients"},
    "digits": {"data": "digits", "partition": "dirichlet"},
    "client state": {"strategy": "extensions:ResidualAvg", "clients_per_round": 6},
    "fedprox": {"strategy": "fedprox", "strategy_args": "mu=1"},
    "fedadam on a sample": {"strategy": "fedadam", "clients_per_round": 4},
    "scaffold on a sample": {"strategy": "scaffold", "clients_per_round": 6},
    "compressed": {"strategy": "compressed-fedavg", "clients_per_round": 6},
    "sparse": {"strategy": "compressed-fedavg", "strategy_args": "top-k=0.2 down-bits=4", "clients_per_round": 6},
    "pruned": {"strategy": "compressed-fedavg", "strategy_args": "sparsity=0.5 prune-to=2"},
    "no folding": {"strategy": "extensions:UnfoldedAvg"},
    "synthetic": {"data": "synthetic", "data_args": "size-skew=1 label-skew=0.5"},
    "categories and gaps": {"data": "extensions:Mixed", "data_args": "missing=indicator"},
}


class Shuffled(InlineGrid):
    """Lets nodes work, and replies come, in any order."""

    def pull_messages(self, message_ids):
        ids = list(message_ids)
        random.shuffle(ids)
        return super().pull_messages(ids)


def fingerprint(summary):
    return {key: summary[key] for key in ("params_sha256", "metrics", "client_updates", "payload_up", "payload_down")}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_neither_nodes_nor_order_of_replies_change_a_bit(tmp_path, case):
    results = [
        fingerprint(run(tmp_path / f"{nodes}-{grid.__name__}", nodes=nodes, grid=grid, **case)[0])
        for nodes, grid in ((1, InlineGrid), (2, Shuffled), (5, Shuffled), (20, InlineGrid))
    ]
    assert all(result == results[0] for result in results)


def test_folding_or_not_is_the_same_model_and_the_same_payload(tmp_path):
    folded, _ = run(tmp_path / "folded", strategy_args="max-weight=1000000")
    single, _ = run(tmp_path / "single", strategy="extensions:UnfoldedAvg")
    assert fingerprint(folded) == fingerprint(single)
    assert folded["bytes_up"] < single["bytes_up"]


def test_waves_are_the_same_model_and_bound_what_a_node_sends_at_once(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole", strategy="extensions:UnfoldedAvg", nodes=2)
    sizes = []

    class Watching(InlineGrid):
        def _work(self, message):
            reply = super()._work(message)
            sizes.append(sum(key.startswith("update-") for key in reply.content))
            return reply

    monkeypatch.setattr(strategies.rounds, "WAVE_BYTES", 2 * (31 * 8 + 2 * 128))  # two models
    keys = {"strategy": "extensions:UnfoldedAvg", "standard_errors": False}  # no exchange after the last round
    waves, _ = run(tmp_path / "waves", nodes=2, grid=Watching, **keys)
    assert fingerprint(waves) == fingerprint(whole)
    assert max(sizes) == 2
    assert sizes.count(2) == 3 * 2 * 2  # rounds, nodes, full waves; and one wave of one client each
    assert sizes.count(1) == 3 * 2


def test_another_seed_is_another_model(tmp_path):
    assert run(tmp_path / "0")[0]["params_sha256"] != run(tmp_path / "1", seed=1)[0]["params_sha256"]


class Killed(BaseException):
    """Like kill -9: nothing may catch it and clean up."""


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    return {name: run(tmp_path_factory.mktemp("whole") / "out", rounds=4, **case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_broke_off_and_was_resumed_is_the_run_that_never_did(tmp_path, whole_runs, name):
    def kill(line):
        if line["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, rounds=4, on_line=kill, **CASES[name])
    check_resumed(tmp_path, whole_runs[name], CASES[name], resumed_from=2)


@pytest.mark.parametrize("name", ["fedavg", "client state", "scaffold on a sample"])
def test_a_round_whose_checkpoint_was_not_yet_in_place_is_played_again(tmp_path, whole_runs, name, monkeypatch):
    commits = []

    def commit(prepared, path):
        commits.append(path)
        if len(commits) == 4:  # that of round 3; the first is the one before round 1
            raise Killed
        prepared.replace(path)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "commit", commit)
        with pytest.raises(Killed):
            run(tmp_path, rounds=4, **CASES[name])
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 3
    check_resumed(tmp_path, whole_runs[name], CASES[name], resumed_from=2)


def check_resumed(out, whole, case, resumed_from):
    summary, folder = whole
    resumed, resumed_folder = run(out, rounds=4, resume=True, **case)
    assert resumed["resumed_from"] == resumed_from
    ours, theirs = fingerprint(resumed), fingerprint(summary)
    if case.get("strategy") == "compressed-fedavg":  # the server does not know any more who held which model
        assert ours.pop("payload_down") >= theirs.pop("payload_down")
    assert ours == theirs
    keep = ("round", "metrics", "train_metrics", "good", "dropped", "payload_up", "params_change")
    rounds = [
        [{key: json.loads(line)[key] for key in keep} for line in f.rounds.read_text().splitlines()]
        for f in (folder, resumed_folder)
    ]
    assert rounds[0] == rounds[1]


def test_a_run_that_broke_off_between_its_last_round_and_its_summary_ends_as_it_would_have(tmp_path):
    keys = {"rounds": 6, "stop": "target", "stop_args": "metric=accuracy value=0.5"}
    whole, _ = run(tmp_path / "whole", **keys)
    assert (whole["stop_reason"], whole["rounds"]) == ("target", 1)
    _, folder = run(tmp_path / "cut", **keys)
    folder.summary.unlink()
    folder.model.unlink()
    resumed, _ = run(tmp_path / "cut", resume=True, **keys)
    assert (resumed["stop_reason"], resumed["rounds"]) == ("target", 1)
    assert fingerprint(resumed) == fingerprint(whole)
    assert folder.model.exists()


def test_rounds_may_be_raised_and_the_model_is_that_of_a_long_run(tmp_path):
    long, _ = run(tmp_path / "long", rounds=6)
    run(tmp_path / "short", rounds=3)
    (tmp_path / "short" / "summary.json").unlink()
    assert run(tmp_path / "short", rounds=6, resume=True)[0]["params_sha256"] == long["params_sha256"]


@pytest.mark.parametrize("strategy", ["extensions:ResidualAvg", "scaffold"])
def test_a_lost_reply_does_not_put_client_state_out_of_step(tmp_path, strategy):
    """A client whose reply was lost goes on from the state of its last used update, as if it had not trained."""

    case = {"strategy": strategy, "num_clients": 4, "min_clients": 4, "rounds": 4}
    whole, _ = run(tmp_path / "whole", **case)
    lost = []
    hit, _ = run(tmp_path / "hit", grid=losing_a_reply(lost), **case)
    assert lost
    assert hit["params_sha256"] == whole["params_sha256"]


def test_client_state_matters(tmp_path):
    """The runs above would prove nothing if the state were not used."""
    kept, folder = run(tmp_path / "kept", strategy="extensions:ResidualAvg")
    assert len(list((folder.path / "state").rglob("round-*.safetensors"))) == 20  # 10 clients, two generations
    assert kept["params_sha256"] != run(tmp_path / "plain")[0]["params_sha256"]
