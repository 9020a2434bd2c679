"""PyTorch tasks against plain PyTorch, and what of a module travels."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_models import Tied, small_net

from tasks.base import Rows, Schema, Shard
from tasks.cnn import CnnTask
from tasks.mlp import MlpTask
from tasks.own_torch import OwnTorchTask
from tasks.torch_layout import Layout, matching, tensors, to_array, write_tensor
from tasks.torch_task import choose_device

CLASSES = Schema(("a", "b", "c"), "y", ("no", "yes", "maybe"))
TWO = Schema(("a", "b", "c"), "y", ("no", "yes"))
NUMBER = Schema(("a", "b", "c"), "y", (), shift=10.0, scale=2.0)
CONFIG = {
    "work": "train", "round": 1, "solver": "sgd", "local-epochs": 3, "local-steps": 0, "batch-size": 7,
    "learning-rate": 0.1, "l1": 0.0, "l2": 0.0, "seed": 5, "metrics": False,
}  # fmt: skip


def rows(schema=CLASSES, n=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(schema.features)))
    return Rows(x, rng.integers(len(schema.classes), size=n) if schema.classes else rng.normal(size=n))


def client(task, own=None):
    own = own or rows(task.schema)
    return task.make_client(Shard("00", own, rows(task.schema, 10, seed=1)))


def fit(task, own=None, **changes):
    start = list(task.initial_arrays(0))
    return client(task, own).fit(start, {**CONFIG, **changes})[0]


# ------------------------------------------------------------------------------------------- equal to plain PyTorch


def plain(module, own, *, seed, epochs, size, optimizer, loss):
    """Mini-batches in the order that the seed gives, and nothing else."""
    x = torch.tensor(own.x, dtype=torch.float32)
    y = torch.tensor(own.y, dtype=torch.int64 if own.y.dtype.kind == "i" else torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for part in order.split(size):
            optimizer.zero_grad()
            loss(module(x[part]), y[part]).backward()
            optimizer.step()
    return [parameter.detach().numpy() for parameter in module.parameters()]


OPTIMIZERS = {
    "sgd": ({}, {"solver": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": ({"momentum": 0.9}, {}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "nesterov": (
        {"momentum": 0.9, "nesterov": True}, {}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "l2": ({}, {"l2": 0.05}, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.05)),
    "adam": ({}, {"solver": "adam"}, lambda p: torch.optim.Adam(p, lr=0.1)),
    "adamw": ({}, {"solver": "adamw", "l2": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_client_trains_as_plain_pytorch_does_with_the_same_batches(name):
    options, changes, optimizer = OPTIMIZERS[name]
    task = MlpTask(CLASSES, hidden="5", **options)
    module = task.build()
    task.layout.write(module, task.initial_arrays(0))
    expected = plain(
        module, rows(), seed=5, epochs=3, size=7, optimizer=optimizer(module.parameters()),
        loss=nn.functional.cross_entropy,
    )  # fmt: skip
    for ours, theirs in zip(fit(task, **changes), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


WITHOUT_COMPILER = """
import sys
from test_torch_tasks import CLASSES, MlpTask, fit
for solver in ("sgd", "adam", "adamw"):
    fit(MlpTask(CLASSES), solver=solver)
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("solver", ["sgd", "adam", "adamw"])
def test_how_parameters_lie_in_memory_changes_nothing(solver):
    weights = [fit(own(net), solver=solver, l2=0.1) for net in ("in_rows", "in_other_orders")]
    for expected, found in zip(*weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_sparse_gradients_train_as_dense_ones_do():
    (dense,), (sparse,) = fit(own("dense_table")), fit(own("sparse_table"))
    np.testing.assert_allclose(sparse, dense, rtol=1e-6, atol=1e-7)


def test_training_does_not_import_the_compiler_which_takes_a_new_process_as_long_as_pytorch():
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_label_that_is_a_number_is_trained_by_half_the_squared_error():
    task = MlpTask(NUMBER, hidden="")
    module = task.build()
    task.layout.write(module, task.initial_arrays(0))
    expected = plain(
        module, rows(NUMBER), seed=5, epochs=3, size=7, optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        loss=lambda z, y: ((z[:, 0] - y) ** 2).mean() / 2,
    )  # fmt: skip
    for ours, theirs in zip(fit(task), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_gd_is_one_step_an_epoch_on_all_rows():
    whole = fit(MlpTask(CLASSES), solver="gd", **{"local-epochs": 2})
    steps = fit(MlpTask(CLASSES), **{"local-steps": 2, "batch-size": 0})
    for a, b in zip(whole, steps, strict=True):
        np.testing.assert_array_equal(a, b)


def test_l1_and_a_clipped_gradient_do_what_they_say():
    start = MlpTask(CLASSES).initial_arrays(0)
    one = {"local-steps": 1, "batch-size": 0}
    clipped = fit(MlpTask(CLASSES, gradient_clip=0.01), **one)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(clipped, start, strict=True)))
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-4)
    free, penalised = fit(MlpTask(CLASSES), **one), fit(MlpTask(CLASSES), l1=0.5, **one)
    for a, b, w in zip(penalised, free, start, strict=True):
        np.testing.assert_allclose(a, b - 0.1 * 0.5 * np.sign(w), atol=1e-6)


# --------------------------------------------------------------------------------------------------- what travels


def test_the_cnn_of_mcmahan_et_al_has_their_number_of_parameters():
    task = CnnTask(
        Schema(tuple(f"p{i}" for i in range(784)), "digit", tuple("0123456789")), channels="32,64", hidden=512
    )
    assert sum(array.size for array in task.initial_arrays(0)) == 1_663_370


def test_the_weights_come_from_the_seed_and_leave_torchs_own_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1).item()
    torch.manual_seed(1)
    first, again, other = (MlpTask(CLASSES).initial_arrays(seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.rand(1).item() == expected


def test_buffers_counters_and_bfloat16_travel_and_come_back_as_they_were():
    module = small_net(3, 2).to(torch.bfloat16)
    module[1].num_batches_tracked.fill_(7)
    layout = Layout.of(module)
    arrays = layout.read(module)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32), np.dtype(np.float64)}
    assert arrays[layout.names.index("1.num_batches_tracked")].shape == ()
    copy = small_net(3, 2).to(torch.bfloat16)
    layout.write(copy, arrays)
    for (_, a), (_, b) in zip(tensors(module), tensors(copy), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@given(st.floats(-100, 100))
def test_a_mean_of_counters_is_rounded(value):
    counter = torch.tensor(0)
    write_tensor(counter, np.array(value))
    assert abs(counter.item() - value) <= 0.5
    assert to_array(counter).dtype == np.float64


def test_tied_weights_travel_once_and_stay_tied():
    module = Tied(3, 2)
    names = Layout.of(module).names
    assert "inner.weight" in names
    assert "again.weight" not in names
    Layout.of(module).write(module, tuple(array + 1 for array in Layout.of(module).read(module)))
    assert module.again.weight is module.inner.weight


def test_frozen_layers_stay_as_they_began_and_do_not_travel():
    free, frozen = MlpTask(CLASSES, hidden="4"), MlpTask(CLASSES, hidden="4", freeze="0.*")
    assert frozen.array_names == ("2.weight", "2.bias")
    assert free.array_names == ("0.weight", "0.bias", "2.weight", "2.bias")
    arrays = fit(frozen)
    module = frozen.module(tuple(arrays), torch.device("cpu"))
    np.testing.assert_array_equal(to_array(module[0].weight), free.initial_arrays(0)[0])


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [("0", ("0.weight", "0.bias")), ("*.bias", ("0.bias", "2.bias")), ("0, 2.bias", ("0.weight", "0.bias", "2.bias"))],
)
def test_patterns_name_tensors_and_layers(patterns, chosen):
    assert matching(patterns, ("0.weight", "0.bias", "2.weight", "2.bias"), "freeze") == chosen


# --------------------------------------------------------------------------------------------------------- refusals


def own(model, **options):
    return OwnTorchTask(CLASSES, model=f"torch_models:{model}", **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: own("nothing"), "model=torch_models:nothing: expected module:function .AttributeError"),
        (lambda: own("no_module"), "the model is of type int: return a torch.nn.Module"),
        (lambda: own("other_words"), "model=torch_models:other_words: TypeError: .*called with features and outputs"),
        (lambda: own("one_output"), r"the model gives \(2, 1\) for two rows, label 'y' needs \(2, 3\)"),
        (lambda: own("small_net", loss="hinge"), "loss=hinge: expected cross_entropy"),
        (lambda: own("small_net", loss="squared_error"), "the label 'y' has classes: leave loss out"),
        (lambda: own("small_net", freeze="head"), "freeze=head matches nothing: unknown name 'head'"),
        (lambda: own("small_net", freeze="*"), "leaves nothing to train"),
        (lambda: own("small_net", personal="0", freeze="1,3"), "leaves nothing to train together"),
        (lambda: own("small_net", personal="head"), "personal=head matches nothing: unknown name 'head'"),
        (lambda: own("small_net", personal="3", freeze="*.bias"), "3.bias is frozen and personal"),
        (lambda: MlpTask(CLASSES, batch_norm="local"), "batch-norm=local: the model has no batch normalisation"),
        (lambda: MlpTask(CLASSES, hidden="4,x"), "hidden='4,x': expected whole numbers"),
        (lambda: MlpTask(CLASSES, dropout=1.0), "dropout=1.0: expected"),
        (lambda: MlpTask(CLASSES, momentum=1.5), "momentum=1.5"),
        (lambda: MlpTask(CLASSES, nesterov=True), "nesterov=true without momentum"),
        (lambda: CnnTask(CLASSES), "a row has 3 features, an image of 1 x 1 x 1"),
        (lambda: CnnTask(CLASSES, shape="1,3"), "shape=1,3: expected 3 whole numbers"),
        (lambda: MlpTask(Schema(("a",), "y", ("one",))), "has one class, 'one'"),
        (lambda: choose_device("cuda:7"), "device=cuda:7 is not there: this machine has cpu"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "lbfgs"}, "solver 'lbfgs' is not for PyTorch models: choose one of sgd, gd, adam, adamw"),
        ({"work": "curvature"}, "work 'curvature' is not for PyTorch models"),
    ],
)
def test_a_config_that_clients_would_refuse_is_refused_before(changes, message):
    with pytest.raises(ValueError, match=message):
        MlpTask(CLASSES).check_config({**CONFIG, **changes})


def test_training_that_diverges_names_its_learning_rate():
    with pytest.raises(ArithmeticError, match="learning-rate=1e\\+30: lower it"):
        fit(MlpTask(NUMBER), **{"learning-rate": 1e30})


def test_predictions_are_those_of_the_outputs():
    for schema in (TWO, CLASSES):
        task = MlpTask(schema)
        arrays = task.initial_arrays(0)
        module = task.module(arrays, torch.device("cpu")).eval()
        with torch.no_grad():
            expected = module(torch.tensor(rows(schema).x, dtype=torch.float32)).softmax(dim=1).numpy()
        predicted, probabilities = task.predict(arrays, rows(schema).x)
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
        np.testing.assert_array_equal(predicted, expected.argmax(axis=1))
    values, nothing = MlpTask(NUMBER, hidden="").predict(
        (np.zeros((1, 3), np.float32), np.ones(1, np.float32)), np.zeros((2, 3))
    )
    assert nothing is None
    np.testing.assert_allclose(values, [12.0, 12.0])


# ------------------------------------------------------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    ("gpus", "name", "chosen"), [(0, "auto", "cpu"), (2, "auto", "cuda:0"), (2, "cuda:1", "cuda:1")]
)
def test_auto_is_the_first_gpu_that_the_process_sees(monkeypatch, gpus, name, chosen):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device(name) == torch.device(chosen)


def test_a_gpu_that_is_not_there_is_refused_with_what_is_and_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match=r"device=cuda:1 is not there: this machine has cpu, cuda:0$"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"this machine has cpu \(PyTorch is built without CUDA\)$"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
@pytest.mark.parametrize("task", [MlpTask(CLASSES, hidden="8"), MlpTask(NUMBER, hidden="8")])
def test_a_gpu_trains_the_model_of_the_cpu_but_for_rounding(task):
    torch.cuda.reset_peak_memory_stats()
    there = fit(task, device="auto")
    assert torch.cuda.max_memory_allocated() > 0
    for gpu, cpu in zip(there, fit(task, device="cpu"), strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-3, atol=1e-5)


def test_half_a_name_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "half_named.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("half_named", "half_named:", ":make"):
        with pytest.raises(ValueError, match="expected module:function"):
            OwnTorchTask(CLASSES, model=name)
    assert "half_named" not in sys.modules
