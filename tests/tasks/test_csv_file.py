"""CSV files: each cell is what its text says, in whatever way it is read, and each fault is named with its line."""

import csv
import io
import math
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasks.data import csv_cells, csv_records, csv_text
from tasks.data.csv_file import Column, CsvError, CsvFile, read_csv
from tasks.data.decimals import Positions, decimals

MANY = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
FEW = settings(MANY, max_examples=100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


def read(path: Path, text: str | bytes, **options: object) -> CsvFile:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_csv(path, **options)  # type: ignore[arg-type]


def column(path: Path, cells: Iterable[str], **options: object) -> Column:
    """The column x of a file with these cells, beside a column that is never empty."""
    return read(path, "x,other\n" + "".join(f"{cell},1\n" for cell in cells), **options).columns["x"]


def fault(path: Path, text: str | bytes, **options: object) -> str:
    """What is said about a file, behind its path."""
    with pytest.raises(CsvError) as caught:
        read(path, text, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).removeprefix(", ").removeprefix(": ")


def texts(column: Column) -> list[str | None]:
    """A category's cells."""
    return [None if math.isnan(value) else column.levels[int(value)] for value in column.values]


def same(a: CsvFile, b: CsvFile) -> None:
    """Equal to the bit, minus zero included."""
    assert list(a.columns) == list(b.columns)
    assert a.lines.tolist() == b.lines.tolist()
    for one, other in zip(a.columns.values(), b.columns.values(), strict=True):
        assert (one.name, one.kind, one.levels) == (other.name, other.kind, other.levels)
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(np.signbit(one.values), np.signbit(other.values))


# --- kinds ---


def test_a_file_has_its_columns_in_order_and_each_rows_line(path: Path) -> None:
    file = read(path, "age,smoker,town,gap\n41,true,Lyon,\n,FALSE, Porto ,NA\n7.5,,Lyon,?\n")
    assert (len(file), list(file.columns), file.path) == (3, ["age", "smoker", "town", "gap"], path)
    assert [c.kind for c in file.columns.values()] == ["number", "boolean", "category", "empty"]
    np.testing.assert_array_equal(file.columns["age"].values, [41, np.nan, 7.5])
    np.testing.assert_array_equal(file.columns["smoker"].values, [1, 0, np.nan])
    np.testing.assert_array_equal(file.columns["town"].values, [0, 1, 0])
    assert np.isnan(file.columns["gap"].values).all()
    assert file.columns["town"].levels == ("Lyon", "Porto")
    assert [file.line_of(row) for row in range(3)] == [2, 3, 4]


@pytest.mark.parametrize("marker", [*sorted(csv_cells.MISSING), "  ", " . ", " NA "])
def test_a_missing_marker_is_missing_in_every_kind(path: Path, marker: str) -> None:
    for cell in ("1.5", "true", "word"):
        for kinds in ({}, {"x": "category"}):
            assert np.isnan(column(path, [cell, marker, cell], kinds=kinds).values).tolist() == [False, True, False]


def test_the_markers_are_these() -> None:
    words = {"", "NA", "na", "N/A", "n/a", "NaN", "nan", "NAN", "NULL", "null", "None", "?", "."}
    assert words == csv_cells.MISSING


@pytest.mark.parametrize(
    "word", ["-nan", "n.a.", "nil", "..", "-", "missing", "none", "NONE", "Na", "nA", "Null", "Nan", "N/a"]
)
def test_other_words_are_text(path: Path, word: str) -> None:
    assert column(path, [word]).levels == (word,)


@pytest.mark.parametrize(
    "text", ["1_000", "0x1f", "1e", "e5", "1.2.3", "--1", "+-1", "1 2", "\u0661", "\uff11", "1,5", "½"]
)
def test_what_is_no_number_is_text(path: Path, text: str) -> None:
    assert column(path, [f'"{text}"', "word"]).levels == tuple(sorted([text, "word"]))


@pytest.mark.parametrize(
    "text", ["1", "-1", "+1", "1.", ".5", "-.5", "1e3", "1E-3", "+1.5e+03", " 7 ", "007", "-0", "0.1", "1e-400", "\t7"]
)
def test_a_number_is_what_float_makes_of_it(path: Path, text: str) -> None:
    found = column(path, [text])
    assert found.kind == "number"
    assert found.values[0] == float(text)
    assert np.signbit(found.values[0]) == (math.copysign(1, float(text)) < 0)


def test_fewer_than_half_numbers_make_a_category_of_the_cells_as_they_stand(path: Path) -> None:
    found = column(path, ["01", "1", "1.0", "a", "b", "c", "d", " a"])
    assert texts(found) == ["01", "1", "1.0", "a", "b", "c", "d", "a"]


def test_the_kind_follows_from_all_rows_and_not_from_the_first_ones(path: Path) -> None:
    found = column(path, [*["01"] * 40_000, *["a"] * 40_001])
    assert (found.kind, found.levels) == ("category", ("01", "a"))
    assert found.values.tolist() == [0.0] * 40_000 + [1.0] * 40_001


def test_missing_cells_do_not_count_for_the_kind(path: Path) -> None:
    assert column(path, ["", "", "", "1", "2"]).kind == "number"
    assert column(path, ["", "", "", "true"]).kind == "boolean"


def test_true_and_false_beside_numbers_are_a_fault_or_a_category(path: Path) -> None:
    assert column(path, ["true", "false", "1"]).levels == ("1", "false", "true")
    assert "text 'true' in the numeric column 'x'" in fault(path, "x\n1\ntrue\n")


def test_a_formula_is_text(path: Path) -> None:
    formula = "=cmd|' /C calc'!A0"
    assert texts(column(path, [formula])) == [formula]


# --- forced kinds ---


def test_a_forced_category_keeps_its_text(path: Path) -> None:
    found = column(path, ["01", " 1", "1.0", "1e999", "true", ""], kinds={"x": "category", "absent": "number"})
    assert texts(found) == ["01", "1", "1.0", "1e999", "true", None]
    assert found.levels == ("01", "1", "1.0", "1e999", "true")


def test_a_forced_kind_holds_for_a_column_without_values(path: Path) -> None:
    for kind in ("number", "boolean", "category", "empty"):
        found = column(path, ["", "na"], kinds={"x": kind})
        assert (found.kind, found.levels) == (kind, ())
        assert np.isnan(found.values).all()


def test_empty_forces_nothing(path: Path) -> None:
    assert column(path, ["1"], kinds={"x": "empty"}).kind == "number"


def test_text_in_a_column_forced_to_numbers_is_a_fault(path: Path) -> None:
    said = fault(path, "age\nold\nyoung\n3\n", kinds={"age": "number"})
    assert said.startswith("line 2: text 'old' in the numeric column 'age': correct the cell")


@pytest.mark.parametrize(("cells", "line", "text"), [("true,1", 3, "1"), ("1,no", 2, "1"), ("true,no,1", 3, "no")])
def test_what_is_not_true_or_false_in_a_forced_boolean_is_a_fault(path: Path, cells: str, line: int, text: str) -> None:
    said = fault(path, "x\n" + cells.replace(",", "\n"), kinds={"x": "boolean"})
    assert said.startswith(f"line {line}: '{text}' in the boolean column 'x', where true or false was expected: ")


def test_only_the_named_columns_are_read_and_the_others_need_only_be_there(path: Path) -> None:
    text = "a,b,c\n1,x.5.,3\n2,7,4.5\n"
    assert list(read(path, text, only=["c", "absent", "a"]).columns) == ["a", "c"]
    assert read(path, text, only=["c"]).columns["c"].values.tolist() == [3, 4.5]
    assert len(read(path, text, only=[])) == 2
    assert "line 3: 2 fields where the header has 3" in fault(path, "a,b,c\n1,2,3\n1,2\n", only=["a"])


# --- faults of cells ---


def test_text_in_a_numeric_column_names_line_column_and_remedy(path: Path) -> None:
    said = fault(path, "age,x\n41,1\n43,1\nforty,1\n")
    assert said == (
        "line 4: text 'forty' in the numeric column 'age': correct the cell, or leave it empty if the value is "
        "missing; if the column is a category, add categorical=age"
    )


def test_a_text_is_shortened_and_on_one_line(path: Path) -> None:
    said = fault(path, 'x\n1\n2\n"a\nb' + "c" * 100 + '"\n')
    assert said.startswith("line 4: text 'a\\nb" + "c" * 34 + "...' in the numeric column 'x': ")


def test_half_numbers_are_a_numeric_column(path: Path) -> None:
    assert "line 3: text 'a'" in fault(path, "x\n1\na\n")
    assert column(path, ["1", "a", "b"]).kind == "category"


@pytest.mark.parametrize("text", ["inf", "-Infinity", "1e999", " INF "])
def test_an_infinite_number_is_a_fault(path: Path, text: str) -> None:
    said = fault(path, f"a,x\n1,2\n1,{text}\n1,-inf\n")
    assert said.startswith(f"line 3: '{text.strip()}' in the numeric column 'x' is not a finite number: correct")
    assert "leave it empty" in said


def test_an_infinite_number_within_a_category_is_text(path: Path) -> None:
    assert column(path, ["inf", "low", "high"]).levels == ("high", "inf", "low")


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["61,5", "-3,14", ",5"], [61.5, -3.14, 0.5]),
        (["2", "3", "+3,14"], [2, 3, 3.14]),
        (["", "1,5e-3", "7", "1,25"], [np.nan, 1.5e-3, 7, 1.25]),
        (["0,123", "1234,567", "1,234"], [0.123, 1234.567, 1.234]),  # the first is no thousand
        (["12345678901,2345678901", "0,1"], [12345678901.2345678901, 0.1]),
    ],
    ids=str,
)
def test_decimals_may_be_written_with_commas_where_these_do_not_delimit(
    path: Path, delimiter: str, cells: list[str], numbers: list[float]
) -> None:
    text = "a;x;z\n" + "".join(f"1;{cell};low\n" for cell in cells)
    found = read(path, text.replace(";", delimiter)).columns
    assert found["x"].kind == "number"
    np.testing.assert_array_equal(found["x"].values, numbers)
    assert (found["a"].kind, found["z"].levels) == ("number", ("low",))
    assert "text '-3,14' in the numeric column 'x': correct the cell" in fault(path, 'a,x\n1,2\n1,3\n1,"-3,14"\n')


def test_a_file_writes_all_its_decimals_alike(path: Path) -> None:
    for cells in ("1.5;61,5", "61,5;1.5"):
        said = fault(path, f"a;b\n{cells}\n{cells}\n")
        assert said.startswith("line 2: '1.5' in the column '")
        assert said.endswith("has a point, where other numbers have decimal commas: write all decimals with commas, "
                             "and thousands without a mark")  # fmt: skip
    said = fault(path, "a;b\n61,5;7\n61,5;8\n61,5;8.25\n")
    assert said.startswith("line 4: '8.25' in the column 'b' has a point")


@pytest.mark.parametrize(
    "cells", [["1,234", "-12,500"], ["7", "8", "1,234"], ["low", "1,234", "high", "12,500"]], ids=str
)
def test_what_may_be_thousands_is_refused_unless_another_column_tells(path: Path, cells: list[str]) -> None:
    text = "a;x\n" + "".join(f"1;{cell}\n" for cell in cells)
    assert (
        "'1,234' in the column 'x' may have three decimals or be a thousand times as large: write decimals with a "
        "point, and thousands without a mark" in fault(path, text)
    )
    if "low" not in cells:
        told = text.replace("\n1;", "\n0,5;")
        assert read(path, told).columns["x"].values.max() in (1.234, 8.0)


def test_decimal_commas_are_text_where_most_are_words_or_the_comma_delimits_or_the_run_says_so(path: Path) -> None:
    assert read(path, "a;x\n1;1,5\n1;low\n1;high\n").columns["x"].levels == ("1,5", "high", "low")
    assert column(path, ['"61,5"', '"60,5"']).levels == ("60,5", "61,5")
    file = read(path, "a;x\n1;61,5\n1;60,5\n", kinds={"x": "category"})
    assert file.columns["x"].levels == ("60,5", "61,5")


@pytest.mark.parametrize("level", ["y" * 201, "a\x07b", "a\nb", "a\u202eb"])
def test_a_level_that_could_not_name_anything_is_a_fault(path: Path, level: str) -> None:
    said = fault(path, f'a,x\n1,fine\n1,"{level}"\n')
    assert said.startswith("line 3: '")
    assert "in the column 'x' has over 200 or unprintable characters: shorten or replace it" in said
    assert column(path, ["y" * 200]).kind == "category"


def test_a_fault_reaches_another_process_as_it_is(path: Path) -> None:
    with pytest.raises(CsvError) as caught:
        read(path, "a,b\n1\n")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert isinstance(again, CsvError)
    assert str(again) == str(caught.value)


# --- shape ---


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_works_and_blank_lines_are_no_rows(path: Path, end: str) -> None:
    for last in ("", "\n", "\n\n  \n"):
        file = read(path, ("\n \na,b\n\n1,2\n  \n\n3,4" + last).replace("\n", end))
        assert file.columns["a"].values.tolist() == [1, 3]
        assert file.lines.tolist() == [5, 8]


def test_a_row_of_empty_cells_is_a_row(path: Path) -> None:
    assert len(read(path, "a,b\n1,2\n,\n")) == 2
    assert len(read(path, "a\tb\n1\t2\n\t\n")) == 2
    assert len(read(path, 'a\n1\n""\n')) == 2


def test_quotes_hold_delimiters_quotes_and_line_ends(path: Path) -> None:
    file = read(path, '"a,""x""",b\r\n"1","p,""q"""\r\n"\r\n2","r"\r\n3,s"t\r\n')
    assert list(file.columns) == ['a,"x"', "b"]
    assert file.columns['a,"x"'].values.tolist() == [1, 2, 3]
    assert texts(file.columns["b"]) == ['p,"q"', "r", 's"t']
    assert file.lines.tolist() == [2, 3, 5]


def test_blanks_around_a_quoted_cell_and_a_name_do_not_count(path: Path) -> None:
    file = read(path, ' a , "b"\n1, "x,y"\n')
    assert list(file.columns) == ["a", "b"]
    assert file.columns["b"].levels == ("x,y",)


def test_a_byte_order_mark_is_no_part_of_a_name(path: Path) -> None:
    assert list(read(path, b"\xef\xbb\xbfa,b\n1,2\n").columns) == ["a", "b"]


def test_text_may_be_in_any_script(path: Path) -> None:
    file = read(path, "ciudad,x\nCórdoba,1\n東京,2\n")
    assert texts(file.columns["ciudad"]) == ["Córdoba", "東京"]


@pytest.mark.parametrize("row", ["1", "1,2,3", "1,2,", '"1,2"'])
def test_a_ragged_row_names_its_line_and_both_counts(path: Path, row: str) -> None:
    said = fault(path, f"a,b\n1,2\n\n{row}\n1,2\n")
    count = len(next(csv.reader([row])))
    assert said.startswith(f"line 4: {count} fields where the header has 2: give each row 2, and quote a cell that")


def test_a_quote_that_is_never_closed_is_named_by_the_line_on_which_it_opens(path: Path) -> None:
    for more in ("", "\n", "\n5,6\n" * 3, "\n5,6" * 100_000):
        said = fault(path, f'a,b\n1,2\n"x\ny","3{more}')
        assert said == "line 4: a cell begins here that does not end: close its quote"


def test_a_cell_that_never_ends_on_one_line_is_a_fault(path: Path) -> None:
    assert fault(path, 'a,b\n1,2\n3,"' + "x" * 200_000).startswith("line 3: a cell begins here that does not end")


def test_text_after_a_closing_quote_is_a_fault(path: Path) -> None:
    said = fault(path, 'a,b\n1,"x"y\n')
    assert said == "line 2: text follows a closing quote: double each quote within a quoted cell"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("a,b,a", "line 2: columns 1 and 3 are both named 'a': give each its own name"),
        ("a, ,b", "line 2: column 2 of 3 has no name: name it in the header"),
        ("a,b,", "line 2: column 3 of 3 has no name: name it in the header"),
        ("a," + "b" * 201, "line 2: the name 'bbbb"),
        ("a,b\x1bc", "line 2: the name 'b\\x1bc' of column 2 has over 200 or unprintable characters: choose a plain"),
        ('a,"b', "line 2: a name in the header has no proper quotes: "),
    ],
)
def test_a_faulty_header_is_named(path: Path, header: str, said: str) -> None:
    assert fault(path, f"\n{header}\n1,2,3\n").startswith(said)


# --- delimiters ---


@pytest.mark.parametrize(("word", "character"), [("comma", ","), ("semicolon", ";"), ("tab", "\t"), ("pipe", "|")])
def test_the_usual_delimiters_are_found_and_have_names(path: Path, word: str, character: str) -> None:
    text = "a;b;c\n1;2;3\n4;5;6\n".replace(";", character)
    for delimiter in ("auto", word, character):
        assert list(read(path, text, delimiter=delimiter).columns) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"a,x,y";b\n1;2\n', ["a,x,y", "b"]),
        ("a;b\n1,5;2\n1,5;2\n", ["a", "b"]),
        ("a;b\nx,y,z;2,5\nx;2,5\n", ["a", "b"]),
        ('a,b\n"x;y",2\n"z;w",3\n', ["a", "b"]),
        ('a,b\n"x\ny;",2\n', ["a", "b"]),
        ("a\nx\ny\n", ["a"]),
    ],
)
def test_the_delimiter_found_splits_every_row_alike(path: Path, text: str, names: list[str]) -> None:
    assert list(read(path, text, kinds=dict.fromkeys(names, "category"), only=[]).columns) == []
    assert list(csv_records.Records(path, None).names) == names


def test_a_file_without_even_rows_is_measured_by_its_header(path: Path) -> None:
    assert fault(path, "a;b;c\n1;2\n").startswith("line 2: 2 fields where the header has 3")


def test_any_other_character_may_delimit(path: Path) -> None:
    for character in "~: ^":
        assert list(read(path, f"a{character}b\n1{character}2\n", delimiter=character).columns) == ["a", "b"]


@pytest.mark.parametrize("delimiter", ["", "colon", ",,", '"', "\n", ".", "e", "7", "-", "é"])
def test_a_delimiter_that_cannot_be_one_is_refused_with_those_that_can(path: Path, delimiter: str) -> None:
    with pytest.raises(ValueError, match="expected auto, comma, semicolon, tab, pipe or one character"):
        read(path, "a,b\n1,2\n", delimiter=delimiter)


# --- files ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty: "),
        (b"\xef\xbb\xbf", "the file is empty: "),
        (b"\n  \r\n\t\n", "the file is empty: "),
        (b"a,b\n", "the file has a header but no rows: "),
        (b"a,b\n\n  \n", "the file has a header but no rows: "),
        (b"PK\x03\x04\x14\x00", "line 1: this looks like an Excel workbook or another zip file: export it as CSV"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1: this looks like text in UTF-16, not UTF-8: "),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1: a NUL byte, which no text has: "),
        (b"a,b\n1,2\r\n3,\x00\n", "line 3: a NUL byte, which no text has: "),
        ("a,b\n1,x\n1,é\n".encode("latin-1"), "line 3: this is not UTF-8 but, it seems, Latin-1 or Windows-1252: save"),
        ("a,b\r1,x\r1,é".encode("cp1252"), "line 3: this is not UTF-8 but, it seems, Latin-1 or Windows-1252: save"),
        ("é,b\n1,2\n".encode("latin-1"), "line 1: this is not UTF-8"),
    ],
)
def test_what_is_no_csv_file_is_named(path: Path, content: bytes, said: str) -> None:
    assert fault(path, content).startswith(said)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, path: Path) -> None:
    with pytest.raises(CsvError, match=r"data\.csv: there is no such file: check the path"):
        read_csv(path)
    with pytest.raises(CsvError, match="this is a directory: name one CSV file in it"):
        read_csv(tmp_path)


def test_a_file_that_may_not_be_read_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root, as which tests may run, may read anything
    with pytest.raises(CsvError, match="may not read the file: change its permissions"):
        read_csv(path)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_text, "_LONGEST_LINE", 1 << 18)
    assert fault(path, "a" * (1 << 20)).startswith("line 1: a line of more than 262144 bytes: ")


# --- properties ---

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e4, 1e4).map(repr),
    st.floats(-1e22, 1e22).map(lambda value: f"{value:f}"),
    st.integers(-(10**25), 10**25).map(str),
    st.from_regex(r"[+-]?[0-9]{1,22}\.[0-9]{0,23}", fullmatch=True),
    st.from_regex(r"[+-]?[0-9]{0,4}\.[0-9]{1,6}", fullmatch=True),
    st.decimals(allow_nan=False, allow_infinity=False, places=17, min_value=-99, max_value=99).map(str),
)
ODD = st.sampled_from(
    ["", "NA", ".", " ", "-", "+", "1_0", "0x1", " 1", "2 ", "inf", "nan", "1e5", "-1E-7", "#1", "\u0661"]
)
CELLS = st.one_of(NUMBERS, ODD, st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8))


def write(rows: Sequence[Sequence[str]], width: int, quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    out = io.StringIO()
    csv.writer(out, quoting=quoting, lineterminator="\n").writerows([[f"c{j}" for j in range(width)], *rows])
    return out.getvalue().encode()


def tables(cells: st.SearchStrategy[str], least: int = 1) -> st.SearchStrategy[list[list[str]]]:
    """Rows of equal length."""
    widths = st.integers(least, 4)
    return widths.flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1))


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row through the csv module, each cell through float()."""
    monkeypatch.setattr(csv_records.Records, "_plain", lambda self, block: None)

    def unknown(text: bytes, starts: Positions, ends: Positions, mark: str) -> tuple[object, object]:
        return np.full(len(ends), 7.0), np.zeros(len(ends), bool)

    monkeypatch.setattr(csv_cells, "decimals", unknown)
    monkeypatch.setattr(csv_cells, "_all_numbers", lambda cells, mark: None)


def outcome(path: Path, **options: object) -> CsvFile | str:
    try:
        return read_csv(path, **options)  # type: ignore[arg-type]
    except CsvError as error:
        return str(error)


def both_ways_agree(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    fast = outcome(path, delimiter=",")
    with pytest.MonkeyPatch.context() as patch:
        slow(patch)
        patch.setattr(csv_text, "_BLOCK", 5)
        plain = outcome(path, delimiter=",")
    if isinstance(fast, CsvFile) and isinstance(plain, CsvFile):
        same(fast, plain)
    else:
        assert fast == plain


@MANY
@given(tables(CELLS), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_the_fast_way_and_the_slow_way_agree(path: Path, rows: list[list[str]], quoting: int) -> None:
    both_ways_agree(path, write(rows, len(rows[0]), quoting))


@settings(MANY, max_examples=1000)
@given(
    st.lists(
        st.sampled_from(['"', '"', ",", ",", "\n", "\n", " ", "1", "a", "\n2,3\n", '"b"', '\n"4","5"\n']), min_size=1
    )
)
@example(['"', "1", '"', " ", ",", "a"])
def test_the_two_ways_agree_on_faulty_files_too(path: Path, pieces: list[str]) -> None:
    both_ways_agree(path, ("x,y\n" + "".join(pieces)).encode())


@MANY
@given(tables(NUMBERS, least=2))
@example([["9007199254740993", "9007199254740992.5"], ["0.1", "-0.0"]])
def test_each_number_is_the_double_that_float_gives(path: Path, rows: list[list[str]]) -> None:
    file = read(path, write(rows, len(rows[0])))
    found = np.array([column.values for column in file.columns.values()]).T
    assert found.tobytes() == np.array([[float(cell) for cell in row] for row in rows]).tobytes()


@MANY
@given(tables(NUMBERS))
def test_each_number_with_a_decimal_comma_is_the_double_that_float_gives(path: Path, rows: list[list[str]]) -> None:
    told = [["0.5", *row] for row in rows]  # the first column tells what a comma means
    content = write(told, len(told[0])).replace(b",", b";").replace(b".", b",")
    path.write_bytes(content)
    found = np.array([column.values for column in read_csv(path).columns.values()]).T
    assert found.tobytes() == np.array([[float(cell) for cell in row] for row in told]).tobytes()


@MANY
@given(st.lists(NUMBERS | ODD | st.text(max_size=30), min_size=1))
def test_decimals_are_floats_wherever_they_are_known(cells: list[str]) -> None:
    parts = [cell.replace(";", "").encode(errors="replace") for cell in cells]
    ends = np.cumsum([len(part) + 1 for part in parts]) - 1
    starts = np.array([0, *(ends[:-1] + 1)])
    values, known = decimals(b";".join(parts) + b";", starts, ends)
    for part, value, sure in zip(parts, values, known, strict=True):
        if sure:
            assert np.float64(float(part)).tobytes() == value.tobytes()
            assert b"_" not in part


def test_plain_decimals_are_known_and_ties_are_not() -> None:
    known = ["0", "-1.5", "+007", "123456789012345678", "0.1234567890123456", "-0.0012345678901234567", "5.", ".5"]
    unknown = ["", "-", ".", "+.", "1e5", "1234567890123456789", "9007199254740993", "1..2", "1-2", " 1", "a", "0." * 9]
    text = ";".join([*known, *unknown, ""]).encode()
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord(";"))
    values, sure = decimals(text, np.array([0, *(ends[:-1] + 1)]), ends)
    assert sure.tolist() == [True] * len(known) + [False] * len(unknown)
    assert values[: len(known)].tolist() == [float(cell) for cell in known]


def test_a_million_random_doubles_come_back_to_the_bit(path: Path) -> None:
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.standard_normal((8_000, 10)), rng.lognormal(0, 9, (8_000, 10))])
    forms = ["%r", "%.17g", "%.15f", "%.3f", "%.10g", "%d", "%.16f", "%s", "%.6e", "%.18e"]
    rows = [[form % cell for form, cell in zip(forms, row, strict=True)] for row in x.tolist()]
    file = read(path, write(rows, 10))
    found = np.array([column.values for column in file.columns.values()]).T
    assert found.tobytes() == np.array([[float(cell) for cell in row] for row in rows]).tobytes()


@MANY
@given(tables(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=5).map(str.strip)))
def test_text_comes_back_as_it_was_written(path: Path, rows: list[list[str]]) -> None:
    width = len(rows[0])
    file = read(path, write(rows, width), delimiter="comma", kinds={f"c{j}": "category" for j in range(width)})
    kept = [[None if cell in csv_cells.MISSING else cell for cell in row] for row in rows]
    assert [texts(column) for column in file.columns.values()] == [list(cells) for cells in zip(*kept, strict=True)]


@FEW
@given(tables(st.sampled_from(["1", "2.5", "", "a\nb", 'x"y', "z,w", "\n"]), least=2), st.integers(1, 40))
def test_neither_lines_nor_cells_depend_on_the_size_of_the_blocks(path: Path, rows: list[list[str]], size: int) -> None:
    content = write(rows, len(rows[0]))
    path.write_bytes(content)
    whole = outcome(path, delimiter=",")
    for end in (b"\n", b"\r\n", b"\r"):
        path.write_bytes(content.replace(b"\n", end))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csv_text, "_BLOCK", size)
            pieces = outcome(path, delimiter=",")
        if isinstance(whole, CsvFile) and isinstance(pieces, CsvFile):
            same(whole, pieces)
        else:
            assert whole == pieces
