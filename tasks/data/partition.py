"""Partitioners: how the rows of one table are dealt to clients.

All of them give each row to exactly one client and no client nothing. By label means by class, or where the label is a
number by the tenth of the rows that it falls into.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tasks.data.base import Partition, Partitioner, client_ids
from tasks.data.draw import apportion, generator
from tasks.data.moments import Moments
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
        strata = _strata(table)
        for label in np.unique(strata):
            members = rng.permutation(np.flatnonzero(strata == label))
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


class Noise(Partitioner):
    """Feature shift: equal random samples, with noise on the features that grows from client to client.

    Li et al. 2022, arXiv:2102.02079: to the numbers of client k of N is added Gaussian noise of variance level k / N,
    here in units of each column's own variance. Rows to test on have their client's noise too.

    Args:
        level: the variance of the last client's noise; 0 = none
    """

    def __init__(self, *, level: float = 1.0) -> None:
        if not 0 <= level < math.inf:
            raise ValueError(f"partition noise: level must be finite and 0 or more, got {level}: try level=1")
        self.level = level

    def assign(self, table: Table, num_clients: int, seed: int) -> Partition:
        dealt = Iid().assign(table, num_clients, seed)
        numbers = [feature.kind == "number" for feature in table.columns.features]
        if not any(numbers):
            raise ValueError("partition noise: no column is a number: choose another partition")
        stddev = np.zeros(len(numbers))
        stddev[numbers] = np.sqrt(Moments.of(table.x[:, numbers]).variance())
        place = {client: index + 1 for index, client in enumerate(sorted(dealt.rows))}

        def change(client: str, x: Array) -> Array:
            own = stddev * math.sqrt(self.level * place[client] / num_clients)
            noisy: Array = x + own * generator(seed, "partition noise", client).standard_normal(x.shape)
            return noisy

        return replace(dealt, change=change)


class Rotation(Partitioner):
    """Feature shift: equal random samples of images, which each client sees turned by an angle of its own.

    Multiples of 90 degrees move pixels; other angles interpolate between them, and what comes in from outside is 0.
    Rows to test on are turned too.

    Args:
        angles: degrees counter-clockwise, dealt to the clients in turn, separated by commas
        shape: of an image: channels, height and width, separated by commas; empty = one channel, as high as wide
    """

    def __init__(self, *, angles: str = "0,90,180,270", shape: str = "") -> None:
        self.angles = _numbers("angles", angles)
        self.shape = tuple(int(size) for size in _numbers("shape", shape)) if shape else ()
        if self.shape and (len(self.shape) != 3 or min(self.shape) < 1):
            raise ValueError(f"partition rotation: shape={shape}: expected channels,height,width, such as 3,32,32")

    def assign(self, table: Table, num_clients: int, seed: int) -> Partition:
        shape = self._shape(table)
        dealt = Iid().assign(table, num_clients, seed)
        angle_of = {name: self.angles[k % len(self.angles)] for k, name in enumerate(sorted(dealt.rows))}

        def change(client: str, x: Array) -> Array:
            return _turned(x.reshape(len(x), *shape), angle_of[client]).reshape(x.shape)

        return replace(dealt, change=change)

    def _shape(self, table: Table) -> tuple[int, ...]:
        pixels = len(table.columns.features)
        side = math.isqrt(pixels)
        shape = self.shape or (1, side, side)
        if math.prod(shape) != pixels or any(feature.kind != "number" for feature in table.columns.features):
            raise ValueError(
                f"partition rotation: rows of {pixels} columns are no images of {' x '.join(map(str, shape))} pixels: "
                "say shape=channels,height,width, or choose another partition"
            )
        if shape[1] != shape[2] and any(angle % 180 for angle in self.angles):
            raise ValueError(
                f"partition rotation: images of {shape[1]} x {shape[2]} pixels do not fit once turned: use angles=0,180"
            )
        return shape


def _turned(images: Array, angle: float) -> Array:
    """Images (n, channels, height, width), counter-clockwise."""
    if angle % 90 == 0:
        return np.rot90(images, int(angle // 90) % 4, axes=(2, 3))
    from scipy.ndimage import rotate  # slow to load, and seldom needed

    turned: Array = rotate(images, angle, axes=(3, 2), reshape=False, order=1, mode="grid-constant")
    return turned


def _numbers(name: str, text: str) -> list[float]:
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"partition rotation: {name}={text}: expected numbers separated by commas")
    return values


def _strata(table: Table) -> Array:
    """What skew by label goes by: the class, or the tenth of the rows that a number falls into."""
    if table.columns.classes:
        return table.y
    tenths: Array = np.searchsorted(np.quantile(table.y, np.linspace(0.1, 0.9, 9)), table.y, side="right")
    return tenths


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
