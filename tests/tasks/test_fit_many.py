"""Clients of a node trained at once: what each gets is what it would get alone, whoever else is there."""

import numpy as np
import pytest

from tasks.base import Rows, Schema, Shard
from tasks.linear import LinearTask
from tasks.logistic import LogisticTask
from tasks.mlp import MlpTask
from tasks.own_torch import OwnTorchTask
from tasks.torch_training import Diverged

FEATURES = ("a", "b", "c", "d", "e")
CLASSES = Schema(FEATURES, "y", tuple("0123"))
TWO = Schema(FEATURES, "y", ("no", "yes"))
NUMBER = Schema(FEATURES, "y")
CONFIG = {
    "work": "train", "solver": "sgd", "local-epochs": 2, "local-steps": 0, "batch-size": 4, "learning-rate": 0.1,
    "l1": 0.0, "l2": 0.01, "seed": 0, "metrics": True,
}  # fmt: skip

EXACT = {
    "softmax": lambda: LogisticTask(CLASSES),
    "binary": lambda: LogisticTask(TWO),
    "linear": lambda: LinearTask(NUMBER),
}
ROUNDED = {
    "mlp": lambda: MlpTask(CLASSES, hidden="7,3"),
    "mlp of two classes": lambda: MlpTask(TWO, hidden="6"),
    "mlp for a number": lambda: MlpTask(NUMBER, hidden="6"),
    "mlp without hidden layers": lambda: MlpTask(CLASSES, hidden=""),
    "mlp with momentum": lambda: MlpTask(CLASSES, hidden="6", momentum=0.9),
    "mlp with nesterov": lambda: MlpTask(CLASSES, hidden="6", momentum=0.9, nesterov=True),
}
BY_VMAP = {
    "vmap of an mlp for a number": lambda: MlpTask(NUMBER, hidden="6", together=5),
    "vmap of an mlp": lambda: MlpTask(CLASSES, hidden="7,3", momentum=0.9, together=4),
    "vmap of a model of one's own": lambda: OwnTorchTask(CLASSES, model="torch_models:plain_net", together=3),
}
TASKS = {**EXACT, **ROUNDED, **BY_VMAP}
WORK = {
    "batches": {},
    "batches of one": {"batch-size": 1},
    "batches that do not divide the rows": {"batch-size": 3},
    "whole shards": {"batch-size": 0},
    "batches larger than the shards": {"batch-size": 1000},
    "steps": {"local-steps": 5},
    "gd": {"solver": "gd"},
    "l1": {"l1": 0.02},
    "no penalty": {"l2": 0.0},
    "proximal": {"proximal-mu": 0.5},
}
SIZES = (12, 12, 5, 1, 12, 8, 30, 7)


def shards(schema, sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)

    def rows(count):
        y = rng.integers(0, len(schema.classes), count) if schema.classes else rng.normal(size=count)
        return Rows(rng.normal(size=(count, len(schema.features))), y)

    return [Shard(f"{index:03}", rows(size), rows(4)) for index, size in enumerate(sizes)]


def start(task):
    rng = np.random.default_rng(1)
    return tuple((a + rng.normal(scale=0.1, size=a.shape)).astype(a.dtype) for a in task.initial_arrays(0))


def loop(task, params, members, config, seeds):
    clients = [task.make_client(shard) for shard in members]
    return [
        client.fit([a.copy() for a in params], {**config, "seed": s}) for client, s in zip(clients, seeds, strict=True)
    ]


def assert_same_bits(one, other):
    assert one[1:] == other[1:]
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
@pytest.mark.parametrize("name", TASKS)
def test_every_client_gets_what_the_loop_gives_it(name, work):
    task, config = TASKS[name](), {**CONFIG, **work}
    assert task.fits_many(config)
    members, params = shards(task.schema), start(task)
    seeds = [7 * index for index in range(len(members))]
    together = task.fit_many(params, members, config, seeds)
    for one, other in zip(together, loop(task, params, members, config, seeds), strict=True):
        assert one[1:] == other[1:]
        for a, b in zip(one[0], other[0], strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            if name in EXACT:
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("work", ["batches", "batches of one", "whole shards"])
@pytest.mark.parametrize("name", TASKS)
def test_a_client_gets_the_same_bits_in_a_group_of_1_7_and_many(name, work):
    task, config = TASKS[name](), {**CONFIG, **WORK[work], "local-epochs": 1}
    many = 100 if name in BY_VMAP else 500  # vmap takes no more than `together` of them at once
    sizes = np.random.default_rng(0).integers(1, 25, many)
    members, params, seeds = shards(task.schema, sizes), start(task), list(range(many))
    whole = task.fit_many(params, members, config, seeds)
    for index in range(0, many, 25):
        assert_same_bits(task.fit_many(params, members[index : index + 1], config, [index])[0], whole[index])
    for first in range(0, many - 7, 35):
        part = slice(first, first + 7)
        for one, other in zip(task.fit_many(params, members[part], config, seeds[part]), whole[part], strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize(("features", "hidden", "batch_size"), [(784, "64", 10), (30, "64,32", 32), (13, "5", 9)])
def test_the_bits_hold_for_shapes_that_blas_treats_in_different_ways(features, hidden, batch_size):
    schema = Schema(tuple(f"f{i}" for i in range(features)), "y", tuple("0123456789"))
    for task in (LogisticTask(schema), MlpTask(schema, hidden=hidden)):
        config = {**CONFIG, "batch-size": batch_size, "local-epochs": 1}
        members, params, seeds = shards(schema, [33] * 20 + [10] * 10), start(task), list(range(30))
        whole = task.fit_many(params, members, config, seeds)
        order = np.random.default_rng(0).permutation(30)
        for place, index in enumerate(order):
            mixed = task.fit_many(
                params, [members[i] for i in order[place:]], config, [seeds[i] for i in order[place:]]
            )
            assert_same_bits(mixed[0], whole[index])


@pytest.mark.parametrize("name", ["softmax", "mlp", "mlp for a number"])
def test_a_bad_client_costs_its_own_result_and_no_bit_of_its_neighbours(name):
    task, params = TASKS[name](), None
    params = start(task)
    members = shards(task.schema, [12] * 7)
    seeds = list(range(7))
    good = task.fit_many(params, members, CONFIG, seeds)
    wide = shards(Schema((*FEATURES, "f"), "y", task.schema.classes), [12])[0]
    infinite = Rows(np.full((12, 5), np.inf), members[5].train.y)
    bad = [members[0], Shard("none", *(shards(task.schema, [0])[0].train,) * 2), members[2], wide, members[4],
           Shard("inf", infinite, members[5].test), members[6]]  # fmt: skip
    results = task.fit_many(params, bad, CONFIG, seeds)
    for index in (0, 2, 4, 6):
        assert_same_bits(results[index], good[index])
    assert isinstance(results[1], ValueError)
    assert "no training rows" in str(results[1])
    assert isinstance(results[3], ValueError)
    assert "6 feature columns" in str(results[3])
    if name == "softmax":  # as from fit: the node refuses it
        assert not np.isfinite(results[5][0][0]).all()
    else:
        assert isinstance(results[5], Diverged)


def test_what_is_received_is_not_written_to():
    for name in ("softmax", "mlp"):
        task = TASKS[name]()
        params, members = start(task), shards(task.schema)
        for array in (*params, *(a for shard in members for a in (shard.train.x, shard.train.y))):
            array.setflags(write=False)
        for work in WORK.values():
            for result in task.fit_many(params, members, {**CONFIG, **work}, [0] * len(members)):
                assert not any(np.shares_memory(new, old) for new in result[0] for old in params)


class OtherClient(LogisticTask):
    """Its clients are not those that fit_many knows."""

    def make_client(self, shard):
        return super().make_client(shard)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (EXACT["softmax"], {"solver": "lbfgs", "l1": 0.0}),
        (EXACT["softmax"], {"work": "gradient"}),
        (EXACT["softmax"], {"correction": True}),
        (lambda: OtherClient(CLASSES), {}),
        (ROUNDED["mlp"], {"solver": "adam"}),
        (ROUNDED["mlp"], {"correction": True}),
        (lambda: MlpTask(CLASSES, dropout=0.1), {}),
        (lambda: MlpTask(CLASSES, gradient_clip=1.0), {}),
        (lambda: MlpTask(CLASSES, precision="bfloat16"), {}),
        (lambda: MlpTask(CLASSES, freeze="0"), {}),
        (lambda: MlpTask(CLASSES, personal="0"), {}),
    ],
)
def test_whatever_it_does_not_know_is_left_to_the_loop(make, change):
    assert not make().fits_many({**CONFIG, **change})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MlpTask(CLASSES, together=0), "together=0: expected 1 or more"),
        (lambda: MlpTask(CLASSES, dropout=0.5, together=4), "cannot be trained for many clients at once"),
        (lambda: MlpTask(CLASSES, freeze="0", together=4), "trains all of a model in plain float32"),
        (lambda: OwnTorchTask(CLASSES, model="torch_models:small_net", together=4), "has buffers"),
        (
            lambda: OwnTorchTask(CLASSES, model="torch_models:plain_net", loss="torch_models:own_loss", together=4),
            "knows only the losses cross_entropy",
        ),
    ],
)
def test_a_model_that_cannot_be_trained_together_is_refused_when_asked_to(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_solver_that_cannot_train_together_is_refused_when_asked_to():
    with pytest.raises(ValueError, match="together=4 is for solvers sgd and gd"):
        MlpTask(CLASSES, together=4).check_config({**CONFIG, "solver": "adam"})
