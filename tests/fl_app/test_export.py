"""fl-app export: the file scores raw columns as predict does, and what does not is never kept."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hospitals import Row, hospitals, patients, read_json, trained, with_gaps, write_csv
from onnx import numpy_helper
from runs import contents

from fl_app import onnx_check, onnx_export
from fl_app.assembly import open_data
from fl_app.model import Model
from tasks.generalized_linear import GeneralizedLinearTask
from tasks.torch_task import TorchTask

Call = Callable[..., Any]

OWN = '''
import numpy as np
import torch
from torch import nn

from tasks.base import Task
from tasks.logistic import LogisticTask


class Block(nn.Module):
    """No chain of layers: it adds what it computes to what it got."""

    def __init__(self, features, outputs):
        super().__init__()
        self.norm, self.batch = nn.LayerNorm(features), nn.BatchNorm1d(features)
        self.body, self.head = nn.Linear(features, features), nn.Linear(features, outputs)

    def forward(self, x):
        return self.head(self.batch(nn.functional.gelu(self.body(self.norm(x))) + x))


def chain(features, outputs):
    return nn.Sequential(
        nn.Sequential(nn.Linear(features, 8, bias=False), nn.ReLU(inplace=True)), nn.Dropout(0.5), nn.Linear(8, outputs)
    )


class Shrunk(nn.Linear):
    """A Linear that is none."""

    def forward(self, x):
        return super().forward(x).tanh()


def subclass(features, outputs):
    return nn.Sequential(Shrunk(features, 8), nn.ReLU(), nn.Linear(8, outputs))


def hooked(features, outputs):
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(features, 8)), nn.ReLU(), nn.Linear(8, outputs))


def strided(features, outputs):
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, (3, 2), stride=2, dilation=2), nn.ReLU(),
        nn.Conv2d(4, 4, 2, padding=1, groups=2, bias=False), nn.MaxPool2d((2, 1), stride=1), nn.Flatten(),
        nn.Linear(32, outputs),
    )


class Branching(nn.Module):
    """Traced on zeros it takes the one branch, and rows take the other."""

    def __init__(self, features, outputs):
        super().__init__()
        self.layer = nn.Linear(features, outputs)

    def forward(self, x):
        return self.layer(x) if float(x.detach().abs().sum()) == 0 else self.layer(-x)


class Sparse(nn.Module):
    """Of an operator that ONNX does not have."""

    def __init__(self, features, outputs):
        super().__init__()
        self.layer = nn.Linear(features, outputs)

    def forward(self, x):
        return self.layer(x + torch.special.bessel_j0(x))


class Doubled(LogisticTask):
    """A task of one's own, in one file."""

    def outputs(self, arrays, x):
        return 2 * super().outputs(arrays, x)

    def add_to_graph(self, arrays, graph, rows):
        return graph.add("Mul", super().add_to_graph(arrays, graph, rows), np.array(2.0))


class Silent(LogisticTask):
    """One that says nothing of graphs."""

    add_to_graph = Task.add_to_graph
'''


@pytest.fixture
def rows(caller: Path) -> dict[str, list[Row]]:
    """Four hospitals' files in data/, and new patients in new.csv."""
    write_csv(caller / "new.csv", patients(30, 77))
    return hospitals(caller / "data", rows=60)


@pytest.fixture
def own(caller: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with nets and tasks of one's own."""
    (caller / "own_for_export.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(caller))
    yield "own_for_export"
    sys.modules.pop("own_for_export", None)


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Each command is one of a process of its own, which has no file in memory."""
    yield
    open_data.cache_clear()


def bundled(fl_app: Call, **keys: Any) -> Path:
    """The folder of a run on data that come with scikit-learn."""
    pairs = [word for key, value in keys.items() for word in ("-c", f"{key.replace('_', '-')}={value}")]
    outcome = fl_app("run", "--engine", "inline", "-c", "rounds=2", "-c", "baselines=false", "--out", "out", *pairs)
    assert outcome.status == 0, outcome.err
    return Path("out").resolve()


def scores(path: str | Path, x: np.ndarray) -> list[np.ndarray]:
    """[probabilities, prediction] or [prediction] as any program would ask for them."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"features": x}))


def by_hand(path: Path, file: Path, *, missing: str = "") -> np.ndarray:
    """The columns that the ONNX file names, made of the cells of a CSV file without this project: raw, and 0 and 1."""
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    categories = {column["name"]: column.get("categories") for column in json.loads(properties["columns"])}
    with file.open(newline="") as lines:
        table = list(csv.DictReader(lines))

    def cell(row: Row, name: str) -> float:
        column, _, category = name.removesuffix(" is missing").partition("=")
        value = row[column]
        if name.endswith(" is missing"):
            return float(value == "")
        if category == "other":
            return float(value not in categories[column] and not (value == "" and missing == "indicator"))
        return float(value == category) if category else float({"true": "1", "false": "0", "": "nan"}.get(value, value))

    return np.array([[cell(row, name) for name in json.loads(properties["features"])] for row in table])


def predicted(fl_app: Call, out: Path, file: str) -> tuple[list[str], np.ndarray]:
    """What predict says: the predictions, and the probabilities of all classes."""
    outcome = fl_app("predict", out, file)
    assert outcome.status == 0, outcome.err
    _, *lines = csv.reader(outcome.out.splitlines())
    return [line[0] for line in lines], np.array([[float(cell) for cell in line[1:]] for line in lines])


# -------------------------------------------------------------------------------------------------- what is written

MLP = {"task": "mlp", "task_args": "hidden=8 dropout=0.2", "l2": 0.0}


@pytest.mark.parametrize(
    ("label", "keys", "within"),
    [
        ("outcome", {}, 1e-12),
        ("stage", {}, 1e-12),
        ("outcome", {"standardize": "none", "learning_rate": 1e-4}, 1e-12),
        ("age", {"task": "linear"}, 1e-12),
        ("outcome", MLP, 1e-5),
        ("stage", MLP, 1e-5),
        ("age", {**MLP, "task_args": "hidden=8 predicts=number"}, 1e-5),
        ("outcome", {**MLP, "task_args": "hidden=8 freeze=0"}, 1e-5),
    ],
    ids=["two classes", "three classes", "unscaled", "linear", "mlp of 2", "mlp of 3", "mlp of a number", "frozen"],
)
def test_the_file_scores_raw_columns_as_predict_does(
    fl_app: Call, caller: Path, rows: Any, label: str, keys: dict[str, Any], within: float
) -> None:
    out = trained(fl_app, data_args=f"path=data label={label}", **keys)
    done = fl_app("export", out, "--onnx", "m.onnx", "--check", "new.csv")
    assert (done.status, done.err) == (0, "")
    features = [c for t in Model.load(out).design.terms for c in t.columns]
    kind = "1 number" if label == "age" else f"{3 if label == 'stage' else 2} classes"
    assert done.out.startswith(f"m.onnx: {len(features)} features -> {kind}, agrees with fl-app on 30 rows to ")
    names, expected = predicted(fl_app, out, "new.csv")
    given = scores("m.onnx", by_hand(Path("m.onnx"), Path("new.csv")))
    if label == "age":
        (numbers,) = given
        np.testing.assert_allclose(numbers, np.array(names, dtype=float), rtol=within)
        return
    probabilities, prediction = given
    assert (probabilities.dtype, prediction.dtype) == (np.float64, np.int64)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=within)
    assert [read_json(out / "model.json")["classes"][k] for k in prediction] == names


@pytest.mark.parametrize("missing", ["mean", "indicator"])
def test_missing_numbers_are_filled_as_in_training(fl_app: Call, caller: Path, rows: Any, missing: str) -> None:
    for k, (client, own_rows) in enumerate(rows.items()):
        write_csv(caller / "data" / f"{client}.csv", with_gaps(own_rows, ("age", "smoker", "stage"), k))
    write_csv(caller / "new.csv", with_gaps(patients(30, 77), ("age", "dose", "smoker", "stage"), 5, share=0.3))
    out = trained(fl_app, data_args=f"path=data label=outcome missing={missing}")
    for words in ([], ["--check", "new.csv"]):
        done = fl_app("export", out, "--onnx", f"{len(words)}.onnx", *words)
        assert done.status == 0, done.err
    given = by_hand(Path("2.onnx"), Path("new.csv"), missing=missing)
    assert np.isnan(given).any()
    np.testing.assert_allclose(scores("2.onnx", given)[0], predicted(fl_app, out, "new.csv")[1], rtol=0, atol=1e-12)


def test_a_missing_number_gives_nan_where_the_model_has_no_mean_for_it(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app)
    fl_app("export", out, "--onnx", "m.onnx")
    given = by_hand(Path("m.onnx"), Path("new.csv"))
    given[3, 0] = np.nan
    probabilities, _ = scores("m.onnx", given)
    assert np.isnan(probabilities).all(axis=1).tolist() == [row == 3 for row in range(30)]


@pytest.mark.parametrize("task_args", ["channels=4,8 hidden=16", "shape=1,4,16 channels=4,8 hidden=16"])
def test_a_convolutional_network_scores_images_as_predict_does(fl_app: Call, caller: Path, task_args: str) -> None:
    out = bundled(fl_app, task="cnn", task_args=task_args, data="digits", l2=0)
    done = fl_app("export", out / "model.json", "--onnx", "m.onnx")
    assert done.out.startswith("m.onnx: 64 features -> 10 classes, agrees with fl-app on 256 rows to ")
    names = [term["name"] for term in read_json(out / "model.json")["features"]]
    images = np.random.default_rng(1).integers(17, size=(40, 64)).astype(float)
    lines = [",".join(names), *(",".join(map(str, image)) for image in images)]
    Path("images.csv").write_text("\n".join(lines) + "\n")
    expected, probabilities = predicted(fl_app, out, "images.csv")
    given, prediction = scores("m.onnx", images)
    np.testing.assert_allclose(given, probabilities, rtol=0, atol=1e-5)
    assert [str(k) for k in prediction] == expected
    assert [node.op_type for node in onnx.load("m.onnx").graph.node].count("Conv") == 2


def test_the_file_says_what_it_is(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app, **MLP)
    fl_app("export", out, "--onnx", "m.onnx")
    written = onnx.load("m.onnx")
    assert {entry.key: entry.value for entry in written.metadata_props} == {
        "task": "mlp",
        "task_args": "hidden=8 dropout=0.2",
        "features": '["age", "dose", "smoker", "stage=II", "stage=III", "stage=other"]',
        "columns": json.dumps(read_json(out / "model.json")["features"]),
        "label": "outcome",
        "classes": '["alive", "dead"]',
        "params_sha256": read_json(out / "summary.json")["params_sha256"],
    }
    assert [entry.name for entry in written.graph.input] == ["features"]
    assert [entry.name for entry in written.graph.output] == ["probabilities", "prediction"]


def test_the_same_model_gives_the_same_file(fl_app: Call, rows: Any) -> None:
    out = trained(fl_app)
    for name in ("a.onnx", "b.onnx"):
        fl_app("export", out, "--onnx", name)
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


# ------------------------------------------------------------------------------------------------- what is not kept


@pytest.mark.parametrize("check", [[], ["--check", "new.csv"]], ids=["random rows", "a file"])
@pytest.mark.parametrize(
    ("base", "keys", "factor"),
    [
        (GeneralizedLinearTask, {}, 1 + 1e-7),
        (GeneralizedLinearTask, {"task": "linear", "data_args": "path=data label=age"}, 1 + 1e-7),
        (TorchTask, MLP, 1 + 1e-3),
        (TorchTask, MLP, np.nan),
    ],
    ids=["logistic", "linear", "mlp", "nan"],
)
def test_a_graph_that_scores_otherwise_is_not_kept(
    fl_app: Call, monkeypatch: pytest.MonkeyPatch, rows: Any, base: Any, keys: Any, factor: float, check: list[str]
) -> None:
    out = trained(fl_app, **keys)
    right = base.add_to_graph

    def wrong(self: Any, arrays: Any, graph: Any, rows: str) -> str:
        given = right(self, arrays, graph, rows)
        return str(graph.add("Mul", given, np.array(factor, arrays[0].dtype)))

    monkeypatch.setattr(base, "add_to_graph", wrong)
    before = contents(Path())
    done = fl_app("export", out, "--onnx", "m.onnx", *check)
    assert (done.status, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert done.err.startswith("error: the ONNX model does not score as fl-app does: --onnx m.onnx: on ")
    assert contents(Path()) == before


@pytest.mark.parametrize(
    ("label", "task", "count"), [("outcome", "logistic", 5), ("age", "linear", 7)], ids=["classes", "a number"]
)
def test_every_constant_of_the_file_counts(
    fl_app: Call, caller: Path, rows: Any, label: str, task: str, count: int
) -> None:
    """One that is a millionth off, and the file does not pass: the filling, mean and scale of columns, weights and
    intercept, and the label's two."""
    for k, (client, own_rows) in enumerate(rows.items()):
        write_csv(caller / "data" / f"{client}.csv", with_gaps(own_rows, ("dose", "stage"), k))
    model = Model.load(trained(fl_app, data_args=f"path=data label={label} missing=mean", task=task))
    written, table = onnx_export.onnx_model(model), onnx_check.random_table(model.design)
    assert onnx_check.agreement(model, written.SerializeToString(), table).holds
    constants = [c for c in written.graph.initializer if numpy_helper.to_array(c).dtype == np.float64]
    assert len(constants) == count
    for number, constant in enumerate(constants):
        tampered = onnx.ModelProto.FromString(written.SerializeToString())
        (same,) = [c for c in tampered.graph.initializer if c.name == constant.name]
        same.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * (1 + 1e-6), constant.name))
        assert not onnx_check.agreement(model, tampered.SerializeToString(), table).holds, number


@pytest.mark.parametrize("missing", ["error", "mean"])
def test_random_rows_are_like_those_of_the_training(fl_app: Call, caller: Path, rows: Any, missing: str) -> None:
    design = Model.load(trained(fl_app, data_args=f"path=data label=outcome missing={missing}")).design
    table = onnx_check.random_table(design)
    age, dose, smoker, stage = table.x.T
    for cells, term in zip((age, dose), design.terms, strict=False):
        off = (cells - term.mean) / term.scale
        assert 2.5 < np.nanmax(off) < 3
        assert -3 < np.nanmin(off) < -2.5
    known = ~np.isnan(smoker), ~np.isnan(stage)
    assert set(smoker[known[0]]) == {0, 1}
    assert {table.columns.features[3].levels[int(code)] for code in stage[known[1]]} == {"I", "II", "III", "IIIIII?"}
    assert np.isnan(table.x).mean() == pytest.approx(0.1 if missing == "mean" else 0, abs=0.02)


def test_another_class_than_predicted_does_not_pass(fl_app: Call, rows: Any) -> None:
    model = Model.load(trained(fl_app))
    written, table = onnx_export.onnx_model(model), onnx_check.random_table(model.design)
    (chosen,) = [node for node in written.graph.node if node.op_type == "ArgMax"]
    chosen.op_type = "ArgMin"
    assert not onnx_check.agreement(model, written.SerializeToString(), table).holds


# ------------------------------------------------------------------------------------------------ models of one's own


@pytest.mark.parametrize(("make", "traced"), [("chain", False), ("Block", True), ("subclass", True), ("hooked", True)])
@pytest.mark.parametrize("label", ["outcome", "stage", "age"])
def test_a_module_of_ones_own_is_written_or_traced(
    fl_app: Call, caller: Path, rows: Any, own: str, make: str, traced: bool, label: str
) -> None:
    args = f"model={own}:{make}" + (" predicts=number" if label == "age" else "")
    out = trained(fl_app, data_args=f"path=data label={label}", task="torch", task_args=args, l2=0.0)
    done = fl_app("export", out, "--onnx", "m.onnx")
    assert done.status == 0, done.err
    assert any("traced" in node.name for node in onnx.load("m.onnx").graph.node) == traced
    expected, probabilities = predicted(fl_app, out, "new.csv")
    given = scores("m.onnx", by_hand(Path("m.onnx"), Path("new.csv")))
    if label == "age":
        np.testing.assert_allclose(given[0], np.array(expected, dtype=float), rtol=1e-5)
    else:
        np.testing.assert_allclose(given[0], probabilities, rtol=0, atol=1e-5)


def test_convolutions_of_ones_own_keep_their_options(fl_app: Call, own: str) -> None:
    out = bundled(fl_app, task="torch", task_args=f"model={own}:strided", data="digits", l2=0)
    done = fl_app("export", out, "--onnx", "m.onnx")
    assert done.status == 0, done.err
    assert not any("traced" in node.name for node in onnx.load("m.onnx").graph.node)


def test_a_module_that_was_traced_along_the_wrong_branch_is_not_kept(fl_app: Call, rows: Any, own: str) -> None:
    out = trained(fl_app, task="torch", task_args=f"model={own}:Branching", l2=0.0)
    done = fl_app("export", out, "--onnx", "m.onnx")
    assert done.status == 1
    assert "does not score as fl-app does" in done.err
    assert not Path("m.onnx").exists()


def test_a_task_of_ones_own_writes_its_operators(fl_app: Call, caller: Path, rows: Any, own: str) -> None:
    out = trained(fl_app, task=f"{own}:Doubled")
    done = fl_app("export", out, "--onnx", "m.onnx")
    assert done.status == 0, done.err
    given = scores("m.onnx", by_hand(Path("m.onnx"), Path("new.csv")))[0]
    np.testing.assert_allclose(given, predicted(fl_app, out, "new.csv")[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("task", "args", "said"),
    [
        ("torch", "model={own}:Sparse", "torch.onnx.export cannot write Sparse (UnsupportedOperatorError: "),
        ("{own}:Silent", "", "Silent defines no add_to_graph; docs/models.md says"),
        ("mlp", "precision=bfloat16", "precision=bfloat16 has no operators here; its parameters are float32: take"),
    ],
)
def test_what_has_no_operators_is_told(
    fl_app: Call, caller: Path, rows: Any, own: str, task: str, args: str, said: str
) -> None:
    l2 = 0.01 if "Silent" in task else 0.0
    out = trained(fl_app, task=task.format(own=own), task_args=args.format(own=own), l2=l2)
    before = contents(caller)
    told = fl_app("export", out, "--onnx", "m.onnx").refusal()
    assert told.startswith(f"error: the model cannot be exported: task={task.format(own=own)}: ")
    assert said in told
    assert contents(caller) == before


def test_what_predict_refuses_is_not_exported(fl_app: Call, caller: Path, rows: Any) -> None:
    personal = trained(fl_app, "personal", task="mlp", task_args="hidden=8 personal=2", l2=0.0)
    told = fl_app("export", personal, "--onnx", "m.onnx").refusal()
    assert "each client has 2.weight, 2.bias of its own: task-args=hidden=8 personal=2: the file holds what" in told
    local = trained(fl_app, "local", standardize="local")
    told = fl_app("export", local, "--onnx", "m.onnx").refusal()
    assert "scaled by statistics of its own: standardize=local: train with standardize=global to export" in told
    assert not Path("m.onnx").exists()


# ------------------------------------------------------------------------------------------------------- the command


def test_no_file_is_written_over_and_no_folder(fl_app: Call, caller: Path, rows: Any) -> None:
    out = trained(fl_app)
    (caller / "there.onnx").write_text("mine")
    (caller / "dangling.onnx").symlink_to("nowhere")
    before = contents(caller / "data"), contents(out)
    for target, said in (
        ("there.onnx", "this file is there already: --onnx there.onnx: remove it, or choose another name"),
        ("dangling.onnx", "this file is there already"),
        ("new.csv", "this file is there already"),
        ("out/model.json", "this file is there already"),
        (".", "this is a directory: --onnx .: name a file in it"),
        ("no/such/folder.onnx", "cannot write: --onnx no/such/folder.onnx: No such file or directory: choose another"),
    ):
        assert said in fl_app("export", out, "--onnx", target).refusal()
    assert (caller / "there.onnx").read_text() == "mine"
    assert (contents(caller / "data"), contents(out)) == before


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_extra_is_told_in_one_line(
    fl_app: Call, rows: Any, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    out = trained(fl_app)
    monkeypatch.setitem(sys.modules, package, None)
    told = fl_app("export", out, "--onnx", "m.onnx").refusal()
    assert told == f'error: {package} cannot be imported: fl-app export: pip install "fl-app[onnx]"'
    assert not Path("m.onnx").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--check", "nowhere.csv"], "the rows cannot be scored: nowhere.csv: "),
        (["--check", "short.csv"], "column 'stage' is absent: the model needs each column that it was trained on"),
        (["--check", "new.csv", "--delimiter", "comna"], "as delimiter, got 'comna'"),
    ],
)
def test_rows_that_cannot_be_scored_are_told(
    fl_app: Call, caller: Path, rows: Any, words: list[str], said: str
) -> None:
    out = trained(fl_app)
    (caller / "short.csv").write_text("age,dose,smoker\n60,1,true\n")
    assert said in fl_app("export", out, "--onnx", "m.onnx", *words).refusal()
    assert not (caller / "m.onnx").exists()


def test_without_a_name_for_the_file_or_a_model_nothing_happens(fl_app: Call, rows: Any) -> None:
    assert "--onnx" in fl_app("export", "out").refusal()
    assert "cannot read the model: nowhere" in fl_app("export", "nowhere", "--onnx", "m.onnx").refusal()


def test_nothing_but_an_export_imports_onnx() -> None:
    code = (
        "import sys, fl_app.cli, tasks.cnn, tasks.mlp, tasks.own_torch, tasks.logistic, tasks.linear;"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'onnx', 'onnxruntime'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
