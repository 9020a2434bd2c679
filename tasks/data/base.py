"""Data sources: from a name in the run config to the rows of each client."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NewType

import numpy as np

from tasks.base import Target
from tasks.data.design import Design, Missing
from tasks.data.draw import generator, stratified_split
from tasks.data.table import Array, Division, Indices, Table

DEFAULT_CLIENTS = 10
"""Where neither the run nor the data say how many."""

PathText = NewType("PathText", str)
"""A constructor parameter of this type names a file; a run takes it from the folder that it is started in."""


Change = Callable[[str, Array], Array]
"""What becomes of the features x (n, d) of a client: a pure function of the client and its rows."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Which row belongs to whom. `table` is what remains to learn from; `rows` maps client ids to ascending indices.

    change: what makes the clients' features differ besides, columns as in `table`; it is asked for all rows of a client
    at once, those to test on last.
    """

    table: Table
    rows: Mapping[str, Indices]
    change: Change | None = None


class Partitioner(ABC):
    """Deals the rows of a table to clients: each row to exactly one of them, and to each client at least one."""

    counts_clients: ClassVar[bool] = False
    """Whether the rows themselves say how many clients there are."""

    @abstractmethod
    def assign(self, table: Table, num_clients: int, seed: int) -> Partition:
        """A pure function of its arguments. ValueError where it cannot be done, naming the rows and the clients."""


@dataclass(frozen=True, slots=True)
class Split:
    """How a data source is divided: among clients, and at each client into rows to train and to test on.

    num_clients 0 means as many as the data say. target: what the task wants the label to be, where the data can be read
    either way.
    """

    num_clients: int
    partition: Partitioner
    test_fraction: float
    seed: int
    target: Target = "class"

    def __post_init__(self) -> None:
        if self.num_clients < 0:
            raise ValueError(f"num-clients must be 0 (as many as the data say) or more, got {self.num_clients}")
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test-fraction must be at least 0 and below 1, got {self.test_fraction}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True, slots=True)
class OwnFile:
    """The file of one data owner at its own site, as its node's configuration names it. test_path may be empty."""

    client: str
    path: str
    label: str
    test_path: str = ""


class DataSource(ABC):
    """Opened data: who has some, and the rows of each. `clients` is sorted."""

    clients: tuple[str, ...]

    def divide(self, client: str) -> Division:
        """The rows of one client: a pure function of the split and the client, whoever asks and in whatever order.

        The test rows are stratified by class, and of other groups than the rows to train on. Raises KeyError for a
        client that this data do not have.
        """
        if client not in self.clients:
            raise KeyError(f"no client {client!r}: this data has {len(self.clients)}, from {self.clients[0]!r} on")
        return self._divide(client)

    @abstractmethod
    def _divide(self, client: str) -> Division: ...


class Dataset(ABC):
    """Data by name; its constructor parameters are what a run sets with `data-args`.

    `server_held`: the server may open the data too, as with public data dealt to simulated clients, and then measures
    the model itself on all test rows. False where only clients have their rows.
    """

    server_held: bool = False
    partitioned: bool = True
    """Whether the run's partition deals the rows; False where they are born divided."""
    missing: Missing = "error"
    """What becomes of missing cells."""
    positive: str = ""
    """Which of two classes is the one with index 1; empty for the second one in order."""
    one_row_each: str = ""
    """The column that says whose a row is, where of each person only one row is used; else empty."""
    at_sites: bool = False
    """Whether the rows lie at sites, each of which knows its own file, and cannot be opened here."""

    names_files: bool = False
    """Whether the run itself says which files to read: right in a simulation, never at a site."""

    def declared(self, split: Split) -> Design | None:
        """What is publicly known of the columns before a row is read; None where nothing is."""
        return None

    def for_site(self, own: OwnFile) -> "Dataset":
        """These data as one site has them. Raises ValueError where they are not read from files of sites, or name
        files themselves: what is read at a site is the site's to say."""
        raise ValueError(f"{own.path}: these data are not read from a site's own file: use data=csv")

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
    """A table dealt to clients. Test rows that come separately are shared out at random: each is tested on once."""

    def __init__(self, table: Table, split: Split, tests: Table | None = None) -> None:
        """Raises ValueError where the partitioner cannot deal these rows to that many clients."""
        self._split, self._tests = split, tests
        self._partition = deal(table, split)
        self.clients = tuple(sorted(self._partition.rows))
        order = generator(split.seed, "test rows").permutation(0 if tests is None else len(tests))
        parts = zip(self.clients, np.array_split(order, len(self.clients)), strict=True)
        self._test_rows = {client: np.sort(own) for client, own in parts}

    def _divide(self, client: str) -> Division:
        own = self._partition.table.rows(self._partition.rows[client])
        tests = None if self._tests is None else self._tests.rows(self._test_rows[client])
        return divided(client, own, tests, self._split, self._partition.change)


class OneOwner(DataSource):
    """The rows of one client."""

    def __init__(self, client: str, table: Table, tests: Table | None, split: Split) -> None:
        self.clients = (client,)
        self._table, self._tests, self._split = table, tests, split

    def _divide(self, client: str) -> Division:
        return divided(client, self._table, self._tests, self._split)


def deal(table: Table, split: Split) -> Partition:
    """A table dealt by the run's partition, groups as a whole. Raises ValueError where that cannot be done.

    Where the rows themselves say whose they are, they need not keep together.
    """
    partition = split.partition
    num_clients = split.num_clients or (0 if partition.counts_clients else DEFAULT_CLIENTS)
    if table.groups is None or partition.counts_clients:
        return partition.assign(table, num_clients, split.seed)
    heads, group = table.one_of_each()
    dealt = partition.assign(heads, num_clients, split.seed)
    owner = np.empty(len(heads), dtype=np.intp)
    for index, own in enumerate(dealt.rows.values()):
        owner[own] = index
    rows = {client: np.flatnonzero(owner[group] == index) for index, client in enumerate(dealt.rows)}
    return replace(dealt, table=table.ordered(dealt.table.columns.names), rows=rows)


def divided(client: str, own: Table, tests: Table | None, split: Split, change: Change | None = None) -> Division:
    """A client's rows as they come with `change`, and beside its `tests` or, without any, some split off to test on."""
    if change is not None:
        tests = None if tests is None else tests.ordered(own.columns.names)
        x = change(client, own.x if tests is None else np.concatenate([own.x, tests.x]))
        own, tests = replace(own, x=x[: len(own)]), None if tests is None else replace(tests, x=x[len(own) :])
    return split_rows(client, own, split) if tests is None else Division(client, own, tests)


def split_rows(client: str, table: Table, split: Split) -> Division:
    """One client's rows as train and test, stratified by class, drawn from (seed, client).

    Groups stay whole: a share of the groups is drawn to test on, each counting as of the class of its first row.
    """
    heads, group = table.one_of_each()
    strata = heads.y if table.columns.classes else np.zeros(len(heads), dtype=np.int64)
    train, test = stratified_split(strata, split.test_fraction, generator(split.seed, "test split", client))
    if table.groups is not None:
        train, test = (np.flatnonzero(np.isin(group, part)) for part in (train, test))
    return Division(client, table.rows(train), table.rows(test))


def client_ids(num_clients: int) -> tuple[str, ...]:
    """Ids 00, 01, ... with as many digits as it takes for their sorted order to be that of the numbers."""
    width = max(2, len(str(num_clients - 1)))
    return tuple(f"{index:0{width}}" for index in range(num_clients))
