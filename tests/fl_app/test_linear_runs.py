"""Whole runs that predict a number, or read NumPy's, MNIST's and other people's data: the pooled model comes out."""

import csv
import json
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hospitals import read_json, trained, words
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from tasks.data.bundled import Diabetes, Digits
from tasks.data.table import Table

Call = Callable[..., Any]
Array = NDArray[Any]

LEAST_SQUARES = {"task": "linear", "strategy": "fednewton", "rounds": 1, "l2": 0.0, "test_fraction": 0.0}


def run(fl_app: Call, out: str = "out", **keys: Any) -> Path:
    """A run on the inline engine, and its folder."""
    pairs = [word for key, value in keys.items() for word in ("-c", f"{key.replace('_', '-')}={value}")]
    outcome = fl_app("run", "--engine", "inline", *pairs, "--out", out)
    assert outcome.status == 0, outcome.err
    return Path(out).resolve()


def refused(fl_app: Call, **keys: Any) -> str:
    pairs = [word for key, value in keys.items() for word in ("-c", f"{key.replace('_', '-')}={value}")]
    said: str = fl_app("run", "--engine", "inline", *pairs).refusal()
    return said


def values(out: Path, key: str) -> Array:
    return np.array([row[key] for row in read_json(out / "model.json")["coefficients"]], float)


def as_csv(path: Path, table: Table, rows: slice = slice(None)) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*table.columns.names, table.columns.label])
        for x, y in zip(table.x[rows].tolist(), table.y[rows].tolist(), strict=True):
            writer.writerow([*map(repr, x), repr(y)])
    return path


@pytest.fixture
def diabetes(caller: Path) -> Table:
    """Four hospitals' files in data/, of different sizes."""
    table = Diabetes().table()
    for name, start, stop in (("a", 0, 60), ("b", 60, 200), ("c", 200, 220), ("d", 220, 442)):
        as_csv(caller / "data" / f"{name}.csv", table, slice(start, stop))
    return table


# ----------------------------------------------------------------------------------------------------- the pooled model


@pytest.mark.parametrize("standardize", ["global", "none"])
def test_one_round_of_fednewton_gives_the_coefficients_of_statsmodels_on_the_pooled_rows(
    fl_app: Call, diabetes: Table, standardize: str
) -> None:
    out = trained(fl_app, data_args="path=data label=progression", standardize=standardize, **LEAST_SQUARES)
    fitted = sm.OLS(diabetes.y, sm.add_constant(diabetes.x)).fit()
    np.testing.assert_allclose(values(out, "coefficient"), fitted.params, rtol=1e-6)
    np.testing.assert_allclose(values(out, "standard_error"), fitted.bse, rtol=1e-6)
    bounds = np.column_stack([values(out, "low"), values(out, "high")])
    np.testing.assert_allclose(bounds, fitted.conf_int(), rtol=1e-5)
    assert np.isnan(values(out, "odds_ratio")).all()
    assert "optimum" not in read_json(out / "model.json")["coefficients_note"]


def test_ridge_is_that_of_scikit_learn_whatever_the_solver_and_rounds(fl_app: Call, diabetes: Table) -> None:
    keys = {"task": "linear", "data_args": "path=data label=progression", "l2": 0.2, "test_fraction": 0.0}
    exact = trained(fl_app, "newton", strategy="fednewton", rounds=2, **keys)
    gradient = {"strategy": "fedsgd", "learning_rate": 0.45, "rounds": 110, "baselines": "false"}
    slow = trained(fl_app, "slow", **gradient, **keys)
    about = read_json(exact / "model.json")
    shift, scale = (np.array([f[key] for f in about["features"]]) for key in ("mean", "scale"))
    scaled, unit = (diabetes.x - shift) / scale, about["label_scale"]
    ridge = Ridge(alpha=0.2 * 442).fit(scaled, (diabetes.y - about["label_mean"]) / unit)
    np.testing.assert_allclose(values(exact, "coefficient")[1:], ridge.coef_ / scale * unit, rtol=1e-7)
    np.testing.assert_allclose(values(slow, "coefficient"), values(exact, "coefficient"), rtol=1e-3)


def test_the_label_is_scaled_by_the_moments_of_those_who_told_them(fl_app: Call, diabetes: Table) -> None:
    out = trained(fl_app, data_args="path=data label=progression", min_examples=25, **LEAST_SQUARES)
    told = np.delete(diabetes.y, slice(200, 220))  # c has fewer than min-examples rows
    about = read_json(out / "model.json")
    assert about["classes"] == []
    assert (about["label_mean"], about["label_scale"]) == (pytest.approx(told.mean()), pytest.approx(told.std()))


def test_fedavg_comes_near_the_pooled_model_and_says_what_federating_was_worth(fl_app: Call, caller: Path) -> None:
    out = run(fl_app, task="linear", data="diabetes", num_clients=5, rounds=20, learning_rate=0.02)
    summary = read_json(out / "summary.json")
    assert list(summary["metrics"]) == ["r2", "mse", "mae"]
    assert summary["metrics"]["r2"] > summary["baselines"]["pooled"]["r2"] - 0.02
    assert summary["metrics"]["r2"] > 0.4
    assert summary["baselines"]["local_worst"]["r2"] < summary["baselines"]["local_best"]["r2"]
    assert "R\N{SUPERSCRIPT TWO}" in (out / "report.html").read_text(encoding="utf-8")
    assert read_json(out / "sites.json")["metric"] == "r2"


def test_two_parties_with_ten_random_features_learn_the_law_that_made_them(fl_app: Call, caller: Path) -> None:
    keys = {"task": "linear", "data": "synthetic", "data_args": "features=10 examples=2000", "num_clients": 2}
    out = run(fl_app, **keys, strategy="fednewton", rounds=1, l2=0.0)
    summary = read_json(out / "summary.json")
    assert summary["clients"] == 2
    assert summary["metrics"]["mse"] == pytest.approx(0.25, rel=0.15)  # noise=0.5
    assert np.linalg.norm(values(out, "coefficient")[1:]) == pytest.approx(2.0, abs=0.05)  # separation
    assert values(out, "coefficient")[0] == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "fedadam", "fedsgd"])
def test_every_strategy_lowers_the_loss_of_a_linear_model(fl_app: Call, caller: Path, strategy: str) -> None:
    keys = {"task": "linear", "data": "synthetic", "data_args": "features=4 examples=60 feature-shift=0.5"}
    out = run(fl_app, **keys, strategy=strategy, rounds=12, evaluate_every=1, num_clients=4, learning_rate=0.05)
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert rounds[-1]["metrics"]["mse"] < rounds[0]["metrics"]["mse"]


def test_the_result_does_not_depend_on_how_many_nodes_there_are(fl_app: Call, caller: Path) -> None:
    hashes = set()
    for nodes in (1, 2, 3):
        keys = ["task=linear", "data=diabetes", "num-clients=4", "rounds=3", "partition=dirichlet"]
        pairs = [word for pair in keys for word in ("-c", pair)]
        outcome = fl_app("run", "--engine", "inline", *pairs, "--nodes", nodes, "--out", f"out{nodes}")
        assert outcome.status == 0, outcome.err
        hashes.add(read_json(Path(f"out{nodes}") / "summary.json")["params_sha256"])
    assert len(hashes) == 1


# ----------------------------------------------------------------------------------------- show, predict, check, stop


def test_predictions_are_those_of_the_shown_coefficients_in_the_labels_units(
    fl_app: Call, caller: Path, diabetes: Table
) -> None:
    out = trained(fl_app, data_args="path=data label=progression", **LEAST_SQUARES)
    rows = as_csv(caller / "new.csv", diabetes, slice(0, 50))
    scored = fl_app("predict", out, rows).out.splitlines()
    shown = json.loads(fl_app("show", out, "--json").out)["coefficients"]
    weights = np.array([row["coefficient"] for row in shown])
    assert scored[0] == "prediction"
    np.testing.assert_allclose([float(line) for line in scored[1:]], sm.add_constant(diabetes.x)[:50] @ weights)
    said = fl_app("show", out).out
    assert said.splitlines()[0] == "progression"
    assert "std. error" in said
    assert "odds" not in said.lower()


def test_a_model_of_a_file_whose_label_was_not_scaled_predicts_alike(
    fl_app: Call, caller: Path, diabetes: Table
) -> None:
    rows = as_csv(caller / "new.csv", diabetes, slice(0, 20))
    outs = [
        trained(fl_app, how, data_args="path=data label=progression", standardize=how, **LEAST_SQUARES)
        for how in ("global", "none")
    ]
    scaled, plain = ([float(line) for line in fl_app("predict", out, rows).out.splitlines()[1:]] for out in outs)
    np.testing.assert_allclose(scaled, plain, rtol=1e-6)
    assert "label_mean" not in read_json(outs[1] / "model.json")


def test_check_says_that_the_mean_of_the_label_would_be_told(fl_app: Call, diabetes: Table) -> None:
    data = ["--data", "data/a.csv", "--label", "progression", "-c", "task=linear"]
    said = fl_app("check", *data)
    assert said.status == 0, said.err
    assert "label progression: a number" in said.out
    assert "the count, mean and variance of each number, the label too" in " ".join(said.out.split())
    local = fl_app("check", *data, "-c", "standardize=local").out
    assert "the count, mean and variance of the label" in " ".join(local.split())
    assert "no statistics of numbers" in " ".join(fl_app("check", *data, "-c", "standardize=none").out.split())


@pytest.mark.parametrize(
    ("stop", "args", "reason"),
    [
        ("converged", "tolerance=0.01 rounds=2", "converged"),
        ("converged", "tolerance=0.01 rounds=2 loss=mae", "converged"),
        ("patience", "rounds=2 min-delta=1000000", "patience"),
        ("patience", "rounds=2 metric=r2 min-delta=1", "patience"),
        ("target", "value=0.2", "target"),
        ("target", "metric=mse value=1e6", "target"),
    ],
)
def test_stop_rules_read_the_loss_and_the_metric_that_the_task_reports(
    fl_app: Call, caller: Path, stop: str, args: str, reason: str
) -> None:
    keys = {"task": "linear", "data": "diabetes", "num_clients": 3, "rounds": 40, "learning_rate": 0.02}
    out = run(fl_app, **keys, stop=stop, stop_args=args, evaluate_every=1)
    assert read_json(out / "summary.json")["stop_reason"] == reason


def test_metrics_of_classes_and_labels_of_the_other_kind_are_refused(fl_app: Call, caller: Path) -> None:
    linear = {"task": "linear", "data": "diabetes"}
    assert "unknown metric 'log_loss'" in refused(fl_app, **linear, stop="converged", stop_args="loss=log_loss")
    assert "needs a label that is a number" in refused(fl_app, task="linear", data="breast-cancer")
    assert "needs a label with at least 2 classes" in refused(fl_app, data="diabetes")
    assert "stop=patience reads a metric" in refused(fl_app, **linear, stop="patience", test_fraction=0)


@pytest.mark.parametrize("cell", ["", "nan", "inf", "n/a", "1e31"])
def test_a_label_that_is_no_number_is_refused_before_the_run(
    fl_app: Call, caller: Path, diabetes: Table, cell: str
) -> None:
    path = caller / "data" / "b.csv"
    lines = path.read_text().splitlines()
    lines[3] = ",".join([*lines[3].split(",")[:-1], cell])
    path.write_text("\n".join(lines))
    outcome = fl_app(*words(data_args="path=data label=progression", task="linear"))
    assert "progression" in outcome.refusal()


# ------------------------------------------------------------------------------------------------------------ sources


def test_an_npz_file_gives_the_pooled_model_of_scikit_learn(fl_app: Call, caller: Path) -> None:
    table = Digits().table()
    x, y = table.x[table.y < 3], table.y[table.y < 3]
    images = x.reshape(-1, 8, 8).astype(np.uint8)
    np.savez(caller / "digits.npz", x=images[:300], y=y[:300], xt=images[300:], yt=y[300:])
    keys = {"data": "npz", "data_args": "path=digits.npz test-x=xt test-y=yt", "standardize": "none"}
    out = run(fl_app, **keys, num_clients=4, strategy="fednewton", rounds=12, l2=0.1)
    reference = LogisticRegression(C=10 / 300, tol=1e-9, max_iter=5000).fit(x[:300], y[:300])
    summary = read_json(out / "summary.json")
    assert summary["metrics"]["accuracy"] == reference.score(x[300:], y[300:])
    probabilities = reference.predict_proba(x[300:])
    assert summary["metrics"]["log_loss"] == pytest.approx(log_loss(y[300:], probabilities), rel=1e-5)
    assert summary["metrics_on"] == "server"


def test_idx_files_give_the_same_run_as_the_npz_file_of_the_same_arrays(fl_app: Call, caller: Path) -> None:
    table = Digits().table()
    images, labels = table.x[:600].astype(np.uint8).reshape(-1, 8, 8), table.y[:600].astype(np.uint8)
    np.savez_compressed(caller / "digits.npz", x=images, y=labels)
    (caller / "mnist").mkdir()
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (caller / "mnist" / name).write_bytes(head + array.tobytes())
    hashes = [
        read_json(run(fl_app, data, data=data, data_args=args, num_clients=3, rounds=2) / "summary.json")
        for data, args in (("npz", "path=digits.npz"), ("idx", "path=mnist"))
    ]
    assert hashes[0]["metrics"] == hashes[1]["metrics"]
    assert hashes[0]["params_sha256"] == hashes[1]["params_sha256"]


def test_a_hostile_npz_file_ends_in_one_line(fl_app: Call, caller: Path) -> None:
    np.savez(caller / "bad.npz", x=np.array([{}, {}], dtype=object), y=np.arange(2))
    said = refused(fl_app, data="npz", data_args="path=bad.npz")
    assert "bad.npz: array 'x': it holds pickled Python objects, which are never loaded" in said
    np.savez(caller / "nan.npz", x=np.array([[1.0], [np.nan]]), y=np.arange(2))
    assert "row 1 has nan in column 0" in refused(fl_app, data="npz", data_args="path=nan.npz")
    assert "bad.npz: this is no idx file" in refused(fl_app, data="idx", data_args="images=bad.npz labels=bad.npz")


@pytest.fixture
def own_module(caller: Path) -> Mapping[str, Any]:
    """A module of the caller's, with a loader of three clients."""
    (caller / "my_loader.py").write_text(
        "import numpy as np\n"
        "class Clients:\n"
        "    num_partitions = 3\n"
        "    def load_partition(self, i):\n"
        "        rng = np.random.default_rng(i)\n"
        "        x = rng.normal(size=(80, 2))\n"
        "        return {'size': x[:, 0], 'age': x[:, 1], 'price': 3 * x[:, 0] - x[:, 1] + 10}\n"
        "def make():\n"
        "    return Clients()\n"
    )
    yield {"data": "loader", "data_args": "factory=my_loader:make label=price", "task": "linear"}
    sys.modules.pop("my_loader", None)
    if str(caller) in sys.path:
        sys.path.remove(str(caller))


def test_an_object_with_load_partition_from_the_callers_folder_is_data(fl_app: Call, own_module: Any) -> None:
    out = run(fl_app, **own_module, strategy="fednewton", rounds=1, l2=0.0)
    assert read_json(out / "summary.json")["clients"] == 3
    np.testing.assert_allclose(values(out, "coefficient"), [10, 3, -1], rtol=1e-9)


@pytest.mark.parametrize(
    ("partition", "args"), [("rotation", ""), ("rotation", "angles=-15,0,15"), ("noise", "level=2")]
)
def test_features_that_differ_between_clients_make_another_problem_of_the_same_rows(
    fl_app: Call, caller: Path, partition: str, args: str
) -> None:
    keys = {"data": "digits", "num_clients": 4, "rounds": 2, "baselines": "false"}
    plain = read_json(run(fl_app, "plain", **keys) / "summary.json")
    shifted = read_json(run(fl_app, "shifted", **keys, partition=partition, partition_args=args) / "summary.json")
    again = read_json(run(fl_app, "again", **keys, partition=partition, partition_args=args) / "summary.json")
    assert shifted["metrics"]["accuracy"] < plain["metrics"]["accuracy"] - 0.01
    assert shifted["params_sha256"] == again["params_sha256"]
