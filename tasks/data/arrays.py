"""Arrays as they come from files and libraries, made into tables of rows and labels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import Target
from tasks.data.table import MAX_CLASSES, Array, Columns, Table

MOST_ELEMENTS = 2**29
"""Of one array: 4 GiB as float64. What claims to hold more is refused before memory is taken for it."""

NUMBERS = "fiub"
LABELS = NUMBERS + "U"


def tables(
    x: Sequence[Array], y: Sequence[Array], *, label: str, target: Target, names: Sequence[str] = (), classes: str = ""
) -> list[Table]:
    """Tables of the same columns, such as of training and test rows.

    x: arrays (n, ...) of finite numbers, flattened to (n, d). y: arrays (n,): whole numbers, booleans and texts are
    classes, unless a number is wanted; others are numbers. names: of the columns; without any x0, x1, ... classes:
    names of the classes 0, 1, ... separated by commas. Raises ValueError for what does not fit.
    """
    rows = [_rows(values, labels) for values, labels in zip(x, y, strict=True)]
    width = rows[0].shape[1]
    if any(values.shape[1] != width for values in rows):
        raise ValueError(f"rows to train on have {width} columns, those to test on {rows[1].shape[1]}")
    if names and len(names) != width:
        raise ValueError(f"{len(names)} names of columns for {width} columns")
    targets, held = coded(y, target=target, classes=classes, label=label)
    columns = Columns.of_numbers(names or [f"x{index}" for index in range(width)], label, held)
    return [Table(values, own, columns) for values, own in zip(rows, targets, strict=True)]


def _rows(x: Array, y: Array) -> NDArray[np.float64]:
    if x.ndim < 1 or y.ndim != 1:
        raise ValueError(f"expected rows (n, ...) and labels (n,), got shapes {x.shape} and {y.shape}")
    if x.dtype.kind not in NUMBERS:
        raise ValueError(f"the rows are of type {x.dtype}: expected numbers")
    if len(x) != len(y):
        raise ValueError(f"{len(x)} rows and {len(y)} labels: expected one label for each row")
    if not x.size:
        raise ValueError(f"there is nothing in rows of shape {x.shape}")
    rows = x.reshape(len(x), -1).astype(np.float64)
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0].tolist()
        raise ValueError(f"row {row} has {rows[row, column]} in column {column}: expected finite numbers")
    return rows


def coded(
    y: Sequence[Array], *, target: Target, classes: str = "", label: str = "label"
) -> tuple[list[Array], tuple[str, ...]]:
    """Labels as a table has them, and the classes of all, sorted; none where they are numbers."""
    together = np.concatenate(list(y))
    if together.dtype.kind not in LABELS:
        raise ValueError(f"label {label!r} is of type {together.dtype}: expected numbers or texts")
    if target == "number" and together.dtype.kind != "U":
        if classes:
            raise ValueError(f"classes={classes}: the task predicts a number: leave classes out")
        return [own.astype(np.float64) for own in y], ()
    if together.dtype.kind == "f":
        raise ValueError(
            f"label {label!r} holds fractions, which are no classes: save whole numbers, or choose a task that "
            "predicts a number"
        )
    if target == "number":
        raise ValueError(f"label {label!r} holds texts such as {str(together[0])!r}: expected numbers")
    values, codes = np.unique(together, return_inverse=True)
    if classes:
        names, codes = _named(classes, together)
    else:
        names = tuple(_text(value) for value in values.tolist())
    if len(names) > MAX_CLASSES:
        raise ValueError(f"label {label!r} has {len(names)} classes: at most {MAX_CLASSES} are possible")
    ends = np.cumsum([len(own) for own in y])[:-1]
    return np.split(codes.astype(np.int64), ends), names


def _named(classes: str, codes: Array) -> tuple[tuple[str, ...], Array]:
    names = tuple(name.strip() for name in classes.split(","))
    if codes.dtype.kind not in "iu" or (len(codes) and not 0 <= codes.min() <= codes.max() < len(names)):
        raise ValueError(
            f"classes={classes}: {len(names)} names are for labels from 0 to {len(names) - 1}, and these are others"
        )
    return names, codes


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def elements(shape: Sequence[int]) -> int:
    """How many an array of this shape has. Raises ValueError for one that nobody means."""
    if any(size < 0 for size in shape) or math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"it says that its shape is {tuple(shape)}: at most {MOST_ELEMENTS} elements are possible")
    return math.prod(shape)
