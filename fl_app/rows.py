"""Clients' rows as training sees them: opened, dealt, scaled; and what of them a process keeps in memory."""

from collections import OrderedDict
from functools import lru_cache
from threading import Lock

import numpy as np

from fl_app.assembly import open_data
from fl_app.config import RunConfig
from tasks.base import Rows, Shard
from tasks.data.preprocessing import Moments, Standardizer

CACHE_BYTES = 4 * 2**30


class PreparedRows:
    """The shards of a run's clients, scaled as it says. Keeps those used last, up to CACHE_BYTES.

    A node's process serves many clients in turn and Flower moves a node between processes, so this is a cache of
    pure values: what it forgets, or never had, is made again.
    """

    def __init__(self, config: RunConfig, standardizer: Standardizer | None) -> None:
        self._data = open_data(config)
        self._local = config.standardize == "local"
        self._standardizer = standardizer
        self._kept: OrderedDict[str, Shard] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()  # a client that overran its deadline may still be loading

    def shard(self, client: str) -> Shard:
        """One client's rows, read-only. Raises KeyError for a client that the data do not have."""
        with self._lock:
            if client in self._kept:
                self._kept.move_to_end(client)
                return self._kept[client]
        shard = self._scaled(self._data.shard(client))
        with self._lock:
            if client not in self._kept:
                self._kept[client] = shard
                self._bytes += _bytes(shard)
            while self._bytes > CACHE_BYTES and len(self._kept) > 1:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return shard

    def test_rows(self) -> Rows:
        """The test rows of all clients, in the order of the clients."""
        tests = [self._scaled(self._data.shard(client)).test for client in self._data.clients]
        return Rows(np.concatenate([rows.x for rows in tests]), np.concatenate([rows.y for rows in tests]))

    def _scaled(self, shard: Shard) -> Shard:
        if self._local:
            shard = Standardizer.of(Moments.of(shard.train.x)).apply_shard(shard)
        elif self._standardizer is not None:
            shard = self._standardizer.apply_shard(shard)
        for array in _arrays(shard):
            array.setflags(write=False)
        return shard


def _arrays(shard: Shard) -> tuple[np.ndarray, ...]:
    return shard.train.x, shard.train.y, shard.test.x, shard.test.y


def _bytes(shard: Shard) -> int:
    return sum(array.nbytes for array in _arrays(shard))


Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and scale of each feature


@lru_cache(maxsize=2)
def prepared_rows(config: RunConfig, statistics: Statistics | None) -> PreparedRows:
    """The rows of a run in this process."""
    return PreparedRows(config, standardizer(statistics))


def standardizer(statistics: Statistics | None) -> Standardizer | None:
    """From the plain numbers in which frozen statistics travel and are stored."""
    return None if statistics is None else Standardizer.from_lists(*statistics)
