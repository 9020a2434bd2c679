"""Partitioners: each row to exactly one client, to each client something, and the skew that was asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.partition import ByColumn, BySize, Dirichlet, Iid, Shards
from tasks.data.table import Columns, Feature, Table


def table(num_rows, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    columns = Columns.of_numbers(["row", "site"], "y", tuple(map(str, range(num_classes))))
    x = np.column_stack([np.arange(num_rows, dtype=float), rng.integers(3, size=num_rows)])
    return Table(x, rng.integers(num_classes, size=num_rows), columns)


ALL = [
    Iid(),
    Dirichlet(alpha=0.05),
    Dirichlet(alpha=10.0),
    Shards(per_client=1),
    Shards(),
    BySize(),
    BySize(exponent=0.0),
]


@given(st.sampled_from(ALL), st.integers(1, 30), st.integers(0, 100), st.integers(0, 2**40))
def test_each_row_goes_to_exactly_one_client_and_none_gets_nothing(partitioner, num_clients, extra_rows, seed):
    data = table(num_clients * 2 + extra_rows)
    partition = partitioner.assign(data, num_clients, seed)
    assert len(partition.rows) == num_clients
    assert list(partition.rows) == sorted(partition.rows)
    assert all(len(own) and (np.diff(own) > 0).all() for own in partition.rows.values())
    np.testing.assert_array_equal(np.sort(np.concatenate([*partition.rows.values()])), np.arange(len(data)))


@pytest.mark.parametrize("partitioner", [Iid(), Dirichlet(), Shards(), BySize()], ids=lambda p: type(p).__name__)
def test_partitions_are_pure_in_the_seed(partitioner):
    first, again, other = (partitioner.assign(table(200), 5, seed).rows for seed in (1, 1, 2))
    assert all(np.array_equal(first[client], again[client]) for client in first)
    assert any(not np.array_equal(first[client], other[client]) for client in first)


@pytest.mark.parametrize(
    "partitioner", [Iid(), Dirichlet(alpha=1e4), Shards(), BySize(exponent=0.1)], ids=lambda p: type(p).__name__
)
def test_rows_of_one_class_are_drawn_at_random(partitioner):
    partition = partitioner.assign(table(2000, num_classes=1), 5, 0)
    assert all(abs(own.mean() - 1000) < 120 for own in partition.rows.values())


def sizes(partitioner, num_rows=1000, num_clients=10):
    return [len(own) for own in partitioner.assign(table(num_rows), num_clients, 0).rows.values()]


def label_skew(partitioner):
    """Mean total variation distance of the clients' label shares from those of all."""
    data = table(4000)
    overall = np.bincount(data.y, minlength=4) / len(data)
    partition = partitioner.assign(data, 10, 0)
    own = [np.bincount(data.y[rows], minlength=4) / len(rows) for rows in partition.rows.values()]
    return np.mean([np.abs(shares - overall).sum() / 2 for shares in own])


def test_iid_is_even_and_without_skew():
    assert set(sizes(Iid(), 1003)) == {100, 101}
    assert label_skew(Iid()) < 0.05


def test_dirichlet_skews_the_labels_more_the_smaller_alpha_is():
    skews = [label_skew(Dirichlet(alpha=alpha)) for alpha in (1000.0, 1.0, 0.05)]
    assert skews[0] < 0.05 < 0.15 < skews[1] < 0.45 < skews[2]


def test_shards_leave_a_client_with_few_labels_and_equal_rows():
    data = table(4000)
    partition = Shards().assign(data, 10, 0)
    assert {len(own) for own in partition.rows.values()} == {400}
    assert max(len(np.unique(data.y[own])) for own in partition.rows.values()) <= 4
    assert np.mean([len(np.unique(data.y[own])) for own in partition.rows.values()]) < 2.8


def test_sizes_fall_by_the_power_law():
    got = np.array(sizes(BySize(exponent=1.0), 100_000))
    np.testing.assert_allclose(got / got[0], 1 / np.arange(1.0, 11), atol=1e-3)
    assert set(sizes(BySize(exponent=0.0))) == {100}


def test_by_column_gives_each_value_a_client_and_drops_the_column():
    data = table(50)
    for num_clients in (0, 3):
        partition = ByColumn(column="site").assign(data, num_clients, 0)
        assert list(partition.rows) == ["0", "1", "2"]
        assert partition.table.columns.names == ("row",)
        np.testing.assert_array_equal(partition.table.x[:, 0], np.arange(50))
        for name, own in partition.rows.items():
            assert (data.x[own, 1] == float(name)).all()
        assert sum(map(len, partition.rows.values())) == 50


@pytest.mark.parametrize(
    ("feature", "cells", "ids"),
    [
        (Feature("site", "number"), [2.0, 0.5, 2.0, -3.0], {"-3": [3], "0.5": [1], "2": [0, 2]}),
        (Feature("site", "boolean"), [1.0, 0.0, 1.0, 1.0], {"false": [1], "true": [0, 2, 3]}),
        (Feature("site", "category", ("ward", "unused", "ICU")), [0.0, 2.0, 0.0, 0.0], {"ward": [0, 2, 3], "ICU": [1]}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_by_column_names_clients_as_the_cells_are_written(feature, cells, ids):
    columns = Columns((Feature("row"), feature), "y", ("n", "p"))
    data = Table(np.column_stack([np.arange(4.0), cells]), np.array([0, 1, 0, 1]), columns)
    partition = ByColumn(column="site").assign(data, 0, 0)
    assert {client: own.tolist() for client, own in partition.rows.items()} == ids
    assert partition.table.columns.names == ("row",)


def test_client_ids_sort_as_numbers():
    assert list(Iid().assign(table(200), 3, 0).rows) == ["00", "01", "02"]
    assert list(Iid().assign(table(200), 101, 0).rows)[-1] == "100"
    assert list(Iid().assign(table(200), 100, 0).rows)[-1] == "99"


@pytest.mark.parametrize("partitioner", [Iid(), Dirichlet(), Shards(), BySize()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("num_clients", "message"), [(0, "must be at least 1, got 0"), (11, "11 clients .* 10 rows")])
def test_too_few_or_too_many_clients_are_refused_with_both_numbers(partitioner, num_clients, message):
    with pytest.raises(ValueError, match=message):
        partitioner.assign(table(10), num_clients, 0)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Dirichlet(alpha=0.0), "alpha must be a finite number above 0, got 0"),
        (lambda: Dirichlet(alpha=float("nan")), "alpha"),
        (lambda: Shards(per_client=0), "per-client must be at least 1"),
        (lambda: BySize(exponent=-1.0), "exponent"),
        (lambda: Shards(per_client=3).assign(table(10), 4, 0), "4 clients with 3 shards each need 12 rows"),
        (lambda: ByColumn(column="sit").assign(table(10), 0, 0), "unknown column 'sit': did you mean 'site'"),
        (lambda: ByColumn(column="site").assign(table(50), 4, 0), "has 3 values, num-clients is 4"),
    ],
)
def test_wrong_arguments_are_refused(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


def test_a_column_with_missing_values_names_no_clients():
    data = table(10)
    data.x[3, 1] = np.nan
    with pytest.raises(ValueError, match="column 'site' has missing values"):
        ByColumn(column="site").assign(data, 0, 0)
