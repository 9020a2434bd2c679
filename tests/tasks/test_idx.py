"""Files in the format of MNIST: what is in them comes out exactly, and a header is not believed."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from tasks.data.base import Split
from tasks.data.idx_source import Idx, read_idx
from tasks.data.partition import Iid

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(256, size=(50, 4, 5)), RNG.integers(10, size=50)
SPLIT = Split(4, Iid(), 0.2, 0)


def idx(array, dtype="u1"):
    array = np.asarray(array).astype(dtype)
    return bytes([0, 0, CODES[dtype], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def folder(path, names=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), end=""):
    for name in names:
        part = slice(40, None) if "t10k" in name else slice(40) if len(names) == 4 else slice(None)
        write(path / f"{name}{end}", idx((IMAGES if "images" in name else LABELS)[part]))
    return path


ALL = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("dtype", [*CODES])
def test_an_array_of_each_type_comes_out_as_it_was(tmp_path, dtype, end):
    array = RNG.normal(0, 50, size=(7, 3)).astype(dtype) if "f" in dtype else RNG.integers(100, size=(7, 3))
    found = read_idx(write(tmp_path / f"a{end}", idx(array, dtype)))
    np.testing.assert_array_equal(found, array.astype(dtype))
    assert found.dtype.isnative


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_folder_of_four_files_gives_rows_to_train_on_and_to_test_on(tmp_path, end):
    source = Idx(path=str(folder(tmp_path, ALL, end))).open(SPLIT)
    for which, part in (("train", slice(40)), ("test", slice(40, None))):
        parts = [getattr(source.divide(client), which) for client in source.clients]
        got = np.column_stack([np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])])
        want = np.column_stack([IMAGES[part].reshape(-1, 20), LABELS[part]])
        np.testing.assert_array_equal(got[np.lexsort(got.T)], want[np.lexsort(want.T)])
    assert parts[0].columns.classes == tuple("0123456789")
    assert parts[0].columns.names[:2] == ("x0", "x1")


def test_without_test_files_some_rows_of_each_client_are_split_off(tmp_path):
    old_names = ("train-images.idx3-ubyte", "train-labels.idx1-ubyte")
    source = Idx(path=str(folder(tmp_path, old_names)), classes="a,b,c,d,e,f,g,h,i,j").open(SPLIT)
    divisions = [source.divide(client) for client in source.clients]
    assert sum(len(d.train) for d in divisions) + sum(len(d.test) for d in divisions) == 50
    assert all(len(d.test) for d in divisions)
    assert divisions[0].train.columns.classes == tuple("abcdefghij")


def test_files_may_be_named_one_by_one(tmp_path):
    images, labels = write(tmp_path / "i", idx(IMAGES)), write(tmp_path / "l.gz", idx(LABELS))
    source = Idx(images=str(images), labels=str(labels)).open(Split(1, Iid(), 0.0, 0))
    np.testing.assert_array_equal(source.divide("00").train.x, IMAGES.reshape(50, 20))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "no file is named"),
        ({"test_images": "b", "test_labels": "d"}, "no file is named"),
        ({"path": "a", "images": "b"}, "give path=FOLDER, or"),
        ({"images": "b"}, "go together"),
        ({"images": "b", "labels": "c", "test_labels": "d"}, "go together"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Idx(**arguments).open(SPLIT)


def test_a_file_that_is_absent_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no train-images-idx3-ubyte and no"):
        Idx(path=str(tmp_path)).open(SPLIT)
    folder(tmp_path)
    write(tmp_path / "t10k-images-idx3-ubyte", idx(IMAGES))
    with pytest.raises(ValueError, match="has no t10k-labels-idx1-ubyte"):
        Idx(path=str(tmp_path)).open(SPLIT)
    with pytest.raises(ValueError, match="there is no such file"):
        Idx(images=str(tmp_path / "a"), labels=str(tmp_path / "b")).open(SPLIT)


GOOD = idx(IMAGES)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no idx file"),
        (b"\0\0\x08", "no idx file"),
        (b"\x89PNG" + bytes(99), "no idx file"),
        (b"\0\0\x07\x01" + bytes(99), "no idx file"),
        (b"\0\0\x08\x00" + bytes(99), "no idx file"),
        (b"\0\0\x08\x09" + bytes(99), "no idx file"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
        (b"\0\0\x0e\x03" + b"\xff" * 12, "its shape is"),
        (b"\0\0\x08\x02" + struct.pack(">2I", 2**15, 2**14), "header says 536870912 bytes"),
        (GOOD[:-1], "header says 1000 bytes, the file has 999"),
        (GOOD + b"\0", "header says 1000 bytes"),
        (GOOD + bytes(30_000_000), "header says 1000 bytes"),
    ],
)
def test_what_does_not_hold_what_its_header_says_is_refused_and_takes_no_memory(tmp_path, content, said, end):
    path = write(tmp_path / f"images{end}", content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"images{end}: .*{said}"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_damaged_archive_is_refused(tmp_path):
    content = gzip.compress(GOOD)
    for name, damaged in {"cut": content[:-9], "bits": content[:40] + b"\xff" * 20 + content[60:]}.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot be read|header says"):
            read_idx(tmp_path / name)


def test_images_and_labels_of_different_counts_are_refused(tmp_path):
    images, labels = write(tmp_path / "i", idx(IMAGES)), write(tmp_path / "l", idx(LABELS[:49]))
    with pytest.raises(ValueError, match="50 rows and 49 labels"):
        Idx(images=str(images), labels=str(labels)).open(SPLIT)
