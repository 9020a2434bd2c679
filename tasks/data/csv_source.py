"""CSV files as a data source: a folder of clients' files, a file with a client column, or a file to be dealt."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np

from tasks.base import Target
from tasks.data.base import Change, Dataset, DataSource, OwnFile, PathText, Split, deal, divided
from tasks.data.csv_file import Column, CsvError, CsvFile, read_csv
from tasks.data.csv_records import Records, delimiter_of
from tasks.data.design import Missing
from tasks.data.table import MAX_CLASSES, Array, Columns, Division, Feature, Indices, Kind, Table, group_ids
from tasks.suggest import instead_of

NO_PATH = PathText("")
FEW_CLASSES, FEWEST_ROWS = 20, 5  # more classes than this need so many rows each: else it is a name, or a note


class Csv(Dataset):
    """CSV files: a folder with one file for each client, one file with a client column, or one file to be dealt.

    Args:
        path: a folder with a *.csv for each client, named after it, or one file; empty where sites have their own
        label: the column to be predicted
        client_column: the column of a single file that says whose row it is
        test_path: rows to test on: a folder of the same names, or one file, which is shared out where it has no client
            column; empty = test-fraction of each client's
        delimiter: auto, comma, semicolon, tab or pipe
        missing: what becomes of empty cells: error, mean (of all clients), indicator (mean, and a column that says so)
        positive: the class of two that a positive prediction means; empty = the second in order
        categorical: columns that are categories though they look like numbers, separated by commas
        drop: columns not to be used, separated by commas
        group: the column that says which rows belong to one patient, say; they are not split into rows to train and
            to test on, nor dealt to several clients, and nothing is learned from the column
        rows_per_group: how many rows of each group a client uses; 0 = all
    """

    def __init__(
        self,
        *,
        path: PathText = NO_PATH,
        label: str = "",
        client_column: str = "",
        test_path: PathText = NO_PATH,
        delimiter: str = "auto",
        missing: Missing = "error",
        positive: str = "",
        categorical: str = "",
        drop: str = "",
        group: str = "",
        rows_per_group: int = 0,
    ) -> None:
        """Raises ValueError for arguments that contradict each other."""
        self.path, self.label, self.client_column, self.test_path = path, label, client_column, test_path
        self.delimiter, self.missing, self.positive = delimiter, missing, _class_name(positive)
        self.categorical, self.dropped = _names(categorical), _names(drop)
        self.group, self.rows_per_group = group, rows_per_group
        delimiter_of(delimiter)
        roles = {"label": label, "client-column": client_column, "group": group}
        for (one, name), (other, same) in combinations(roles.items(), 2):
            if name and name == same:
                raise ValueError(f"{one} and {other} are both {name!r}: give each its own column")
        if lost := sorted(set(roles.values()) & self.dropped):
            raise ValueError(f"drop={lost[0]}: this is the label, client column or group: do not drop it")
        if rows_per_group < 0:
            raise ValueError(f"rows-per-group must be 0 (all) or more, got {rows_per_group}")
        if rows_per_group and not group:
            raise ValueError(f"rows-per-group={rows_per_group}: it is not said which rows belong together: add group=")
        self.one_row_each = group if rows_per_group == 1 else ""
        self.at_sites = not path
        self.server_held = self.names_files = not self.at_sites
        self.partitioned = bool(path) and not client_column and not Path(path).is_dir()

    def open(self, split: Split) -> DataSource:
        """Raises ValueError, naming file and line, for files that cannot be used. The files of a folder are read when
        their client is asked for."""
        if self.at_sites:
            at_a_site = """or at a site --node-config 'client="NAME" data="FILE.csv" label="COLUMN"'"""
            raise ValueError(f'no file is named: add data-args="path=... label=...", {at_a_site}')
        reader, path = CsvReader(self, split.target), Path(self.path)
        change: Change | None = None
        if path.is_dir():
            files = _client_files(path)
            self._check_client_column(path)
            self._check_dropped(files.values())
            train: Rows = Folder(reader, files)
        else:
            self._check_dropped([path])
            table, owner = reader.read(path, owner=self.client_column)
            if owner:
                train = _by_client(table, owner)
            else:
                partition = deal(table, split)
                train, change = Dealt(partition.table, partition.rows), partition.change
        if not (self.partitioned or split.num_clients in (0, len(train.clients))):
            remedy = f"leave num-clients out or set num-clients={len(train.clients)}"
            raise ValueError(f"{path} has {len(train.clients)} clients, num-clients is {split.num_clients}: {remedy}")
        tests = _tests(reader, Path(self.test_path), train) if self.test_path else None
        return CsvSource(self, train, tests, split, change)

    def header(self, path: Path) -> tuple[str, ...]:
        """The columns of a file. Raises CsvError."""
        return Records(path, delimiter_of(self.delimiter)).names

    def _check_client_column(self, folder: Path) -> None:
        """Beside a folder it can only be that of a file of test rows."""
        test = Path(self.test_path)
        if self.client_column and not (test.is_file() and self.client_column in self.header(test)):
            remedy = "leave client-column out; drop=... if nothing is to be learned from that column"
            raise ValueError(f"client-column={self.client_column}: each file of {folder} is one client: {remedy}")

    def _check_dropped(self, files: Iterable[Path]) -> None:
        """What is to be dropped must be somewhere: a slip of the pen would let the model learn from it."""
        known = {name: None for file in files for name in self.header(file)} if self.dropped else {}
        for name in sorted(self.dropped):
            if name not in known:
                raise ValueError(f"drop={name}: unknown column {name!r}: {instead_of(name, known)}")

    def for_site(self, own: OwnFile) -> "SiteCsv":
        """These data as one site has them."""
        named = {"path": self.path, "label": self.label, "client-column": self.client_column}
        for key, value in {**named, "test-path": self.test_path}.items():
            if value:
                raise ValueError(f"the run sets {key}={value}: a site reads what its own node config names, no more")
        if self.group and self.group == own.label:
            raise ValueError(
                f"the run groups rows by {self.group!r}, which is this site's label: give each its own column"
            )
        return SiteCsv(self, own)


class SiteCsv(Dataset):
    """The file of one site: as `Csv` for all that is the run's to say, and as the site's node config for the rest."""

    def __init__(self, common: Csv, own: OwnFile) -> None:
        self.common, self.own = common, own

    def open(self, split: Split) -> DataSource:
        """Raises ValueError, naming file and line, for a file that cannot be used."""
        own = self.own
        reader = CsvReader(self.common, split.target, own.label)
        train = Folder(reader, {own.client: Path(own.path)})
        tests = Folder(reader, {own.client: Path(own.test_path)}) if own.test_path else None
        return CsvSource(self.common, train, tests, split)


# ------------------------------------------------------------------------------------------------- whose rows


class Rows(Protocol):
    """Clients, and the rows of each; `like` says what kinds the columns are to be of."""

    @property
    def clients(self) -> tuple[str, ...]:
        """Sorted."""

    def table(self, client: str, like: Columns | None = None) -> Table:
        """The rows of one client. Raises ValueError."""


@dataclass(frozen=True)
class Folder:
    """A file for each client, kept once read."""

    reader: "CsvReader"
    files: Mapping[str, Path]
    _read: dict[str, Table] = field(default_factory=dict)

    @property
    def clients(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def table(self, client: str, like: Columns | None = None) -> Table:
        if client not in self._read:
            self._read[client] = self.reader.read(self.files[client], like=like)[0]
        return self._read[client]


@dataclass(frozen=True)
class Dealt:
    """One table, some rows of which are each client's."""

    whole: Table
    rows: Mapping[str, Indices]

    @property
    def clients(self) -> tuple[str, ...]:
        return tuple(sorted(self.rows))

    def table(self, client: str, like: Columns | None = None) -> Table:
        return self.whole.rows(self.rows[client])


class CsvSource(DataSource):
    """Clients' rows, with test rows of their own or split off."""

    def __init__(self, law: Csv, train: Rows, tests: Rows | None, split: Split, change: Change | None = None) -> None:
        self._law, self._train, self._tests, self._split, self._change = law, train, tests, split, change
        self.clients = train.clients

    def _divide(self, client: str) -> Division:
        own = self._train.table(client)
        tests = None if self._tests is None else self._tests.table(client, own.columns)
        if tests is not None and own.groups is not None and tests.groups is not None:
            self._check_apart(client, np.intersect1d(own.groups, tests.groups))
        if count := self._law.rows_per_group:
            own, tests = own.at_most(count), None if tests is None else tests.at_most(count)
        return divided(client, own, tests, self._split, self._change)

    def _check_apart(self, client: str, shared: Array) -> None:
        if count := len(shared):
            what = f"{count} value{'' if count == 1 else 's'} of {self._law.group!r}"
            raise ValueError(
                f"client {client!r} has {what} both in rows to train on and in rows to test on: keep each in one of "
                "them, or leave test-path out"
            )


def _client_files(folder: Path) -> dict[str, Path]:
    """The client's name is the file's, without .csv."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() != ".csv" or file.name.startswith((".", "~$")):
            continue
        if file.stem in files:
            raise ValueError(f"{files[file.stem].name} and {file.name} of {folder} are one client's: rename one")
        if not file.stem.isprintable() or len(file.stem) > 200:
            raise ValueError(f"{file.name!r} of {folder} is no name for a client: use up to 200 printable characters")
        files[file.stem] = file
    if not files:
        raise ValueError(f"{folder} has no *.csv file: put one there for each client")
    return files


def _by_client(table: Table, owner: Column) -> Dealt:
    rows = {client: np.flatnonzero(owner.values == index) for index, client in enumerate(owner.levels)}
    return Dealt(table, {client: own for client, own in rows.items() if len(own)})


def _tests(reader: "CsvReader", path: Path, train: Rows) -> Rows:
    """The test rows of each client. One file without a client column is shared out: each row is tested on once."""
    clients = train.clients
    if path.is_dir():
        files = _client_files(path)
        if set(files) != set(clients):
            odd = sorted(set(files) ^ set(clients))[0]
            raise ValueError(
                f"client {odd!r} has test rows in {path} and no training rows: remove {files[odd].name}"
                if odd in files
                else f"client {odd!r} has training rows and no test rows: put a file {odd}.csv in {path}"
            )
        return Folder(reader, files)
    whose = reader.csv.client_column
    like = train.table(clients[0]).columns
    table, owner = reader.read(path, owner=whose if whose in reader.csv.header(path) else "", like=like)
    if owner is None:
        return Dealt(table, dict(zip(clients, np.array_split(np.arange(len(table)), len(clients)), strict=True)))
    dealt = _by_client(table, owner)
    if strangers := sorted(set(dealt.clients) - set(clients)):
        raise ValueError(f"{path} has test rows of client {strangers[0]!r}, which has no training rows: remove them")
    return Dealt(table, {client: dealt.rows.get(client, np.arange(0)) for client in clients})


# ------------------------------------------------------------------------------------------ from cells to a table


@dataclass(frozen=True)
class CsvReader:
    """Reads the files of a run: which column is the label, whose rows they are, what is a category, what is dropped."""

    csv: Csv
    target: Target
    own_label: str = ""

    def read(self, path: Path, *, owner: str = "", like: Columns | None = None) -> tuple[Table, Column | None]:
        """The table, and whose each row is where the column `owner` says so. With `like`, the columns that these rows
        must also have, and their kinds. Raises ValueError, naming file, line and column."""
        label, unused = self.own_label or self.csv.label, self.csv.dropped | {self.csv.client_column} - {owner}
        kinds: dict[str, Kind] = {feature.name: feature.kind for feature in like.features} if like else {}
        kinds = {name: kind for name, kind in kinds.items() if kind != "empty"}
        kinds |= dict.fromkeys(self.csv.categorical, "category")
        kinds |= dict.fromkeys((owner, self.csv.group), "category")
        kinds |= {label: "category" if self.target == "class" else "number"}
        file = read_csv(path, delimiter=self.csv.delimiter, kinds=kinds, ignore=unused)
        self._check_names(file, label, owner, like)
        group = self.csv.group
        features = [column for name, column in file.columns.items() if name not in (label, owner, group)]
        if not features:
            beside = " and ".join(repr(name) for name in (label, owner, group) if name)
            raise CsvError(path, None, f"there is no column to learn from beside {beside}", "add some, or drop fewer")
        _check_complete(file, [file.columns[name] for name in (label, owner, group) if name])
        if self.csv.missing == "error":
            _check_complete(
                file, features, "fill what is missing, or add missing=mean or missing=indicator to data-args"
            )
        y, classes = self._label(file, file.columns[label])
        x = np.column_stack([column.values for column in features])
        columns = Columns(tuple(Feature(c.name, c.kind, c.levels) for c in features), label, classes)
        groups = _groups(file.columns[group]) if group else None
        return Table(x, y, columns, groups), file.columns[owner] if owner else None

    def _check_names(self, file: CsvFile, label: str, owner: str, like: Columns | None) -> None:
        if not label:
            remedy = f"add label=...; {instead_of('label', file.columns)}"
            raise CsvError(file.path, None, "it is not said which column is the label", remedy)
        roles = [("label", label), ("client column", owner), ("group", self.csv.group)]
        for kind, name in (*roles, *(("column", c) for c in self.csv.categorical)):
            if name in self.csv.dropped:
                raise CsvError(file.path, None, f"drop=... names the {kind} {name!r}", "do not drop it")
            if name and name not in file.columns:
                raise CsvError(file.path, None, f"unknown {kind} {name!r}", instead_of(name, file.columns))
        if like and (absent := [name for name in like.names if name not in file.columns]):
            what = f"column {absent[0]!r} of the training rows is absent"
            raise CsvError(file.path, None, what, instead_of(absent[0], file.columns))

    def _label(self, file: CsvFile, column: Column) -> tuple[Array, tuple[str, ...]]:
        if self.target == "number":
            return column.values, ()
        names = [_class_name(level) for level in column.levels]
        if fractional := [name for name in names if _is_fraction(name)]:
            remedy = "choose a column with classes as label, or a task that predicts a number"
            raise CsvError(file.path, None, f"label {column.name!r} holds fractions such as {fractional[0]}", remedy)
        classes = sorted(set(names), key=_order)
        spelled = {name.casefold(): name for name in classes}
        if twice := [name for name in classes if spelled[name.casefold()] != name]:
            what = f"label {column.name!r} writes both {twice[0]!r} and {spelled[twice[0].casefold()]!r}"
            raise CsvError(file.path, None, what, "write it alike")
        if len(classes) > FEW_CLASSES and len(classes) * FEWEST_ROWS > len(file):
            what = f"label {column.name!r} has {len(classes)} different values in {len(file)} rows"
            raise CsvError(file.path, None, what, "is it the right column? A label has few values, each in many rows")
        if len(classes) > MAX_CLASSES:
            what = f"label {column.name!r} has {len(classes)} classes"
            raise CsvError(file.path, None, what, f"at most {MAX_CLASSES} are possible: is it the right column?")
        place = {name: index for index, name in enumerate(classes)}
        lookup = np.array([place[name] for name in names], dtype=np.int64)
        return lookup[column.values.astype(np.int64)], tuple(classes)


def _groups(column: Column) -> Array:
    return group_ids(column.levels)[column.values.astype(np.intp)]


def _check_complete(
    file: CsvFile, columns: list[Column], remedy: str = "fill what is missing, or remove the rows"
) -> None:
    for column in columns:
        gaps = np.isnan(column.values)
        if count := int(gaps.sum()):
            what = f"column {column.name!r} has {count} missing cell{'' if count == 1 else 's'}"
            raise CsvError(file.path, file.line_of(int(gaps.argmax())), what, remedy)


def _class_name(text: str) -> str:
    """One name for what is written in several ways: 1 for 1.0 and 01, true for TRUE; other texts as they are."""
    if text.casefold() in ("true", "false"):
        return text.casefold()
    try:
        value = float(text)
    except ValueError:
        return text
    return str(int(value)) if value.is_integer() else str(value)


def _is_fraction(name: str) -> bool:
    try:
        return not float(name).is_integer()
    except ValueError:
        return False


def _order(name: str) -> tuple[bool, float, str]:
    """Numbers by size, then texts."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _names(text: str) -> frozenset[str]:
    """Column names separated by commas, quoted as in a CSV file where they hold one."""
    words = next(csv.reader([text], skipinitialspace=True), [])
    return frozenset(word.strip() for word in words if word.strip())
