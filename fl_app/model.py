"""A trained model from its files: to score new rows, and to read what it has learned."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_app import registry
from fl_app.errors import Refused
from strategies.update import Arrays
from tasks.base import Coefficients, Task
from tasks.data.csv_file import CsvError, CsvFile, read_csv
from tasks.data.csv_records import Records, delimiter_of
from tasks.data.design import Design
from tasks.data.table import Columns, Feature, Table
from tasks.suggest import instead_of

CHUNK = 65_536  # rows scored at a time


@dataclass(frozen=True)
class Model:
    """What model.json and the model.safetensors beside it hold."""

    about: Mapping[str, Any]
    design: Design
    task: Task
    arrays: Arrays

    @classmethod
    def load(cls, path: Path) -> "Model":
        """From the path of model.json, or of its folder. Raises Refused."""
        path = path / "model.json" if path.is_dir() else path
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            design = Design.from_json(about)
            tensors = load_file(path.with_name("model.safetensors"))
            arrays = tuple(tensors[entry["name"]] for entry in about["arrays"])
            name, args = str(about["task"]), str(about["task_args"])
        except OSError as error:
            remedy = f"name the model.json of a run ({error.strerror or error})"
            raise Refused("cannot read the model", str(path), remedy) from error
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise Refused("no model of this version", str(path), f"name the model.json of a run ({error})") from error
        task: Task = registry.build("task", name, args, design.schema)
        expected = [array.shape for array in task.initial_arrays(0)]
        if [array.shape for array in arrays] != expected:
            raise Refused("its arrays do not fit its columns", str(path), "train again")
        return cls(about, design, task, arrays)

    def coefficients(self) -> Coefficients:
        """As the run found them, else from the arrays alone. Raises Refused for a model that has none."""
        if "coefficients" in self.about:
            return Coefficients(tuple(self.about["coefficients"]), str(self.about.get("coefficients_note", "")))
        found = self.task.coefficients(self.arrays, self.design.scaling(), None)
        if found is None:
            raise Refused("a model without coefficients", f"task={self.about['task']}", "show is for linear models")
        return found

    def predict(self, path: Path, delimiter: str = "auto") -> Iterator[list[str | float]]:
        """For each row of a CSV file, in order: the prediction and, of a classifier, every class's probability.

        Columns are found by name; others, the label among them, are not looked at. Raises Refused for a column that is
        absent or cannot be read as what it was in training, and for missing cells where the model has no mean for them.
        """
        if self.design.standardize == "local":
            what = "the model is for columns that each client scaled by statistics of its own"
            raise Refused(what, "standardize=local", "train with standardize=global to score new rows")
        x = self._encoded(path, delimiter)
        for start in range(0, len(x), CHUNK):
            yield from self._scored(x[start : start + CHUNK])

    def _encoded(self, path: Path, delimiter: str) -> np.ndarray:
        kinds = {term.name: term.kind for term in self.design.terms}
        try:
            self._check_names(path, delimiter)
            file = read_csv(path, delimiter=delimiter, kinds=kinds, only=kinds)
            self._check_gaps(file)
            features = tuple(Feature(c.name, c.kind, c.levels) for c in file.columns.values())
            x = np.column_stack([column.values for column in file.columns.values()])
            nothing = np.zeros(len(file), dtype=np.int64)
            return self.design.encode(Table(x, nothing, Columns(features, self.design.label)))
        except CsvError as error:  # begins with the path
            place, _, why = str(error).removeprefix(str(path)).partition(": ")
            raise Refused("the rows cannot be scored", f"{path}{place}", why) from error
        except ValueError as error:
            raise Refused("the rows cannot be scored", str(path), str(error)) from error

    def _check_names(self, path: Path, delimiter: str) -> None:
        names = Records(path, delimiter_of(delimiter)).names
        absent = [term.name for term in self.design.terms if term.name not in names]
        if absent:
            more = f" and {len(absent) - 1} more are" if len(absent) > 1 else " is"
            remedy = f"the model needs each column that it was trained on; {instead_of(absent[0], names)}"
            raise CsvError(path, None, f"column {absent[0]!r}{more} absent", remedy)

    def _check_gaps(self, file: CsvFile) -> None:
        if self.design.missing != "error":
            return
        for column in file.columns.values():
            gaps = np.isnan(column.values)
            if gaps.any():
                what = f"a missing cell in column {column.name!r}, one of {gaps.sum()}"
                remedy = "fill what is missing, or train with missing=mean, whose models take such rows"
                raise CsvError(file.path, file.line_of(int(gaps.argmax())), what, remedy)

    def _scored(self, x: np.ndarray) -> Iterator[list[str | float]]:
        predictions, probabilities = self.task.predict(self.arrays, x)
        for index, value in enumerate(predictions.tolist()):
            if probabilities is None:
                yield [value]
            else:
                yield [self.design.classes[value], *probabilities[index].tolist()]


def write_predictions(model: Model, rows: Iterator[list[str | float]], out: TextIO) -> int:
    """As CSV with the header prediction,p_<class>...; the number of rows.

    A class whose name a spreadsheet would take for a formula is written with an apostrophe before it.
    """
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["prediction", *(f"p_{name}" for name in model.design.classes)])
    count = 0
    for row in rows:
        writer.writerow([_harmless(row[0]), *row[1:]])
        count += 1
    return count


def _harmless(value: str | float) -> str | float:
    if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@"):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
