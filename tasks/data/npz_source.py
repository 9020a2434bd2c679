"""NumPy's .npz files as a data source. Nothing in them is unpickled, and no memory is taken on the word of a header."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

from numpy.lib import format as npy

from tasks.base import Target
from tasks.data.arrays import LABELS, MOST_ELEMENTS, NUMBERS, elements, tables
from tasks.data.base import Dataset, DataSource, OneOwner, OwnFile, PartitionedTable, PathText, Split
from tasks.data.table import Array, Table
from tasks.suggest import unknown

NO_PATH = PathText("")
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
BROKEN = (BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError, OSError, OverflowError)


class Npz(Dataset):
    """Arrays of a NumPy file, .npz: rows x and their labels y, dealt to clients by the run's partition.

    Rows of more than two dimensions, such as images, are flattened. Labels that are whole numbers, booleans or texts
    are classes (whole numbers are numbers where the task predicts one), others are numbers.

    Args:
        path: the .npz file; empty where sites have their own
        x: name of the array of rows
        y: name of the array of labels, and of the label
        test_x: name of an array of rows to test on, shared out among the clients; empty = test-fraction of each
            client's
        test_y: name of the array of their labels
        features: name of an array with the columns' names; where there is none, these are x0, x1, ...
        classes: names of the classes 0, 1, ... separated by commas; empty = the labels as they are
    """

    def __init__(
        self,
        *,
        path: PathText = NO_PATH,
        x: str = "x",
        y: str = "y",
        test_x: str = "",
        test_y: str = "",
        features: str = "features",
        classes: str = "",
    ) -> None:
        """Raises ValueError for test rows without labels, or the other way round."""
        if bool(test_x) != bool(test_y):
            raise ValueError("test-x and test-y go together: give both or neither")
        self.path, self.x, self.y, self.test_x, self.test_y = path, x, y, test_x, test_y
        self.features, self.classes = features, classes
        self.at_sites = not path
        self.server_held = self.names_files = self.partitioned = bool(path)

    def open(self, split: Split) -> DataSource:
        """Raises ValueError, naming the file, for one that cannot be used."""
        if self.at_sites:
            at_a_site = """or at a site --node-config 'client="NAME" data="FILE.npz" label="y"'"""
            raise ValueError(f'no file is named: add data-args="path=...", {at_a_site}')
        names = {"x": self.x, "y": self.y} | ({"test x": self.test_x, "test y": self.test_y} if self.test_x else {})
        train, *tests = self.read(Path(self.path), names, split.target)
        return PartitionedTable(train, split, tests[0] if tests else None)

    def read(self, path: Path, names: Mapping[str, str], target: Target) -> list[Table]:
        """The table of x and y and, where named, that of the test rows. Raises ValueError."""
        arrays = read_npz(path, {name: LABELS if role.endswith("y") else NUMBERS for role, name in names.items()})
        held = read_npz(path, {self.features: "U"}, optional=True).get(self.features)
        x = [arrays[name] for role, name in names.items() if role.endswith("x")]
        y = [arrays[name] for role, name in names.items() if role.endswith("y")]
        features = [] if held is None else [str(name) for name in held.ravel()]
        try:
            return tables(x, y, label=names["y"], target=target, names=features, classes=self.classes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def for_site(self, own: OwnFile) -> "SiteNpz":
        """These data as one site has them."""
        for key, value in {"path": self.path, "test-x": self.test_x}.items():
            if value:
                raise ValueError(f"the run sets {key}={value}: a site reads what its own node config names, no more")
        return SiteNpz(self, own)


class SiteNpz(Dataset):
    """The file of one site, whose node config names it, its labels, and perhaps a second file with rows to test on."""

    def __init__(self, common: Npz, own: OwnFile) -> None:
        self.common, self.own = common, own

    def open(self, split: Split) -> DataSource:
        """Raises ValueError, naming the file, for one that cannot be used."""
        own, names = self.own, {"x": self.common.x, "y": self.own.label}
        table, *_ = self.common.read(Path(own.path), names, split.target)
        tests = self.common.read(Path(own.test_path), names, split.target)[0] if own.test_path else None
        return OneOwner(own.client, table, tests, split)


def read_npz(path: Path, kinds: Mapping[str, str], *, optional: bool = False) -> dict[str, Array]:
    """The arrays of these names, each of one of the kinds (as in np.dtype.kind) that are given with it.

    What its header says is held against what the archive holds before any memory is taken. Raises ValueError, naming
    file and array, for what is broken, too large, of another kind, or absent where it is not optional.
    """
    try:
        with ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            wanted = {name: kind for name, kind in kinds.items() if name in there or not optional}
            for name in wanted:
                if name not in there:
                    raise ValueError(f"{path}: {unknown('array', name, there)}")
            return {name: _read_array(archive, path, name, kind) for name, kind in wanted.items()}
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except BadZipFile as error:
        raise ValueError(f"{path}: this is no .npz file, or a damaged one ({error}): save it with np.savez") from error
    except BROKEN as error:
        raise ValueError(f"{path}: the file cannot be read ({type(error).__name__}: {error})") from error


def _read_array(archive: ZipFile, path: Path, name: str, kinds: str) -> Array:
    where, info = f"{path}: array {name!r}", archive.getinfo(f"{name}.npy")
    try:
        with archive.open(info) as file:
            _check_header(file, info.file_size, kinds)
        with archive.open(info) as file:
            array: Array = npy.read_array(file, allow_pickle=False)
            return array
    except BROKEN:
        raise
    except MemoryError as error:
        raise ValueError(f"{where} does not fit into the memory of this machine") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_header(file: IO[bytes], size: int, kinds: str) -> None:
    """Refuse (ValueError) a header that is none, or does not fit the number of bytes of the array."""
    try:
        version = npy.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"version {version}")
        shape, _, dtype = HEADERS[version](file)
    except Exception as error:  # numpy tokenises and evaluates its text, which may fail in many ways
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"its header cannot be read ({first[:100]})") from error
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are never loaded: save an array of numbers")
    if dtype.kind not in kinds:
        expected = "texts" if kinds == "U" else "numbers" if kinds == NUMBERS else "numbers or texts"
        raise ValueError(f"it is of type {str(dtype)[:100]}: expected {expected}")
    promised = elements(shape) * dtype.itemsize
    if promised > 8 * MOST_ELEMENTS:
        raise ValueError(f"it has {promised} bytes: at most {8 * MOST_ELEMENTS} are possible")
    if promised != size - file.tell():
        raise ValueError(f"its header says {promised} bytes of shape {shape}, the file has {size - file.tell()}")
