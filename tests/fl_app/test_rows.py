"""Clients' rows as training sees them: scaled as the run says, never written to, and the same from the cache or not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fl_app import rows
from fl_app.assembly import local_design, open_data
from fl_app.config import RunConfig
from fl_app.rows import PreparedRows, pooled, prepared_rows
from tasks.base import Rows, Shard
from tasks.data.design import Design, Term

Make = Callable[..., RunConfig]
SCALINGS = ["global", "local", "none"]
EACH_SCALING = pytest.mark.parametrize("standardize", SCALINGS)
MEAN, SCALE = (1.0, -2.0, 0.5), (2.0, 0.5, 3.0)


def design(standardize: Any) -> Design:
    """Of the three columns of the small problem."""
    terms = (Term(f"x{i}", "number", *statistics) for i, statistics in enumerate(zip(MEAN, SCALE, strict=True)))
    return Design(tuple(terms), "class", ("0", "1"), standardize)


def arrays(shard: Shard) -> tuple[np.ndarray, ...]:
    return shard.train.x, shard.train.y, shard.test.x, shard.test.y


def assert_same(a: Shard, b: Shard) -> None:
    assert a.client == b.client
    for x, y in zip(arrays(a), arrays(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_global_scaling_applies_the_statistics_of_the_design_to_train_and_test_rows(small_config: Make) -> None:
    config = small_config(standardize="global")
    prepared = prepared_rows(config, design("global"))
    assert prepared.clients == open_data(config).clients
    for client in open_data(config).clients:
        raw, scaled = open_data(config).divide(client), prepared.shard(client)
        for before, after in ((raw.train, scaled.train), (raw.test, scaled.test)):
            np.testing.assert_allclose(after.x * SCALE + MEAN, before.x, rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(after.y, before.y)
        assert len(scaled.test) > 0


def test_local_scaling_gives_every_client_mean_0_and_deviation_1_of_its_own(small_config: Make) -> None:
    config = small_config(standardize="local")
    prepared = prepared_rows(config, design("local"))
    for client in open_data(config).clients:
        raw, shard = open_data(config).divide(client), prepared.shard(client)
        np.testing.assert_allclose(shard.train.x.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(shard.train.x.std(axis=0), 1, rtol=1e-12)
        expected = (raw.test.x - raw.train.x.mean(axis=0)) / raw.train.x.std(axis=0)
        np.testing.assert_allclose(shard.test.x, expected, rtol=1e-9, atol=1e-12)


def test_no_scaling_leaves_the_rows_as_they_are(small_config: Make) -> None:
    config = small_config(standardize="none")
    for client in open_data(config).clients:
        raw = open_data(config).divide(client)
        same = Shard(client, Rows(raw.train.x, raw.train.y), Rows(raw.test.x, raw.test.y))
        assert_same(prepared_rows(config, design("none")).shard(client), same)


def test_the_raw_rows_are_left_as_they_were(small_config: Make) -> None:
    config = small_config(data="digits", data_args="")
    for standardize in SCALINGS:
        prepared_rows(small_config(data="digits", data_args="", standardize=standardize), local_design(config)).shard(
            "00"
        )
    raw = open_data(config).divide("00").train.x
    assert raw.flags.writeable
    np.testing.assert_array_equal(raw, open_data(config).divide("00").train.x)


@EACH_SCALING
def test_rows_cannot_be_written_to(small_config: Make, standardize: str) -> None:
    shard = prepared_rows(small_config(standardize=standardize), design(standardize)).shard("00")
    for array in arrays(shard):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@EACH_SCALING
@pytest.mark.parametrize("kept_shards", [0, 1, 2, 100])
def test_what_the_cache_forgets_is_made_again_the_same(
    small_config: Make, monkeypatch: pytest.MonkeyPatch, standardize: str, kept_shards: int
) -> None:
    config = small_config(standardize=standardize, num_clients=5)
    clients = open_data(config).clients
    fresh = {client: PreparedRows(config, design(standardize)).shard(client) for client in clients}
    one = sum(array.nbytes for array in arrays(fresh[clients[0]]))
    monkeypatch.setattr(rows, "CACHE_BYTES", kept_shards * one)
    prepared = PreparedRows(config, design(standardize))
    for client in (*clients, *reversed(clients), *clients):
        assert_same(prepared.shard(client), fresh[client])


def test_the_cache_keeps_the_shards_used_last_within_its_bytes(
    small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(num_clients=5)
    prepared = PreparedRows(config, design("global"))
    one = sum(array.nbytes for array in arrays(prepared.shard("00")))
    monkeypatch.setattr(rows, "CACHE_BYTES", 2 * one)
    prepared = PreparedRows(config, design("global"))
    first = prepared.shard("00")
    prepared.shard("01")
    assert prepared.shard("00") is first
    prepared.shard("02")  # 01 goes, which was used least recently
    assert prepared.shard("00") is first
    prepared.shard("03")
    prepared.shard("04")
    assert prepared.shard("00") is not first


@pytest.mark.parametrize("data", ["synthetic", "breast-cancer"])
@EACH_SCALING
def test_the_shards_of_all_clients_are_those_of_each_in_order_and_can_be_pooled(
    small_config: Make, data: str, standardize: str
) -> None:
    config = small_config(data=data, data_args="", standardize=standardize)
    prepared = PreparedRows(config, local_design(config))
    kept = prepared.shard("01")
    each = list(prepared.shards(prepared.clients))
    assert [shard.client for shard in each] == list(open_data(config).clients)
    assert each[1] is kept
    for shard in each:
        assert_same(shard, prepared.shard(shard.client))
    together = pooled([shard.test for shard in each])
    np.testing.assert_array_equal(together.x, np.concatenate([shard.test.x for shard in each]))
    np.testing.assert_array_equal(together.y, np.concatenate([shard.test.y for shard in each]))


def test_nothing_is_kept_of_shards_that_are_only_passed_by(small_config: Make) -> None:
    prepared = PreparedRows(small_config(), design("global"))
    first = next(prepared.shards(prepared.clients))
    assert prepared.shard("00") is not first


def test_the_rows_of_a_run_are_prepared_once_in_a_process(small_config: Make) -> None:
    config = small_config()
    assert prepared_rows(config, design("global")) is prepared_rows(config, design("global"))
    assert prepared_rows(config, design("global")) is not prepared_rows(config, design("none"))


def test_a_client_that_the_data_do_not_have_is_a_key_error(small_config: Make) -> None:
    with pytest.raises(KeyError, match="no client '99'"):
        prepared_rows(small_config(), design("global")).shard("99")


def test_rows_that_the_design_does_not_fit_are_refused_by_the_name_of_the_column(small_config: Make) -> None:
    terms = (*design("none").terms, Term("x9", "number"))
    with pytest.raises(ValueError, match="column 'x9' is absent: the columns are x0, x1, x2"):
        prepared_rows(small_config(), Design(terms, "class", ("0", "1"))).shard("00")
