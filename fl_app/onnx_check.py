"""Whether an ONNX file scores rows as the model does that it was made from. Imports onnxruntime, an extra."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from fl_app.model import CHUNK, Model
from fl_app.onnx_export import INPUT, PREDICTION, PROBABILITIES, number_columns, unscaled
from tasks.data.csv_file import read_csv
from tasks.data.design import Design, Term
from tasks.data.table import Columns, Feature, Table

RANDOM_ROWS = 256
SPREAD = 3.0  # standard deviations on either side of the mean
GAPS = 0.1  # share of the cells that are missing where the model allows it
SINGLE, DOUBLE = 1e-5, 1e-9
ERRORS_ONLY = 3


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far apart the two are: the largest difference of a probability, or of a number as a share of it or of the
    label's scale, whichever is larger; and how much is rounding."""

    rows: int
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """A difference that is not a number is none that is small."""
        return self.difference <= self.tolerance


def agreement(model: Model, file: bytes, table: Table) -> Agreement:
    """What both make of the same rows. Raises onnxruntime's errors for a file that it cannot run."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = ERRORS_ONLY, 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    seen, given = model.design.encode(table), _as_given(model.design, table)
    worst = [
        _difference(model, session, seen[start : start + CHUNK], given[start : start + CHUNK])
        for start in range(0, len(seen), CHUNK)
    ]
    single = any(array.dtype == np.float32 for array in (*model.arrays, *model.task.held))
    return Agreement(len(table), float(np.max(worst)), SINGLE if single else DOUBLE)


def table_of_file(model: Model, path: Path, delimiter: str) -> Table:
    """The rows of a CSV file that the model scores. Raises Refused where it cannot, as `Model.predict`."""
    next(model.predict(path, delimiter))
    kinds = {term.name: term.kind for term in model.design.terms}
    columns = read_csv(path, delimiter=delimiter, kinds=kinds, only=kinds).columns.values()
    features = tuple(Feature(column.name, column.kind, column.levels) for column in columns)
    return _table(np.column_stack([column.values for column in columns]), features, model.design)


def random_table(design: Design, seed: int = 0) -> Table:
    """Rows over the ranges that the design knows; a number of which it knows none is around 0."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([_random_cells(term, rng) for term in design.terms])
    if design.missing != "error":
        x[rng.random(x.shape) < GAPS] = np.nan
    features = tuple(
        Feature(term.name, term.kind, (*term.categories, _unknown(term.categories))) for term in design.terms
    )
    return _table(x, features, design)


def _random_cells(term: Term, rng: np.random.Generator) -> NDArray[np.float64]:
    """One column. A code beyond the categories is one that the model does not know."""
    if term.kind == "number":
        return (term.mean or 0.0) + (term.scale or 1.0) * rng.uniform(-SPREAD, SPREAD, RANDOM_ROWS)
    values = 2 if term.kind == "boolean" else len(term.categories) + 1
    return rng.integers(values, size=RANDOM_ROWS).astype(np.float64)


def _unknown(categories: tuple[str, ...]) -> str:
    """A category that is none of these."""
    return "".join(categories) + "?"


def _table(x: NDArray[np.float64], features: tuple[Feature, ...], design: Design) -> Table:
    return Table(x, np.zeros(len(x), dtype=np.int64), Columns(features, design.label))


def _as_given(design: Design, table: Table) -> NDArray[np.float64]:
    """The rows as the file takes them: in their own units, and a missing number is NaN."""
    x = unscaled(design).encode(table)
    names = table.columns.names
    raw = [term.name for term in design.terms for _ in term.columns]
    gaps = np.isnan(table.x[:, [names.index(name) for name in raw]]) & number_columns(design)
    result: NDArray[np.float64] = np.where(gaps, np.nan, x)
    return result


def _difference(
    model: Model, session: onnxruntime.InferenceSession, seen: NDArray[np.float64], given: NDArray[np.float64]
) -> float:
    predictions, probabilities = model.task.predict(model.arrays, seen)
    if probabilities is None:
        (found,) = session.run([PREDICTION], {INPUT: given})
        unit = np.maximum(np.abs(predictions), model.design.schema.scale)
        return float(np.max(np.abs(found - predictions) / unit))
    found, classes = session.run([PROBABILITIES, PREDICTION], {INPUT: given})
    # Where two classes are equally likely up to rounding either may be named: then their probabilities differ by it.
    rows = np.arange(len(seen))
    named = np.abs(probabilities[rows, classes] - probabilities[rows, predictions])
    return float(max(np.max(np.abs(found - probabilities)), np.max(named)))
