"""What is wrong with a CSV file is told in one line with file, line, column and remedy, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hospitals import COLUMNS, hospitals, patients, read_json, words, write_csv
from runs import contents

Call = Callable[..., Any]
Fault = Callable[[Path], object]


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def line(number: int, text: str, name: str = "data/bern.csv") -> Fault:
    """Another line in place of one of the file, whose header is line 1."""

    def change(caller: Path) -> None:
        lines = lines_of(caller / name)
        lines[number - 1] = text
        (caller / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return change


def header(text: str, name: str = "data/bern.csv") -> Fault:
    return line(1, text, name)


def content(data: bytes, name: str = "data/bern.csv") -> Fault:
    return lambda caller: (caller / name).write_bytes(data)


def rows(name: str = "data/bern.csv", columns: tuple[str, ...] = COLUMNS, count: int = 40, **fixed: str) -> Fault:
    """New rows in which some columns hold one text alone."""
    return lambda caller: write_csv(caller / name, [{**row, **fixed} for row in patients(count, 9)], columns)


def everywhere(fault: Callable[..., Fault], **arguments: Any) -> Fault:
    def change(caller: Path) -> None:
        for path in sorted((caller / "data").iterdir()):
            fault(name=str(path.relative_to(caller)), **arguments)(caller)

    return change


def replaced(old: str, new: str, name: str = "data/bern.csv") -> Fault:
    return lambda caller: (caller / name).write_text((caller / name).read_text("utf-8").replace(old, new), "utf-8")


def every(*faults: Fault) -> Fault:
    def change(caller: Path) -> None:
        for fault in faults:
            fault(caller)

    return change


def files_to_test_on(**arguments: Any) -> Fault:
    """A folder of test files, of which that of bern has a fault."""

    def change(caller: Path) -> None:
        for path in (caller / "data").iterdir():
            write_csv(caller / "test" / path.name, patients(10, 5))
        rows("test/bern.csv", **arguments)(caller)

    return change


def ids(name: str) -> Fault:
    """A number of its own for each row, in one more column."""

    def change(caller: Path) -> None:
        numbered = [{**row, "id": f"p{number}"} for number, row in enumerate(patients(50, 9))]
        write_csv(caller / name, numbered, (*COLUMNS, "id"))

    return change


def two_ids(caller: Path) -> None:
    (caller / "data" / "bern.CSV").write_bytes((caller / "data" / "bern.csv").read_bytes())


BERN = "data/bern.csv"
WITH_TESTS = "path=data label=outcome test-path=test"

# name -> what is done to the files, what is said after the file, and the arguments of the data
FAULTS: dict[str, tuple[Fault, str, str]] = {
    "empty": (content(b""), f"{BERN}: the file is empty: expected a line of column names and rows below it", ""),
    "blank": (content(b"\n\n  \n"), f"{BERN}: the file is empty: ", ""),
    "no rows": (content(b"age,dose,smoker,stage,outcome\n"), f"{BERN}: the file has a header but no rows: ", ""),
    "binary": (content(bytes(range(256)) * 9), f"{BERN}, line 1: a NUL byte, which no text has: export the file", ""),
    "excel": (content(b"PK\x03\x04" + bytes(99)), f"{BERN}, line 1: this looks like an Excel workbook or ", ""),
    "utf-16": (content("a,b\n1,2\n".encode("utf-16")), f"{BERN}, line 1: this looks like text in UTF-16, not ", ""),
    "latin-1": (
        content("age,dose,smoker,stage,outcome\n1,1,true,I,dead\n2,1,true,Früh,dead\n".encode("latin-1")),
        f"{BERN}, line 3: this is not UTF-8 but, it seems, Latin-1 or Windows-1252: save the file as UTF-8",
        "",
    ),
    "ragged": (line(5, "60,0.001,true,I"), f"{BERN}, line 5: 4 fields where the header has 5: give each row 5", ""),
    "open quote": (
        line(5, '60,0.001,"true,I,dead'),
        f"{BERN}, line 5: a cell begins here that does not end: close",
        "",
    ),
    "no label": (
        rows(columns=("age", "dose", "smoker", "stage")),
        f"{BERN}: unknown label 'outcome': the columns are age, dose, smoker, stage",
        "",
    ),
    "near label": (
        header("age,dose,smoker,stage,Outcome"),
        f"{BERN}: unknown label 'outcome': did you mean 'Outcome'? the columns are age, dose, smoker, stage, Outcome",
        "",
    ),
    "label not said": (
        content(b"a,b\n1,2\n"),
        "data/aarhus.csv: it is not said which column is the label: add label=...; the columns are age, dose, smoker",
        "path=data",
    ),
    "one class": (
        everywhere(rows, outcome="alive"),
        "every row has outcome = 'alive': data=csv: a model needs two classes",
        "",
    ),
    "fractions as label": (
        everywhere(rows),
        "data/aarhus.csv: label 'dose' holds fractions such as 0.00",
        "path=data label=dose",
    ),
    "text among numbers": (
        line(7, "old,0.001,true,I,dead"),
        f"{BERN}, line 7: text 'old' in the numeric column 'age': correct the cell, or leave it empty if the val",
        "",
    ),
    "thousands or decimals": (
        everywhere(content, data=b"age;outcome\n" + b"1,500;dead\n1,250;alive\n" * 20 + b"60;dead\n" * 50),
        "data/aarhus.csv, line 2: '1,500' in the column 'age' may have three decimals or be a thousand times as large",
        "",
    ),
    "points and commas": (
        everywhere(content, data=b"age;dose;outcome\n" + b"61,5;0.1;dead\n60,5;0.2;alive\n" * 20),
        "data/aarhus.csv, line 2: '0.1' in the column 'dose' has a point, where other numbers have decimal commas: wri",
        "",
    ),
    "the wrong column as label": (
        everywhere(ids),
        "data/aarhus.csv: label 'id' has 50 different values in 50 rows: is it the right column? A label has few ",
        "path=data label=id",
    ),
    "a class in two spellings": (
        line(7, "60,0.001,true,I,Dead"),
        f"{BERN}: label 'outcome' writes both 'Dead' and 'dead': write it alike",
        "",
    ),
    "infinity": (
        line(7, "inf,1,true,I,dead"),
        f"{BERN}, line 7: 'inf' in the numeric column 'age' is not a finite",
        "",
    ),
    "missing cell": (
        every(line(9, "NaN,0.001,true,I,dead"), line(11, ",0.001,true,I,dead")),
        f"{BERN}, line 9: column 'age' has 2 missing cells: fill what is missing, or add missing=mean or missing=indic",
        "path=data label=outcome missing=error",
    ),
    "missing label": (
        line(9, "61,0.001,true,I,"),
        f"{BERN}, line 9: column 'outcome' has 1 missing cell: fill what is missing, or remove the rows",
        "path=data label=outcome missing=mean",
    ),
    "one name twice": (
        header("age,dose,age,stage,outcome"),
        f"{BERN}, line 1: columns 1 and 3 are both named 'age': give each its own name",
        "",
    ),
    "no name": (header("age,,smoker,stage,outcome"), f"{BERN}, line 1: column 2 of 5 has no name: name it in the", ""),
    "three rows each": (
        everywhere(rows, count=3),
        "no client has min-examples=20 training rows with a value in column 'age': lower min-examples, use fewer cl",
        "",
    ),
    "another column": (
        header("age,doses,smoker,stage,outcome"),
        "client bern: its column 'doses' is none of the others': did you mean 'dose'?",
        "",
    ),
    "one column more": (
        every(
            header("age,dose,smoker,stage,outcome,extra"),
            replaced("alive\n", "alive,1\n"),
            replaced("dead\n", "dead,2\n"),
        ),
        "client bern: its column 'extra' is none of the others': ",
        "",
    ),
    "one column less": (
        rows(columns=("age", "smoker", "stage", "outcome")),
        "client bern: it has no column 'dose', which the others have: add it, or let all drop it",
        "",
    ),
    "another kind": (
        replaced(",true,", ",1,"),
        f"{BERN}, line ",  # a boolean that is sometimes written as 1
        "",
    ),
    "another kind throughout": (
        every(replaced(",true,", ",1,"), replaced(",false,", ",0,")),
        "client bern: its column 'smoker' is a number, that of the others a boolean: write it alike",
        "",
    ),
    "other classes": (
        every(replaced(",dead\n", ",1\n"), replaced(",alive\n", ",0\n")),
        "client bern: its label 'outcome' is '0' or '1', that of the others 'alive' or 'dead': write it alike",
        "",
    ),
    "a class in capitals": (
        replaced(",dead\n", ",Dead\n"),
        "client bern: in the label 'outcome' it writes 'Dead' where others write 'dead': write it alike",
        "",
    ),
    "a category in capitals": (
        replaced(",III,", ",iii,"),
        "client bern: in column 'stage' it writes 'iii' where others write 'III': write it alike",
        "",
    ),
    "two files with one id": (two_ids, "bern.CSV and bern.csv of ", ""),
    "no such folder": (two_ids, "nowhere: there is no such file: check the path", "path=nowhere label=outcome"),
    "no such test folder": (rows(), "test: there is no such file: check the path", WITH_TESTS),
    "a test file with other columns": (
        files_to_test_on(columns=("age", "smoker", "stage", "outcome")),
        "test/bern.csv: column 'dose' of the training rows is absent: the columns are age, smoker, stage, outcome",
        WITH_TESTS,
    ),
    "a test file without label": (
        files_to_test_on(columns=("age", "dose", "smoker", "stage")),
        "test/bern.csv: unknown label 'outcome': the columns are age, dose, smoker, stage",
        WITH_TESTS,
    ),
    "text in a test file": (
        files_to_test_on(age="old"),
        "test/bern.csv, line 2: text 'old' in the numeric column 'age': ",
        WITH_TESTS,
    ),
    "gaps in a test file": (
        files_to_test_on(age=""),
        "test/bern.csv, line 2: column 'age' has 40 missing cells: fill what is missing, or add missing=mean",
        WITH_TESTS,
    ),
    "too few clients": (
        lambda caller: [path.unlink() for path in (caller / "data").iterdir() if path.stem != "bern"],
        "min-clients=2",
        "",
    ),
    "a positive that is none": (
        rows(),
        "positive=Dead: unknown class 'Dead': did you mean 'dead'? known are alive, dead",
        "path=data label=outcome positive=Dead",
    ),
    "a slip in drop": (
        rows(),
        "drop=age2: unknown column 'age2': did you mean 'age'? the columns are age, dose, smoker, stage, outcome",
        "path=data label=outcome drop=age2",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_the_place_and_the_remedy_and_nothing_is_written(
    fl_app: Call, caller: Path, fault: str
) -> None:
    hospitals(caller / "data", rows=40)
    change, said, data_args = FAULTS[fault]
    change(caller)
    before = contents(caller)
    told = fl_app(*words(data_args=data_args or "path=data label=outcome", rounds=2)).refusal()
    assert said in told
    assert contents(caller) == before
    assert told.count(str(caller)) <= 1, "the path is said once"
    assert len(told.replace(str(caller), "")) < 300
    assert "Error" not in told  # no name of an exception


def test_a_class_that_only_test_rows_have_is_a_fault(fl_app: Call, caller: Path) -> None:
    hospitals(caller / "data", rows=40)
    files_to_test_on(outcome="maybe")(caller)
    assert "the class 'maybe'" in fl_app(*words(data_args=WITH_TESTS, rounds=2)).refusal()


def test_columns_that_are_constant_everywhere_are_a_fault(fl_app: Call, caller: Path) -> None:
    hospitals(caller / "data", rows=40)
    everywhere(rows, columns=("age", "outcome"), age="60")(caller)
    fl_app(*words(data_args="path=data label=outcome", rounds=2)).refusal()


@pytest.mark.parametrize("standardize", ["global", "local", "none"])
def test_one_constant_column_and_one_client_with_three_rows_harm_nobody(
    fl_app: Call, caller: Path, standardize: str
) -> None:
    hospitals(caller / "data", rows=40)
    everywhere(rows, age="60")(caller)
    rows(count=3)(caller)
    outcome = fl_app(*words(data_args="path=data label=outcome", rounds=2, out="out", standardize=standardize))
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "@SUM(1)", 'a ""quoted"" one'])
def test_markup_and_formulas_in_names_and_cells_are_text(fl_app: Call, caller: Path, name: str) -> None:
    made = hospitals(caller / "data", rows=40)
    columns = tuple(f'"{name}"' if column == "dose" else column for column in COLUMNS)
    for client, own in made.items():
        renamed = [{**row, f'"{name}"': row["dose"], "stage": f'"{name}{row["stage"]}"'} for row in own]
        write_csv(caller / "data" / f"{client}.csv", renamed, columns)
    outcome = fl_app(*words(data_args="path=data label=outcome", rounds=2, out="out"))
    assert outcome.status == 0, outcome.err
    plain = name.replace('""', '"')
    features = [row["feature"] for row in read_json(caller / "out" / "model.json")["coefficients"]]
    assert plain in features
    assert f"stage={plain}II" in features
    assert "<script>alert" not in (caller / "out" / "report.html").read_text()
