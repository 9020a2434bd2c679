"""A trained model from its files: to score new rows, and to read what it has learned."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
FAR = 10  # standard deviations from the mean: another unit, or a code for something


@dataclass(frozen=True)
class Model:
    """What model.json and the model.safetensors beside it hold."""

    about: Mapping[str, Any]
    design: Design
    task: Task
    arrays: Arrays
    warnings: list[str] = field(default_factory=list)  # of the rows scored last

    @classmethod
    def load(cls, path: Path) -> "Model":
        """From the path of model.json, or of its folder. Raises Refused."""
        path = path / "model.json" if path.is_dir() else path
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            design = Design.from_json(about)
            tensors = load_file(path.with_name("model.safetensors"))
            arrays = tuple(tensors[entry["name"]] for entry in about["arrays"])
            frozen = {entry["name"]: tensors[entry["name"]] for entry in about.get("frozen", {}).get("arrays", ())}
            name, args, rounds = str(about["task"]), str(about["task_args"]), int(about["rounds"])
        except OSError as error:
            remedy = f"name the model.json of a run ({error.strerror or error})"
            raise Refused("cannot read the model", str(path), remedy) from error
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise Refused("no model of this version", str(path), f"name the model.json of a run ({error})") from error
        task: Task = registry.build("task", name, args, design.schema)
        if not rounds:
            raise Refused("the run ended before its first round", str(path), "there is no trained model: run again")
        expected = [array.shape for array in task.initial_arrays(0)]
        if [array.shape for array in arrays] != expected:
            raise Refused("its arrays do not fit its columns", str(path), "train again")
        return cls(about, design, _holding(task, frozen, path), arrays)

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
        if self.task.personal_names:
            what = f"each client has {', '.join(self.task.personal_names[:3])} of its own"
            remedy = "the file holds what they share: train without personal layers to score new rows"
            raise Refused(what, f"task-args={self.about['task_args']}", remedy)
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
            table = Table(x, np.zeros(len(file), dtype=np.int64), Columns(features, self.design.label))
            self.warnings[:] = _strange(self.design, table)
            return self.design.encode(table)
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


def _holding(task: Task, frozen: Mapping[str, np.ndarray], path: Path) -> Task:
    """The task with the model's frozen arrays; its personal ones are not in the file."""
    start = task.initial_held(0)
    frozen_start = start[: len(task.frozen_names)]
    expected = {name: array.shape for name, array in zip(task.frozen_names, frozen_start, strict=True)}
    if {name: array.shape for name, array in frozen.items()} != expected:
        raise Refused("its frozen arrays do not fit its task", str(path), "train again")
    return task.holding((*(frozen[name] for name in task.frozen_names), *start[len(frozen_start) :]))


def _strange(design: Design, table: Table) -> Iterator[str]:
    """What the model has not seen: categories, and numbers far from those it was trained on."""
    for term in design.terms:
        cells = table.column(term.name)
        known = cells[~np.isnan(cells)]
        if term.kind == "category":
            levels = table.columns.features[table.columns.names.index(term.name)].levels
            new = [level for level in levels if level not in term.categories]
            rows = int(np.isin(known, [levels.index(level) for level in new]).sum())
            if rows:
                hold = _counted(rows, "holds", "hold")
                yield f"{term.name}: {hold} a value that the model does not know, such as {new[0]!r}"
        elif term.kind == "number" and term.mean is not None and term.scale is not None:
            far = int((np.abs(known - term.mean) > FAR * term.scale).sum())
            if far:
                yield f"{term.name}: {_counted(far, 'lies', 'lie')} more than {FAR} standard deviations from the mean"


def _counted(rows: int, one: str, several: str) -> str:
    return f"1 row {one}" if rows == 1 else f"{rows} rows {several}"


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
