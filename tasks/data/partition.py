"""Partitioners: how the rows of one table are dealt to clients.

All of them give each row to exactly one client and no client nothing.
"""

from collections.abc import Sequence

import numpy as np

from tasks.data.base import Partition, Partitioner, client_ids
from tasks.data.draw import apportion, generator
from tasks.data.table import Array, Feature, Indices, Table
from tasks.suggest import unknown


class Iid(Partitioner):
    """Every client gets a random sample, all of the same size to within one row."""

    def assign(self, table: Table, num_clients: int, seed: int) -> Partition:
        _check_clients("iid", table, num_clients)
        order = generator(seed, "partition iid").permutation(len(table))
        return _partition(table, np.array_split(order, num_clients))


class Dirichlet(Partitioner):
    """Label skew: each class is spread over the clients in proportions drawn from Dirichlet(alpha).

    Yurochkin et al. 2019, arXiv:1905.12022. A client that gets no row takes one from the client that has most.

    Args:
        alpha: concentration; 100 is nearly iid, 0.1 leaves most clients with one or two classes
    """

    def __init__(self, *, alpha: float = 0.5) -> None:
        if not 0 < alpha < float("inf"):
            raise ValueError(f"partition dirichlet: alpha must be a finite number above 0, got {alpha}: try alpha=0.5")
        self.alpha = alpha

    def assign(self, table: Table, num_clients: int, seed: int) -> Partition:
        _check_clients("dirichlet", table, num_clients)
        rng = generator(seed, "partition dirichlet")
        owner = np.empty(len(table), dtype=np.int64)
        for label in np.unique(table.y):
            members = rng.permutation(np.flatnonzero(table.y == label))
            shares = rng.dirichlet(np.full(num_clients, self.alpha))
            owner[members] = np.repeat(np.arange(num_clients), apportion(len(members), shares))
        for empty in np.setdiff1d(np.arange(num_clients), owner):
            richest = np.bincount(owner).argmax()
            owner[rng.choice(np.flatnonzero(owner == richest))] = empty
        return _partition(table, [np.flatnonzero(owner == client) for client in range(num_clients)])


class Shards(Partitioner):
    """Label skew: rows sorted by label are cut into equal shards, and each client is dealt a few of them at random.

    McMahan et al. 2017, arXiv:1602.05629, where two shards of digits leave most clients with two digits.

    Args:
        per_client: shards per client
    """

    def __init__(self, *, per_client: int = 2) -> None:
        if per_client < 1:
            raise ValueError(f"partition shards: per-client must be at least 1, got {per_client}: try per-client=2")
        self.per_client = per_client

    def assign(self, table: Table, num_clients: int, seed: int) -> Partition:
        num_shards = num_clients * self.per_client
        _check_clients("shards", table, num_clients)
        if num_shards > len(table):
            raise ValueError(
                f"partition shards: {num_clients} clients with {self.per_client} shards each need {num_shards} rows, "
                f"the data has {len(table)}: lower num-clients or per-client"
            )
        rng = generator(seed, "partition shards")
        order = rng.permutation(len(table))
        shards = np.array_split(order[np.argsort(table.y[order], kind="stable")], num_shards)
        hands = rng.permutation(num_shards).reshape(num_clients, self.per_client)
        return _partition(table, [np.concatenate([shards[shard] for shard in hand]) for hand in hands])


class BySize(Partitioner):
    """Size skew: random samples whose sizes fall by a power law, client k + 1 getting a share of (k + 1)^-exponent.

    Each client has one row before the rest is shared out; the first client is the largest.

    Args:
        exponent: how steeply sizes fall; 0 makes all equal
    """

    def __init__(self, *, exponent: float = 1.5) -> None:
        if not 0 <= exponent < float("inf"):
            raise ValueError(f"partition by-size: exponent must be finite and 0 or more, got {exponent}: try 1.5")
        self.exponent = exponent

    def assign(self, table: Table, num_clients: int, seed: int) -> Partition:
        _check_clients("by-size", table, num_clients)
        shares = np.arange(1.0, num_clients + 1) ** -self.exponent
        sizes = 1 + apportion(len(table) - num_clients, shares)
        order = generator(seed, "partition by-size").permutation(len(table))
        return _partition(table, np.split(order, sizes.cumsum()[:-1]))


class ByColumn(Partitioner):
    """The data's own division: one client per value of a column, which is then no feature any more.

    A client's id is the value as text (3, not 3.0). num-clients is 0 or the number of values.

    Args:
        column: the name of the column, a feature
    """

    counts_clients = True

    def __init__(self, *, column: str) -> None:
        self.column = column

    def assign(self, table: Table, num_clients: int, seed: int) -> Partition:
        names = table.columns.names
        if self.column not in names:
            raise ValueError(f"partition by-column: {unknown('column', self.column, names)}")
        values, owner = np.unique(table.column(self.column), return_inverse=True)
        if not np.isfinite(values).all():
            raise ValueError(f"partition by-column: column {self.column!r} has missing values: fill or drop those rows")
        if num_clients not in (0, len(values)):
            raise ValueError(
                f"partition by-column: column {self.column!r} has {len(values)} values, num-clients is {num_clients}: "
                "set num-clients=0"
            )
        ids = _texts(table.columns.features[names.index(self.column)], values)
        rows = {client: np.flatnonzero(owner == index) for index, client in enumerate(ids)}
        return Partition(table.without(self.column), rows)


def _texts(feature: Feature, values: Array) -> list[str]:
    """The cells of a column as a person writes them."""
    if feature.kind == "category":
        return [feature.levels[int(value)] for value in values]
    if feature.kind == "boolean":
        return ["true" if value else "false" for value in values]
    return [str(int(value)) if value.is_integer() else str(value) for value in values.tolist()]


def _partition(table: Table, rows: Sequence[Indices]) -> Partition:
    return Partition(table, {name: np.sort(own) for name, own in zip(client_ids(len(rows)), rows, strict=True)})


def _check_clients(name: str, table: Table, num_clients: int) -> None:
    if num_clients < 1:
        raise ValueError(f"partition {name}: num-clients must be at least 1, got {num_clients}: say how many")
    if num_clients > len(table):
        raise ValueError(
            f"partition {name}: {num_clients} clients cannot share {len(table)} rows: lower num-clients to "
            f"{len(table)} or less"
        )
