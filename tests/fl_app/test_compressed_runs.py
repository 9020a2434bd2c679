"""Whole runs with compression: fewer bytes, honestly counted, and nothing lost to faults."""

import json
from itertools import pairwise

import numpy as np
import pytest
from flwr.common.serde import message_to_proto
from runs import run
from safetensors.numpy import load_file

from fl_app.inline import InlineGrid
from strategies import wire

DIGITS = {"data": "digits", "baselines": False, "standard_errors": False, "rounds": 12, "learning_rate": 0.2}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain") / "out", strategy="fedavg", **DIGITS)[0]


@pytest.mark.parametrize(
    ("args", "up", "down", "points"),
    [
        ("", 6, 4, 1.0),
        ("bits=16 down-bits=16", 3, 2.5, 1.0),
        ("bits=4 down-bits=4", 9, 5, 1.5),
        ("top-k=0.05 down-bits=4", 20, 5, 2.0),
        ("bits=1 down-top-k=0.1", 15, 5, 3.0),
    ],
)
def test_so_many_times_fewer_bytes_travel_and_the_accuracy_stays(tmp_path, plain, args, up, down, points):
    summary, _ = run(tmp_path / "out", strategy="compressed-fedavg", strategy_args=args, **DIGITS)
    assert plain["payload_up"] > up * summary["payload_up"]
    assert plain["payload_down"] > down * summary["payload_down"]
    assert summary["metrics"]["accuracy"] > plain["metrics"]["accuracy"] - points / 100


def test_what_travels_is_smaller_too_where_every_client_has_a_node_of_its_own(tmp_path):
    keys = {**DIGITS, "nodes": 10, "num_clients": 10, "rounds": 4}
    plain, _ = run(tmp_path / "plain", strategy="fedavg", **keys)
    for name, args, times in (("bits", "bits=8", 3), ("sparse", "top-k=0.05", 6)):
        summary, _ = run(tmp_path / name, strategy="compressed-fedavg", strategy_args=args, **keys)
        assert plain["bytes_up"] > times * summary["bytes_up"], name
        few, _ = run(tmp_path / f"{name}-1", strategy="compressed-fedavg", strategy_args=args, **{**keys, "nodes": 1})
        assert few["params_sha256"] == summary["params_sha256"]


def test_nothing_to_compress_is_federated_averaging_to_float_error(tmp_path, plain):
    args = "bits=32 down-bits=32"
    summary, _ = run(tmp_path / "out", strategy="compressed-fedavg", strategy_args=args, **DIGITS)
    assert summary["metrics"] == pytest.approx(plain["metrics"], abs=1e-9)


class Recording(InlineGrid):
    """Keeps every message and reply."""

    def __init__(self, *args):
        super().__init__(*args)
        self.sent, self.replies = [], []

    def push_messages(self, messages):
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        self.replies += replies
        return replies


def test_payload_and_bytes_are_the_lengths_of_what_is_in_the_messages_and_of_the_messages(tmp_path):
    grids = []

    class Grid(Recording):
        def __init__(self, *args):
            super().__init__(*args)
            grids.append(self)

    out = tmp_path / "out"
    keys = {**DIGITS, "num_clients": 4, "rounds": 4, "strategy": "compressed-fedavg", "strategy_args": "top-k=0.1"}
    summary, _ = run(out, grid=Grid, nodes=4, **keys)  # a client a node, so that payload is what is sent
    trains = [message for message in grids[0].sent if message.metadata.message_type == "train"]
    trained = [reply for reply in grids[0].replies if reply.metadata.message_type == "train"]
    down = sum(
        len(array.data)
        for message in trains
        for name in ("params", "steps")
        if name in message.content
        for array in message.content[name].values()
    )
    up = sum(
        len(array.data)
        for reply in trained
        for name, record in reply.content.items()
        if name.startswith("update-")
        for array in record.values()
    )
    assert (summary["payload_up"], summary["payload_down"]) == (up, down)
    captured = [sum(len(message_to_proto(m).SerializeToString()) for m in found) for found in (trains, trained)]
    assert [summary["bytes_down"], summary["bytes_up"]] == captured
    assert any("steps" in message.content for message in trains)


def test_a_node_that_loses_its_model_costs_one_round_of_its_clients_and_is_then_sent_all_of_it(tmp_path):
    out = tmp_path / "out"

    def lose(line):
        if line["round"] == 3:
            (folder,) = [path for path in (out / "state").glob("*/node-*") if path.name.endswith(victim(out))][:1]
            for file in folder.iterdir():
                file.unlink()

    def victim(out):
        return sorted(path.name for path in (out / "state").glob("*/node-*"))[0]

    keys = {**DIGITS, "rounds": 6, "min_clients": 2, "strategy": "compressed-fedavg"}
    summary, folder = run(out, nodes=2, on_line=lose, **keys)
    lines = [json.loads(line) for line in folder.rounds.read_text().splitlines()]
    assert summary["status"] == "completed"
    dropped = {line["round"]: {entry["reason"] for entry in line["dropped"]} for line in lines}
    assert dropped == {1: set(), 2: set(), 3: set(), 4: {"decode"}, 5: set(), 6: set()}
    assert len(lines[3]["dropped"]) == 5
    assert lines[4]["bytes_down"] > lines[2]["bytes_down"]


def test_a_resumed_run_is_the_run_that_was_not_broken_off(tmp_path):
    keys = {**DIGITS, "strategy": "compressed-fedavg", "strategy_args": "top-k=0.1 down-bits=4", "clients_per_round": 6}
    whole, _ = run(tmp_path / "whole", **keys)

    class Stop(RuntimeError):
        pass

    def stop(line):
        if line["round"] == 5:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "broken", on_line=stop, **keys)
    resumed, _ = run(tmp_path / "broken", resume=True, **keys)
    assert resumed["params_sha256"] == whole["params_sha256"]


def test_it_goes_with_layers_that_stay_at_the_client_and_with_any_server_optimiser(tmp_path):
    """Both keep state of their own beside what error feedback keeps."""
    keys = {**DIGITS, "task": "mlp", "task_args": "personal=2", "l2": 0.0, "rounds": 5, "clients_per_round": 6}
    args = "top-k=0.1 server-optimizer=adam server-learning-rate=0.03"
    runs = [
        run(tmp_path / f"{nodes}", nodes=nodes, strategy="compressed-fedavg", strategy_args=args, **keys)[0]
        for nodes in (1, 3)
    ]
    assert runs[0]["params_sha256"] == runs[1]["params_sha256"]
    assert runs[0]["metrics"]["accuracy"] > 0.7
    plain, _ = run(tmp_path / "plain", strategy="fedadam", strategy_args="server-learning-rate=0.03", **keys)
    assert plain["payload_up"] > 10 * runs[0]["payload_up"]


def test_the_final_model_of_a_pruned_run_is_sparse(tmp_path):
    args = "sparsity=0.7 prune-from=2 prune-to=6"
    summary, folder = run(tmp_path / "out", strategy="compressed-fedavg", strategy_args=args, **DIGITS)
    weights = load_file(folder.model)["weights"]
    assert np.mean(weights == 0) == pytest.approx(0.7, abs=0.01)
    assert summary["metrics"]["accuracy"] > 0.9
    lines = [json.loads(line) for line in folder.rounds.read_text().splitlines()]
    ups = [line["payload_up"] for line in lines]
    assert ups[-1] < 0.6 * ups[0]
    assert all(after <= before * 1.05 for before, after in pairwise(ups[5:]))


def test_private_runs_compress_too_and_their_messages_have_one_length(tmp_path):
    grids = []

    class Grid(Recording):
        def __init__(self, *args):
            super().__init__(*args)
            grids.append(self)

    args = "target-epsilon=8 sampling=none top-k=0.2"
    keys = {**DIGITS, "rounds": 4, "strategy": "compressed-dp-fedavg", "strategy_args": args}
    summary, _ = run(tmp_path / "out", grid=Grid, nodes=10, **keys)
    assert summary["status"] == "completed"
    assert summary["privacy"]["epsilon"] == pytest.approx(8, rel=1e-3)
    sizes = {}
    for reply in grids[0].replies:
        if reply.metadata.message_type == "train":
            answer = wire.read_answer(reply.content)
            for update in answer.updates:
                sizes.setdefault(reply.metadata.group_id.split("/")[1], set()).add(update.payload_bytes)
    assert sizes
    assert all(len(lengths) == 1 for lengths in sizes.values()), sizes


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("bits=3", "bits=3: expected 1, 2, 4, 8, 16, or 32"),
        ("top-k=1.5", "top-k=1.5: expected"),
        ("top-k=-0.1", "top-k=-0.1: expected"),
        ("down-top-k=2", "down-top-k=2: expected"),
        ("down-bits=5", "down-bits=5: expected 1, 2, 4, 8, 16, or 32"),
        ("sparsity=1", "sparsity=1: expected"),
        ("sparsity=0.5 prune-from=4 prune-to=2", "prune-to=2: expected"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(fl_app, args, told):
    strategy = ("-c", "strategy=compressed-fedavg")
    refusal = fl_app("run", "--engine", "inline", *strategy, "-c", f"strategy-args={args}").refusal()
    assert told in refusal
