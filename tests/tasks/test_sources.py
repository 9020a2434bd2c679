"""Data sources: the same rows for the same client, whoever asks."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from tasks.base import Rows
from tasks.data.base import OwnFile, PartitionedTable, Split
from tasks.data.bundled import BreastCancer, Digits
from tasks.data.partition import Dirichlet, Iid
from tasks.data.synthetic import Synthetic
from tasks.data.table import Columns, Feature, Table

SPLIT = Split(num_clients=10, partition=Dirichlet(alpha=0.5), test_fraction=0.2, seed=3)
DATASETS = [BreastCancer(), Digits(), Synthetic(label_skew=0.3, feature_shift=0.5, size_skew=0.5)]
EACH = pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: type(dataset).__name__)


def digest(division):
    parts = (division.train.x, division.train.y, division.test.x, division.test.y)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@EACH
def test_divisions_do_not_depend_on_the_order_of_asking(dataset):
    source, again = dataset.open(SPLIT), dataset.open(SPLIT)
    forward = {client: digest(source.divide(client)) for client in source.clients}
    backward = {client: digest(again.divide(client)) for client in reversed(again.clients)}
    assert forward == backward
    assert len(set(forward.values())) == 10
    assert digest(source.divide("04")) == forward["04"]


def test_another_process_makes_the_same_divisions():
    code = (
        "import sys; sys.path.insert(0, 'tests/tasks'); from test_sources import *;"
        "print(*(digest(dataset.open(SPLIT).divide('07')) for dataset in DATASETS))"
    )
    flags = ["-W", "ignore", "-c", code]
    result = subprocess.run([sys.executable, *flags], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [digest(dataset.open(SPLIT).divide("07")) for dataset in DATASETS]


@EACH
def test_divisions_are_tables_of_the_same_columns(dataset):
    source = dataset.open(SPLIT)
    columns = source.divide("00").train.columns
    assert list(source.clients) == sorted(source.clients)
    for client in source.clients:
        division = source.divide(client)
        assert division.client == client
        assert len(division.train) >= 1
        assert len(division.test) == min(round(0.2 * (n := len(division.train) + len(division.test))), n - 1)
        for rows in (division.train, division.test):
            assert rows.x.dtype == np.float64
            assert rows.y.dtype == np.int64
            assert rows.x.shape[1] == len(columns.features)
            assert set(rows.y) <= set(range(len(columns.classes)))
            assert rows.columns == columns


@pytest.mark.parametrize("dataset", DATASETS[:2], ids=["breast-cancer", "digits"])
def test_the_divisions_of_a_table_are_its_rows_each_once(dataset):
    source, table = dataset.open(SPLIT), dataset.table()
    parts = [rows for client in source.clients for rows in (source.divide(client).train, source.divide(client).test)]
    got = np.column_stack([np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])])
    expected = np.column_stack([table.x, table.y])
    np.testing.assert_array_equal(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)])


def test_test_rows_are_stratified_by_class():
    source = BreastCancer().open(Split(5, Iid(), 0.25, 0))
    for client in source.clients:
        division = source.divide(client)
        share = np.concatenate([division.train.y, division.test.y]).mean()
        assert abs(division.test.y.sum() - share * len(division.test)) < 1


def test_which_rows_a_client_tests_on_is_its_own_draw():
    table = Table(np.arange(100.0)[:, None], np.zeros(100, dtype=np.int64), Columns.of_numbers(["row"], "y"))
    source = PartitionedTable(table, Split(4, Iid(), 0.2, 0))
    places = set()
    for division in map(source.divide, source.clients):
        own = np.sort(np.concatenate([division.train.x, division.test.x])[:, 0])
        places.add(tuple(np.searchsorted(own, division.test.x[:, 0])))
    assert len(places) == 4


def test_malignant_is_the_positive_class():
    table = BreastCancer().table()
    assert table.columns.classes == ("benign", "malignant")
    assert np.bincount(table.y).tolist() == [357, 212]
    radius = table.column("mean radius")
    assert radius[table.y == 1].mean() > radius[table.y == 0].mean() + 4


@EACH
def test_an_unknown_client_is_named(dataset):
    with pytest.raises(KeyError, match="no client '10': this data has 10"):
        dataset.open(SPLIT).divide("10")


def synthetic(num_clients=200, **arguments):
    source = Synthetic(**arguments).open(Split(num_clients, Iid(), 0.0, 1))
    return [source.divide(client).train for client in source.clients]


def test_a_synthetic_client_does_not_depend_on_how_many_others_there_are():
    few, many = (Synthetic().open(Split(n, Iid(), 0.2, 1)) for n in (5, 90))
    assert digest(few.divide("03")) == digest(many.divide("03"))


@pytest.mark.parametrize("dataset", [Digits(), Synthetic()], ids=lambda dataset: type(dataset).__name__)
def test_there_are_ten_clients_where_nobody_says_how_many(dataset):
    assert dataset.open(Split(0, Iid(), 0.2, 0)).clients == dataset.open(Split(10, Iid(), 0.2, 0)).clients


def test_label_skew_is_the_share_of_the_favourite_class():
    for skew in (0.0, 0.6, 1.0):
        top = np.mean(
            [np.bincount(rows.y).max() / 2000 for rows in synthetic(classes=4, examples=2000, label_skew=skew)]
        )
        assert top == pytest.approx(skew + (1 - skew) / 4, abs=0.03)


def test_feature_shift_is_the_spread_of_the_clients_means():
    for shift in (0.0, 0.7):
        means = [rows.x.mean(axis=0) for rows in synthetic(examples=400, feature_shift=shift, separation=0.0)]
        assert np.std(means) == pytest.approx(np.hypot(shift, 1 / 20), rel=0.05)


def test_size_skew_spreads_the_sizes_about_the_same_mean():
    assert {len(rows) for rows in synthetic()} == {60}
    sizes = np.array([len(rows) for rows in synthetic(2000, features=1, size_skew=0.8)])
    assert sizes.mean() == pytest.approx(60, rel=0.1)
    assert np.log(sizes).std() == pytest.approx(0.8, rel=0.05)


def test_class_means_lie_where_they_are_said_to():
    rows = synthetic(features=5, classes=2, examples=500, separation=3.0)
    x, y = np.concatenate([r.x for r in rows]), np.concatenate([r.y for r in rows])
    assert [np.linalg.norm(x[y == k].mean(axis=0)) for k in (0, 1)] == pytest.approx([3.0, 3.0], abs=0.03)
    assert x[y == 0].std(axis=0) == pytest.approx(np.ones(5), abs=0.02)


def test_a_table_gives_copies_of_rows_a_view_of_a_column_and_itself_without_one():
    rows = TABLE.rows(np.array([2, 0]))
    assert rows.x.tolist() == [[5.0, 6.0], [1.0, 2.0]]
    assert rows.y.tolist() == [0, 0]
    assert rows.columns is TABLE.columns
    assert not np.shares_memory(rows.x, TABLE.x)
    assert np.shares_memory(TABLE.column("b"), TABLE.x)
    assert TABLE.column("b").tolist() == [2.0, 4.0, 6.0]
    less = TABLE.without("a")
    assert (less.columns.names, less.x.tolist()) == (("b",), [[2.0], [4.0], [6.0]])
    assert (less.columns.label, less.columns.classes) == ("y", ("n", "p"))
    assert TABLE.columns.names == ("a", "b")
    assert len(less) == 3


def test_rows_whose_label_is_a_number_are_not_stratified():
    table = Table(np.arange(40.0)[:, None], np.arange(40.0), Columns.of_numbers(["row"], "y"))
    division = PartitionedTable(table, Split(1, Iid(), 0.25, 0)).divide("00")
    assert (len(division.train), len(division.test)) == (30, 10)
    np.testing.assert_array_equal(division.test.x[:, 0], division.test.y)


def test_rows_with_missing_cells_and_categories_are_divided_as_they_are():
    columns = Columns((Feature("kind", "category", ("red", "blue")), Feature("size")), "y", ("n", "p"))
    x = np.column_stack([np.arange(20) % 2, np.where(np.arange(20) % 3, np.arange(20.0), np.nan)])
    source = PartitionedTable(Table(x, np.arange(20) // 10, columns), Split(2, Iid(), 0.2, 0))
    parts = [part for client in source.clients for part in (source.divide(client).train, source.divide(client).test)]
    assert {part.columns for part in parts} == {columns}
    together = np.concatenate([part.x for part in parts])
    np.testing.assert_array_equal(together[np.lexsort(together.T)], x[np.lexsort(x.T)])


CLASSES = Columns.of_numbers(["a"], "y", ("n", "p"))
TABLE = Table(np.arange(1.0, 7.0).reshape(3, 2), np.array([0, 1, 0]), Columns.of_numbers("ab", "y", ("n", "p")))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Synthetic(features=0), "features must be at least 1"),
        (lambda: Synthetic(classes=1), "classes must be at least 2"),
        (lambda: Synthetic(examples=0), "examples must be at least 1"),
        (lambda: Synthetic(label_skew=1.5), "label-skew"),
        (lambda: Synthetic(feature_shift=-1.0), "feature-shift"),
        (lambda: Synthetic(size_skew=float("inf")), "size-skew"),
        (lambda: Split(-1, Iid(), 0.2, 0), "num-clients"),
        (lambda: Split(1, Iid(), 1.0, 0), "test-fraction"),
        (lambda: Split(1, Iid(), 0.2, -1), "seed"),
        (lambda: Rows(np.zeros((2, 1)), np.zeros(3)), "got x .2, 1. and y .3,."),
        (lambda: Table(np.zeros((2, 1)), np.zeros(2), Columns.of_numbers("ab", "y")), "2 features has x of"),
        (
            lambda: Table(np.zeros((2, 1)), np.zeros(3), Columns.of_numbers("a", "y")),
            "3 labels and 1 features has x of",
        ),
        (
            lambda: Table(np.zeros((2, 1)), np.array([0, 2]), CLASSES),
            "label 'y' must hold class indices within 0 and 1",
        ),
        (lambda: Table(np.zeros((2, 1)), np.array([0.0, np.nan]), CLASSES), "within 0 and 1"),
        (lambda: TABLE.column("c"), "not in tuple"),
        (lambda: TABLE.without("c"), "not in tuple"),
        (lambda: Digits().for_site(OwnFile("north", "north.csv", "y")), "north.csv: .* use data=csv"),
    ],
)
def test_wrong_arguments_are_refused(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
