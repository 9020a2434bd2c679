"""Clients' rows as training sees them: opened, divided, encoded; and what of them a process keeps in memory."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from threading import Lock

import numpy as np

from fl_app.assembly import open_data
from fl_app.config import RunConfig
from tasks.base import Rows, Shard
from tasks.data.base import OwnFile
from tasks.data.design import Design

CACHE_BYTES = 4 * 2**30


class PreparedRows:
    """The shards of a run's clients, as the agreed design makes them. Keeps those used last, up to CACHE_BYTES.

    A node's process serves many clients in turn and Flower moves a node between processes, so this is a cache of
    pure values: what it forgets, or never had, is made again.
    """

    def __init__(self, config: RunConfig, design: Design, own: OwnFile | None = None) -> None:
        self._data = open_data(config, own)
        self.design = design
        self._kept: OrderedDict[str, Shard] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()  # a client that overran its deadline may still be loading

    @property
    def clients(self) -> tuple[str, ...]:
        """All clients of these data, sorted."""
        return self._data.clients

    def shard(self, client: str) -> Shard:
        """One client's rows, read-only. Raises KeyError for a client that the data do not have."""
        with self._lock:
            if client in self._kept:
                self._kept.move_to_end(client)
                return self._kept[client]
        shard = self._prepared(client)
        with self._lock:
            if client not in self._kept:
                self._kept[client] = shard
                self._bytes += _bytes(shard)
            while self._bytes > CACHE_BYTES and len(self._kept) > 1:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return shard

    def shards(self, clients: Iterable[str]) -> Iterator[Shard]:
        """Those of these clients, in their order; nothing is kept of those that are not kept already."""
        for client in sorted(clients):
            yield self._kept.get(client) or self._prepared(client)

    def _prepared(self, client: str) -> Shard:
        division = self._data.divide(client)
        shard = Shard(client, *self.design.prepare(division.train, division.test))
        for array in _arrays(shard):
            array.setflags(write=False)
        return shard


def pooled(parts: list[Rows]) -> Rows:
    """Rows of several owners, in the order given; at least one part."""
    return Rows(np.concatenate([rows.x for rows in parts]), np.concatenate([rows.y for rows in parts]))


def _arrays(shard: Shard) -> tuple[np.ndarray, ...]:
    return shard.train.x, shard.train.y, shard.test.x, shard.test.y


def _bytes(shard: Shard) -> int:
    return sum(array.nbytes for array in _arrays(shard))


@lru_cache(maxsize=2)
def prepared_rows(config: RunConfig, design: Design, own: OwnFile | None = None) -> PreparedRows:
    """The rows of a run in this process."""
    return PreparedRows(config, design, own)
