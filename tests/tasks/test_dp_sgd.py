"""DP-SGD inside a client: what is clipped, what is drawn, and what a step is. The oracles are loops and Opacus."""

import random
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from privacy.entropy import Entropy
from tasks.base import Rows, Schema, Shard
from tasks.cnn import CnnTask
from tasks.dp_sgd import RecordPrivacy, poisson
from tasks.families import Bernoulli, Categorical, Gaussian
from tasks.fit_config import FitConfig
from tasks.linear import LinearTask
from tasks.linear_dp_sgd import clipped_sum
from tasks.logistic import LogisticTask
from tasks.mlp import MlpTask
from tasks.objective import Objective
from tasks.own_torch import OwnTorchTask
from tasks.torch_dp_sgd import normals
from tasks.torch_per_example import PerExample, layers_of

TWO = Schema(("a", "b", "c"), "y", ("no", "yes"))
THREE = Schema(("a", "b", "c"), "y", ("no", "yes", "maybe"))
NUMBER = Schema(("a", "b", "c"), "y", ())
PIXELS = Schema(tuple(f"pixel{i}" for i in range(16)), "y", ("no", "yes", "maybe"))
CONFIG = {
    "solver": "sgd", "local-epochs": 1, "local-steps": 3, "batch-size": 4, "learning-rate": 0.1,
    "l1": 0.0, "l2": 0.0, "seed": 5,
}  # fmt: skip
RECORD = {"record-clip-norm": 1.0, "record-noise-multiplier": 1.0, "record-rate": 0.5}
WHOLE = {"record-clip-norm": 1e6, "record-noise-multiplier": 0.0, "record-rate": 1.0}
CPU = torch.device("cpu")


class Seeded(Entropy):
    """Words that can be drawn again, and how many were."""

    def __init__(self, seed=0):
        self.rng, self.drawn = np.random.default_rng(seed), 0

    def words(self, count):
        self.drawn += count
        return self.rng.integers(2**64, size=count, dtype=np.uint64)


def rows(schema, n=30, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(len(schema.classes), size=n) if schema.classes else rng.normal(size=n)
    return Rows(rng.normal(size=(n, len(schema.features))), y)


TASKS = {
    "logistic": lambda **args: LogisticTask(TWO, **args),
    "softmax": lambda **args: LogisticTask(THREE, **args),
    "linear": lambda **args: LinearTask(NUMBER, **args),
    "mlp": lambda **args: MlpTask(THREE, hidden="5", **args),
    "mlp of numbers": lambda **args: MlpTask(NUMBER, hidden="5", **args),
    "cnn": lambda **args: CnnTask(PIXELS, channels="2,3", hidden=5, **args),
    "own": lambda **args: OwnTorchTask(THREE, model="torch_models:plain_net", **args),
}
EVERY_TASK = pytest.mark.parametrize("name", TASKS)


def fit(task, config, own=None, entropy=None, start=None):
    own = own or rows(task.schema)
    if entropy is not None:
        task.entropy = entropy
    start = task.initial_arrays(0) if start is None else start
    return task.make_client(Shard("00", own, own)).fit(list(start), {**CONFIG, **config})[0]


def flat(arrays):
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])


# -------------------------------------------------------------------------------------- clipped sums of linear models

FAMILIES = pytest.mark.parametrize("family", [Bernoulli(), Categorical(3), Gaussian()], ids=str)


def problem(family, n=12, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n) if family.estimates_variance else rng.integers(max(2, family.outputs), size=n)
    x = rng.normal(size=(n, 4)) * rng.lognormal(sigma=2, size=(n, 1))
    return Objective(family, x, family.targets(y), 0.0, 0.0), rng.normal(size=family.outputs * 5)


def one_by_one(objective, theta, clip_norm):
    total = np.zeros_like(theta)
    for i in range(len(objective.x)):
        alone = Objective(objective.family, objective.x[[i]], objective.targets[[i]], 0.0, 0.0)
        gradient = alone.gradient(theta)
        total += gradient * min(1.0, clip_norm / max(np.linalg.norm(gradient), 1e-300))
    return total


@FAMILIES
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e9])
def test_the_closed_form_is_the_sum_of_the_clipped_gradients_of_each_row(family, clip_norm):
    objective, theta = problem(family)
    ours = clipped_sum(objective, theta, np.arange(12), clip_norm)
    np.testing.assert_allclose(ours, one_by_one(objective, theta, clip_norm), rtol=1e-12, atol=1e-12)


@FAMILIES
def test_a_row_of_a_linear_model_without_a_finite_gradient_adds_nothing(family):
    objective, theta = problem(family)
    expected = clipped_sum(objective, theta, np.arange(3, 12), 1.0)
    for row, bad in enumerate((np.nan, np.inf, 1e200)):
        objective.x[row] = bad
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(clipped_sum(objective, theta, np.arange(12), 1.0), expected, rtol=1e-12)


def test_a_gradient_of_zero_stays_zero():
    objective = Objective(Gaussian(), np.ones((3, 2)), np.zeros((3, 1)), 0.0, 0.0)
    np.testing.assert_array_equal(clipped_sum(objective, np.zeros(3), np.arange(3), 1.0), np.zeros(3))


@FAMILIES
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1e-6, 1.0, 1e6, 1e150]),
    clip_norm=st.sampled_from([0.1, 1, 50]),
)
@settings(max_examples=50)
def test_no_row_moves_the_sum_of_a_linear_model_by_more_than_the_clip(family, seed, size, clip_norm):
    objective, theta = problem(family, seed=seed)
    objective.x[0] *= size
    with np.errstate(all="ignore"):
        with_it, without = (clipped_sum(objective, theta, np.arange(first, 12), clip_norm) for first in (0, 1))
    assert np.linalg.norm(with_it - without) <= clip_norm * (1 + 1e-9)


# ------------------------------------------------------------------------------------------ clipped sums of modules


class Residual(nn.Module):
    """Layers that no `Sequential` holds."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.embed(x)
        return self.out(self.norm(hidden.tanh()) + hidden)


class MixesRows(nn.Module):
    """Takes the mean of the batch away."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(x - x.mean(0))


def grouped():
    return nn.Sequential(nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(6, 3))


def sequence():
    return nn.Sequential(nn.Unflatten(1, (4, 4)), nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3))


def strided():
    conv = nn.Conv2d(1, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False)
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), conv, nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 3, bias=False))


MODULES = {
    "linear": lambda: nn.Linear(16, 3),
    "mlp": lambda: nn.Sequential(
        nn.Linear(16, 7), nn.ReLU(), nn.Sequential(nn.Linear(7, 5), nn.GELU()), nn.Linear(5, 3)
    ),
    "cnn": lambda: CnnTask(PIXELS, channels="2,3", hidden=5).build(),
    "strided": strided,
    "sequence": sequence,
    "grouped": grouped,
    "residual": Residual,
}
EVERY_MODULE = pytest.mark.parametrize("name", MODULES)
BY_LAYERS = ("linear", "mlp", "cnn", "strided", "sequence")


def built(name, seed=0, n=20):
    torch.manual_seed(seed)
    x, y = torch.randn(n, 16) * torch.logspace(-2, 2, n)[:, None], torch.randint(3, (n,))
    return MODULES[name]().train(), x, y


def sums(module, x, y, clip_norm, loss=functional.cross_entropy, **options):
    return PerExample(
        module, loss, nullcontext, **{"mean_of_rows": loss is functional.cross_entropy, **options}
    ).clipped_sum(x, y, clip_norm)


def by_function(module, x, y, clip_norm):
    per_example = PerExample(module, functional.cross_entropy, nullcontext)
    per_example._layers = None
    return per_example.clipped_sum(x, y, clip_norm)


def row_by_row(module, x, y, clip_norm):
    trained = [p for p in module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in trained]
    for i in range(len(x)):
        gradients = torch.autograd.grad(functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1]), trained)
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        shrink = min(1.0, clip_norm / max(float(norm), 1e-30))
        total = [whole + g * shrink for whole, g in zip(total, gradients, strict=True)]
    return total


def close(ours, theirs, atol=1e-5):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


@EVERY_MODULE
@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 1e9])
def test_the_clipped_sum_is_that_of_a_loop_over_the_rows(name, clip_norm):
    module, x, y = built(name)
    close(sums(module, x, y, clip_norm), row_by_row(module, x, y, clip_norm), atol=1e-5 * min(clip_norm, 20))


@pytest.mark.parametrize("name", BY_LAYERS)
@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 1e9])
def test_both_ways_give_the_same_sum(name, clip_norm):
    module, x, y = built(name)
    close(sums(module, x, y, clip_norm), by_function(module, x, y, clip_norm), atol=1e-5 * min(clip_norm, 20))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "sequence"])
@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 100.0])
def test_the_clipped_sum_is_that_of_opacus(name, clip_norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer
    module, x, y = built(name)
    ours = sums(module, x, y, clip_norm)
    theirs = GradSampleModule(module, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(theirs.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=clip_norm,
        expected_batch_size=1, loss_reduction="sum",
    )  # fmt: skip
    functional.cross_entropy(theirs(x), y, reduction="sum").backward()
    optimizer.clip_and_accumulate()
    close(ours, [p.summed_grad for p in theirs.parameters()])


def test_which_way_is_taken_follows_from_the_types_of_the_modules():
    shared = nn.Linear(3, 3)
    again = nn.Linear(3, 3)
    again.weight = shared.weight
    hooked = nn.Sequential(nn.Linear(3, 3))
    hooked.register_forward_hook(lambda module, inputs, output: output - output.mean(0))
    for module in (
        nn.Sequential(shared, nn.ReLU(), shared), nn.Sequential(shared, again), nn.Sequential(shared, nn.LayerNorm(3)),
        nn.Sequential(shared, nn.ReLU(inplace=True)), nn.Sequential(shared, nn.Softmax(dim=0)), grouped(), Residual(),
        nn.Sequential(shared, nn.Flatten(0)), nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), hooked,
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    ):  # fmt: skip
        assert layers_of(module) is None
    assert all(layers_of(MODULES[name]()) for name in BY_LAYERS)
    assert layers_of(nn.Sequential(shared, nn.Dropout(0.5), nn.MaxPool2d(2)))


def test_a_layer_that_is_used_twice_is_clipped_with_both_uses():
    torch.manual_seed(0)
    layer, x, y = nn.Linear(16, 16), torch.randn(6, 16), torch.randint(16, (6,))
    module = nn.Sequential(layer, nn.Tanh(), layer)
    sums(module, x, y, 0.5)
    assert type(layer.weight) is nn.Parameter
    close(sums(module, x, y, 0.5), row_by_row(module, x, y, 0.5))


def test_a_module_that_mixes_rows_sees_one_at_a_time():
    module, x, y = MixesRows(), *built("mlp")[1:]
    ours = sums(module, x, y, 1e9)
    assert not ours[0].any()  # a row less its own mean is zero
    assert ours[1].any()


@EVERY_MODULE
def test_a_row_of_a_module_without_a_finite_gradient_adds_nothing(name):
    module, x, y = built(name)
    expected = sums(module, x[3:], y[3:], 1.0)
    x[0], x[1, 3], x[2] = np.nan, np.inf, -np.inf
    close(sums(module, x, y, 1.0), expected)
    for total in sums(module, x[:3], y[:3], 1.0):
        assert not total.any()


@EVERY_MODULE
def test_a_batch_without_rows_has_a_sum_of_zeros(name):
    module, x, y = built(name)
    totals = sums(module, x[:0], y[:0], 1.0)
    assert [t.shape for t in totals] == [p.shape for p in module.parameters()]
    assert not any(t.any() for t in totals)


@EVERY_MODULE
def test_gradients_of_zero_stay_zero_and_a_huge_clip_changes_nothing(name):
    module, x, y = built(name)
    for total in sums(module, x, y, 1.0, loss=lambda outputs, targets: 0 * outputs.sum()):
        assert not total.any()
    close(sums(module, x, y, 1e300), sums(module, x, y, 1e9))


@EVERY_MODULE
def test_no_row_moves_the_sum_of_a_module_by_more_than_the_clip(name):
    module, x, y = built(name)
    for size in (1e-3, 1.0, 1e3, 1e6):
        for clip_norm in (0.01, 1.0):
            x[0] = torch.randn(16).sign() * size
            with_it, without = (sums(module, x[i:], y[i:], clip_norm) for i in (0, 1))
            moved = torch.sqrt(sum((a - b).double().square().sum() for a, b in zip(with_it, without, strict=True)))
            assert moved <= clip_norm * 1.001


@pytest.mark.parametrize("name", ["mlp", "cnn", "sequence", "residual"])
def test_only_what_is_trained_counts_in_the_norm(name):
    module, x, y = built(name)
    for index, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(index % 3 != 1)
    close(sums(module, x, y, 0.1), row_by_row(module, x, y, 0.1))


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
def test_a_large_batch_in_pieces_has_the_same_sum(name, monkeypatch):
    module, x, y = built(name)
    whole = sums(module, x, y, 1.0)
    monkeypatch.setattr("tasks.torch_per_example.CHUNK_BYTES", 5_000)
    close(sums(module, x, y, 1.0), whole)


def test_a_loss_that_is_no_mean_is_taken_row_by_row():
    module, x, y = built("mlp")

    def summed(outputs, targets):
        return functional.cross_entropy(outputs, targets, reduction="sum")

    close(sums(module, x, y, 1.0, loss=summed), sums(module, x, y, 1.0))


def test_dropout_leaves_out_other_units_for_every_row():
    for module in (
        nn.Sequential(nn.Linear(16, 9), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(16, 9), nn.Dropout(0.5), nn.LayerNorm(9)),
    ):
        x, y = torch.ones(400, 16), torch.zeros(400, dtype=torch.int64)
        bias = sums(module.train(), x, y, 1e9)[1]
        assert torch.unique(bias).numel() > 1
        assert (bias != 0).all()


def test_nothing_of_a_row_stays_in_a_buffer():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(16, 3)
            self.register_buffer("steps", torch.zeros(()))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.steps += 1
            self.seen = self.seen + x.detach().sum()
            return self.out(x)

    module, (_, x, y) = Remembers(), built("mlp")
    sums(module, x, y, 1.0)
    assert (module.steps, module.seen) == (0, 0)


# -------------------------------------------------------------------------------------------------------- a step


def test_with_private_rows_too_it_does_not_matter_how_parameters_lie_in_memory():
    tasks = [OwnTorchTask(THREE, model=f"torch_models:{net}") for net in ("in_rows", "in_other_orders")]
    expected, found = (flat(fit(task, {**WHOLE, "l2": 0.1})) for task in tasks)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@EVERY_TASK
@pytest.mark.parametrize("penalty", [{}, {"l2": 0.1}, {"proximal-mu": 0.5, "l2": 0.1}, {"l1": 0.01}], ids=str)
def test_with_all_rows_a_wide_clip_and_no_noise_it_is_gradient_descent(name, penalty):
    task = TASKS[name]()
    private = fit(task, {**WHOLE, **penalty})
    plain = fit(task, {**penalty, "solver": "gd"})
    np.testing.assert_allclose(flat(private), flat(plain), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"solver": "adam"}, {"solver": "adamw"}],
    ids=str,
)
def test_the_solver_takes_the_private_gradient_as_it_takes_any_other(options):
    solver = options.pop("solver", "sgd") if "solver" in options else "sgd"
    task = MlpTask(THREE, hidden="5", **options)
    private = fit(task, {**WHOLE, "solver": solver, "l2": 0.1})
    plain = fit(task, {"solver": solver, "l2": 0.1, "batch-size": 0})
    np.testing.assert_allclose(flat(private), flat(plain), atol=1e-5)


@EVERY_TASK
def test_a_step_without_rows_is_noise_and_still_a_step(name):
    task = TASKS[name]()
    start = task.initial_arrays(0)
    one = {"record-rate": 1e-12, "record-noise-multiplier": 1e-12, "local-steps": 1}
    moved = flat(fit(task, {**RECORD, **one}, entropy=Seeded())) - flat(start)
    stddev = 0.1 * 1e-12 / (1e-12 * 30)
    assert 0.5 < np.sqrt(np.mean(moved**2)) / stddev < 1.6
    penalised = fit(task, {**RECORD, **one, "record-noise-multiplier": 0.0, "l2": 1.0}, start=[a + 1 for a in start])
    assert not np.array_equal(flat(penalised), flat(start) + 1)


@EVERY_TASK
def test_noise_has_the_promised_scale_and_neither_two_thirds_nor_three_halves_of_it(name):
    """Of a mean over 15 expected rows, after one step; the un-noised step is known."""
    task = TASKS[name]()
    asked = {**RECORD, "record-clip-norm": 0.7, "record-noise-multiplier": 3.0, "record-rate": 1.0, "local-steps": 1}
    bare = flat(fit(task, {**asked, "record-noise-multiplier": 0.0}))
    entropy = Seeded(1)
    noise = np.concatenate([flat(fit(task, asked, entropy=entropy)) - bare for _ in range(max(3, 3000 // bare.size))])
    ratio = np.sqrt(np.mean(noise**2)) / (0.1 * 3.0 * 0.7 / 30)
    tolerance = 5 / np.sqrt(2 * noise.size)
    assert abs(ratio - 1) < tolerance
    assert abs(ratio * 1.5 - 1) > tolerance
    assert abs(ratio / 1.5 - 1) > tolerance
    assert abs(np.mean(noise)) < 5 * 0.007 * 3 / np.sqrt(noise.size)


@EVERY_TASK
def test_a_public_number_of_rows_divides_in_the_place_of_the_own_one(name):
    task = TASKS[name]()
    start = flat(task.initial_arrays(0))
    asked = {**RECORD, "record-rate": 1.0, "record-noise-multiplier": 0.0, "local-steps": 1}
    own, public = (flat(fit(task, {**asked, **more})) - start for more in ({}, {"record-rows": 60}))
    np.testing.assert_allclose(own, 2 * public, atol=1e-6)


@EVERY_TASK
def test_a_row_of_any_size_moves_the_model_by_no_more_than_the_clip(name):
    task = TASKS[name]()
    asked = {**RECORD, "record-rate": 1.0, "record-noise-multiplier": 0.0, "local-steps": 1, "record-rows": 30}
    own = rows(task.schema)
    big = Rows(np.concatenate([own.x, np.full((1, own.x.shape[1]), 1e6)]), np.append(own.y, own.y[:1]))
    moved = flat(fit(task, asked, own=big)) - flat(fit(task, asked, own=own))
    assert np.linalg.norm(moved) <= 0.1 * 1.0 / 30 * 1.001


# ----------------------------------------------------------------------------------------------- sampling and seeds


@EVERY_TASK
def test_no_seed_changes_what_is_drawn_and_two_fits_differ(name):
    task = TASKS[name]()

    def fits(seed, entropy=None):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  (the one that must change nothing)
        torch.manual_seed(0)
        return flat(fit(task, {**RECORD, "seed": seed}, entropy=entropy))

    assert not np.array_equal(fits(1), fits(1))
    sampled = {**RECORD, "record-noise-multiplier": 0.0}
    assert not np.array_equal(flat(fit(task, sampled)), flat(fit(task, sampled)))
    np.testing.assert_array_equal(fits(1, Seeded()), fits(2, Seeded()))
    assert not np.array_equal(fits(1, Seeded(1)), fits(1, Seeded(2)))


def test_a_poisson_batch_has_the_size_and_the_rows_that_the_rate_says():
    num_rows, draws, entropy = 400, 3000, Seeded()
    for rate in (0.02, 0.3, 0.97):
        batches = [poisson(num_rows, rate, entropy) for _ in range(draws)]
        sizes = np.array([len(rows) for rows in batches])
        mean, variance = num_rows * rate, num_rows * rate * (1 - rate)
        assert abs(sizes.mean() - mean) < 5 * np.sqrt(variance / draws)
        assert abs(sizes.var() / variance - 1) < 5 * np.sqrt(2 / draws)
        counts = np.bincount(np.concatenate(batches), minlength=num_rows)
        assert np.abs(counts - draws * rate).max() < 6 * np.sqrt(draws * rate * (1 - rate))
        assert all((np.diff(rows) > 0).all() for rows in batches)
    np.testing.assert_array_equal(poisson(5, 1.0, entropy), np.arange(5))
    assert not len(poisson(1000, 1e-18, entropy))


@EVERY_TASK
@pytest.mark.parametrize(
    ("changes", "steps"),
    [({"local-steps": 4}, 4), ({"local-steps": 0, "local-epochs": 2}, 8), ({"local-steps": 0, "record-rate": 0.26}, 4)],
    ids=str,
)
def test_the_number_of_steps_follows_from_public_values_alone(name, changes, steps):
    """Told by the words that are drawn: one for every two rows and step, and those of the noise."""
    task = TASKS[name]()
    asked = {**RECORD, "record-rate": 0.25, "record-noise-multiplier": 0.0, **changes}
    for n in (7, 100):
        entropy = Seeded()
        fit(task, asked, own=rows(task.schema, n), entropy=entropy)
        assert entropy.drawn == steps * ((n + 1) // 2)


def test_normals_in_float32_are_normal_and_independent():
    draws = normals(200_001, 0.3, Seeded(), CPU).double().numpy() / 0.3
    assert draws.shape == (200_001,)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(draws**power) - expected) < 5 * np.sqrt(variance / draws.size)
    for lag in (1, 100_000, 100_001):  # 100,001 apart are the two of one word
        a, b = draws[:-lag], draws[lag:]
        assert abs(np.mean(a * b)) < 5 / np.sqrt(a.size)
        assert abs(np.mean(a**2 * b**2) - 1) < 5 * np.sqrt(8 / a.size)
    assert np.mean(np.abs(draws) > 3) == pytest.approx(0.0027, abs=5 * np.sqrt(0.0027 / draws.size))
    assert normals(0, 1.0, Seeded(), CPU).shape == (0,)
    assert not normals(7, 0.0, Seeded(), CPU).any()
    assert normals(1000, 1e-30, Seeded(), CPU).std() == pytest.approx(1e-30, rel=0.1)


def test_the_extremes_of_the_words_give_finite_normals():
    class Extreme(Entropy):
        def words(self, count):
            edge = [0, 2**64 - 1, 2**63, 2**63 - 1, 2**24, 2**24 - 1, 2**23, 2**64 - 2**24]
            return np.resize(np.array(edge, np.uint64), count)

    draws = normals(16, 1.0, Extreme(), CPU)
    assert draws.isfinite().all()
    assert 7.3 < draws.abs().max() < 7.6


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"record-clip-norm": 0.0}, "record-clip-norm must be a finite number above 0"),
        ({"record-clip-norm": float("inf")}, "record-clip-norm must be a finite number above 0"),
        ({"record-clip-norm": float("nan")}, "record-clip-norm must be a finite number above 0"),
        ({"record-clip-norm": "1"}, "record-clip-norm must be a number"),
        ({"record-clip-norm": True}, "record-clip-norm must be a number"),
        ({"record-noise-multiplier": -1.0}, "record-noise-multiplier must be"),
        ({"record-noise-multiplier": float("nan")}, "record-noise-multiplier must be"),
        ({"record-rate": 0.0}, "record-rate must be above 0"),
        ({"record-rate": 1.5}, "record-rate must be above 0 and at most 1"),
        ({"record-rows": -1}, "record-rows must be a whole number"),
        ({"record-rows": 2.5}, "record-rows must be a whole number"),
        ({"record-noise": 1.0}, "unknown key 'record-noise'"),
        ({"solver": "newton"}, "set solver=sgd"),
        ({"solver": "lbfgs"}, "set solver=sgd"),
        ({"correction": True}, "corrects gradients has no record-level privacy"),
        ({"work": "gradient"}, "use a strategy that trains"),
        ({"work": "curvature"}, "use a strategy that trains"),
    ],
    ids=str,
)  # fmt: skip
def test_what_would_not_protect_rows_is_refused(changes, message):
    for task in (LogisticTask(TWO), MlpTask(TWO)):
        with pytest.raises(ValueError, match=message):
            task.check_config({**CONFIG, **RECORD, **changes})
        with pytest.raises(ValueError, match=message):
            fit(task, {**RECORD, **changes}, start=list(task.initial_arrays(0)) * (2 if "correction" in changes else 1))


@pytest.mark.parametrize("key", RECORD)
def test_half_a_protection_is_refused(key):
    with pytest.raises(ValueError, match=f"lacks {key}"):
        FitConfig.read({**CONFIG, **{k: v for k, v in RECORD.items() if k != key}})
    with pytest.raises(ValueError, match="lacks"):
        FitConfig.read({**CONFIG, key: RECORD[key]})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: OwnTorchTask(THREE, model="torch_models:small_net"), "layer '1' normalises over the rows of a batch"),
        (lambda: OwnTorchTask(THREE, model="torch_models:small_net", batch_norm="local"), "use GroupNorm or LayerNorm"),
        (lambda: MlpTask(THREE, gradient_clip=1.0), "set gradient-clip=0"),
        (lambda: MlpTask(THREE, together=4), "together=4 has no record-level privacy"),
        (lambda: OwnTorchTask(THREE, model="test_dp_sgd:recurrent"), "gives no gradients of single rows"),
    ],
)  # fmt: skip
def test_a_model_or_option_without_gradients_of_single_rows_is_refused(task, message):
    task = task()
    with pytest.raises(ValueError, match=message):
        task.check_config({**CONFIG, **RECORD})
    if "single rows" not in message or "gives" not in message:
        with pytest.raises(ValueError, match=message):
            fit(task, RECORD)


def recurrent(features, outputs):
    """Its loop over the rows looks at their values, which vmap cannot."""

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(features, outputs)

        def forward(self, x):
            return self.out(x) if float(x.sum()) > 0 else self.out(-x)

    return Looks()


def test_batch_normalisation_that_is_frozen_is_a_layer_like_others():
    task = OwnTorchTask(THREE, model="torch_models:small_net", freeze="1")
    task.check_config({**CONFIG, **RECORD})
    start = task.initial_arrays(0)
    private, plain = fit(task, WHOLE), fit(task, {"batch-size": 0})
    np.testing.assert_allclose(flat(private), flat(plain), atol=1e-6)
    assert not np.array_equal(flat(private), flat(start))


@EVERY_TASK
def test_clients_with_protected_rows_are_never_trained_together(name):
    task = TASKS[name]()
    config = {**CONFIG, **RECORD}
    task.check_config(config)
    assert not task.fits_many(config)
    assert set(RECORD) < set(task.fit_options)
    if task.fits_many(CONFIG):
        with pytest.raises(ValueError, match="one at a time"):
            task.fit_many(task.initial_arrays(0), [Shard("0", rows(task.schema), rows(task.schema))], config, [1])


def test_models_trained_together_by_torch_func_are_so_only_without_protected_rows():
    task = MlpTask(THREE, hidden="5", together=2)
    assert task.fits_many(CONFIG)
    assert not task.fits_many({**CONFIG, **RECORD})


def test_personal_layers_are_clipped_with_the_others_and_stay():
    task = MlpTask(THREE, hidden="5", personal="2")
    client = task.make_client(Shard("0", rows(THREE), rows(THREE)))
    arrays = client.fit(list(task.initial_arrays(0)), {**CONFIG, **WHOLE})[0]
    plain = task.make_client(Shard("0", rows(THREE), rows(THREE)))
    expected = plain.fit(list(task.initial_arrays(0)), {**CONFIG, "solver": "gd"})[0]
    np.testing.assert_allclose(flat([*arrays, *client.state]), flat([*expected, *plain.state]), atol=1e-6)


def test_bfloat16_products_are_clipped_too():
    task = MlpTask(THREE, precision="bfloat16")
    asked = {**RECORD, "record-clip-norm": 0.01, "record-rate": 1.0, "record-noise-multiplier": 0.0, "local-steps": 1}
    moved = flat(fit(task, asked)) - flat(task.initial_arrays(0))
    assert 0 < np.linalg.norm(moved) <= 0.1 * 0.01 * 1.001


def test_the_settings_are_read_as_they_are_written():
    assert RecordPrivacy.read(CONFIG) is None
    privacy = RecordPrivacy.read({**CONFIG, **RECORD, "record-clip-norm": 2, "record-noise-multiplier": 3})
    assert privacy == RecordPrivacy(2.0, 3.0, 0.5)
    assert (privacy.stddev, privacy.steps_per_epoch, privacy.divisor(10)) == (6.0, 2, 5.0)
