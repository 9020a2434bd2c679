"""What a run leaves behind: everything that INTERFACE.md promises, and a hash that anybody can recompute."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import load_file

from fl_app import __version__
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.results import Ending, finish
from fl_app.run_folder import RunFolder
from fl_app.tensors import params_sha256
from tasks.data.design import Design

Make = Callable[..., Any]

SUMMARY = {
    "schema", "status", "stop_reason", "error", "rounds", "clients", "client_updates", "dropped", "metrics_on",
    "metrics", "baselines", "bytes_up", "bytes_down", "payload_up", "payload_down", "seconds", "params_sha256",
    "privacy", "resumed_from", "config", "versions", "out",
}  # fmt: skip
LINE = {
    "round", "metrics", "train_metrics", "expected_clients", "good", "dropped", "bytes_up", "bytes_down",
    "payload_up", "payload_down", "seconds", "epsilon", "clipped",
}  # fmt: skip
MODEL = {
    "schema", "rounds", "task", "task_args", "arrays", "features", "label", "classes", "standardize", "missing",
    "config_sha256", "coefficients", "coefficients_note",
}  # fmt: skip
STRATEGIES = ["fedavg", "fedsgd", "fednewton"]


def strict(text: str) -> Any:
    """JSON without the constants that only Python has."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def recomputed(folder: Path) -> str:
    """params_sha256 by INTERFACE.md, from the two files of the model alone."""
    arrays, digest = load_file(folder / "model.safetensors"), hashlib.sha256()
    for entry in strict((folder / "model.json").read_text())["arrays"]:
        array = arrays.pop(entry["name"])
        assert (array.dtype.str, list(array.shape)) == (entry["dtype"], entry["shape"])
        digest.update(entry["name"].encode() + b"\0" + entry["dtype"].encode() + b"\0")
        digest.update(json.dumps(entry["shape"]).encode() + b"\0" + array.tobytes(order="C"))
    assert not arrays
    return digest.hexdigest()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_hash_of_the_params_can_be_recomputed_from_the_model_files(serve: Make, strategy: str) -> None:
    run = serve(strategy=strategy)
    assert run.summary["params_sha256"] == recomputed(run.folder.path)


arrays = st.lists(
    npst.arrays(st.sampled_from([np.float64, np.float32, np.int64]), npst.array_shapes(min_dims=0, min_side=0)),
    min_size=1,
    max_size=4,
)


@given(arrays)
def test_the_hash_does_not_depend_on_the_layout_in_memory(params: list[np.ndarray]) -> None:
    names = [f"array {i}" for i in range(len(params))]
    digest = params_sha256(names, tuple(params))
    assert params_sha256(names, tuple(np.array(array, order="F") for array in params)) == digest
    assert params_sha256(names, tuple(array.astype(array.dtype.newbyteorder(">")) for array in params)) == digest


@given(arrays, st.data())
def test_the_hash_changes_with_any_bit_name_shape_or_dtype(params: list[np.ndarray], data: st.DataObject) -> None:
    names = [f"array {i}" for i in range(len(params))]
    index = data.draw(st.integers(0, len(params) - 1))
    array = np.ascontiguousarray(params[index]).reshape(params[index].shape)
    others = [array[np.newaxis], array.astype(np.complex128)]
    if array.size:
        flipped = bytearray(array.tobytes())
        flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        others.append(np.frombuffer(bytes(flipped), array.dtype).reshape(array.shape))
    digests = {params_sha256(names, (*params[:index], other, *params[index + 1 :])) for other in others}
    digests |= {params_sha256([*names[:-1], "other"], tuple(params)), params_sha256(names, tuple(params))}
    assert len(digests) == len(others) + 2


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("data", ["synthetic", "breast-cancer"])
def test_the_files_hold_exactly_what_the_interface_says(serve: Make, strategy: str, data: str) -> None:
    data_args = "features=3 examples=30" if data == "synthetic" else ""
    run = serve(strategy=strategy, data=data, data_args=data_args)
    summary = strict(run.folder.summary.read_text())
    assert summary == run.summary
    assert set(summary) == SUMMARY
    assert set(summary["seconds"]) == {"startup", "rounds", "total"}
    assert set(summary["versions"]) == {"app", "flwr", "numpy", "torch", "python"}
    assert summary["versions"]["app"] == __version__
    assert set(summary["config"]) == set(RunConfig().values())
    lines = [strict(line) for line in run.folder.rounds.read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert set(line) >= LINE
        assert set(line["seconds"]) == {"send", "wait", "fold", "evaluate", "checkpoint", "total"}
    model = strict(run.folder.about_model.read_text())
    assert set(model) == MODEL
    assert model["rounds"] == 3
    assert all(set(feature) == {"name", "kind", "mean", "scale"} for feature in model["features"])
    assert set(strict(run.folder.sites.read_text())) == {"schema", "metric", "sites", "left_out"}
    assert run.folder.report.exists()


@pytest.mark.parametrize(
    ("data", "metrics_on", "names"),
    [
        ("synthetic", "clients", {"accuracy", "log_loss", "brier"}),
        ("breast-cancer", "server", {"accuracy", "log_loss", "brier", "auc"}),
    ],
)
def test_the_summary_adds_up_the_rounds_and_ends_with_the_last_ones_metrics(
    serve: Make, data: str, metrics_on: str, names: set[str]
) -> None:
    run = serve(data=data, data_args="", num_clients=5, rounds=4)
    lines = [strict(line) for line in run.folder.rounds.read_text().splitlines()]
    for key in ("bytes_up", "bytes_down", "payload_up", "payload_down"):
        assert run.summary[key] == sum(line[key] for line in lines) > 0
    assert run.summary["client_updates"] == sum(line["good"] for line in lines) == 20
    assert run.summary["dropped"] == 0
    assert run.summary["clients"] == 5
    assert run.summary["metrics"] == lines[-1]["metrics"]
    assert set(run.summary["metrics"]) == names
    assert run.summary["metrics_on"] == metrics_on
    assert run.summary["seconds"]["total"] == pytest.approx(
        run.summary["seconds"]["startup"] + sum(line["seconds"]["total"] for line in lines)
    )


def test_the_model_file_tells_the_columns_their_scaling_and_the_classes(serve: Make) -> None:
    run = serve(data="breast-cancer", data_args="")
    model = strict(run.folder.about_model.read_text())
    checkpoint = Checkpoint.read(run.folder.checkpoint)
    assert Design.from_json(model) == checkpoint.design
    assert all(feature["mean"] is not None and feature["scale"] > 0 for feature in model["features"])
    assert (model["standardize"], model["missing"]) == ("global", "error")
    assert model["features"][0]["name"] == "mean radius"
    assert (model["label"], model["classes"]) == ("diagnosis", ["benign", "malignant"])
    assert model["config_sha256"] == checkpoint.config.sha256()


def test_the_model_file_tells_categories_and_where_cells_may_be_missing(serve: Make) -> None:
    run = serve(data="extensions:Mixed", data_args="missing=indicator", standardize="local")
    model = strict(run.folder.about_model.read_text())
    assert Design.from_json(model) == Checkpoint.read(run.folder.checkpoint).design
    assert [feature["kind"] for feature in model["features"]] == ["number", "number", "boolean", "category"]
    assert model["features"][3] == {
        "name": "place", "kind": "category", "categories": ["ICU", "at home", "ward"], "indicator": True,
    }  # fmt: skip
    assert all(feature["indicator"] and feature["mean"] is not None for feature in model["features"][:3])


@pytest.mark.parametrize("standardize", ["local", "none"])
def test_without_global_statistics_the_model_file_names_none(serve: Make, standardize: str) -> None:
    features = strict(serve(standardize=standardize).folder.about_model.read_text())["features"]
    assert {(feature["mean"], feature["scale"]) for feature in features} == {(None, None)}


def test_a_metric_that_is_not_finite_is_null(serve: Make) -> None:
    """With one row a client there are no test rows: every mean over them is 0/0."""
    run = serve(data_args="features=3 examples=1", standardize="none", rounds=1)
    assert strict(run.folder.summary.read_text())["metrics"] == {"accuracy": None, "log_loss": None, "brier": None}


def test_a_run_that_fails_leaves_the_last_good_model_and_says_why(serve: Make, tmp_path: Path) -> None:
    def stop(line: Any) -> None:
        if line["round"] == 2:
            raise RuntimeError("no more")

    two = serve("two", rounds=2)
    with pytest.raises(RuntimeError, match="no more"):
        serve("failed", rounds=5, on_line=stop)
    summary = strict((tmp_path / "failed/summary.json").read_text())
    assert (summary["status"], summary["stop_reason"], summary["error"]) == ("failed", "error", "RuntimeError: no more")
    assert summary["rounds"] == 2
    assert summary["params_sha256"] == recomputed(tmp_path / "failed") == two.summary["params_sha256"]


def test_an_error_of_several_lines_is_one_line_in_the_summary(serve: Make, tmp_path: Path) -> None:
    def stop(line: Any) -> None:
        raise RuntimeError("first\nsecond")

    with pytest.raises(RuntimeError):
        serve("failed", on_line=stop)
    error = strict((tmp_path / "failed/summary.json").read_text())["error"]
    assert "first" in error
    assert len(error.splitlines()) == 1


def test_a_run_without_a_checkpoint_has_no_model_and_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    summary = finish(folder, RunConfig(), Ending("failed", "too-few-clients", "0 of 10"))
    assert summary == strict(folder.summary.read_text())
    assert set(summary) == SUMMARY
    none = ("params_sha256", "metrics", "metrics_on", "resumed_from", "baselines", "privacy")
    assert [summary[key] for key in none] == [None] * 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "summary.json"]


def test_writing_the_results_again_changes_the_ending_and_forgets_what_is_not_found_anew(serve: Make) -> None:
    run = serve()
    kept = ("model.safetensors", "checkpoint.safetensors", "rounds.jsonl", "sites.json")
    before = {name: (run.folder.path / name).read_bytes() for name in kept}
    again = finish(run.folder, RunConfig(), Ending("stopped", "interrupted"))
    assert again == {**run.summary, "status": "stopped", "stop_reason": "interrupted", "baselines": None}
    assert {name: (run.folder.path / name).read_bytes() for name in kept} == before


def test_params_of_no_finite_value_still_give_json(serve: Make) -> None:
    run = serve()
    checkpoint = Checkpoint.read(run.folder.checkpoint)
    state = replace(checkpoint.state, params=tuple(np.full_like(a, math.nan) for a in checkpoint.state.params))
    Checkpoint.commit(replace(checkpoint, state=state).prepare(run.folder.checkpoint), run.folder.checkpoint)
    summary = finish(run.folder, RunConfig(), Ending("failed", "error", "x"))
    assert summary["params_sha256"] == recomputed(run.folder.path)
