"""CSV files as data of clients: whose rows they are, which are tested on, and what the label's classes are called."""

from pathlib import Path

import numpy as np
import pytest
from raw_rows import cells

from tasks.data.base import DataSource, OwnFile, PathText, Split
from tasks.data.csv_source import Csv
from tasks.data.partition import ByColumn, BySize, Dirichlet, Iid, Shards
from tasks.data.table import Table

NUM_ROWS = 40


def split(num_clients=0, *, seed=0, test_fraction=0.25, partition=None, target="class"):
    return Split(num_clients, partition or Iid(), test_fraction, seed, target)


def csv(path="", **arguments):
    paths = {name: PathText(str(value)) for name, value in {"path": path, **arguments}.items() if "path" in name}
    return Csv(**{**arguments, **paths})


def opened(path, **arguments) -> DataSource:
    return csv(path, label="y", **arguments).open(split())


def write(path: Path, rows, columns=("row", "sex", "y")) -> Path:
    """A file of rows as dicts, in the order of `columns`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(columns), *(",".join(str(row[name]) for name in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(first, count=NUM_ROWS, **fixed):
    """Rows whose number is a feature, so that each can be told from all others."""
    sexes, labels = ("f", "m"), ("no", "yes", "yes", "yes")
    rows = [{"row": k, "sex": sexes[k % 2], "y": labels[k % 4]} for k in range(first, first + count)]
    return [{**row, **fixed} for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clients with rows 0 to 39, 100 to 139 and 200 to 239."""
    for place, client in enumerate(("bern", "aarhus", "oslo")):
        write(tmp_path / "data" / f"{client}.csv", rows_of(100 * place))
    return tmp_path / "data"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One file of rows 0 to 119 of the sites b, a and c in turn."""
    rows = [{**row, "site": "bac"[row["row"] % 3]} for row in rows_of(0, 120)]
    return write(tmp_path / "all.csv", rows, ("row", "site", "sex", "y"))


def numbers(table: Table) -> list[int]:
    return [int(value) for value in table.column("row")]


def held(data: DataSource) -> dict[str, tuple[list[int], list[int]]]:
    """Which rows each client trains on, and which it tests on."""
    divisions = {client: data.divide(client) for client in data.clients}
    return {client: (numbers(division.train), numbers(division.test)) for client, division in divisions.items()}


def labels(table: Table) -> list[str]:
    return [table.columns.classes[index] for index in table.y]


# ------------------------------------------------------------------------------------------------------- whose rows


def test_each_file_of_a_folder_is_a_client_named_after_it_in_alphabetical_order(folder):
    data = opened(folder)
    assert data.clients == ("aarhus", "bern", "oslo")
    for client, first in (("bern", 0), ("aarhus", 100), ("oslo", 200)):
        train, test = held(data)[client]
        assert sorted(train + test) == list(range(first, first + NUM_ROWS))
        assert len(test) == NUM_ROWS / 4


def test_what_is_no_csv_file_of_a_folder_is_no_client(folder):
    (folder / "README.txt").write_text("about these files")
    for name in (".hidden.csv", "~$bern.csv"):  # the latter is Excel's, of a file that is open
        (folder / name).write_text("a,y\n1,no\n")
    (folder / "UPPER.CSV").write_bytes((folder / "oslo.csv").read_bytes())
    assert opened(folder).clients == ("UPPER", "aarhus", "bern", "oslo")


@pytest.mark.parametrize("name", ["3", "Köln, Süd", "a b", "a.b", "<b>&", "-", "=1+1", "ä" * 100])
def test_any_printable_name_is_a_client(tmp_path, name):
    for client in (name, "other"):
        write(tmp_path / f"{client}.csv", rows_of(0))
    assert set(opened(tmp_path).clients) == {name, "other"}


def test_the_name_of_a_client_that_cannot_be_printed_is_refused(folder):
    (folder / "oslo.csv").rename(folder / "os\nlo.csv")
    with pytest.raises(ValueError, match="is no name for a client: use up to 200 printable characters"):
        opened(folder)


def test_two_files_of_one_name_are_refused_with_both(folder):
    (folder / "oslo.CSV").write_bytes((folder / "oslo.csv").read_bytes())
    with pytest.raises(ValueError, match=r"oslo\.CSV and oslo\.csv of .*data are one client's: rename one"):
        opened(folder)


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no \*\.csv file: put one there for each client"):
        opened(tmp_path)


def test_the_client_column_says_whose_row_it_is_and_is_not_learned_from(file):
    data = opened(file, client_column="site")
    assert data.clients == ("a", "b", "c")
    for client, (train, test) in held(data).items():
        assert sorted(train + test) == [row for row in range(120) if "bac"[row % 3] == client]
        assert data.divide(client).train.columns.names == ("row", "sex")


def test_a_client_column_of_numbers_gives_names_as_they_are_written_and_sorted_as_text(tmp_path):
    rows = [{**row, "site": ("10", "9", "007")[row["row"] % 3]} for row in rows_of(0)]
    path = write(tmp_path / "all.csv", rows, ("row", "site", "sex", "y"))
    assert opened(path, client_column="site").clients == ("007", "10", "9")


def test_a_row_without_client_is_refused_with_its_line(tmp_path):
    path = write(tmp_path / "all.csv", [*rows_of(0, site="a"), *rows_of(50, 1, site="")], ("row", "site", "y"))
    with pytest.raises(ValueError, match=r"all\.csv, line 42: column 'site' has 1 missing cell: "):
        opened(path, client_column="site")


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(alpha=0.3), Shards(), BySize()], ids=lambda p: type(p).__name__)
def test_a_single_file_is_dealt_and_each_row_is_one_clients(file, partition):
    data = csv(file, label="y", drop="site").open(split(5, partition=partition))
    assert data.clients == ("00", "01", "02", "03", "04")
    dealt = [row for train, test in held(data).values() for row in train + test]
    assert sorted(dealt) == list(range(120))


def test_a_single_file_is_dealt_to_ten_where_nobody_says_how_many(file):
    assert len(csv(file, label="y").open(split()).clients) == 10


def test_a_file_can_be_dealt_by_a_column_of_texts_which_is_then_not_learned_from(file):
    data = csv(file, label="y").open(split(partition=ByColumn(column="site")))
    assert data.clients == ("a", "b", "c")
    assert held(data).keys() == {"a", "b", "c"}
    assert data.divide("a").train.columns.names == ("row", "sex")
    assert held(data) == held(opened(file, client_column="site"))


def test_a_file_can_be_dealt_by_a_column_of_numbers_or_truths(tmp_path):
    rows = [{**row, "ward": row["row"] % 3 + 1, "old": ("true", "False")[row["row"] % 2]} for row in rows_of(0)]
    path = write(tmp_path / "all.csv", rows, ("row", "ward", "old", "y"))
    for column, clients in (("ward", ("1", "2", "3")), ("old", ("false", "true"))):
        assert csv(path, label="y").open(split(partition=ByColumn(column=column))).clients == clients


@pytest.mark.parametrize("num_clients", [0, 3])
def test_how_many_clients_there_are_may_be_left_out_or_said(folder, file, num_clients):
    assert len(csv(folder, label="y").open(split(num_clients)).clients) == 3
    assert len(csv(file, label="y", client_column="site").open(split(num_clients)).clients) == 3


def test_another_number_of_clients_is_refused_with_the_right_one(folder, file):
    for data in (csv(folder, label="y"), csv(file, label="y", client_column="site")):
        with pytest.raises(ValueError, match="has 3 clients, num-clients is 4: leave num-clients out or set num-cli"):
            data.open(split(4))


def test_only_a_file_without_client_column_is_partitioned_by_the_run(folder, file):
    assert not csv(folder, label="y").partitioned
    assert not csv(file, label="y", client_column="site").partitioned
    assert csv(file, label="y").partitioned


def test_only_files_that_are_asked_for_are_read(folder):
    (folder / "oslo.csv").write_text("")
    data = opened(folder)
    assert len(data.divide("bern").train) == 30
    with pytest.raises(ValueError, match=r"oslo\.csv: the file is empty: "):
        data.divide("oslo")


# ----------------------------------------------------------------------------------------------------- rows to test on


def test_the_split_is_stratified(folder):
    division = csv(folder, label="y").open(split(test_fraction=0.2)).divide("bern")
    assert [labels(table).count("no") for table in (division.train, division.test)] == [8, 2]
    assert [len(table) for table in (division.train, division.test)] == [32, 8]


def test_the_split_depends_on_nothing_but_the_seed_and_the_client(folder, tmp_path):
    """Neither on the other clients nor on the order of asking, nor on whether the rows come from a folder or a file."""
    data = opened(folder)
    first = [numbers(data.divide(client).test) for client in ("oslo", "bern")]
    (folder / "aarhus.csv").unlink()
    assert [tests for _, tests in held(opened(folder)).values()] == first[::-1]
    rows = [*rows_of(0, site="bern"), *rows_of(200, site="oslo")]
    path = write(tmp_path / "all.csv", rows, ("site", "y", "row", "sex"))
    assert held(opened(path, client_column="site")) == held(opened(folder))


def test_another_seed_and_another_client_are_other_draws(folder):
    rows = held(opened(folder))
    assert [row - 100 for row in rows["aarhus"][1]] != rows["bern"][1]
    assert held(csv(folder, label="y").open(split(seed=1)))["bern"] != rows["bern"]


def test_without_a_test_fraction_all_rows_are_trained_on(folder):
    division = csv(folder, label="y").open(split(test_fraction=0)).divide("bern")
    assert (numbers(division.train), len(division.test)) == (list(range(40)), 0)


def write_tests(client, first, folder):
    return write(folder / f"{client}.csv", rows_of(first, 6), ("y", "sex", "row"))


@pytest.mark.parametrize("client_column", ["", "site"])
def test_a_folder_of_test_files_goes_with_a_folder_and_with_a_client_column(folder, file, tmp_path, client_column):
    if client_column:
        data, clients = file, ("a", "b", "c")
    else:
        data, clients = folder, ("aarhus", "bern", "oslo")
    for place, client in enumerate(clients):
        write_tests(client, 1000 + 100 * place, tmp_path / "test")
    rows = held(opened(data, client_column=client_column, test_path=tmp_path / "test"))
    for place, client in enumerate(clients):
        assert len(rows[client][0]) == 40  # none of them is split off
        assert rows[client][1] == list(range(1000 + 100 * place, 1006 + 100 * place))


@pytest.mark.parametrize("in_folder", [True, False])
def test_a_test_file_with_a_client_column_gives_each_client_its_rows(folder, file, tmp_path, in_folder):
    clients = ("oslo", "bern") if in_folder else ("c", "a")
    rows = [{**row, "site": clients[row["row"] % 2]} for row in rows_of(1000, 10)]
    test = write(tmp_path / "test.csv", rows, ("site", "row", "sex", "y"))
    data = opened(folder if in_folder else file, client_column="site", test_path=test)
    found = held(data)
    assert found[clients[0]][1] == list(range(1000, 1010, 2))
    assert found[clients[1]][1] == list(range(1001, 1010, 2))
    assert found["aarhus" if in_folder else "b"][1] == []  # it has none in the file


@pytest.mark.parametrize("client_column", ["", "site"])
def test_a_test_file_without_a_client_column_is_shared_out_each_row_once(folder, file, tmp_path, client_column):
    test = write(tmp_path / "test.csv", rows_of(1000, 10))
    data = opened(file if client_column else folder, client_column=client_column, test_path=test)
    shares = [tests for _, tests in held(data).values()]
    assert sorted(row for share in shares for row in share) == list(range(1000, 1010))
    assert sorted(map(len, shares)) == [3, 3, 4]


def test_test_rows_of_a_client_that_does_not_train_are_refused(folder, file, tmp_path):
    test = write(tmp_path / "test.csv", rows_of(0, site="z"), ("row", "sex", "site", "y"))
    with pytest.raises(ValueError, match=r"test\.csv has test rows of client 'z', which has no training rows"):
        opened(file, client_column="site", test_path=test)
    for client in ("aarhus", "bern", "oslo", "rome"):
        write_tests(client, 0, tmp_path / "test")
    with pytest.raises(ValueError, match=r"client 'rome' has test rows in .* and no training rows: remove rome\.csv"):
        opened(folder, test_path=tmp_path / "test")
    for client in ("oslo", "rome"):
        (tmp_path / "test" / f"{client}.csv").unlink()
    with pytest.raises(ValueError, match=r"client 'oslo' has training rows and no test rows: put a file oslo\.csv in"):
        opened(folder, test_path=tmp_path / "test")


def test_a_test_file_may_have_more_columns_and_none_less(folder, tmp_path):
    for client in ("aarhus", "bern", "oslo"):
        write(tmp_path / "test" / f"{client}.csv", rows_of(0, sexe="f", more=1), ("more", "row", "sexe", "y"))
    data = opened(folder, test_path=tmp_path / "test")
    with pytest.raises(ValueError, match=r"test/bern\.csv: column 'sex' of the training rows is absent: did you mean"):
        data.divide("bern")
    data = opened(folder, test_path=tmp_path / "test", drop="sex")
    assert numbers(data.divide("bern").test) == list(range(NUM_ROWS))


def test_test_rows_are_read_as_what_the_training_rows_are(folder, tmp_path):
    """Not as what they look like: a column of texts stays one where the few test rows hold numbers alone."""
    for client in ("aarhus", "bern", "oslo"):
        write(tmp_path / "test" / f"{client}.csv", rows_of(0, 3, sex=1))
    division = opened(folder, test_path=tmp_path / "test").divide("bern")
    assert [feature.kind for feature in division.test.columns.features] == ["number", "category"]
    assert cells(division.test, "sex") == ["1", "1", "1"]
    write(tmp_path / "test" / "oslo.csv", rows_of(0, 3, row="x"))
    with pytest.raises(ValueError, match=r"oslo\.csv, line 2: text 'x' in the numeric column 'row'"):
        opened(folder, test_path=tmp_path / "test").divide("oslo")


# -------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("written", "classes"),
    [
        (("yes", "no"), ("no", "yes")),
        (("1", "0"), ("0", "1")),
        (("1.0", "0"), ("0", "1")),
        (("01", "1.0", "0.0"), ("0", "1")),
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("True", "False"), ("false", "true")),
        (("TRUE", "FALSE"), ("false", "true")),
        (("10", "9", "stage 2"), ("9", "10", "stage 2")),
        (("b", "a", "c", "d"), ("a", "b", "c", "d")),
        (('"a, b"', '"a ""b"""'), ('a "b"', "a, b")),
        (("=1+1", "@x"), ("=1+1", "@x")),
    ],
    ids=str,
)
def test_a_label_has_classes_whatever_it_is_written_as(tmp_path, written, classes):
    for client in "ab":
        write(tmp_path / f"{client}.csv", rows_of(0, 20 * len(written)))
        rows = [{**row, "y": written[row["row"] % len(written)]} for row in rows_of(0, 20 * len(written))]
        write(tmp_path / f"{client}.csv", rows)
    table = opened(tmp_path).divide("a").train
    assert table.columns.classes == classes
    assert table.y.dtype == np.int64
    meant = dict(zip(written, [*map(_plain, written)], strict=True))
    assert labels(table) == [meant[written[row % len(written)]] for row in numbers(table)]


def _plain(cell: str) -> str:
    """A cell without its quotes, a number as the shortest way to write it, true and false in small letters."""
    if cell.lower() in ("true", "false"):
        return cell.lower()
    if cell.startswith('"'):
        return cell[1:-1].replace('""', '"')
    try:
        return str(int(float(cell)))
    except ValueError:
        return cell


def test_classes_may_differ_between_clients(folder):
    write(folder / "oslo.csv", rows_of(0, y="maybe"))
    data = opened(folder)
    assert data.divide("bern").train.columns.classes == ("no", "yes")
    assert data.divide("oslo").train.columns.classes == ("maybe",)


def test_the_classes_of_one_file_are_those_of_all_its_clients(tmp_path):
    rows = [*rows_of(0, site="a", y="x"), *rows_of(0, site="b", y="z"), *rows_of(0, site="c", y="y")]
    data = opened(write(tmp_path / "all.csv", rows, ("row", "site", "y")), client_column="site")
    assert [data.divide(client).train.columns.classes for client in "abc"] == [("x", "y", "z")] * 3
    assert set(labels(data.divide("b").train)) == {"z"}


def test_a_label_of_fractions_is_no_class(folder):
    write(folder / "bern.csv", [{**row, "y": row["row"] / 2} for row in rows_of(0)])
    with pytest.raises(ValueError, match=r"bern\.csv: label 'y' holds fractions such as 0\.5: choose a column with cl"):
        opened(folder).divide("bern")


def test_a_task_that_predicts_a_number_gets_the_label_as_numbers(folder):
    write(folder / "bern.csv", [{**row, "y": row["row"] / 2} for row in rows_of(0)])
    table = csv(folder, label="y").open(split(target="number")).divide("bern").train
    assert table.columns.classes == ()
    assert table.y.dtype == np.float64
    assert (table.y == table.column("row") / 2).all()
    with pytest.raises(ValueError, match=r"oslo\.csv, line 2: text 'no' in the numeric column 'y'"):
        csv(folder, label="y").open(split(target="number")).divide("oslo")


def test_more_classes_than_a_label_has_are_refused(tmp_path):
    rows = [{**row, "y": f"p{row['row'] % 1001}"} for row in rows_of(0, 5 * 1001)]
    path = write(tmp_path / "all.csv", rows)
    with pytest.raises(ValueError, match="label 'y' has 1001 classes: at most 1000 are possible: is it the right col"):
        opened(path)


@pytest.mark.parametrize(("classes", "count", "fine"), [(21, 104, False), (21, 105, True), (20, 40, True)])
def test_a_label_of_many_classes_with_few_rows_each_is_the_wrong_column(tmp_path, classes, count, fine):
    path = write(tmp_path / "all.csv", [{**row, "y": f"p{row['row'] % classes}"} for row in rows_of(0, count)])
    if fine:
        assert len(opened(path).divide("00").train.columns.classes) == classes
        return
    said = r"all\.csv: label 'y' has 21 different values in 104 rows: is it the right column\? A label has few values"
    with pytest.raises(ValueError, match=said):
        opened(path)


@pytest.mark.parametrize(("one", "other"), [("Yes", "yes"), ("STRASSE", "straße")])
def test_a_class_that_a_file_writes_in_two_ways_is_refused(folder, one, other):
    write(folder / "bern.csv", [*rows_of(0, y=one), *rows_of(40, y=other), *rows_of(80, y="no")])
    with pytest.raises(ValueError, match=rf"bern\.csv: label 'y' writes both '{one}' and '{other}': write it alike"):
        opened(folder).divide("bern")


def test_a_row_without_label_is_refused_with_its_line_whatever_else_may_be_missing(folder):
    write(folder / "bern.csv", [*rows_of(0), *rows_of(0, 2, y="")])
    with pytest.raises(ValueError, match=r"bern\.csv, line 42: column 'y' has 2 missing cells: fill what is missing"):
        opened(folder, missing="mean").divide("bern")


def test_the_positive_class_may_be_written_as_in_the_file(folder):
    assert csv(folder, label="y", positive="1.0").positive == "1"
    assert csv(folder, label="y", positive="yes").positive == "yes"


# ------------------------------------------------------------------------------------------------------------- columns


def test_files_may_have_their_columns_in_any_order(folder):
    write(folder / "oslo.csv", rows_of(200), ("y", "sex", "row"))
    division = opened(folder).divide("oslo")
    assert division.train.columns.names == ("sex", "row")
    assert cells(division.train, "sex") == ["fm"[row % 2] for row in numbers(division.train)]
    assert labels(division.train) == [("no", "yes", "yes", "yes")[row % 4] for row in numbers(division.train)]


def test_numbers_can_be_declared_categories(folder):
    data = opened(folder, categorical="row")
    (feature, _) = data.divide("bern").train.columns.features
    assert feature.kind == "category"
    assert feature.levels == tuple(sorted(map(str, range(NUM_ROWS))))


def test_columns_can_be_dropped_and_are_then_not_even_looked_at(folder):
    write(folder / "bern.csv", rows_of(0, sex="no\tsex"))
    with (folder / "bern.csv").open("a") as file:
        file.write("7,,yes\n")
    data = opened(folder, drop="sex")
    assert data.divide("bern").train.columns.names == ("row",)


def test_lists_of_columns_are_quoted_as_in_a_csv_file(tmp_path):
    rows = [{"row": row["row"], '"a, b"': 1, "c d": 2, "y": row["y"]} for row in rows_of(0)]
    write(tmp_path / "a.csv", rows, ("row", '"a, b"', "c d", "y"))
    assert opened(tmp_path, drop='"a, b", c d').divide("a").train.columns.names == ("row",)


def test_a_slip_in_what_is_to_be_dropped_is_refused_with_the_near_match(folder, file):
    for path in (folder, file):
        with pytest.raises(
            ValueError, match="drop=sx: unknown column 'sx': did you mean 'sex'\\? the columns are row,"
        ):
            opened(path, drop="sx")


def test_what_one_client_has_and_the_others_do_not_can_be_dropped(folder):
    write(folder / "oslo.csv", rows_of(0, more=1), ("row", "more", "sex", "y"))
    data = opened(folder, drop="more")
    assert {data.divide(client).train.columns.names for client in data.clients} == {("row", "sex")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"label": ""},
            r"bern\.csv: it is not said which column is the label: add label=\.\.\.; the columns are row, s",
        ),
        ({"label": "Y"}, "unknown label 'Y': did you mean 'y'\\? the columns are row, sex, y$"),
        ({"label": "outcome"}, "unknown label 'outcome': the columns are row, sex, y$"),
        ({"categorical": "Sex"}, "unknown column 'Sex': did you mean 'sex'\\?"),
        ({"drop": "row,sex"}, "there is no column to learn from beside 'y': add some, or drop fewer"),
        ({"group": "rwo"}, "unknown group 'rwo': did you mean 'row'\\?"),
        ({"categorical": "sex", "drop": "sex"}, "drop=... names the column 'sex': do not drop it"),
    ],
    ids=str,
)
def test_columns_that_are_not_there_are_told_with_those_that_are(folder, arguments, said):
    data = csv(folder, **{"label": "y", **arguments}).open(split())
    with pytest.raises(ValueError, match=said):
        data.divide("bern")


def test_of_many_columns_an_error_lists_the_first_ones(tmp_path):
    names = [f"gene {k}" for k in range(5000)]
    row = {**dict.fromkeys(names, 1), "y": "a"}
    path = write(tmp_path / "wide.csv", [row] * 3, (*names, "y"))
    with pytest.raises(ValueError, match=r"unknown label 'z': the columns are gene 0, .* and 4989 more$") as told:
        csv(path, label="z").open(split())
    assert len(str(told.value).removeprefix(str(path))) < 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"client_column": "y"}, "label and client-column are both 'y'"),
        ({"drop": "sex,y"}, "drop=y: this is the label, client column or group"),
        ({"client_column": "site", "drop": "site"}, "drop=site: this is the label, client column or group"),
        ({"group": "y"}, "label and group are both 'y'"),
        ({"group": "site", "client_column": "site"}, "client-column and group are both 'site'"),
        ({"group": "row", "drop": "row"}, "drop=row: this is the label, client column or group"),
        ({"rows_per_group": 1}, "rows-per-group=1: it is not said which rows belong together: add group="),
        ({"group": "row", "rows_per_group": -1}, "rows-per-group must be 0 \\(all\\) or more, got -1"),
        ({"delimiter": "comna"}, "expected auto, comma, semicolon, tab, pipe or one character"),
    ],
    ids=str,
)
def test_arguments_that_contradict_each_other_are_refused_before_anything_is_read(arguments, said):
    with pytest.raises(ValueError, match=said):
        csv("nowhere", label="y", **arguments)


def test_a_client_column_beside_a_folder_is_refused(folder, tmp_path):
    tests = write(tmp_path / "test.csv", rows_of(0))
    for arguments in ({}, {"test_path": tests}):
        with pytest.raises(ValueError, match=r"client-column=sexe: each file of .*data is one client: leave"):
            opened(folder, client_column="sexe", **arguments)


# -------------------------------------------------------------------------------------------------------------- missing


def test_missing_cells_are_refused_with_line_and_column_or_kept_as_they_are(folder):
    rows = rows_of(0)
    rows[3]["row"], rows[5]["row"], rows[1]["sex"] = "", "NA", "null"
    write(folder / "bern.csv", rows)
    said = (
        r"bern\.csv, line 5: column 'row' has 2 missing cells: fill what is missing, or add missing=mean or missing=i"
    )
    with pytest.raises(ValueError, match=said):
        opened(folder).divide("bern")
    for missing in ("mean", "indicator"):
        data = csv(folder, label="y", missing=missing).open(split(test_fraction=0))
        table = data.divide("bern").train
        assert np.flatnonzero(np.isnan(table.column("row"))).tolist() == [3, 5]
        assert cells(table, "sex")[:3] == ["f", None, "f"]


def test_missing_cells_of_test_rows_are_refused_alike(folder, tmp_path):
    for client in ("aarhus", "bern", "oslo"):
        write(tmp_path / "test" / f"{client}.csv", rows_of(0, 3, sex=""))
    with pytest.raises(ValueError, match=r"test/bern\.csv, line 2: column 'sex' has 3 missing cells"):
        opened(folder, test_path=tmp_path / "test").divide("bern")


def test_the_delimiter_can_be_said(folder):
    for file in folder.glob("*.csv"):
        file.write_text(file.read_text().replace(",", "|"))
    assert opened(folder, delimiter="pipe").divide("bern").train.columns.names == ("row", "sex")
    with pytest.raises(ValueError, match=r"unknown label 'y': the columns are row\|sex\|y"):
        opened(folder, delimiter="comma").divide("bern")


# ----------------------------------------------------------------------------------------------------------- at a site


def test_a_site_reads_its_own_file_as_the_run_says_and_is_its_one_client(folder, tmp_path):
    tests = write_tests("whatever", 1000, tmp_path)
    own = OwnFile("north", str(folder / "bern.csv"), "sex", str(tests))
    data = csv(drop="y").for_site(own).open(split())
    assert data.clients == ("north",)
    division = data.divide("north")
    assert (numbers(division.train), numbers(division.test)) == (list(range(40)), list(range(1000, 1006)))
    assert (division.train.columns.names, division.train.columns.label) == (("row",), "sex")
    assert division.train.columns.classes == ("f", "m")


def test_a_site_splits_as_the_folder_would(folder):
    site = csv().for_site(OwnFile("bern", str(folder / "bern.csv"), "y")).open(split())
    assert held(site)["bern"] == held(opened(folder))["bern"]


@pytest.mark.parametrize("key", ["path", "label", "client_column", "test_path"])
def test_a_run_that_says_what_is_read_at_a_site_is_refused(folder, key):
    own = OwnFile("north", str(folder / "bern.csv"), "y")
    with pytest.raises(ValueError, match=f"the run sets {key.replace('_', '-')}=sex: a site reads what its own node"):
        csv(**{key: "sex"}).for_site(own)


def test_without_a_path_there_is_nothing_to_open_here():
    data = csv(label="y")
    assert data.at_sites
    assert not data.server_held
    with pytest.raises(ValueError, match=r'no file is named: add data-args="path=\.\.\. label=\.\.\.", or at a site'):
        data.open(split())
