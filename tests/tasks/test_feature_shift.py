"""Partitions by which the clients' features differ: noise that grows, images that are turned."""

import numpy as np
import pytest

from tasks.data.base import PartitionedTable, Split
from tasks.data.bundled import Digits
from tasks.data.csv_source import Csv
from tasks.data.partition import Dirichlet, Iid, Noise, Rotation, Shards
from tasks.data.table import Columns, Feature, Table


def numbers(num_rows=3000, d=4, seed=0):
    x = np.random.default_rng(seed).normal(size=(num_rows, d)) * np.arange(1, d + 1)
    return Table(x, np.arange(num_rows) % 2, Columns.of_numbers([f"x{k}" for k in range(d)], "y", ("n", "p")))


def images(num_rows=12, channels=1, height=3, width=3):
    x = np.random.default_rng(0).normal(size=(num_rows, channels * height * width))
    return Table(x, np.arange(num_rows) % 2, Columns.of_numbers(map(str, range(x.shape[1])), "y", ("n", "p")))


def clients(table, partition, num_clients, **split):
    source = PartitionedTable(table, Split(num_clients, partition, **{"test_fraction": 0.0, "seed": 0, **split}))
    return [source.divide(client) for client in source.clients]


def test_noise_has_the_variance_that_li_et_al_say_and_the_rows_are_those_of_iid():
    table = numbers()
    plain, noisy = (clients(table, partition, 5) for partition in (Iid(), Noise(level=0.5)))
    for k, (a, b) in enumerate(zip(plain, noisy, strict=True), start=1):
        np.testing.assert_array_equal(a.train.y, b.train.y)
        spread = (b.train.x - a.train.x).var(axis=0) / table.x.var(axis=0)
        np.testing.assert_allclose(spread, 0.5 * k / 5, rtol=0.2)
        correlation = np.corrcoef((b.train.x - a.train.x).T) - np.eye(4)
        assert np.abs(correlation).max() < 0.2


def test_noise_differs_between_clients_and_seeds_and_is_the_same_for_whoever_asks():
    table = numbers(40)
    first, again, other = ([d.train.x for d in clients(table, Noise(), 4, seed=seed)] for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_no_level_is_no_noise_and_categories_gaps_and_booleans_stay():
    table = numbers(40)
    plain, still = (clients(table, partition, 4) for partition in (Iid(), Noise(level=0.0)))
    assert all(np.array_equal(a.train.x, b.train.x) for a, b in zip(plain, still, strict=True))
    columns = Columns((Feature("c", "category", ("a", "b")), Feature("b", "boolean"), Feature("n")), "y", ("n", "p"))
    gaps = np.where(np.arange(40) % 3, np.arange(40.0), np.nan)
    mixed = Table(np.column_stack([np.arange(40) % 2, np.arange(40) % 2, gaps]), np.arange(40) % 2, columns)
    plain, noisy = (clients(mixed, partition, 4) for partition in (Iid(), Noise()))
    for a, b in zip(plain, noisy, strict=True):
        np.testing.assert_array_equal(a.train.x[:, :2], b.train.x[:, :2])
        np.testing.assert_array_equal(np.isnan(a.train.x), np.isnan(b.train.x))
        assert (a.train.x[:, 2] != b.train.x[:, 2]).all()


def test_rows_to_test_on_have_noise_of_their_own():
    table, tests = numbers(40), numbers(40, seed=1)
    plain, noisy = (
        PartitionedTable(table, Split(4, partition, 0.2, 0), tests).divide("03") for partition in (Iid(), Noise())
    )
    on_train, on_test = noisy.train.x - plain.train.x, noisy.test.x - plain.test.x
    assert on_test.all()
    assert len(on_test) == 10
    assert not np.isin(on_test, on_train).any()
    split = clients(table, Noise(), 4, test_fraction=0.2)
    assert all(len(d.test) == 2 for d in split)


@pytest.mark.parametrize("angle", [0, 90, 180, 270, 360, -90])
@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 2, 2)])
def test_multiples_of_90_degrees_move_pixels_and_change_none(angle, shape):
    table = images(12, *shape)
    partition = Rotation(angles=f"0,{angle}", shape=",".join(map(str, shape)))
    plain, turned = (clients(table, p, 2) for p in (Iid(), partition))
    np.testing.assert_array_equal(plain[0].train.x, turned[0].train.x)
    for row, other in zip(plain[1].train.x, turned[1].train.x, strict=True):
        for channel, moved in zip(row.reshape(shape), other.reshape(shape), strict=True):
            np.testing.assert_array_equal(np.rot90(channel, angle // 90), moved)


def test_angles_are_dealt_in_turn():
    table = images(60)
    plain, turned = (clients(table, p, 6) for p in (Iid(), Rotation()))
    for k, (a, b) in enumerate(zip(plain, turned, strict=True)):
        expected = np.rot90(a.train.x.reshape(-1, 3, 3), k % 4, axes=(1, 2))
        np.testing.assert_array_equal(b.train.x.reshape(-1, 3, 3), expected)


def test_small_angles_go_the_same_way_as_right_ones_and_keep_the_picture():
    table = Digits().table()
    plain, small, right = (
        clients(table, p, 1)[0].train.x.reshape(-1, 8, 8)
        for p in (Iid(), Rotation(angles="89.9"), Rotation(angles="90"))
    )
    assert np.abs(small - right).mean() < 0.1
    slight = clients(table, Rotation(angles="10"), 1)[0].train.x.reshape(-1, 8, 8)
    assert 0 < np.abs(slight - plain).mean() < 3
    np.testing.assert_allclose(slight.mean(), plain.mean(), rtol=0.1)


def test_csv_rows_with_a_test_file_of_another_order_are_changed_too(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 2)) * [1, 1000]
    lines = [f"{a},{b},{k % 2}" for k, (a, b) in enumerate(rows.tolist())]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,y", *lines]))
    (tmp_path / "t.csv").write_text(
        "\n".join(["b,a,y", *(f"{b},{a},{k % 2}" for k, (a, b) in enumerate(rows.tolist()))])
    )
    csv = Csv(path=str(tmp_path / "a.csv"), label="y", test_path=str(tmp_path / "t.csv"))
    plain, noisy = (csv.open(Split(2, partition, 0.2, 0)).divide("01") for partition in (Iid(), Noise()))
    for name, unit in (("a", 1), ("b", 1000)):
        for which in ("train", "test"):
            moved = getattr(noisy, which).column(name) - getattr(plain, which).column(name)
            assert 0.4 * unit < moved.std() < 2 * unit


def test_a_number_is_skewed_by_its_tenths():
    rng = np.random.default_rng(0)
    table = Table(rng.normal(size=(2000, 1)), rng.normal(size=2000), Columns.of_numbers(["x"], "y"))
    spread = {}
    for name, partition in {"iid": Iid(), "dirichlet": Dirichlet(alpha=0.1), "shards": Shards(per_client=1)}.items():
        divisions = clients(table, partition, 10)
        assert sum(len(d.train) for d in divisions) == 2000
        spread[name] = np.std([d.train.y.mean() for d in divisions])
    assert spread["iid"] < 0.15 < 0.3 < spread["dirichlet"]
    assert spread["shards"] > 0.8


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Noise(level=-1.0), "level must be finite and 0 or more"),
        (lambda: Noise(level=float("inf")), "level must be finite"),
        (lambda: Rotation(angles="a,b"), "angles=a,b: expected numbers"),
        (lambda: Rotation(angles="nan"), "angles=nan: expected numbers"),
        (lambda: Rotation(shape="8,8"), "expected channels,height,width"),
        (lambda: Rotation(shape="0,8,8"), "expected channels,height,width"),
        (lambda: Rotation().assign(numbers(10, 5), 2, 0), "rows of 5 columns are no images of 1 x 2 x 2"),
        (lambda: Rotation(shape="1,2,5").assign(numbers(10, 10), 2, 0), "do not fit once turned: use angles=0,180"),
        (lambda: Rotation().assign(numbers(2), 3, 0), "3 clients cannot share 2 rows"),
        (
            lambda: Noise().assign(
                Table(np.zeros((4, 1)), np.arange(4) % 2, Columns((Feature("b", "boolean"),), "y", ("n", "p"))), 2, 0
            ),
            "no column is a number",
        ),
    ],
)
def test_what_cannot_be_shifted_so_is_refused(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
