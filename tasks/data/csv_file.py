"""One CSV file of an analyst as columns of numbers, booleans and categories."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tasks.data.csv_cells import COMMA, POINT, Column, ColumnReader, DecimalCommas, Numbers, Origin, read_block
from tasks.data.csv_records import Records, delimiter_of
from tasks.data.csv_text import CsvError
from tasks.data.table import Kind

__all__ = ["Column", "CsvError", "CsvFile", "read_csv"]

_INFERRED: Mapping[str, Kind] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class CsvFile:
    """A file's columns in their order. lines: (n,), the line on which each row begins; the file's first line is 1."""

    path: Path
    columns: Mapping[str, Column]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lines)

    def line_of(self, row: int) -> int:
        """The line on which a row begins."""
        return int(self.lines[row])


def read_csv(
    path: Path,
    *,
    delimiter: str = "auto",
    kinds: Mapping[str, Kind] = _INFERRED,
    only: Collection[str] | None = None,
    ignore: Collection[str] = (),
) -> CsvFile:
    """Read a CSV file in UTF-8 with a header.

    A cell is missing where it holds nothing but blanks or, in any case, na, n/a, nan, null, none, ? or a point. A
    column's kind follows from all its other cells: true and false are a boolean's, and numbers a number's. Columns
    with fewer than half numbers are categories. Numbers are those of float(), to the bit, without inf and 1_000. Where
    semicolons or tabs delimit, decimals may be written with commas, then throughout the file. Lines of nothing but
    blanks are no rows. No cell is ever evaluated.

    Args:
        path: the file
        delimiter: comma, semicolon, tab, pipe, any one character, or auto: found from the header and the first rows
        kinds: kinds of columns that are not to be inferred, by name. A category keeps its cells' text as it stands,
            without blanks around it. "empty" does not force anything, and names that the file lacks do not count
        only: names of the columns to read; all by default. The others' cells need only be there
        ignore: names of columns not to read

    Raises CsvError, one line that names the file and the line in it: for a file that is missing, no text in UTF-8,
    empty or without rows, faulty names in the header, rows of another number of cells, text or infinity in a numeric
    column, and categories of over 200 or of unprintable characters. Raises ValueError for an impossible delimiter.
    """
    wanted = _Wanted(path, delimiter, kinds, only, ignore)
    try:
        return _read(wanted, POINT)
    except DecimalCommas:
        return _read(wanted, COMMA)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The arguments of `read_csv`."""

    path: Path
    delimiter: str
    kinds: Mapping[str, Kind]
    only: Collection[str] | None
    ignore: Collection[str]


def _read(wanted: _Wanted, mark: str) -> CsvFile:
    """Numbers are written with this mark before their decimals. Raises DecimalCommas where it is another."""
    path = wanted.path
    records = Records(path, delimiter_of(wanted.delimiter))
    names = set(records.names if wanted.only is None else wanted.only) - set(wanted.ignore)
    chosen = [place for place, name in enumerate(records.names) if name in names]
    readers = [ColumnReader(records.names[place], wanted.kinds.get(records.names[place]), mark) for place in chosen]
    blocks: list[Numbers] = []
    lines = [np.empty(0, np.intp)]
    rows = 0
    for cells in records:
        blocks.append(read_block(cells, rows, np.array(chosen, np.intp), readers, mark))
        lines.append(cells.lines)
        rows += len(cells.lines)
    if not rows:
        raise CsvError(path, None, "the file has a header but no rows", "expected at least one row below the header")
    origin = Origin(path, records.delimiter, np.concatenate(lines))
    columns: dict[str, Column | None] = {}
    faults = []
    for reader, numbers in zip(readers, _joined(blocks, rows), strict=True):
        try:
            columns[reader.name] = reader.column(numbers, origin)
        except CsvError as fault:  # another column may yet show how numbers are written
            faults.append(fault)
    if faults:
        raise faults[0]
    return CsvFile(path, MappingProxyType(dict(_complete(path, columns, records.delimiter))), origin.lines)


def _joined(blocks: list[Numbers], rows: int) -> Numbers:
    """(columns, rows), each column contiguous. Empties `blocks`, so that no more than one is there twice."""
    joined = np.empty((len(blocks[0]), rows))
    stop = rows
    while blocks:
        block = blocks.pop()
        joined[:, stop - block.shape[1] : stop] = block
        stop -= block.shape[1]
    return joined


def _complete(path: Path, columns: Mapping[str, Column | None], delimiter: str) -> Iterator[tuple[str, Column]]:
    """The columns, in their order, where None stands for a category whose numbers are read again as text."""
    again = [name for name, column in columns.items() if column is None]
    texts: Mapping[str, Column] = {}
    if again:
        texts = read_csv(path, delimiter=delimiter, kinds=dict.fromkeys(again, "category"), only=again).columns
    for name, column in columns.items():
        yield name, column or texts[name]
