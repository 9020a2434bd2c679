"""Clients' rows as training sees them: scaled as the run says, never written to, and the same from the cache or not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fl_app import rows
from fl_app.assembly import open_data
from fl_app.config import RunConfig
from fl_app.rows import PreparedRows, prepared_rows, standardizer
from tasks.base import Shard

Make = Callable[..., RunConfig]
STATISTICS = ((1.0, -2.0, 0.5), (2.0, 0.5, 3.0))


def arrays(shard: Shard) -> tuple[np.ndarray, ...]:
    return shard.train.x, shard.train.y, shard.test.x, shard.test.y


def assert_same(a: Shard, b: Shard) -> None:
    assert a.client == b.client
    for x, y in zip(arrays(a), arrays(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_global_scaling_applies_the_statistics_of_the_run_to_train_and_test_rows(small_config: Make) -> None:
    config = small_config(standardize="global")
    prepared = prepared_rows(config, STATISTICS)
    for client in open_data(config).clients:
        raw, scaled = open_data(config).shard(client), prepared.shard(client)
        for before, after in ((raw.train, scaled.train), (raw.test, scaled.test)):
            np.testing.assert_allclose(after.x * STATISTICS[1] + STATISTICS[0], before.x, rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(after.y, before.y)
        assert len(scaled.test) > 0


def test_local_scaling_gives_every_client_mean_0_and_deviation_1_of_its_own(small_config: Make) -> None:
    config = small_config(standardize="local")
    prepared = prepared_rows(config, None)
    for client in open_data(config).clients:
        raw, shard = open_data(config).shard(client), prepared.shard(client)
        np.testing.assert_allclose(shard.train.x.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(shard.train.x.std(axis=0), 1, rtol=1e-12)
        expected = (raw.test.x - raw.train.x.mean(axis=0)) / raw.train.x.std(axis=0)
        np.testing.assert_allclose(shard.test.x, expected, rtol=1e-9, atol=1e-12)


def test_no_scaling_leaves_the_rows_as_they_are(small_config: Make) -> None:
    config = small_config(standardize="none")
    for client in open_data(config).clients:
        assert_same(prepared_rows(config, None).shard(client), open_data(config).shard(client))


@pytest.mark.parametrize(("standardize", "statistics"), [("global", STATISTICS), ("local", None), ("none", None)])
def test_rows_cannot_be_written_to(small_config: Make, standardize: str, statistics: Any) -> None:
    shard = prepared_rows(small_config(standardize=standardize), statistics).shard("00")
    for array in arrays(shard):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(("standardize", "statistics"), [("global", STATISTICS), ("local", None), ("none", None)])
@pytest.mark.parametrize("kept_shards", [0, 1, 2, 100])
def test_what_the_cache_forgets_is_made_again_the_same(
    small_config: Make, monkeypatch: pytest.MonkeyPatch, standardize: str, statistics: Any, kept_shards: int
) -> None:
    config = small_config(standardize=standardize, num_clients=5)
    clients = open_data(config).clients
    fresh = {client: PreparedRows(config, standardizer(statistics)).shard(client) for client in clients}
    one = sum(array.nbytes for array in arrays(fresh[clients[0]]))
    monkeypatch.setattr(rows, "CACHE_BYTES", kept_shards * one)
    prepared = PreparedRows(config, standardizer(statistics))
    for client in (*clients, *reversed(clients), *clients):
        assert_same(prepared.shard(client), fresh[client])


def test_the_cache_keeps_the_shards_used_last_within_its_bytes(
    small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(num_clients=5)
    prepared = PreparedRows(config, None)
    one = sum(array.nbytes for array in arrays(prepared.shard("00")))
    monkeypatch.setattr(rows, "CACHE_BYTES", 2 * one)
    prepared = PreparedRows(config, None)
    first = prepared.shard("00")
    prepared.shard("01")
    assert prepared.shard("00") is first
    prepared.shard("02")  # 01 goes, which was used least recently
    assert prepared.shard("00") is first
    prepared.shard("03")
    prepared.shard("04")
    assert prepared.shard("00") is not first


@pytest.mark.parametrize("data", ["synthetic", "breast-cancer"])
def test_the_test_rows_of_all_clients_are_those_of_each_in_order(small_config: Make, data: str) -> None:
    config = small_config(data=data, data_args="", standardize="local")
    prepared = prepared_rows(config, None)
    together = prepared.test_rows()
    each = [prepared.shard(client).test for client in open_data(config).clients]
    np.testing.assert_array_equal(together.x, np.concatenate([part.x for part in each]))
    np.testing.assert_array_equal(together.y, np.concatenate([part.y for part in each]))


def test_a_client_that_the_data_do_not_have_is_a_key_error(small_config: Make) -> None:
    with pytest.raises(KeyError, match="no client '99'"):
        prepared_rows(small_config(), None).shard("99")


@pytest.mark.parametrize("statistics", [((1.0,), (1.0, 2.0)), ((1.0,), (0.0,)), ((float("nan"),), (1.0,))])
def test_statistics_that_cannot_be_are_refused(statistics: Any) -> None:
    with pytest.raises(ValueError, match="mean and scale"):
        standardizer(statistics)


def test_without_statistics_there_is_nothing_to_scale_by() -> None:
    assert standardizer(None) is None
