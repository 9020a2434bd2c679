"""Files in the format of MNIST, idx: images and labels as they are downloaded, also compressed."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np

from tasks.data.arrays import elements, tables
from tasks.data.base import Dataset, DataSource, PartitionedTable, PathText, Split
from tasks.data.table import Array

NO_PATH = PathText("")
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP = b"\x1f\x8b"
CHUNK = 2**20


class Idx(Dataset):
    """Images and labels in idx files, as of MNIST and its kin, dealt to clients by the run's partition.

    Each image becomes one row of pixels. Labels are classes, or numbers where the task predicts one.

    Args:
        path: a folder with train-images-idx3-ubyte and train-labels-idx1-ubyte, and perhaps t10k-images-idx3-ubyte and
            t10k-labels-idx1-ubyte, also as .gz; empty where the files are named one by one
        images: the file of the rows to train on
        labels: the file of their labels
        test_images: a file of rows to test on, shared out among the clients; empty = test-fraction of each client's
        test_labels: the file of their labels
        classes: names of the classes 0, 1, ... separated by commas; empty = the numbers
    """

    server_held = True
    names_files = True

    def __init__(
        self,
        *,
        path: PathText = NO_PATH,
        images: PathText = NO_PATH,
        labels: PathText = NO_PATH,
        test_images: PathText = NO_PATH,
        test_labels: PathText = NO_PATH,
        classes: str = "",
    ) -> None:
        """Raises ValueError for a folder and files, and for images without labels."""
        given = (images, labels, test_images, test_labels)
        if path and any(given):
            raise ValueError("give path=FOLDER, or images=FILE and labels=FILE, and not both")
        if bool(images) != bool(labels) or bool(test_images) != bool(test_labels):
            raise ValueError("images and labels go together, and so do test-images and test-labels")
        self.path, self.files, self.classes = path, given, classes

    def open(self, split: Split) -> DataSource:
        """Raises ValueError, naming the file, for one that cannot be used."""
        if not self.path and not self.files[0]:
            raise ValueError('no file is named: add data-args="path=FOLDER", or "images=FILE labels=FILE"')
        images, labels, test_images, test_labels = self._find()
        arrays = [read_idx(Path(file)) for file in (images, labels, test_images, test_labels) if file]
        try:
            train, *tests = tables(arrays[::2], arrays[1::2], label="class", target=split.target, classes=self.classes)
        except ValueError as error:
            raise ValueError(f"{images}: {error}") from error
        return PartitionedTable(train, split, tests[0] if tests else None)

    def _find(self) -> Sequence[str]:
        if not self.path:
            return self.files
        stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
        found = [_in_folder(Path(self.path), stem) for stem in stems]
        for stem, file, needed in zip(stems, found, (True, True, found[3] != "", found[2] != ""), strict=True):
            if needed and not file:
                raise ValueError(f"{self.path} has no {stem}-ubyte and no {stem}-ubyte.gz")
        return found


def _in_folder(folder: Path, stem: str) -> str:
    """The file of that name, or empty."""
    names = [f"{name}-ubyte{end}" for name in (stem, stem.replace("-idx", ".idx")) for end in ("", ".gz")]
    return next((str(folder / name) for name in names if (folder / name).is_file()), "")


def read_idx(path: Path) -> Array:
    """The array of an idx file. Its header is held against its size, and no more is read or decompressed than it says.

    Raises ValueError, naming the file.
    """
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == GZIP
        with cast(IO[bytes], gzip.open(path)) if compressed else path.open("rb") as file:
            shape, dtype = _header(file)
            promised = elements(shape) * dtype.itemsize
            begins = 4 + 4 * len(shape)
            if not compressed and path.stat().st_size != begins + promised:
                raise ValueError(_misfit(promised, path.stat().st_size - begins))
            content = _read(file, promised + 1)  # one more, to see the end
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{path}: the file cannot be read ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(content) != promised:
        raise ValueError(f"{path}: {_misfit(promised, 'more' if len(content) > promised else len(content))}")
    array: Array = np.frombuffer(content, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= 4:
        raise ValueError("this is no idx file: it begins otherwise")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError("it ends within its header")
    return tuple(np.frombuffer(sizes, ">u4").tolist()), np.dtype(DTYPES[magic[2]])


def _read(file: IO[bytes], limit: int) -> bytes:
    """At most so many bytes; memory grows with what is there, not with the limit."""
    pieces: list[bytes] = []
    while limit > 0 and (piece := file.read(min(limit, CHUNK))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def _misfit(promised: int, held: int | str) -> str:
    return f"its header says {promised} bytes, the file has {held}: it is damaged or cut off"
