"""Any object with load_partition(i): what it gives, as mappings or tables, becomes the rows of client i."""

import numpy as np
import pandas as pd
import pytest

from tasks.data.base import OwnFile, Split
from tasks.data.loader import Loader, table_of
from tasks.data.partition import Iid


class Columnar:
    """As tables of pyarrow and datasets are."""

    def __init__(self, columns):
        self.column_names = list(columns)
        self._columns = columns

    def __getitem__(self, name):
        return self._columns[name]


def rows_of(index):
    rng = np.random.default_rng(index)
    return {
        "age": rng.normal(50, 9, size=30).round(1).tolist(),
        "smoker": [bool(n) for n in rng.integers(2, size=30)],
        "site": [("east", "west")[n] for n in rng.integers(2, size=30)],
        "scan": [image.tolist() for image in rng.integers(9, size=(30, 2, 2))],
        "outcome": rng.integers(index + 1, index + 3, size=30).tolist(),
    }


class Federated:
    num_partitions = 3

    def load_partition(self, index):
        return rows_of(index)


class Tables(Federated):
    def load_partition(self, index):
        return Columnar(rows_of(index))


class Frames(Federated):
    def load_partition(self, index):
        return pd.DataFrame(rows_of(index))


class Uncounted:
    def load_partition(self, index):
        return rows_of(index)


class Images:
    """What np.asarray takes, as an image of PIL is."""

    def __init__(self, pixels):
        self._pixels = pixels

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._pixels, dtype)


def nothing():
    return 7


NAME = __name__
SPLIT = Split(0, Iid(), 0.2, 0)


def loader(make, **arguments):
    return Loader(factory=f"{NAME}:{make.__name__}", **{"label": "outcome", **arguments})


@pytest.mark.parametrize("make", [Federated, Tables, Frames])
def test_columns_of_any_table_become_features_by_their_kind(make):
    source = loader(make).open(Split(0, Iid(), 0.0, 0))
    assert source.clients == ("00", "01", "02")
    table, want = source.divide("01").train, rows_of(1)
    assert table.columns.names == ("age", "smoker", "site", "scan0", "scan1", "scan2", "scan3")
    assert [f.kind for f in table.columns.features] == ["number", "boolean", "category", *["number"] * 4]
    assert table.column("age").tolist() == want["age"]
    assert table.column("smoker").tolist() == want["smoker"]
    assert [table.columns.features[2].levels[int(k)] for k in table.column("site")] == want["site"]
    np.testing.assert_array_equal(table.x[:, 3:], np.array(want["scan"]).reshape(30, 4))
    assert [table.columns.classes[k] for k in table.y] == [str(value) for value in want["outcome"]]


def test_the_run_says_how_many_clients_there_are_or_the_object_does():
    assert len(loader(Federated).open(Split(2, Iid(), 0.2, 0)).clients) == 2
    assert len(loader(Uncounted).open(Split(2, Iid(), 0.2, 0)).clients) == 2
    with pytest.raises(ValueError, match="does not say how many clients there are: set num-clients"):
        loader(Uncounted).open(SPLIT)


def test_the_same_client_has_the_same_rows_for_whoever_asks():
    first, again = (loader(Federated).open(SPLIT).divide("02") for _ in range(2))
    np.testing.assert_array_equal(first.train.x, again.train.x)
    np.testing.assert_array_equal(first.test.y, again.test.y)
    assert (len(first.train), len(first.test)) == (24, 6)


def test_a_label_is_a_number_where_the_task_predicts_one():
    table = loader(Federated, label="age").open(Split(0, Iid(), 0.0, 0, "number")).divide("00").train
    assert table.y.tolist() == rows_of(0)["age"]
    assert (table.columns.classes, table.columns.label) == ((), "age")


def test_columns_are_dropped_by_name():
    names = loader(Federated, drop="scan, site").open(SPLIT).divide("00").train.columns.names
    assert names == ("age", "smoker")


def test_images_that_are_objects_become_pixels():
    images = [Images(np.full((2, 2), k)) for k in range(4)]
    table = table_of({"image": images, "label": ["a", "b", "a", "b"]}, "label", "class")
    assert table.x.tolist() == [[float(k)] * 4 for k in range(4)]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([1, 2], "load_partition gave a list: expected a mapping or a table"),
        ({"a": [1]}, "no column 'y': the columns are a"),
        ({"y": [1]}, "no column to learn from beside 'y'"),
        ({"a": [1, 2], "y": [1]}, "column 'a' has 2 values, the label has 1"),
        ({"a": [[1], [1, 2]], "y": [0, 1]}, "column 'a' holds values of different shapes"),
        ({"a": [None, 1], "y": [0, 1]}, "column 'a'"),
        ({"a": [1j, 1], "y": [0, 1]}, "column 'a' is of type complex"),
        ({"a": [["p"], ["q"]], "y": [0, 1]}, "column 'a' holds texts of more than one dimension"),
        ({"a": [1, 2], "y": [[0], [1]]}, "label 'y' is of shape"),
        ({"a": [1, 2], "y": [0.5, 1]}, "label 'y' holds fractions"),
    ],
)
def test_what_cannot_be_rows_is_refused_by_the_column(found, said):
    with pytest.raises(ValueError, match=said):
        table_of(found, "y", "class")


def test_what_cannot_be_a_loader_is_refused():
    with pytest.raises(ValueError, match="returns a int without load_partition"):
        loader(nothing).open(SPLIT)
    with pytest.raises(ValueError, match=r"factory=no_such:make: expected module:function .ModuleNotFoundError"):
        Loader(factory="no_such:make", label="y").open(SPLIT)
    with pytest.raises(ValueError, match="it is a str, expected a function"):
        Loader(factory=f"{NAME}:NAME", label="y").open(SPLIT)


def test_no_site_is_told_what_to_import():
    source = loader(Federated)
    assert source.names_files
    with pytest.raises(ValueError, match="use data=csv"):
        source.for_site(OwnFile("north", "north.csv", "y"))
