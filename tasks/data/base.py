"""Data sources: from a name in the run config to the rows of each client."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.base import Rows, Schema, Shard
from tasks.data.draw import generator, stratified_split

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with named columns, all in one place. x: (n, d) float64 with column j = schema.features[j]; y: (n,)."""

    x: NDArray[Any]
    y: NDArray[Any]
    schema: Schema

    def __post_init__(self) -> None:
        expected = (len(self.y), len(self.schema.features))
        if self.x.shape != expected:
            raise ValueError(f"a table of {expected[0]} labels and {expected[1]} features has x of {self.x.shape}")
        classes = len(self.schema.classes)
        if classes and not np.isin(self.y, np.arange(classes)).all():
            raise ValueError(f"label {self.schema.label!r} must hold class indices within 0 and {classes - 1}")

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, indices: Indices) -> Rows:
        """Copies of the rows at `indices`, in that order."""
        return Rows(self.x[indices], self.y[indices])


@dataclass(frozen=True, slots=True)
class Partition:
    """Which row belongs to whom. `table` is what remains to learn from; `rows` maps client ids to ascending indices."""

    table: Table
    rows: Mapping[str, Indices]


class Partitioner(ABC):
    """Deals the rows of a table to clients: each row to exactly one of them, and to each client at least one."""

    @abstractmethod
    def assign(self, table: Table, num_clients: int, seed: int) -> Partition:
        """A pure function of its arguments. ValueError where it cannot be done, naming the rows and the clients."""


@dataclass(frozen=True, slots=True)
class Split:
    """How a data source is divided: among clients, and at each client into rows to train and to test on.

    num_clients 0 means as many as the data say.
    """

    num_clients: int
    partition: Partitioner
    test_fraction: float
    seed: int

    def __post_init__(self) -> None:
        if self.num_clients < 0:
            raise ValueError(f"num-clients must be 0 (as many as the data say) or more, got {self.num_clients}")
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test-fraction must be at least 0 and below 1, got {self.test_fraction}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


class DataSource(ABC):
    """Opened data: who has some, and the shard of each. `clients` is sorted."""

    schema: Schema
    clients: tuple[str, ...]

    def shard(self, client: str) -> Shard:
        """The rows of one client: a pure function of the split and the client, whoever asks and in whatever order.

        The test rows are stratified by class. Raises KeyError for a client that this data do not have.
        """
        if client not in self.clients:
            raise KeyError(f"no client {client!r}: this data has {len(self.clients)}, from {self.clients[0]!r} on")
        return self._shard(client)

    @abstractmethod
    def _shard(self, client: str) -> Shard: ...


class Dataset(ABC):
    """Data by name; its constructor parameters are what a run sets with `data-args`.

    `server_held`: the server may open the data too, as with public data dealt to simulated clients, and then measures
    the model itself on all test rows. False where only clients have their rows.
    """

    server_held: ClassVar[bool] = False
    partitioned: ClassVar[bool] = True
    """Whether the run's partition deals the rows; False where they are born divided."""

    @abstractmethod
    def open(self, split: Split) -> DataSource:
        """Read or generate the data and divide them. Nothing is kept between calls: keep what it returns."""


class TableDataset(Dataset):
    """Data that come as one table, which the run's partitioner deals to clients."""

    server_held = True

    @abstractmethod
    def table(self) -> Table:
        """All rows."""

    def open(self, split: Split) -> "PartitionedTable":
        return PartitionedTable(self.table(), split)


class PartitionedTable(DataSource):
    """A table dealt to clients."""

    def __init__(self, table: Table, split: Split) -> None:
        """Raises ValueError where the partitioner cannot deal these rows to that many clients."""
        self._split = split
        self._partition = split.partition.assign(table, split.num_clients, split.seed)
        self.schema = self._partition.table.schema
        self.clients = tuple(sorted(self._partition.rows))

    def _shard(self, client: str) -> Shard:
        own = self._partition.table.rows(self._partition.rows[client])
        return split_rows(client, own, self.schema, self._split)


def split_rows(client: str, rows: Rows, schema: Schema, split: Split) -> Shard:
    """One client's rows as train and test, stratified by class, drawn from (seed, client)."""
    strata = rows.y if schema.classes else np.zeros(len(rows), dtype=np.int64)
    train, test = stratified_split(strata, split.test_fraction, generator(split.seed, "test split", client))
    return Shard(client, Rows(rows.x[train], rows.y[train]), Rows(rows.x[test], rows.y[test]))


def client_ids(num_clients: int) -> tuple[str, ...]:
    """Ids 00, 01, ... with as many digits as it takes for their sorted order to be that of the numbers."""
    width = max(2, len(str(num_clients - 1)))
    return tuple(f"{index:0{width}}" for index in range(num_clients))
