"""Raw rows: named columns of numbers and categories, before anything is agreed between their owners."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["number", "boolean", "category", "empty"]
Array = NDArray[Any]
Indices = NDArray[np.intp]

MAX_CLASSES = 1_000
"""A label with more is taken for a mistake."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A column to learn from. `levels`: what the cells of a category stand for, cell k being levels[k].

    An empty column holds nothing but missing cells; it goes with any kind.
    """

    name: str
    kind: Kind = "number"
    levels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """What a table's columns are. `classes` names the label's values in index order; empty where it is a number."""

    features: tuple[Feature, ...]
    label: str
    classes: tuple[str, ...] = ()

    @classmethod
    def of_numbers(cls, names: Sequence[str], label: str, classes: tuple[str, ...] = ()) -> "Columns":
        """Features that are all numbers."""
        return cls(tuple(Feature(str(name)) for name in names), label, classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features."""
        return tuple(feature.name for feature in self.features)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with named columns, all in one place.

    x: (n, d) float64, column j = columns.features[j], NaN where a cell is missing. y: (n,) int64 class indices, or
    float64 where the label is a number. groups: (n,) uint64, equal where rows belong together, such as those of one
    patient (`group_ids`); None where every row stands for itself.
    """

    x: Array
    y: Array
    columns: Columns
    groups: Array | None = None

    def __post_init__(self) -> None:
        expected = (len(self.y), len(self.columns.features))
        if self.x.shape != expected:
            raise ValueError(f"a table of {expected[0]} labels and {expected[1]} features has x of {self.x.shape}")
        classes = len(self.columns.classes)
        if classes and not np.isin(self.y, np.arange(classes)).all():
            raise ValueError(f"label {self.columns.label!r} must hold class indices within 0 and {classes - 1}")
        if self.groups is not None and self.groups.shape != self.y.shape:
            raise ValueError(f"a table of {len(self.y)} labels has groups of shape {self.groups.shape}")

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, indices: Indices) -> "Table":
        """Copies of the rows at `indices`, in that order."""
        groups = None if self.groups is None else self.groups[indices]
        return replace(self, x=self.x[indices], y=self.y[indices], groups=groups)

    def one_of_each(self) -> "tuple[Table, Indices]":
        """The first row of each group, and for every row (n,) which of these stands for it."""
        if self.groups is None:
            return self, np.arange(len(self))
        _, first, group = np.unique(self.groups, return_index=True, return_inverse=True)
        return self.rows(first), group

    def at_most(self, count: int) -> "Table":
        """The table with so many rows of each group, or fewer.

        Which ones depends on the group alone: what rows other groups have changes nothing.
        """
        if self.groups is None:
            return self
        order = np.argsort(self.groups, kind="stable")
        values, start, sizes = np.unique(self.groups[order], return_index=True, return_counts=True)
        place = np.arange(len(self)) - np.repeat(start, sizes)
        first = np.repeat((values % sizes.astype(np.uint64)).astype(np.intp), sizes)  # drawn by the hash
        kept = (place - first) % np.repeat(sizes, sizes) < count
        return self.rows(np.sort(order[kept]))

    def column(self, name: str) -> Array:
        """The cells of one feature (n,), as a view. Raises ValueError for a feature that the table does not have."""
        return self.x[:, self.columns.names.index(name)]

    def ordered(self, names: Sequence[str]) -> "Table":
        """The table with these features alone, in this order. Raises ValueError for one that it does not have."""
        places = [self.columns.names.index(name) for name in names]
        features = tuple(self.columns.features[place] for place in places)
        return replace(self, x=self.x[:, places], columns=replace(self.columns, features=features))

    def without(self, name: str) -> "Table":
        """The table without one feature."""
        position = self.columns.names.index(name)
        rest = self.columns.features[:position] + self.columns.features[position + 1 :]
        return replace(self, x=np.delete(self.x, position, axis=1), columns=replace(self.columns, features=rest))


def group_ids(names: Iterable[str]) -> Array:
    """A number (n,) for each name, the same in every table: uint64, a hash, so that names do not meet by chance."""
    digests = (blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.uint64)


@dataclass(frozen=True, slots=True)
class Division:
    """What one client holds: its rows to train on and its rows to test on, as they are."""

    client: str
    train: Table
    test: Table
