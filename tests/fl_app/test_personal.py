"""Arrays of a model that do not travel: personal ones, frozen ones, and what a model begins with."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.common.serde import recorddict_to_proto
from grids import losing_a_reply
from permuted import net
from runs import run
from safetensors.numpy import load_file, save_file

from fl_app.assembly import begin, build_task, local_design
from fl_app.caller import CALLER
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from fl_app.model import Model
from fl_app.site import Common, Site, held_sha256
from fl_app.tensors import params_sha256
from strategies.base import TooFewClients

NET = {"task": "mlp", "learning_rate": 0.2, "l2": 0.0, "local_epochs": 3, "rounds": 4, "baselines": False}
TWO = {**NET, "data": "permuted:Permuted", "num_clients": 2}
HEAD = {"task_args": "hidden=8 personal=2"}
BN = {"task": "torch", "task_args": "model=permuted:net batch-norm=local"}


@pytest.fixture(autouse=True)
def simulation(monkeypatch, tmp_path):
    """Nodes of a simulation may read what the run names."""
    monkeypatch.setenv(CALLER, str(tmp_path))


def sites(folder):
    return {site["client"]: site for site in json.loads(folder.sites.read_text())["sites"]}


def kept(folder, clients=("00", "01")):
    """The arrays in each client's newest file."""
    (job,) = (folder.path / "state").iterdir()
    found = {}
    for client in clients:
        files = (job / hashlib.sha256(client.encode()).hexdigest()[:32]).glob("round-*.safetensors")
        newest = max(files, key=lambda path: int(path.stem.removeprefix("round-")))
        arrays = load_file(newest)
        found[client] = tuple(arrays[str(i)] for i in range(len(arrays)))
    return found


def task_of(**keys):
    values = {key.replace("_", "-"): value for key, value in keys.items()}
    config = RunConfig.parse(values)
    return config, begin(build_task(config, local_design(config).schema), config, config.init)[0]


class Wire(InlineGrid):
    """Keeps the bytes of all messages, both ways."""

    def __init__(self, *args):
        super().__init__(*args)
        Wire.seen = []

    def _work(self, message):
        reply = super()._work(message)
        for content in (message.content, reply.content):
            Wire.seen.append(recorddict_to_proto(content).SerializeToString())
        return reply


def on_the_wire(array):
    return any(np.ascontiguousarray(array).tobytes() in content for content in Wire.seen)


# ----------------------------------------------------------------------------------------------------------- personal


def test_clients_that_name_things_differently_are_served_by_heads_of_their_own(tmp_path):
    """With one head for both, no model can be right for more than about half."""
    shared, one = run(tmp_path / "shared", **TWO, task_args="hidden=8")
    personal, own = run(tmp_path / "personal", **TWO, **HEAD)
    assert shared["metrics"]["accuracy"] < 0.7
    assert personal["metrics"]["accuracy"] > 0.9
    assert (shared["metrics_on"], personal["metrics_on"]) == ("server", "clients")
    for site in sites(own).values():
        assert site["federated"] == site["personal"]["with"]
        assert site["personal"]["with"]["accuracy"] > 0.9 > site["personal"]["without"]["accuracy"] + 0.2
    assert all("personal" not in site for site in sites(one).values())
    assert "Without its personal layers" in own.report.read_text()
    assert "Without its personal layers" not in one.report.read_text()


def test_a_client_alone_and_the_pooled_rows_are_measured_with_a_whole_model(tmp_path):
    summary, folder = run(tmp_path, **{**TWO, "baselines": True}, **HEAD)
    assert summary["baselines"]["pooled"]["accuracy"] < 0.7
    assert all(site["alone"]["accuracy"] > 0.9 for site in sites(folder).values())


@pytest.mark.parametrize("strategy", ["fedavg", "extensions:UnfoldedAvg", "scaffold"])
def test_personal_arrays_are_never_on_the_wire(tmp_path, strategy):
    keys = {**TWO, **HEAD, "strategy": strategy, "rounds": 1, "evaluate_every": 1, "finetune_epochs": 1}
    _, folder = run(tmp_path, grid=Wire, **keys)
    config, task = task_of(**TWO, **HEAD)
    start = task.initial_arrays(config.seed)
    assert all(on_the_wire(array) for array in start), "the search finds what does travel"
    assert all(on_the_wire(array) for array in load_file(folder.model).values())
    for arrays in kept(folder).values():
        weights, bias = arrays[:2]
        assert (weights.shape, bias.shape) == ((3, 8), (3,))
        for array, first in zip((weights, bias), task.personal_start, strict=True):
            assert not np.array_equal(array, first)
            assert not any(on_the_wire(a) for a in (array, first, array - first, first - array))
    assert set(load_file(folder.model)) == {"0.weight", "0.bias"}


def test_what_travels_and_is_hashed_is_the_shared_part_alone(tmp_path):
    whole, _ = run(tmp_path / "whole", **TWO, task_args="hidden=8")
    part, folder = run(tmp_path / "part", **TWO, **HEAD)
    assert part["payload_up"] < whole["payload_up"]
    about = json.loads(folder.about_model.read_text())
    names = [entry["name"] for entry in about["arrays"]]
    arrays = load_file(folder.model)
    assert about["personal"] == ["2.weight", "2.bias"]
    assert part["params_sha256"] == params_sha256(names, [arrays[name] for name in names])


@pytest.mark.parametrize("case", [HEAD, BN, {**HEAD, "strategy": "scaffold"}], ids=["head", "norm", "scaffold"])
def test_neither_nodes_nor_a_resume_nor_a_kill_change_a_bit(tmp_path, monkeypatch, case):
    keys = {**NET, **case, "data": "permuted:Permuted", "num_clients": 5, "clients_per_round": 3, "finetune_epochs": 1}

    def found(summary, folder):
        return summary["params_sha256"], summary["metrics"], sites(folder)

    whole = found(*run(tmp_path / "1", nodes=1, **keys))
    for nodes in (2, 5):
        assert found(*run(tmp_path / str(nodes), nodes=nodes, **keys)) == whole
    run(tmp_path / "short", **{**keys, "rounds": 2})
    assert found(*run(tmp_path / "short", resume=True, **keys)) == whole

    class Killed(BaseException):
        pass

    commits = []

    def commit(prepared, path):
        commits.append(path)
        if len(commits) == 4:  # that of round 3
            raise Killed
        prepared.replace(path)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "commit", commit)
        with pytest.raises(Killed):
            run(tmp_path / "killed", **keys)
    assert found(*run(tmp_path / "killed", resume=True, **keys)) == whole


def test_a_lost_reply_does_not_put_personal_arrays_out_of_step(tmp_path):
    lost = []
    keys = {**TWO, **HEAD, "min_clients": 2}
    whole, there = run(tmp_path / "whole", **keys)
    hit, here = run(tmp_path / "hit", grid=losing_a_reply(lost), **keys)
    assert lost
    assert hit["params_sha256"] == whole["params_sha256"]
    assert sites(here) == sites(there)


def test_personal_arrays_are_kept_from_round_to_round(tmp_path):
    """The tests above would prove nothing if they began anew in every round."""

    class Forgetting(InlineGrid):
        def _work(self, message):
            if message.metadata.group_id.startswith("train/3/"):
                for path in (tmp_path / "forgot" / "state").rglob("round-*.safetensors"):
                    path.unlink()
            return super()._work(message)

    good, _ = run(tmp_path / "kept", **TWO, **HEAD, nodes=1)
    forgot, _ = run(tmp_path / "forgot", **TWO, **HEAD, nodes=1, grid=Forgetting)
    assert forgot["params_sha256"] != good["params_sha256"]
    assert forgot["status"] == "completed"


def test_a_client_that_never_trained_has_its_layers_as_the_seed_draws_them(tmp_path):
    keys = {**NET, **HEAD, "data": "permuted:Permuted", "num_clients": 3, "clients_per_round": 1, "min_clients": 1}
    _, folder = run(tmp_path, **{**keys, "rounds": 1})
    found = sites(folder).values()
    assert sum(site["personal"]["with"] == site["personal"]["without"] for site in found) == 2


def test_normalisation_kept_local_has_statistics_of_its_own_at_each_client(tmp_path):
    keys = {**NET, **BN, "data": "permuted:Shifted", "num_clients": 2, "standardize": "none"}
    _, folder = run(tmp_path, **keys)
    assert set(load_file(folder.model)) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    first, second = kept(folder).values()
    _, task = task_of(**keys)
    assert task.personal_names == tuple(
        f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    )
    assert np.abs(first[2] - second[2]).max() > 0.1
    assert first[4] == second[4] > 0


def test_fine_tuning_is_measured_and_leaves_no_trace(tmp_path):
    plain, _ = run(tmp_path / "plain", **TWO, task_args="hidden=8")
    tuned, folder = run(tmp_path / "tuned", **TWO, task_args="hidden=8", finetune_epochs=5)
    assert tuned["params_sha256"] == plain["params_sha256"]
    assert tuned["metrics"] == plain["metrics"]
    for site in sites(folder).values():
        assert "auc" in site["federated"], "where the server holds the rows it says all that it did"
        assert site["finetuned"]["accuracy"] > site["federated"]["accuracy"] + 0.2
    assert "Fine-tuned, own rows" in folder.report.read_text()


def test_fine_tuning_is_for_every_task_that_trains(tmp_path):
    _, folder = run(tmp_path / "fit", finetune_epochs=2, baselines=False)
    assert all(site["finetuned"]["log_loss"] > 0 for site in sites(folder).values())


def test_a_model_whose_layers_are_with_the_clients_scores_no_new_rows(tmp_path):
    _, folder = run(tmp_path / "out", **TWO, **HEAD)
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b\n1,2\n")
    with pytest.raises(Refused, match=r"each client has 2.weight, 2.bias of its own"):
        list(Model.load(folder.about_model).predict(rows))


# ------------------------------------------------------------------------------------------------------------- frozen


def test_frozen_arrays_neither_change_nor_travel_and_are_in_the_model(tmp_path):
    keys = {**TWO, "task_args": "hidden=8 freeze=0", "seed": 3}
    summary, folder = run(tmp_path / "out", grid=Wire, **keys)
    _, task = task_of(**keys)
    about, tensors = json.loads(folder.about_model.read_text()), load_file(folder.model)
    for name, array in zip(("0.weight", "0.bias"), task.held, strict=True):
        np.testing.assert_array_equal(tensors[name], array)
        assert not on_the_wire(array)
    assert all(on_the_wire(array) for array in task.initial_arrays(3))
    assert about["frozen"]["sha256"] == params_sha256(task.frozen_names, task.held)
    assert [entry["name"] for entry in about["frozen"]["arrays"]] == ["0.weight", "0.bias"]
    assert [entry["name"] for entry in about["arrays"]] == ["2.weight", "2.bias"]
    shared = params_sha256(("2.weight", "2.bias"), (tensors["2.weight"], tensors["2.bias"]))
    assert summary["params_sha256"] == shared
    hashes = {run(tmp_path / str(n), nodes=n, **keys)[0]["params_sha256"] for n in (1, 5)}
    assert hashes == {shared}


def test_a_model_with_frozen_layers_predicts_as_it_was_measured(tmp_path):
    summary, folder = run(tmp_path / "out", **{**TWO, "num_clients": 2}, task_args="hidden=8 freeze=0", seed=3)
    model, tensors = Model.load(folder.about_model), load_file(folder.model)
    x = np.random.default_rng(0).normal(size=(5, 2))
    whole = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    whole.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    with torch.no_grad():
        expected = whole(torch.from_numpy(x).float()).softmax(dim=1).numpy()
    np.testing.assert_allclose(model.task.predict(model.arrays, x)[1], expected, atol=1e-6)
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b\n1,2\n0,-1\n")
    assert len(list(model.predict(rows))) == 2
    assert summary["metrics"]["accuracy"] > 0


def test_frozen_statistics_of_a_normalisation_layer_are_used_and_not_updated(tmp_path):
    keys = {**TWO, "task": "torch", "task_args": "model=permuted:net freeze=1"}
    summary, folder = run(tmp_path, **keys)
    assert summary["dropped"] == 0
    tensors = load_file(folder.model)
    np.testing.assert_array_equal(tensors["1.running_mean"], np.zeros(4, np.float32))
    assert tensors["1.num_batches_tracked"] == 0
    _, task = task_of(**keys)
    module = task.module(task.initial_arrays(0), torch.device("cpu")).train()
    module(torch.ones(4, 2) * 9)
    assert not module[1].running_mean.any()


# --------------------------------------------------------------------------------------------------------------- init


@pytest.fixture
def pretrained(tmp_path):
    """A whole network that was trained elsewhere, as PyTorch would save it."""
    rng = np.random.default_rng(1)
    shapes = {"0.weight": (8, 2), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "pretrained.safetensors")
    return str(tmp_path / "pretrained.safetensors"), tensors


def test_a_run_starts_from_all_tensors_of_a_module_and_keeps_the_frozen_ones(tmp_path, pretrained):
    init, tensors = pretrained
    keys = {**TWO, "task_args": "hidden=8 freeze=0", "init": init}
    summary, folder = run(tmp_path / "out", grid=Wire, **keys)
    assert (summary["status"], summary["dropped"]) == ("completed", 0)
    model = load_file(folder.model)
    np.testing.assert_array_equal(model["0.weight"], tensors["0.weight"])
    assert not np.array_equal(model["2.weight"], tensors["2.weight"])
    assert on_the_wire(tensors["2.weight"])
    assert not on_the_wire(tensors["0.weight"])
    run(tmp_path / "again", **{**keys, "init": str(folder.model)})
    run(tmp_path / "short", **{**keys, "rounds": 2})
    resumed, _ = run(tmp_path / "short", resume=True, **keys)
    assert resumed["params_sha256"] == summary["params_sha256"]


def test_personal_layers_begin_as_in_the_file_where_it_has_them(tmp_path, pretrained):
    init, tensors = pretrained
    _, task = task_of(**TWO, **HEAD, init=init)
    np.testing.assert_array_equal(task.personal_start[0], tensors["2.weight"])
    _, folder = run(tmp_path / "out", **TWO, **HEAD, init=init)
    _, task = task_of(**TWO, **HEAD, init=str(folder.model), seed=4)
    assert task.personal_start[0].shape == (3, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("2.bias"), "missing 2.bias: init="),
        (lambda t: t.pop("0.bias"), "missing 0.bias: init="),
        (lambda t: t.update(head=t["2.bias"]), "surplus head: init=.*expected 0.bias, 0.weight, 2.bias, 2.weight"),
        (lambda t: t.update({"0.weight": t["2.weight"]}), r"0.weight of shape \(3, 8\).*expected shape \(8, 2\)"),
        (lambda t: t.update({"0.bias": t["0.bias"].astype(np.float64)}), "0.bias of shape .* dtype float64.*float32"),
        (lambda t: t.update({"2.bias": t["2.bias"] * np.nan}), "2.bias holds values that are not finite"),
    ],
    ids=["missing", "half of the frozen ones", "surplus", "shape", "dtype", "nan"],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_naming_the_array(tmp_path, pretrained, change, message):
    init, tensors = pretrained
    change(tensors)
    save_file(tensors, init)
    with pytest.raises(Refused, match=message):
        run(tmp_path / "out", **TWO, task_args="hidden=8 freeze=0", init=init)


def test_a_file_of_numbers_that_numpy_lacks_is_refused(tmp_path, pretrained):
    from safetensors.torch import save_file as save_torch

    init, tensors = pretrained
    save_torch({name: torch.from_numpy(array).bfloat16() for name, array in tensors.items()}, init)
    with pytest.raises(Refused, match=r"cannot read the initial params: init=.*32- or 64-bit"):
        run(tmp_path / "out", **TWO, task_args="hidden=8", init=init)


def test_counters_may_be_the_integers_that_pytorch_saves(tmp_path):
    from safetensors.torch import save_file as save_torch

    init = tmp_path / "net.safetensors"
    save_torch(net(2, 3).state_dict(), init)
    summary, _ = run(tmp_path / "out", **{**TWO, "task": "torch"}, task_args="model=permuted:net", init=str(init))
    assert summary["status"] == "completed"


def test_a_site_takes_the_frozen_arrays_from_its_own_file_or_says_which_it_needs(tmp_path, pretrained, monkeypatch):
    """At a site no path that the run names is opened."""
    init, _ = pretrained
    values = {**TWO, "task_args": "hidden=8 freeze=0", "init": init}
    config, task = task_of(**values)
    common = Common("job", False, local_design(config), held_sha256=held_sha256(task))

    def site(**node_config):
        node = {"partition-id": 0, "num-partitions": 1, "state": str(tmp_path / "state"), **node_config}
        content = Common.of(dict(ConfigRecord(common.values())))
        return Site.of(Context(1, 1, node, RecordDict(), config.values()), content)

    assert held_sha256(site().task) == held_sha256(task)
    monkeypatch.delenv(CALLER)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with pytest.raises(Refused, match=f"0.weight, 0.bias do not travel.*init={init}.*{held_sha256(task)}.*node-config"):
        site()
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((tmp_path / "pretrained.safetensors").read_bytes())
    assert held_sha256(site(init=str(copy)).task) == held_sha256(task)
    other = tmp_path / "other.safetensors"
    save_file({**load_file(copy), "0.bias": np.ones(8, np.float32)}, other)
    with pytest.raises(Refused, match="are others here"):
        site(init=str(other))


def test_a_run_whose_nodes_lack_the_file_trains_nobody_and_says_why_in_the_log(
    tmp_path, pretrained, monkeypatch, caplog
):
    init, _ = pretrained
    monkeypatch.delenv(CALLER)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with pytest.raises(TooFewClients):
        run(tmp_path / "out", **TWO, task_args="hidden=8 freeze=0", init=init)
    assert f"init={init}" in caplog.text
