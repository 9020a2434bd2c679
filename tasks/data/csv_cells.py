"""The cells of a CSV file as columns: what is missing, what is a number, and what kind a column is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.data.csv_records import Cells
from tasks.data.csv_text import CsvError, quoted
from tasks.data.decimals import Positions, decimals
from tasks.data.table import Kind

Numbers = NDArray[np.float64]

MISSING = frozenset(("", "NA", "na", "N/A", "n/a", "NaN", "nan", "NAN", "NULL", "null", "None", "?", "."))
LONGEST_LEVEL = 200
_NO_TEXT = -1
POINT, COMMA = ".", ","
_DECIMAL = {POINT: re.compile(r"[+-]?[0-9]*\.[0-9]+"), COMMA: re.compile(r"[+-]?[0-9]*,[0-9]+")}
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")  # or a number below 1000 with three decimals
_REMEDY = "correct the cell, or leave it empty if the value is missing"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a file.

    values: (n,), NaN where a cell is missing. Of a number the number; of a boolean 0 or 1; of a category k for
    levels[k]; of an empty column NaN throughout. levels: a category's values, sorted as text, () for other kinds.
    """

    name: str
    kind: Kind
    values: Numbers
    levels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where columns come from, for messages. lines: (n,), the line on which each row begins."""

    path: Path
    delimiter: str
    lines: Positions

    def error(self, row: int, what: str, remedy: str) -> CsvError:
        """For a cell of this row."""
        return CsvError(self.path, int(self.lines[row]), what, remedy)


class DecimalCommas(Exception):
    """Numbers that were read with a decimal point are written with a decimal comma."""


class ColumnReader:
    """Takes in a column block by block; what it keeps of texts is each once, and a code for each cell.

    mark: what stands before the decimals of a number, `POINT` or `COMMA`.
    """

    def __init__(self, name: str, kind: Kind | None, mark: str = POINT) -> None:
        self.name = name
        self.kind = kind
        self.mark = mark
        self._levels: dict[str, int] = {}
        self._codes: dict[bytes, int] = {}
        self._rows: list[Positions] = []
        self._found: list[NDArray[np.int32]] = []
        self._infinite: tuple[int, str] | None = None

    def read(self, rows: Positions, cells: Sequence[bytes]) -> Numbers:
        """Take in these rows' cells: their values as far as they are numbers, NaN for texts and missing cells."""
        values = None if self.kind == "category" else _all_numbers(cells, self.mark)
        if values is not None:
            return values
        known = list(map(self._codes.get, cells))
        if None in known:
            pairs = np.array([self._look_up(cell) for cell in cells])
            values, codes = pairs[:, 0], pairs[:, 1].astype(np.int32)
        else:
            values, codes = np.full(len(cells), np.nan), np.array(known, np.int32)
        self._rows.append(rows[codes != _NO_TEXT])
        self._found.append(codes[codes != _NO_TEXT])
        infinite = np.flatnonzero(np.isinf(values))
        if len(infinite) and self._infinite is None:
            self._infinite = int(rows[infinite[0]]), cells[infinite[0]].decode().strip()
        return values

    def _look_up(self, cell: bytes) -> tuple[float, int]:
        """Its number and the code of its text, of which it has one at most."""
        code = self._codes.get(cell)
        if code is not None:
            return np.nan, code
        text = cell.decode().strip()
        if text in MISSING:
            code = _NO_TEXT
        elif self.kind != "category" and (number := _number(text, self.mark)) is not None:
            return number, _NO_TEXT  # not kept: a column may have a million of them
        else:
            code = self._levels.setdefault(text, len(self._levels))
        self._codes[cell] = code
        return np.nan, code

    def column(self, numbers: Numbers, origin: Origin) -> Column | None:
        """The column, whose numbers these are; None where its numbers are a category's and must be read as text.

        Raises DecimalCommas where the file is to be read again with these, and CsvError.
        """
        rows = np.concatenate([*self._rows, np.empty(0, np.intp)])
        codes = np.concatenate([*self._found, np.empty(0, np.int32)])
        count = int(np.count_nonzero(~np.isnan(numbers)))
        kind = self._kind(count, len(rows))
        if kind == "number":
            self._check_numbers(rows, codes, origin)
            return Column(self.name, kind, numbers)
        if kind == "boolean":
            return Column(self.name, kind, self._booleans(numbers, rows, codes, origin))
        if kind == "category":
            if self.kind is None:
                self._check_marks(rows, codes, origin)
            return None if count else self._category(numbers, rows, codes, origin)
        return Column(self.name, "empty", numbers)

    def _kind(self, numbers: int, texts: int) -> Kind:
        if self.kind is not None and self.kind != "empty":
            return self.kind
        if not numbers + texts:
            return "empty"
        if not numbers and all(level.lower() in ("false", "true") for level in self._levels):
            return "boolean"
        return "number" if numbers >= texts else "category"

    def _check_marks(self, rows: Positions, codes: NDArray[np.int32], origin: Origin) -> None:
        """Refuse a column most of whose texts are numbers with the other mark: as categories they would be lost."""
        marked = self._with_other_mark(codes, origin)
        if 2 * np.count_nonzero(marked) >= len(rows):
            raise self._other_mark(rows[marked], codes[marked], origin)

    def _check_numbers(self, rows: Positions, codes: NDArray[np.int32], origin: Origin) -> None:
        if len(rows):
            marked = self._with_other_mark(codes, origin)
            if marked[0]:
                raise self._other_mark(rows[marked], codes[marked], origin)
            text = list(self._levels)[codes[0]]
            remedy = _REMEDY
            if self.kind is None:
                remedy = f"{remedy}; if the column is a category, add categorical={self.name}"
            raise origin.error(int(rows[0]), f"text {quoted(text)} in the numeric column {quoted(self.name)}", remedy)
        if self._infinite:
            row, text = self._infinite
            what = f"{quoted(text)} in the numeric column {quoted(self.name)} is not a finite number"
            raise origin.error(row, what, _REMEDY)

    def _with_other_mark(self, codes: NDArray[np.int32], origin: Origin) -> NDArray[np.bool_]:
        """Which texts are numbers but for their mark; none where it delimits cells."""
        other = _DECIMAL[POINT if self.mark == COMMA else COMMA]
        plain = origin.delimiter in ";\t"
        marked = np.array([plain and other.fullmatch(level) is not None for level in self._levels])
        found: NDArray[np.bool_] = marked[codes]
        return found

    def _other_mark(self, rows: Positions, codes: NDArray[np.int32], origin: Origin) -> Exception:
        """What to raise for rows whose texts are numbers but for their mark."""
        levels = list(self._levels)
        what, thousands = (
            f"{quoted(levels[codes[0]])} in the column {quoted(self.name)}",
            "and thousands without a mark",
        )
        if self.mark == COMMA:
            what = f"{what} has a point, where other numbers have decimal commas"
            return origin.error(int(rows[0]), what, f"write all decimals with commas, {thousands}")
        if all(_THOUSANDS.fullmatch(levels[code]) for code in np.unique(codes)):
            what = f"{what} may have three decimals or be a thousand times as large"
            return origin.error(int(rows[0]), what, f"write decimals with a point, {thousands}")
        return DecimalCommas()

    def _booleans(self, numbers: Numbers, rows: Positions, codes: NDArray[np.int32], origin: Origin) -> Numbers:
        truth = np.array([{"false": 0.0, "true": 1.0}.get(level.lower(), np.nan) for level in self._levels])
        values = numbers.copy()
        values[rows] = truth[codes] if len(rows) else 0.0
        wrong = ~np.isnan(numbers)
        wrong[rows] = np.isnan(values[rows])
        if wrong.any():
            row = int(np.argmax(wrong))
            texts = list(self._levels)
            text = texts[codes[rows == row][0]] if np.isnan(numbers[row]) else f"{numbers[row]:g}"
            what = f"{quoted(text)} in the boolean column {quoted(self.name)}, where true or false was expected"
            raise origin.error(row, what, _REMEDY)
        return values

    def _category(self, numbers: Numbers, rows: Positions, codes: NDArray[np.int32], origin: Origin) -> Column:
        for level, code in self._levels.items():
            if len(level) > LONGEST_LEVEL or not level.isprintable():
                what = f"{quoted(level)} in the column {quoted(self.name)} has over {LONGEST_LEVEL} or unprintable"
                raise origin.error(int(rows[np.argmax(codes == code)]), f"{what} characters", "shorten or replace it")
        levels = sorted(self._levels)
        rank = {level: place for place, level in enumerate(levels)}
        ranks = np.array([rank[level] for level in self._levels], np.float64)
        values = numbers.copy()
        values[rows] = ranks[codes]
        return Column(self.name, "category", values, tuple(levels))


def read_block(cells: Cells, first_row: int, chosen: Positions, readers: Sequence[ColumnReader], mark: str) -> Numbers:
    """Read the chosen columns of some rows, of which the first has this number: their numbers, (columns, rows)."""
    starts, ends = cells.starts[:, chosen], cells.ends[:, chosen]
    numbers, certain = decimals(cells.text, starts.ravel(), ends.ravel(), mark)
    values, known = numbers.reshape(starts.shape), certain.reshape(starts.shape)
    values[~known] = np.nan
    special = ~known & (starts < ends)
    special |= (starts < ends) & np.array([reader.kind == "category" for reader in readers], np.bool_)
    for place in np.flatnonzero(special.any(axis=0)).tolist():
        rows = np.flatnonzero(special[:, place])
        spans = zip(starts[rows, place].tolist(), ends[rows, place].tolist(), strict=True)
        texts = [cells.text[start:end] for start, end in spans]
        values[rows, place] = readers[place].read(first_row + rows, texts)
    return values.T


def _all_numbers(cells: Sequence[bytes], mark: str) -> Numbers | None:
    """The cells as numbers where each is a finite one."""
    together = b"".join(cells)
    if b"_" in together or (mark == COMMA and b"." in together):
        return None
    if mark == COMMA:
        cells = [cell.replace(b",", b".") for cell in cells]
    try:
        values = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def _number(text: str, mark: str) -> float | None:
    """What float() makes of a text, infinity included, but none of its digits in other scripts, nan and 1_000."""
    if not text.isascii() or "_" in text or "nan" in text.lower() or (mark == COMMA and POINT in text):
        return None
    text = text.replace(mark, POINT)
    try:
        return float(text)
    except ValueError:
        return None
