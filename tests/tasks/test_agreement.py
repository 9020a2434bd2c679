"""Clients agree: they tell little, what comes of it is as if their rows lay in one place, and misfits are named."""

import re
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from math import sqrt

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from raw_rows import KINDS, cells, random_rows, table

from tasks.data.agreement import RARE, Common, Description, Rules, agree, check_rows, describe, sort_out
from tasks.data.design import Term
from tasks.data.moments import Moments
from tasks.data.table import Columns, Feature, Table

ALL_KINDS = {**KINDS, "huge": "number"}
MISSING = ["error", "mean", "indicator"]


def clash(theirs, ours):
    """Why a client's columns do not go with those of a federation that all has `ours`."""
    return Common.of([ours]).clash(theirs)


def common(descriptions):
    return Common.of([descriptions[client].columns for client in sorted(descriptions)])


def clients_of(seed, sizes, missing=0.2):
    """A table for each client: booleans, categories, timestamps, and numbers of 1e12 that differ by 1."""
    rng = np.random.default_rng(seed)
    tables = {}
    for index, size in enumerate(sizes):
        rows = [{**row, "huge": 1e12 + rng.normal()} for row in random_rows(rng, size, missing=missing)]
        tables[f"{index:02}"] = table(rows, ALL_KINDS)
    return tables


def described(tables, rules):
    return {client: describe(rows, rules) for client, rows in tables.items()}


def pooled_terms(tables, rules):
    """The terms of a design, from the pooled rows of all who may tell, in rational arithmetic."""
    telling = [rows for rows in tables.values() if len(rows) >= rules.min_examples]
    terms = []
    for name, kind in ALL_KINDS.items():
        held = [cells(rows, name) for rows in telling]
        indicator = rules.missing == "indicator" and any(cell is None for column in held for cell in column)
        if kind == "category":
            counts = [Counter(cell for cell in column if cell is not None) for column in held]
            common = {cell for count in counts for cell, times in count.items() if times >= RARE}
            terms.append(Term(name, kind, categories=tuple(sorted(common)), indicator=indicator))
            continue
        known = [[Fraction(cell) for cell in column if cell is not None] for column in held]
        values = [cell for column in known if len(column) >= rules.min_examples for cell in column]
        if not values:
            terms.append(None)
            continue
        mean = sum(values) / len(values)
        stddev = sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        terms.append(Term(name, kind, float(mean), stddev or 1.0, indicator=indicator))
    return terms


# -------------------------------------------------------------------------------- as if all rows lay in one place


@given(
    st.integers(0, 2**32), st.lists(st.integers(1, 60), min_size=1, max_size=6), st.sampled_from(MISSING),
    st.sampled_from(["global", "local", "none"]), st.integers(1, 30),
)  # fmt: skip
def test_the_design_is_that_of_the_pooled_rows_of_those_who_tell(seed, sizes, missing, standardize, min_examples):
    rules = Rules(standardize, missing, min_examples=min_examples)
    tables = clients_of(seed, sizes, missing=0.0 if missing == "error" else 0.2)
    expected = pooled_terms(tables, rules)
    if None in expected and rules.need_moments:
        with pytest.raises(ValueError, match=f"no client has min-examples={min_examples} training rows with a value"):
            agree(described(tables, rules), rules)
        return
    if rules.need_moments and all(len(t.categories) < 2 if t.kind == "category" else t.scale == 1.0 for t in expected):
        with pytest.raises(ValueError, match="every column has one value in all rows: there is nothing to learn from"):
            agree(described(tables, rules), rules)
        return
    made = agree(described(tables, rules), rules)
    assert (made.standardize, made.missing) == (standardize, missing)
    for got, wanted in zip(made.terms, expected, strict=True):
        if got.kind == "category":
            assert got == wanted
        elif rules.need_moments:
            assert replace(got, mean=0.0, scale=1.0) == replace(wanted, mean=0.0, scale=1.0)
            assert got.mean == pytest.approx(wanted.mean, rel=1e-12)
            assert got.scale == pytest.approx(wanted.scale, rel=1e-12)
        else:
            assert got == Term(got.name, got.kind)


@given(st.integers(0, 2**32), st.permutations(range(4)), st.sampled_from(MISSING))
def test_neither_the_order_of_rows_nor_who_holds_which_changes_a_bit_of_the_design(seed, owners, missing):
    rules = Rules("global", missing, min_examples=20)
    tables = clients_of(seed, (25, 40, 33, 7), missing=0.0 if missing == "error" else 0.1)
    rng = np.random.default_rng(seed)
    shuffled = {client: rows.rows(rng.permutation(len(rows))) for client, rows in tables.items()}
    renamed = {f"{owners[index]:02}": rows for index, rows in enumerate(tables.values())}
    backwards = dict(reversed(tables.items()))
    made = [repr(agree(described(some, rules), rules)) for some in (tables, shuffled, renamed, backwards)]
    assert made == made[:1] * 4


@given(st.integers(0, 2**32), st.permutations(list(ALL_KINDS)))
def test_the_order_of_a_clients_columns_changes_nothing_but_theirs(seed, order):
    rules = Rules("global", "indicator", min_examples=20)
    tables = clients_of(seed, (30, 30, 30))
    other = tables["01"]
    place = [other.columns.names.index(name) for name in order]
    features = tuple(other.columns.features[index] for index in place)
    tables["01"] = replace(other, x=other.x[:, place], columns=replace(other.columns, features=features))
    first, second = (
        agree(described(clients_of(seed, (30, 30, 30)), rules), rules),
        agree(described(tables, rules), rules),
    )
    assert {repr(term) for term in first.terms} == {repr(term) for term in second.terms}


def test_scaling_by_raw_squares_would_have_failed_this():
    rules = Rules("global", min_examples=1)
    tables = clients_of(0, (50, 50), missing=0.0)
    values = np.concatenate([rows.column("huge") for rows in tables.values()])
    scale = next(term.scale for term in agree(described(tables, rules), rules).terms if term.name == "huge")
    assert scale == pytest.approx(np.std(values - 1e12), rel=1e-9)
    assert abs((values**2).mean() - values.mean() ** 2) > 1e3


# ------------------------------------------------------------------------------------------------ what is not told


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 60), st.sampled_from(["mean", "indicator"]))
def test_a_client_below_min_examples_tells_neither_statistics_nor_categories_nor_gaps(seed, size, least, missing):
    rows = clients_of(seed, [size])["00"]
    told = describe(rows, Rules("global", missing, min_examples=least))
    assert told.num_examples == size
    assert told.columns.names == tuple(ALL_KINDS)
    assert [feature.kind for feature in told.columns.features] == list(ALL_KINDS.values())
    assert told.columns.classes == ("no", "yes")
    if size < least:
        assert told == Description(told.columns, size)
        assert all(feature.levels == () for feature in told.columns.features)
    else:
        assert told.moments is not None
        assert set(told.missing) == {name for name in ALL_KINDS if None in cells(rows, name)}


@given(st.integers(0, 2**32), st.integers(20, 60), st.floats(0, 1))
def test_a_column_known_in_fewer_than_min_examples_rows_is_not_told(seed, size, missing):
    rows = clients_of(seed, [size], missing=missing)["00"]
    moments = describe(rows, Rules("none", "mean", min_examples=20)).moments
    for index, (name, kind) in enumerate(ALL_KINDS.items()):
        known = sum(cell is not None for cell in cells(rows, name))
        told = kind != "category" and known >= 20
        assert moments.n[index] == (known if told else 0)
        if not told:
            assert [float(array[index]) for array in moments.to_arrays()] == [0.0] * 4


@given(st.integers(0, 2**32), st.integers(1, 80))
def test_only_categories_that_five_rows_have_are_told(seed, size):
    rows = clients_of(seed, [size])["00"]
    told = describe(rows, Rules("none", "mean", min_examples=1))
    for feature in told.columns.features:
        if feature.kind == "category":
            counts = Counter(cells(rows, feature.name))
            assert set(feature.levels) == {level for level, n in counts.items() if level is not None and n >= 5}
            assert len(set(feature.levels)) == len(feature.levels)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (Rules("global"), True),
        (Rules("local"), False),
        (Rules("none"), False),
        (Rules("none", "mean"), True),
        (Rules("local", "indicator"), True),
    ],
)
def test_no_statistics_are_told_where_none_are_needed(rules, told):
    description = describe(clients_of(0, [40], missing=0.0)["00"], rules)
    assert (description.moments is not None) == told


@pytest.mark.parametrize("size", [3, 40])
def test_missing_cells_are_refused_by_name_whatever_the_size_unless_the_run_says_what_becomes_of_them(size):
    rows = clients_of(0, [size], missing=0.0)["00"]
    rows.column("smoker")[0] = np.nan
    with pytest.raises(ValueError, match="column 'smoker' has missing cells: fill them, or add missing=mean or "):
        describe(rows, Rules("none"))
    assert describe(rows, Rules("none", "mean")).missing == (("smoker",) if size == 40 else ())


@pytest.mark.parametrize("rules", [Rules("global"), Rules("local"), Rules("none", "mean", min_examples=1000)])
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e200, 1.01e30, -1.01e30])
def test_values_that_are_infinite_or_too_large_are_refused_whatever_is_made_of_them(value, rules):
    rows = clients_of(0, [40], missing=0.0)["00"]
    rows.column("time")[3] = value
    message = "column 'time' has a value beyond 1e+30: correct it, or leave the cell empty"
    for refuse in (check_rows, describe):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            refuse(rows, rules)


@pytest.mark.parametrize("value", [1e30, -1e30])
def test_the_largest_values_that_are_taken_come_to_a_design(value):
    rows = clients_of(0, [40], missing=0.0)["00"]
    rows.column("time")[3] = value
    assert np.isfinite(agree(described({"00": rows}, Rules("global")), Rules("global")).terms[1].scale)


A_COLUMN = Feature("v")
ODD_NAMES = {
    "a column without a name": (Columns((Feature(""),), "y"), "the table has the column '', a name that is empty"),
    "a column of an unprintable name": (Columns((Feature("a\x1b[2J"),), "y"), r"the table has the column 'a\x1b[2J', "),
    "a column of an endless name": (Columns((Feature("a" * 201),), "y"), f"the table has the column '{'a' * 60}', a"),
    "two columns of one name": (Columns((A_COLUMN, A_COLUMN), "y"), "the table has the column 'v' twice"),
    "a label called as a column": (Columns((A_COLUMN,), "v"), "the table has the column 'v' twice"),
    "a label without a name": (Columns((A_COLUMN,), ""), "the table has the column '', a name that is empty"),
    "an empty category": (
        Columns((A_COLUMN, Feature("c", "category", ("a", ""))), "y"), "column 'c' has the category '', a name that is",
    ),
    "an unprintable category": (
        Columns((Feature("c", "category", ("a\nb",)),), "y"), r"column 'c' has the category 'a\nb', a name that",
    ),
    "two categories of one name": (
        Columns((Feature("c", "category", ("b", "a", "a")),), "y"), "column 'c' has the category 'a' twice",
    ),
    "an endless class": (
        Columns((A_COLUMN,), "y", ("b" * 201, "a")), "label 'y' has the class '" + "b" * 60 + "', a name that is empty",
    ),
    "two classes of one name": (Columns((A_COLUMN,), "y", ("a", "a")), "label 'y' has the class 'a' twice"),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "message"), ODD_NAMES.values(), ids=ODD_NAMES)
def test_names_that_cannot_be_shown_or_told_apart_are_refused_with_their_column(columns, message):
    rows = Table(np.zeros((30, len(columns.features))), np.zeros(30, dtype=np.int64), columns)
    for refuse in (check_rows, describe):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}.*: rename (it|one)$"):
            refuse(rows, Rules("none"))


def test_names_may_be_long_and_of_any_script():
    columns = Columns(
        (Feature("Größe (µm)"), Feature("a" * 200), category("年齢", "若い", "a: b, =c")), "y", ("да", "нет")
    )
    assert check_rows(Table(np.zeros((30, 3)), np.zeros(30, dtype=np.int64), columns), Rules("none")) is None


def test_one_category_may_stand_in_two_columns():
    columns = Columns((category("a", "yes"), category("b", "yes")), "y", ("no", "yes"))
    assert check_rows(Table(np.zeros((30, 2)), np.zeros(30, dtype=np.int64), columns), Rules("none")) is None


@pytest.mark.parametrize("missing", MISSING)
def test_no_rows_at_all_have_nothing_wrong(missing):
    rows = clients_of(0, [40])["00"].rows(np.arange(0))
    assert check_rows(rows, Rules("global", missing)) is None


def test_rows_are_not_written_to():
    rows = clients_of(0, [40])["00"]
    before = rows.x.tobytes()
    describe(rows, Rules("global", "indicator"))
    assert rows.x.tobytes() == before


# ---------------------------------------------------------------------------------------------- what the design says


def category(name, *levels):
    return Feature(name, "category", levels)


def empty(name):
    return Feature(name, "empty")


def told(*features, classes=("no", "yes"), label="y", missing=(), num_examples=30):
    return Description(Columns(tuple(features), label, tuple(classes)), num_examples, missing)


NONE = Rules("none")
V = Feature("v")


def test_categories_are_the_union_of_the_clients_in_order():
    made = agree({"a": told(category("c", "w", "b")), "b": told(category("c", "k")), "c": told(category("c"))}, NONE)
    assert made.terms == (Term("c", "category", categories=("b", "k", "w")),)


def test_a_category_that_no_client_has_five_times_is_other():
    tables = {client: table([{"c": "often"}] * 6 + [{"c": "rare"}] * 4, {"c": "category"}) for client in ("00", "01")}
    rules = Rules("none", min_examples=5)
    made = agree(described(tables, rules), rules)
    assert made.schema.features == ("c=other",)
    assert made.encode(tables["00"])[:, 0].tolist() == [0.0] * 6 + [1.0] * 4


def test_columns_that_no_client_has_gaps_in_get_no_indicator():
    told_gaps = {"a": told(V, category("c", "x"), missing=("c",)), "b": told(V, category("c", "x"))}
    assert agree(told_gaps, replace(NONE, missing="error")).schema.features == ("v", "c=other")
    numbers = Moments.of(np.array([[1.0, 0.0], [2.0, 0.0]] * 15)).where(np.array([True, False]))
    told_gaps["b"] = replace(told_gaps["b"], moments=numbers)
    assert agree(told_gaps, replace(NONE, missing="indicator")).schema.features == ("v", "c=other", "c is missing")
    assert agree(told_gaps, replace(NONE, missing="mean")).schema.features == ("v", "c=other")


@pytest.mark.parametrize(
    ("rules", "remedy"),
    [
        (Rules("global", min_examples=50), "lower min-examples, use fewer clients, or set standardize=local"),
        (Rules("none", "mean", min_examples=50), "drop the column, lower min-examples, or use fewer clients"),
        (Rules("global", "indicator", min_examples=50), "drop the column, lower min-examples, or use fewer clients"),
    ],
)
def test_without_statistics_of_a_column_there_is_no_design(rules, remedy):
    tables = {client: table([{"v": float(i)} for i in range(40)], {"v": "number"}) for client in ("00", "01")}
    with pytest.raises(ValueError, match=f"min-examples=50 training rows with a value in column 'v': {remedy}"):
        agree(described(tables, rules), rules)


def test_an_empty_column_takes_the_kind_that_others_give_it_and_else_is_nothing_to_learn_from():
    made = agree({"a": told(empty("c"), V), "b": told(category("c", "x", "y"), V)}, NONE)
    assert made.schema.features == ("c=y", "c=other", "v")
    assert agree({"a": told(empty("c"), V), "b": told(V, Feature("c", "boolean"))}, NONE).terms == (
        Term("c", "boolean"), Term("v", "number"),
    )  # fmt: skip
    assert agree({"a": told(empty("c"), V)}, NONE).schema.features == ("v",)
    with pytest.raises(ValueError, match="no column is left to learn from"):
        agree({"a": told(empty("c"), category("d"))}, NONE)


def test_columns_that_are_constant_everywhere_come_to_no_design():
    tables = {client: table([{"v": 3.0, "w": 7.0}] * 30, {"v": "number", "w": "number"}) for client in ("00", "01")}
    with pytest.raises(ValueError, match="every column has one value in all rows: there is nothing to learn from"):
        agree(described(tables, Rules("global")), Rules("global"))
    tables["01"].column("v")[:] = 4.0
    assert agree(described(tables, Rules("global")), Rules("global")).terms[0] == Term("v", "number", 3.5, 0.5)


def test_nobody_comes_to_no_design():
    with pytest.raises(ValueError, match="no client has described its columns"):
        agree({}, NONE)


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two columns would be called 'c=x'"):
        agree({"a": told(category("c", "a", "x"), Feature("c=x"))}, NONE)


def test_a_category_may_be_called_other():
    everybody = {"a": told(category("c", "cook", "other", "smith")), "b": told(category("c", "other"))}
    made = agree(everybody, NONE)
    assert made.schema.features == ("c=smith", "c=other")
    rows = table([{"c": job} for job in ("cook", "other", "smith", "nurse")], {"c": "category"})
    assert made.encode(rows).tolist() == [[0, 0], [0, 1], [1, 0], [0, 1]]


def test_a_category_may_be_called_missing():
    columns = told(category("c", "a", "missing"), missing=("c",))
    made = agree({"a": replace(columns, moments=Moments.of(np.zeros((30, 1))))}, replace(NONE, missing="indicator"))
    assert made.schema.features == ("c=missing", "c=other", "c is missing")
    rows = table([{"c": cell} for cell in ("a", "missing", None)], {"c": "category"})
    assert made.encode(rows).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]


# ------------------------------------------------------------------------------------------------------ the classes


@pytest.mark.parametrize(
    ("held", "classes"),
    [
        ([("b", "a"), ("b", "a")], ("b", "a")),  # all count them alike: their order
        ([("b", "a"), ("a", "b")], ("a", "b")),
        ([("a", "c"), ("b", "c"), ("a",)], ("a", "b", "c")),
        ([("10", "9"), ("9", "2")], ("2", "9", "10")),
        ([("-1", "0.5"), ("0.5", "3e2")], ("-1", "0.5", "3e2")),
        ([("no",), ("yes",)], ("no", "yes")),
        ([("10", "n"), ("n", "9")], ("10", "9", "n")),
        ([("1.0", "1"), ("1", "01")], ("01", "1", "1.0")),
        ([(), ()], ()),
    ],
)
def test_classes_are_the_union_numbers_by_size_and_kept_where_all_count_them_alike(held, classes):
    for order in permutations(held):
        assert agree({f"{i}": told(V, classes=some) for i, some in enumerate(order)}, NONE).classes == classes


@pytest.mark.parametrize("held", [[("no", "yes")], [("yes", "no")], [("no",), ("no", "yes")]])
@pytest.mark.parametrize("positive", ["no", "yes"])
def test_the_positive_class_comes_second(held, positive):
    everybody = {f"{i}": told(V, classes=some) for i, some in enumerate(held)}
    classes = agree(everybody, replace(NONE, positive=positive)).classes
    assert (classes[1], set(classes)) == (positive, {"no", "yes"})


@pytest.mark.parametrize(
    ("positive", "classes", "message"),
    [
        ("yess", ("no", "yes"), "positive=yess: unknown class 'yess': did you mean 'yes'"),
        ("1", ("no", "yes"), "positive=1: unknown class '1': known are no, yes"),
        ("b", ("a", "b", "c"), "positive=b: the label has 3 classes, 'a' or 'b' or 'c', not 2"),
        ("b", ("b",), "positive=b: the label has 1 classes, 'b', not 2"),
        ("b", (), "positive=b: unknown class 'b': known are none"),
    ],
)
def test_a_positive_that_cannot_be_is_refused(positive, classes, message):
    with pytest.raises(ValueError, match=message):
        agree({"a": told(V, classes=classes)}, replace(NONE, positive=positive))


# ---------------------------------------------------------------------------------------------- who goes with whom

OURS = Columns((Feature("age"), category("sex", "f", "m"), Feature("smoker", "boolean")), "y", ("no", "yes"))
AGE, SEX, SMOKER = OURS.features
CLASHES = {
    "label": (
        replace(OURS, label="outcome"),
        "its label is 'outcome', that of the others 'y': give both the same label",
    ),
    "another column": (
        replace(OURS, features=(Feature("agee"), SEX, SMOKER)),
        "its column 'agee' is none of the others': did you mean 'age'? rename or drop it",
    ),
    "one more column": (
        replace(OURS, features=(*OURS.features, Feature("xyz"))),
        "its column 'xyz' is none of the others': rename or drop it",
    ),
    "one more column that is near one it has": (
        replace(OURS, features=(*OURS.features, Feature("agee"))),
        "its column 'agee' is none of the others': rename or drop it",
    ),
    "one column less": (
        replace(OURS, features=(SEX, AGE)),
        "it has no column 'smoker', which the others have: add it, or let all drop it",
    ),
    "kind": (
        replace(OURS, features=(category("age"), SEX, SMOKER)),
        "its column 'age' is a category, that of the others a number: write it alike",
    ),
    "boolean or number": (
        replace(OURS, features=(AGE, SEX, Feature("smoker"))),
        "its column 'smoker' is a number, that of the others a boolean: write it alike",
    ),
    "capitals of a category": (
        replace(OURS, features=(AGE, category("sex", "x", "M"), SMOKER)),
        "in column 'sex' it writes 'M' where others write 'm': write it alike",
    ),
    "capitals of a class": (
        replace(OURS, classes=("no", "YES")),
        "in the label 'y' it writes 'YES' where others write 'yes': write it alike",
    ),
    "a label that is a number": (
        replace(OURS, classes=()),
        "its label 'y' is a number, that of the others 'no' or 'yes': write it alike",
    ),
    "classes that are numbers": (
        replace(OURS, classes=("0", "1")),
        "its label 'y' is '0' or '1', that of the others 'no' or 'yes': write it alike",
    ),
    "one class that is a number": (
        replace(OURS, classes=("1",)),
        "its label 'y' is '1', that of the others 'no' or 'yes': write it alike",
    ),
    "many classes that are numbers": (
        replace(OURS, classes=tuple("123456")),
        "its label 'y' is '1' or '2' or '3' or '4' or '5' ..., that of the others 'no' or 'yes': write it alike",
    ),
    "two other classes": (
        replace(OURS, classes=("nein", "ja")),
        "its label 'y' is 'nein' or 'ja', that of the others 'no' or 'yes': write it alike",
    ),
}


@pytest.mark.parametrize(("theirs", "why"), CLASHES.values(), ids=CLASHES)
def test_columns_that_do_not_go_together_are_told_with_both_sides_and_the_remedy(theirs, why):
    assert clash(theirs, OURS) == why
    assert clash(OURS, theirs) is not None


def test_a_column_whose_name_holds_a_colon_is_told_as_any_other():
    theirs = replace(OURS, features=(Feature("age: years"), SEX, SMOKER))
    assert clash(theirs, OURS) == "its column 'age: years' is none of the others': rename or drop it"


GOES_TOGETHER = {
    "the same": OURS,
    "another order": replace(OURS, features=(SMOKER, AGE, SEX)),
    "other categories": replace(OURS, features=(AGE, category("sex", "x"), SMOKER)),
    "no categories told": replace(OURS, features=(AGE, category("sex"), SMOKER)),
    "both spellings, as the others": replace(OURS, features=(AGE, category("sex", "m", "f"), SMOKER)),
    "all empty": replace(OURS, features=(empty("age"), empty("sex"), empty("smoker"))),
    "one class": replace(OURS, classes=("no",)),
    "one class of its own": replace(OURS, classes=("perhaps",)),
    "a class more": replace(OURS, classes=("no", "perhaps", "yes")),
    "two classes more": replace(OURS, classes=("no", "perhaps", "seldom", "yes")),
    "two classes of which one is theirs": replace(OURS, classes=("yes", "perhaps")),
    "many other classes": replace(OURS, classes=tuple("abcdef")),
    "another order of classes": replace(OURS, classes=("yes", "no")),
}


@pytest.mark.parametrize("theirs", GOES_TOGETHER.values(), ids=GOES_TOGETHER)
def test_columns_that_go_together_do_so_both_ways(theirs):
    assert clash(theirs, OURS) is None
    assert clash(OURS, theirs) is None


@pytest.mark.parametrize(
    ("theirs", "ours", "why"),
    [
        (("no", "yes"), ("0", "1"), "is 'no' or 'yes', that of the others whole numbers"),
        ((), ("0", "1"), "is a number, that of the others whole numbers"),
        ((), ("a", "b", "c"), "is a number, that of the others words"),
        (("0", "1"), (), "is '0' or '1', that of the others a number"),
        (("no", "yes"), (), "is 'no' or 'yes', that of the others a number"),
    ],
)
def test_a_label_of_another_kind_is_told_with_both_kinds(theirs, ours, why):
    theirs, ours = replace(OURS, classes=theirs), replace(OURS, classes=ours)
    assert clash(theirs, ours) == f"its label 'y' {why}: write it alike"


@pytest.mark.parametrize(
    "held",
    [
        [("0", "1"), ("2", "3")],
        [("0", "1"), ("2", "3"), ("10",), ("4", "5", "6")],
        [("no",), ("yes",)],
        [("a", "b", "c"), ("d", "e", "f")],
        [("a", "b", "c"), ("a", "b", "c"), ("a", "b"), ("c", "d")],  # of three classes some hold two
        [("a", "b", "c"), ("a", "b", "c"), ("d", "e")],
    ],
)
def test_clients_with_different_classes_of_one_label_go_together_in_any_order(held):
    for order in permutations(held):
        everybody = {f"{i:02}": told(V, classes=classes) for i, classes in enumerate(order)}
        good, refused = sort_out(everybody)
        assert refused == {}
        assert agree(good, NONE).classes == tuple(sorted({name for some in held for name in some}, key=by_size))


def by_size(name):
    return (len(name), name)


def test_most_clients_decide_which_two_words_the_classes_are():
    held = [("benign", "malignant"), *[("no", "yes")] * 3, ("no",), ("maybe",), ("maybe", "no")]
    refused = sort_out({f"{i:02}": told(V, classes=classes) for i, classes in enumerate(held)})[1]
    assert refused == {
        "00": "its label 'y' is 'benign' or 'malignant', that of the others 'no' or 'yes': write it alike"
    }


def test_most_clients_decide_how_a_value_is_written_whoever_comes_first():
    everybody = {f"{i:02}": told(category("v", level)) for i, level in enumerate(["Red", "red", "RED", "red"])}
    assert sort_out(everybody)[1] == {
        "00": "in column 'v' it writes 'Red' where others write 'red': write it alike",
        "02": "in column 'v' it writes 'RED' where others write 'red': write it alike",
    }


def test_the_same_value_may_be_written_differently_in_two_columns():
    everybody = {f"{i:02}": told(category("v", "yes"), category("w", "YES"), classes=("No", "Yes")) for i in range(3)}
    assert sort_out(everybody)[1] == {}


def test_where_most_clients_tell_capitals_apart_they_are_values_of_their_own():
    genes = told(category("gene", "AA", "Aa", "aa"))
    everybody = {"00": genes, "01": told(category("gene", "AA")), "02": genes, "03": told(category("gene", "aA"))}
    good, refused = sort_out(everybody)
    assert refused == {"03": "in column 'gene' it writes 'aA' where others write 'AA' or 'Aa' or 'aa': write it alike"}
    made = agree(good, NONE)
    assert made.terms[0].categories == ("AA", "Aa", "aa")
    assert clash(genes.columns, made.raw_columns) is None


def test_one_odd_client_that_comes_first_decides_nothing():
    others = {f"{i:02}": told(V, Feature("w")) for i in range(1, 4)}
    for odd in (told(V), told(Feature("x")), told(category("v", "a"), category("w")), told(V, label="z")):
        assert set(sort_out({"00": odd, **others})[1]) == {"00"}


# --------------------------------------------------------------------------------------------- with many clients


def calls_of(function, *arguments):
    """How often Python or built-in functions are called in a call of `function`."""
    count = 0

    def see(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
    return count


def many_clients(number):
    """Ten categories, whose levels no two clients have alike; one client in ten has a column of its own."""
    rng = np.random.default_rng(0)
    levels = np.array([f"level {index}" for index in range(40)])
    everybody = {}
    for client in range(number):
        held = [(*levels[rng.random(40) < 0.2].tolist(), f"only {client}") for _ in range(10)]
        features = [category(f"column {index}", *some) for index, some in enumerate(held)]
        everybody[f"{client:04}"] = told(*features, *([Feature("colum 3")] if client % 10 == 0 else []))
    return everybody


@pytest.mark.parametrize("function", [sort_out, lambda everybody: agree(sort_out(everybody)[0], NONE)])
def test_four_times_the_clients_are_four_times_the_work(function):
    few, many = calls_of(function, many_clients(250)), calls_of(function, many_clients(1000))
    assert many < 6 * few
    assert many < 5_000_000  # some seconds at the most


def test_of_a_thousand_clients_each_is_compared_once(monkeypatch):
    compared = Counter()
    true_clash = Common.clash

    def counted(self, theirs):
        compared[theirs] += 1
        return true_clash(self, theirs)

    monkeypatch.setattr(Common, "clash", counted)
    good, refused = sort_out(many_clients(1000))
    assert (len(good), len(refused)) == (900, 100)
    assert set(compared.values()) == {1}
    assert sum(compared.values()) == 1000
    compared.clear()
    sort_out({f"{i:04}": Description(OURS, 30) for i in range(1000)})
    assert sum(compared.values()) == 1, "clients with the same columns share one verdict"


# ---------------------------------------------------------------------------------------------- who is left out


@pytest.mark.parametrize("theirs", [theirs for theirs, _ in CLASHES.values()], ids=CLASHES)
@pytest.mark.parametrize("odd", ["00", "02", "04"])
def test_one_odd_client_is_left_out_and_not_all_the_others(theirs, odd):
    everybody = {f"{i:02}": Description(OURS, 30) for i in range(5)}
    everybody[odd] = Description(theirs, 30)
    good, refused = sort_out(everybody)
    assert set(refused) == {odd}
    assert set(good) == set(everybody) - {odd}
    assert refused[odd] == clash(theirs, OURS)
    assert agree(good, NONE).raw_columns == agree({"00": Description(OURS, 30)}, NONE).raw_columns


def test_of_two_equal_camps_the_first_clients_wins():
    everybody = {"00": told(V), "01": told(category("v")), "02": told(category("v")), "03": told(V)}
    assert set(sort_out(everybody)[1]) == {"01", "02"}


@given(st.permutations(range(6)))
def test_who_is_left_out_does_not_depend_on_the_order_of_the_answers(order):
    others = [theirs for theirs, _ in CLASHES.values()]
    everybody = {f"{i:02}": Description(others[i] if i < 2 else OURS, 30) for i in range(6)}
    shuffled = {f"{i:02}": everybody[f"{i:02}"] for i in order}
    assert sort_out(shuffled) == sort_out(everybody)
    assert common(shuffled) == common(everybody)
    assert list(sort_out(shuffled)[1]) == ["00", "01"]


def test_an_empty_column_of_many_takes_no_side_and_those_who_fill_it_must_agree():
    everybody = {f"{i:02}": told(empty("v")) for i in range(5)} | {"05": told(V), "06": told(category("v", "x"))}
    good, refused = sort_out(everybody)
    assert set(refused) == {"06"}
    assert "its column 'v' is a category, that of the others a number" in refused["06"]
    assert agree(good, NONE).terms == (Term("v", "number"),)


def test_the_majority_wins_also_where_a_client_has_nothing_in_the_column():
    everybody = {"00": told(V)} | {f"{i:02}": told(category("v", "x")) for i in range(1, 6)} | {"06": told(empty("v"))}
    assert set(sort_out(everybody)[1]) == {"00"}


def test_capitals_are_seen_also_where_a_small_client_tells_no_categories():
    everybody = {"00": told(category("v"))} | {f"{i:02}": told(category("v", "red")) for i in range(1, 6)}
    everybody["06"] = told(category("v", "Red"))
    assert set(sort_out(everybody)[1]) == {"06"}


def test_capitals_are_seen_also_where_a_client_has_one_class():
    everybody = {"00": told(V, classes=("yes",))} | {f"{i:02}": told(V) for i in range(1, 6)}
    everybody["06"] = told(V, classes=("No", "yes"))
    assert set(sort_out(everybody)[1]) == {"06"}


columns = st.builds(
    Columns,
    st.lists(
        st.builds(Feature, st.sampled_from("abcd"), st.sampled_from(["number", "boolean", "empty"]))
        | st.builds(
            Feature, st.sampled_from("abcd"), st.just("category"),
            st.lists(st.sampled_from(["x", "X", "y"]), unique=True).map(tuple),
        ),
        min_size=1, max_size=4, unique_by=lambda feature: feature.name,
    ).map(tuple),
    st.sampled_from(["y", "z"]),
    st.sampled_from([(), ("0", "1"), ("no", "yes"), ("No", "yes"), ("no",)]),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["00", "01", "02", "03", "04"]), columns, min_size=1))
@settings(max_examples=300)
def test_those_who_are_left_have_what_it_takes_for_a_design(held):
    everybody = {client: Description(columns, 30) for client, columns in held.items()}
    good, refused = sort_out(everybody)
    assert set(good) | set(refused) == set(everybody)
    assert not set(good) & set(refused)
    assert all(refused.values())
    known = [f for d in good.values() for f in d.columns.features if f.kind in ("number", "boolean") or f.levels]
    assume(known)
    made = agree(good, NONE)
    for description in good.values():
        kinds = {feature.name: feature.kind for feature in description.columns.features}
        assert set(kinds) == {term.name for term in made.terms}
        assert all(kinds[term.name] in (term.kind, "empty") for term in made.terms)
        assert set(description.columns.classes) <= set(made.classes)


@given(columns, st.lists(columns, max_size=3), st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_what_more_than_half_of_the_clients_have_is_never_refused(most, others, random):
    held = [most] * (len(others) + 1) + others
    random.shuffle(held)
    good, refused = sort_out({f"{i:02}": Description(columns, 30) for i, columns in enumerate(held)})
    assert most in {description.columns for description in good.values()}
    assert most not in {held[int(client)] for client in refused}
