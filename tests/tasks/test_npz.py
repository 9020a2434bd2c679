"""NumPy files as data: what is in them comes out exactly, and a hostile one costs a line, not the machine."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from tasks.data.base import OwnFile, Split
from tasks.data.npz_source import Npz, read_npz
from tasks.data.partition import ByColumn, Iid

SPLIT = Split(3, Iid(), 0.25, 0)
NUMBERS = Split(3, Iid(), 0.25, 0, "number")
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 2, 3)), RNG.integers(3, size=40)


def opened(path, split=SPLIT, **arguments):
    return Npz(path=str(path), **arguments).open(split)


def all_rows(source, which="train test"):
    parts = [getattr(source.divide(client), name) for client in source.clients for name in which.split()]
    x, y = np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])
    order = np.lexsort(x.T)
    return x[order], y[order], parts[0].columns


def expected(x, y):
    x = x.reshape(len(x), -1)
    order = np.lexsort(x.T)
    return x[order], y[order]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["f8", "f4", ">f8", "f2"])
def test_every_row_comes_out_once_flattened_with_its_label(tmp_path, save, dtype):
    x = X.astype(dtype)
    save(tmp_path / "a.npz", x=x, y=Y)
    got_x, got_y, columns = all_rows(opened(tmp_path / "a.npz"))
    want_x, want_y = expected(x.astype(float), Y)
    np.testing.assert_array_equal(got_x, want_x)
    np.testing.assert_array_equal(got_y, want_y)
    assert got_x.dtype == np.float64
    assert columns.names == ("x0", "x1", "x2", "x3", "x4", "x5")
    assert (columns.label, columns.classes) == ("y", ("0", "1", "2"))


def test_arrays_in_fortran_order_are_read_as_they_are(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(X), y=Y)
    np.testing.assert_array_equal(all_rows(opened(tmp_path / "a.npz"))[0], expected(X, Y)[0])


@pytest.mark.parametrize(
    ("y", "classes"),
    [(Y + 5, ("5", "6", "7")), (Y > 0, ("false", "true")), (np.array(["b", "a", "c"])[Y], ("a", "b", "c"))],
    ids=["numbers", "booleans", "texts"],
)
def test_labels_that_are_no_fractions_are_classes_in_order(tmp_path, y, classes):
    np.savez(tmp_path / "a.npz", x=X, y=y)
    _, got, columns = all_rows(opened(tmp_path / "a.npz"))
    assert columns.classes == classes
    text = [str(value).lower() if y.dtype == bool else str(value) for value in expected(X, y)[1].tolist()]
    assert [classes[index] for index in got] == text


def test_classes_have_the_names_that_the_run_gives(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    _, got, columns = all_rows(opened(tmp_path / "a.npz", classes="cat,dog,eel,fox"))
    assert columns.classes == ("cat", "dog", "eel", "fox")
    np.testing.assert_array_equal(got, expected(X, Y)[1])
    with pytest.raises(ValueError, match="2 names are for labels from 0 to 1"):
        opened(tmp_path / "a.npz", classes="cat,dog")


@pytest.mark.parametrize("y", [Y, Y / 7])
def test_a_task_that_predicts_a_number_gets_numbers(tmp_path, y):
    np.savez(tmp_path / "a.npz", x=X, y=y)
    _, got, columns = all_rows(opened(tmp_path / "a.npz", NUMBERS))
    np.testing.assert_array_equal(got, expected(X, y)[1])
    assert (got.dtype, columns.classes) == (np.float64, ())


def test_fractions_are_no_classes_and_texts_no_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y / 7)
    with pytest.raises(ValueError, match=r"a\.npz: label 'y' holds fractions"):
        opened(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=X, y=Y.astype(str))
    with pytest.raises(ValueError, match="holds texts such as"):
        opened(tmp_path / "b.npz", NUMBERS)


def test_test_rows_of_their_own_are_shared_out_each_once(tmp_path):
    np.savez(tmp_path / "a.npz", x=X[:30], y=Y[:30], xt=X[30:], yt=Y[30:])
    source = opened(tmp_path / "a.npz", test_x="xt", test_y="yt")
    for which, part in (("train", slice(30)), ("test", slice(30, None))):
        got_x, got_y, _ = all_rows(source, which)
        np.testing.assert_array_equal(got_x, expected(X[part], Y[part])[0])
        np.testing.assert_array_equal(got_y, expected(X[part], Y[part])[1])
    with pytest.raises(ValueError, match="go together"):
        Npz(path="a.npz", test_x="xt")


def test_columns_have_the_names_that_the_file_gives_and_may_say_whose_rows_they_are(tmp_path):
    x = np.column_stack([RNG.normal(size=40), np.arange(40) % 4])
    np.savez(tmp_path / "a.npz", x=x, y=Y, features=np.array(["age", "site"]), xt=x, yt=Y)
    source = opened(tmp_path / "a.npz", Split(0, ByColumn(column="site"), 0.2, 0), test_x="xt", test_y="yt")
    assert source.clients == ("0", "1", "2", "3")
    assert source.divide("2").train.columns.names == ("age",)
    np.savez(tmp_path / "b.npz", x=x, y=Y, features=np.array(["age"]))
    with pytest.raises(ValueError, match="1 names of columns for 2 columns"):
        opened(tmp_path / "b.npz")


def test_a_site_has_a_file_of_its_own_and_the_run_cannot_name_one(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, outcome=Y)
    np.savez(tmp_path / "t.npz", x=X[:7], outcome=Y[:7])
    own = OwnFile("north", str(tmp_path / "a.npz"), "outcome")
    source = Npz().for_site(own).open(SPLIT)
    assert source.clients == ("north",)
    division = source.divide("north")
    assert (len(division.train), len(division.test), division.train.columns.label) == (30, 10, "outcome")
    tested = Npz().for_site(OwnFile(*vars_of(own), str(tmp_path / "t.npz"))).open(SPLIT).divide("north")
    assert (len(tested.train), len(tested.test)) == (40, 7)
    with pytest.raises(ValueError, match=r"the run sets path=/etc/secret\.npz"):
        Npz(path="/etc/secret.npz").for_site(own)
    with pytest.raises(ValueError, match="no file is named"):
        Npz().open(SPLIT)
    assert Npz().at_sites
    assert Npz(path="a.npz").names_files


def vars_of(own):
    return own.client, own.path, own.label


# -------------------------------------------------------------------------------------------------------- hostile files


def header(text, version=b"\x01\x00"):
    body = text.encode() + b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(body)) + body


def claims(shape, descr="<f8", content=b""):
    return header(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}") + content


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", saved(content) if isinstance(content, np.ndarray) else content)
    return path


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.array([{"a": 1}, None], dtype=object), "pickled Python objects, which are never loaded"),
        (claims((10**15,)), "its shape is .1000000000000000,.: at most"),
        (claims((10**15, 0)), "1000000000000000 rows and 40 labels"),
        (claims((-5, 8)), "its shape is"),
        (claims((2**20, 2**20)), "at most"),
        (claims((40, 6)), "header says 1920 bytes of shape .40, 6., the file has 0"),
        (claims((1,), "<f8", b"\0" * 16), "header says 8 bytes"),
        (claims((1,), "|O", b"\x80\x04."), "pickled"),
        (claims((4,), "<U99999999"), r"of type <U99999999: expected numbers"),
        (claims((1,), [("a", "<f8")], b"\0" * 8), "of type .*expected numbers"),
        (claims((2,), "<c16", b"\0" * 32), "of type complex128: expected numbers"),
        (claims((2,), "<M8[s]", b"\0" * 16), "of type datetime64"),
        (header("{'descr': '<f8', 'shape': (1,)}"), "header cannot be read"),
        (header("__import__('os').system('true')"), "header cannot be read"),
        (header("(" * 4000), "header cannot be read"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': ('a',), }"), "header cannot be read"),
        (header("{}", b"\x09\x00"), "header cannot be read"),
        (b"\x93NUMPY", "header cannot be read"),
        (b"", "header cannot be read"),
        (b"GIF89a" + b"\0" * 100, "header cannot be read"),
        (np.full((40, 2), np.nan), "row 0 has nan in column 0"),
        (np.array([[0.0, np.inf]] * 40), "row 0 has inf in column 1"),
        (X[:39], "39 rows and 40 labels"),
        (np.zeros((40, 0)), "nothing in rows"),
        (np.array(3.0), "expected rows"),
        (np.array(["a"] * 40), "expected numbers"),
    ],
)
def test_rows_that_are_none_are_refused_in_one_line_and_take_no_memory(tmp_path, x, said):
    path = archive(tmp_path / "a.npz", x=x, y=Y)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"(?s)a.npz.*({said})") as caught:
        opened(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.array([None] * 40), "pickled"),
        (np.zeros((40, 2), int), "expected rows"),
        (np.zeros(40, complex), "expected numbers or texts"),
        (np.full(40, np.nan), "fractions"),
        (np.arange(40) * 1j, "expected numbers or texts"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, y, said):
    with pytest.raises(ValueError, match=said):
        opened(archive(tmp_path / "a.npz", x=X, y=y))


def test_a_thousand_and_one_classes_are_a_mistake(tmp_path):
    path = archive(tmp_path / "a.npz", x=np.zeros((1001, 1)), y=np.arange(1001))
    with pytest.raises(ValueError, match="has 1001 classes: at most 1000"):
        opened(path)


def test_an_array_that_is_not_there_is_named_with_the_near_match(tmp_path):
    path = archive(tmp_path / "a.npz", x_train=X, y=Y)
    with pytest.raises(ValueError, match=r"unknown array 'xtrain': did you mean 'x_train'\?"):
        opened(path, x="xtrain")


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"\x80\x04N.", b"PK\x03\x04" + b"\0" * 60])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: this is no \.npz file"):
        opened(tmp_path / "a.npz")


def test_a_file_that_is_absent_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        opened(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="cannot be read"):
        opened(tmp_path)


def test_an_archive_damaged_anywhere_gives_a_value_error_or_the_right_rows(tmp_path):
    whole = archive(tmp_path / "a.npz", x=X, y=Y).read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            damaged[place] ^= 1 << rng.integers(8)
        if rng.random() < 0.3:
            damaged = damaged[: rng.integers(len(whole))]
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            found = read_npz(tmp_path / "b.npz", {"x": "f", "y": "iu"})
        except ValueError:
            refused += 1
        else:
            np.testing.assert_array_equal(found["x"], X)
    assert refused > 250


def test_a_member_that_says_it_is_smaller_than_it_is_is_not_decompressed_further(tmp_path):
    path = archive(tmp_path / "a.npz", x=claims((1,), "<f8", b"\0" * 8) + b"\0" * 50_000_000, y=Y)
    content = bytearray(path.read_bytes())
    true_size = struct.pack("<I", len(claims((1,), "<f8", b"\0" * 8)) + 50_000_000)
    lie = struct.pack("<I", len(claims((1,), "<f8", b"\0" * 8)))
    content = content.replace(true_size, lie)
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="npz"):
        opened(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
