"""Any object that loads the rows of a client by its number, such as a FederatedDataset of flwr-datasets."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tasks.base import ObjectPath, Target
from tasks.data.arrays import LABELS, NUMBERS, coded
from tasks.data.base import Dataset, DataSource, Split, client_ids, split_rows
from tasks.data.table import Array, Columns, Division, Feature, Table
from tasks.imported import imported
from tasks.suggest import instead_of


class Loader(Dataset):
    """What a function of your own returns: an object whose load_partition(i) gives the rows of client i, as columns.

    Columns come as a mapping of name -> values, or as a table of pandas, polars, pyarrow or datasets. Values (n,) are
    numbers, booleans or texts (categories); values of more dimensions, such as images, become a column for each number.
    How many clients there are num-clients says, else `num_partitions` of the object.

    Args:
        factory: module:function that returns the object; every process of a run calls it
        label: the column to be predicted
        drop: columns not to be used, separated by commas
    """

    server_held = True
    names_files = True  # it names what is to be imported, which is for a site to say
    partitioned = False

    def __init__(self, *, factory: ObjectPath, label: str, drop: str = "") -> None:
        self.factory, self.label = factory, label
        self.dropped = {name.strip() for name in drop.split(",") if name.strip()}

    def open(self, split: Split) -> "LoadedClients":
        """Raises ValueError for a function that cannot be imported or gives no such object, and where nobody says how
        many clients there are."""
        loader = imported(self.factory, "factory")()
        if not callable(getattr(loader, "load_partition", None)):
            raise ValueError(f"factory={self.factory} returns a {type(loader).__name__} without load_partition(i)")
        count = split.num_clients or getattr(loader, "num_partitions", 0)
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"factory={self.factory} does not say how many clients there are: set num-clients")
        return LoadedClients(self, loader, count, split)


class LoadedClients(DataSource):
    """The clients of a `Loader`; their rows are loaded when they are asked for."""

    def __init__(self, law: Loader, loader: Any, count: int, split: Split) -> None:
        self._law, self._loader, self._split = law, loader, split
        self.clients = client_ids(count)

    def _divide(self, client: str) -> Division:
        found = self._loader.load_partition(int(client))
        return split_rows(client, table_of(found, self._law.label, self._split.target, self._law.dropped), self._split)


def table_of(found: Any, label: str, target: Target, dropped: Iterable[str] = ()) -> Table:
    """A table of named columns. Raises ValueError, naming the column, for what cannot be one."""
    names = _names(found)
    for name in (label, *dropped):
        if name not in names:
            raise ValueError(f"there is no column {name!r}: {instead_of(name, names)}")
    (y,), classes = coded([_values(found, label)], target=target, label=label)
    if y.ndim != 1:
        raise ValueError(f"label {label!r} is of shape {y.shape}: expected one value a row")
    parts = [_features(name, _values(found, name), len(y)) for name in names if name not in (label, *dropped)]
    if not parts:
        raise ValueError(f"there is no column to learn from beside {label!r}")
    features = tuple(feature for own, _ in parts for feature in own)
    return Table(np.concatenate([x for _, x in parts], axis=1), y, Columns(features, label, classes))


def _names(found: Any) -> list[str]:
    if isinstance(found, Mapping):
        return list(found)
    for attribute in ("column_names", "columns"):  # of datasets and pyarrow; of pandas and polars
        if (names := getattr(found, attribute, None)) is not None and not callable(names):
            return [str(name) for name in names]
    raise ValueError(f"load_partition gave a {type(found).__name__}: expected a mapping or a table of named columns")


def _values(found: Any, name: str) -> Array:
    """Of any shape and type but objects: texts are unicode."""
    column = found[name]
    try:
        values = np.asarray(column)
        if values.dtype.kind in "OT":
            held = list(column)
            texts = all(isinstance(value, str) for value in held)
            values = np.array(held, np.str_) if texts else np.stack([np.asarray(value) for value in held])  # images
    except ValueError as error:
        raise ValueError(f"column {name!r} holds values of different shapes or none") from error
    if values.dtype.kind not in LABELS or values.ndim < 1:
        raise ValueError(f"column {name!r} is of type {values.dtype}: expected numbers, booleans or texts")
    return values


def _features(name: str, values: Array, count: int) -> tuple[list[Feature], Array]:
    """What a column becomes: one feature, or one for each number of a row."""
    if len(values) != count:
        raise ValueError(f"column {name!r} has {len(values)} values, the label has {count}")
    if values.ndim == 1 and values.dtype.kind == "U":
        levels, codes = np.unique(values, return_inverse=True)
        return [Feature(name, "category", tuple(levels.tolist()))], codes.astype(np.float64)[:, None]
    if values.dtype.kind not in NUMBERS:
        raise ValueError(f"column {name!r} holds texts of more than one dimension: drop it")
    if values.ndim == 1:
        return [Feature(name, "boolean" if values.dtype.kind == "b" else "number")], values.astype(np.float64)[:, None]
    flat = values.reshape(count, -1).astype(np.float64)
    return [Feature(f"{name}{index}") for index in range(flat.shape[1])], flat
