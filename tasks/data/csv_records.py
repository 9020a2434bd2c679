"""The text of a CSV file as blocks of cells: the delimiter, the header, quotes, and as many cells in each row."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from tasks.data.csv_text import Block, CsvError, quoted, text_blocks
from tasks.data.decimals import Positions

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
LONGEST_NAME = 200
_SNIFFED = 50  # records


@dataclass(frozen=True, slots=True)
class Cells:
    """Some rows: cell (i, j) is text[starts[i, j]:ends[i, j]]; row i begins on line lines[i] of the file."""

    text: bytes
    starts: Positions
    ends: Positions
    lines: Positions


def delimiter_of(word: str) -> str | None:
    """The character that a delimiter's name or character means; None for auto. Raises ValueError for others."""
    if word == "auto":
        return None
    character = DELIMITERS.get(word, word)
    if len(character) != 1 or not character.isascii() or character.isalnum() or character in '"\r\n\0.+-':
        raise ValueError(
            f"expected auto, {', '.join(DELIMITERS)} or one character that is no letter, digit, quote, sign or point"
            f" as delimiter, got {word!r}: choose one of these"
        )
    return character


class Records:
    """An open CSV file: its header, then its rows, once.

    names: the columns'. delimiter: the one given or found. Lines that hold nothing but blanks are no rows. Raises
    CsvError for what is no CSV file in UTF-8 and where a row has not as many cells as the header.
    """

    def __init__(self, path: Path, delimiter: str | None) -> None:
        self.path = path
        self._blocks = text_blocks(path)
        head = self._head()
        self.delimiter = delimiter or _sniff(head.text)
        line, _, rest = head.text.partition(b"\n")
        self.names = self._header(head.line, line.decode())
        self._first = Block(head.line + 1, rest)

    def __iter__(self) -> Iterator[Cells]:
        yield from self._cells(self._first)
        for block in self._blocks:
            yield from self._cells(block)

    def _head(self) -> Block:
        """From the header's line on."""
        for block in self._blocks:
            blank = re.match(rb"(?:[ \t]*\n)*", block.text)
            skipped = block.text[: blank.end() if blank else 0]
            if len(skipped) < len(block.text):
                return Block(block.line + skipped.count(b"\n"), block.text[len(skipped) :])
        raise CsvError(self.path, None, "the file is empty", "expected a line of column names and rows below it")

    def _header(self, line: int, text: str) -> tuple[str, ...]:
        try:
            names = [name.strip() for name in next(self._reader(iter([text])))]
        except csv.Error:
            remedy = "put each name on this line, and a closing quote behind an opening one"
            raise CsvError(self.path, line, "a name in the header has no proper quotes", remedy) from None
        places: dict[str, int] = {}
        for place, name in enumerate(names, start=1):
            if not name:
                raise CsvError(
                    self.path,
                    line,
                    f"column {place} of {len(names)} has no name",
                    "name it in the header; is there a delimiter at the end of the line?",
                )
            if len(name) > LONGEST_NAME or not name.isprintable():
                what = f"the name {quoted(name)} of column {place} has over {LONGEST_NAME} or unprintable characters"
                raise CsvError(self.path, line, what, "choose a plain name")
            if name in places:
                what = f"columns {places[name]} and {place} are both named {quoted(name)}"
                raise CsvError(self.path, line, what, "give each its own name")
            places[name] = place
        return tuple(names)

    def _cells(self, block: Block) -> Iterator[Cells]:
        """The rows of a block, and of those after it into which a row of it runs."""
        cells = self._plain(block) or self._any(block)
        if len(cells.lines):
            yield cells

    def _plain(self, block: Block) -> Cells | None:
        """The fast way, for a block without blank lines whose quotes enclose whole cells on one line; None for others.

        Quotes come in twos, and what is within the two delimits nothing.
        """
        codes, width = np.frombuffer(block.text, np.uint8), len(self.names)
        breaks = codes == ord("\n")
        ends = np.flatnonzero(breaks | (codes == ord(self.delimiter)))
        quotes = np.flatnonzero(codes == ord('"')) if b'"' in block.text else np.empty(0, np.intp)
        opening, closing = quotes[: len(quotes) // 2 * 2].reshape(-1, 2).T
        if len(quotes):
            ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        rows, left = divmod(len(ends), width)
        if width == 1 or left or np.count_nonzero(breaks) != rows or not breaks[ends[width - 1 :: width]].all():
            return None
        starts = _starts(ends)
        enclosed = np.searchsorted(ends, opening)
        if len(quotes) % 2 or (starts[enclosed] != opening).any() or (ends[enclosed] != closing + 1).any():
            return None
        starts[enclosed] += 1
        ends[enclosed] -= 1
        lines = np.arange(block.line, block.line + rows)
        return Cells(block.text, starts.reshape(rows, width), ends.reshape(rows, width), lines)

    def _any(self, block: Block) -> Cells:
        """The general way."""
        source, fields, lines = _Lines(block, self._blocks, self.delimiter), list[str](), list[int]()
        reader, width = self._reader(source), len(self.names)
        while not source.done:
            line = source.begin()
            try:
                record = next(reader)
            except csv.Error as error:
                raise self._broken(line, source.record, str(error)) from None
            if record and len(record) != width:
                what = f"{len(record)} fields where the header has {width}"
                remedy = f"give each row {width}, and quote a cell that holds the delimiter {self.delimiter!r}"
                raise CsvError(self.path, line, what, remedy)
            if record:
                fields += record
                lines.append(line)
        text = "\0".join([*fields, ""]).encode()  # no file with NUL bytes comes this far
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 0)
        shape = len(lines), width
        return Cells(text, _starts(ends).reshape(shape), ends.reshape(shape), np.array(lines, np.intp))

    def _reader(self, lines: Iterator[str], strict: bool = True) -> "Iterator[list[str]]":
        blanks = self.delimiter != " "
        return csv.reader(lines, delimiter=self.delimiter, strict=strict, skipinitialspace=blanks)

    def _broken(self, line: int, record: list[str], error: str) -> CsvError:
        """Of a record that cannot be read: where its last quote opens, if that is never closed."""
        if "expected after" in error:
            remedy = "double each quote within a quoted cell"
            return CsvError(self.path, line + len(record) - 1, "text follows a closing quote", remedy)
        if "limit" in error:  # the csv module's, for one cell
            record = record[:-1]
        parts = next(self._reader(iter(record), strict=False), [""])
        opened = line + len(record) - parts[-1].count("\n")
        return CsvError(self.path, opened, "a cell begins here that does not end", "close its quote")


class _Lines(Iterator[str]):
    """The lines of a block, and of the next ones as long as a reader asks for more."""

    def __init__(self, block: Block, more: Iterator[Block], delimiter: str) -> None:
        self._more, self._delimiter = more, delimiter
        self._line, self._at, self._lines = block.line, 0, _split(block)
        self.record: list[str] = []

    @property
    def done(self) -> bool:
        """Whether each line of the blocks asked for has been handed out."""
        return self._at == len(self._lines)

    def begin(self) -> int:
        """A record begins: the number of its line. `record` holds its lines from here on."""
        self.record = []
        return self._line + self._at

    def __next__(self) -> str:
        if self.done:
            block = next(self._more)
            self._line, self._at, self._lines = block.line, 0, _split(block)
        line = self._lines[self._at]
        self._at += 1
        blank = not line or (line.isspace() and self._delimiter not in line)
        self.record.append("\n" if blank else line + "\n")
        return self.record[-1]


def _split(block: Block) -> list[str]:
    return block.text.decode().split("\n")[:-1]


def _starts(ends: Positions) -> Positions:
    """Of cells that have one character between them."""
    starts = np.zeros(len(ends), np.intp)
    starts[1:] = ends[:-1] + 1
    return starts


def _sniff(text: bytes) -> str:
    """The delimiter that splits the first records into the same number of fields, and into most; else the header."""
    lines = [line + "\n" for line in text.decode().split("\n")[:-1]] or [text.decode()]
    even: dict[str, int] = {}
    header: dict[str, int] = {}
    for delimiter in DELIMITERS.values():
        try:
            records = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
            counts = [len(record) for record in islice((r for r in records if any(r)), _SNIFFED)]
        except csv.Error:
            continue
        header[delimiter] = counts[0] if counts else 0
        if len(set(counts)) == 1 and counts[0] > 1:
            even[delimiter] = counts[0]
    choices = even or header
    return max(choices, key=choices.__getitem__, default=",")
