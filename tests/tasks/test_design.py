"""The design: raw rows become the model's columns as a person would write them down, cell by cell."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_rows import KINDS, SITES, STAGES, cells, random_rows, table

from tasks.data.design import Design, Term
from tasks.data.moments import Moments
from tasks.data.table import Columns, Feature, Table

NUMBERS = (Term("age", "number", 50.0, 8.0), Term("time", "number", 1.7e9 + 30, 17.0))
TERMS = (
    NUMBERS[0],
    Term("site", "category", categories=("Bern", "Oslo", "Århus"), indicator=True),
    NUMBERS[1],
    Term("stage", "category", categories=("1", "2")),
    Term("smoker", "boolean", 0.25, 0.43, indicator=True),
)


def design(*terms, standardize="none", missing="mean", classes=("no", "yes")):
    return Design(terms or TERMS, "y", classes, standardize, missing)


def by_hand(design, rows):
    """The model's columns of a table, row by row; not yet scaled with standardize="local"."""
    columns = {term.name: cells(rows, term.name) for term in design.terms}
    result = []
    for index in range(len(rows)):
        line = []
        for term in design.terms:
            cell = columns[term.name][index]
            if term.kind == "category":
                line += [float(cell == category) for category in term.categories[1:]]
                if term.categories:
                    unheard = cell is not None and cell not in term.categories
                    line.append(float(unheard or (cell is None and not term.indicator)))
            else:
                value = term.mean if cell is None else cell
                line.append((value - term.mean) / term.scale if design.standardize == "global" else value)
            if term.indicator:
                line.append(float(cell is None))
        result.append(line)
    return np.array(result).reshape(len(rows), len(design.schema.features))


# ------------------------------------------------------------------------------------------------- what cells become

some_terms = st.tuples(
    st.builds(Term, st.just("age"), st.just("number"), st.just(50.0), st.just(8.0), st.just(()), st.booleans()),
    st.builds(Term, st.just("time"), st.just("number"), st.just(1.7e9), st.just(9.0), st.just(()), st.booleans()),
    st.builds(Term, st.just("smoker"), st.just("boolean"), st.just(0.3), st.just(0.4), st.just(()), st.booleans()),
    *(
        st.builds(
            Term, st.just(name), st.just("category"), st.none(), st.none(),
            st.lists(st.sampled_from([*levels, "elsewhere"]), unique=True).map(tuple), st.booleans(),
        )
        for name, levels in (("site", SITES), ("stage", STAGES))
    ),
).flatmap(st.permutations)  # fmt: skip


@given(some_terms, st.sampled_from(["global", "none"]), st.integers(0, 2**32), st.integers(0, 30), st.booleans())
def test_every_cell_becomes_what_it_does_by_hand(terms, standardize, seed, num_rows, gaps):
    rows = table(random_rows(np.random.default_rng(seed), num_rows, missing=0.3 * gaps), KINDS)
    made = design(*terms, standardize=standardize)
    encoded = made.encode(rows)
    assert encoded.dtype == np.float64
    assert encoded.shape == (num_rows, len(made.schema.features))
    np.testing.assert_array_equal(encoded, by_hand(made, rows))


@given(some_terms, st.integers(0, 2**32), st.integers(1, 30), st.integers(0, 10))
def test_local_scaling_is_by_the_clients_own_training_rows_and_spares_0_1_columns(terms, seed, num_train, num_test):
    rng = np.random.default_rng(seed)
    train, test = (table(random_rows(rng, n), KINDS) for n in (num_train, num_test))
    made = design(*terms, standardize="local")
    got_train, got_test = made.prepare(train, test)
    raw_train, raw_test = by_hand(made, train), by_hand(made, test)
    for index, name in enumerate(made.schema.features):
        mean, stddev = 0.0, 1.0
        if name in ("age", "time", "smoker"):
            mean, stddev = raw_train[:, index].mean(), raw_train[:, index].std()
            stddev = 1.0 if stddev <= 1e-14 * abs(mean) else stddev
        np.testing.assert_allclose(got_train.x[:, index], (raw_train[:, index] - mean) / stddev, rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(got_test.x[:, index], (raw_test[:, index] - mean) / stddev, rtol=1e-9, atol=1e-7)


def test_the_first_category_is_the_reference_and_an_unseen_one_is_other():
    made = design(Term("site", "category", categories=("a", "b", "c")))
    assert made.schema.features == ("site=b", "site=c", "site=other")
    rows = table([{"site": site} for site in ("a", "b", "c", "d")], {"site": "category"})
    assert made.encode(rows).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("indicator", "names", "row"),
    [(False, ("site=b", "site=other"), [0, 1]), (True, ("site=b", "site=other", "site is missing"), [0, 0, 1])],
)
def test_a_missing_category_is_other_or_missing_and_never_both(indicator, names, row):
    made = design(Term("site", "category", categories=("a", "b"), indicator=indicator))
    assert made.schema.features == names
    assert made.encode(table([{"site": None}], {"site": "category"})).tolist() == [row]


@pytest.mark.parametrize("kind", ["number", "boolean"])
@pytest.mark.parametrize(("standardize", "filled"), [("none", 0.25), ("local", 0.25), ("global", 0.0)])
@pytest.mark.parametrize("indicator", [False, True])
def test_a_missing_number_is_the_mean_of_all_clients(kind, standardize, filled, indicator):
    made = design(Term("v", kind, 0.25, 0.5, indicator=indicator), standardize=standardize)
    rows = table([{"v": None}, {"v": 1.0}], {"v": kind})
    known = 1.5 if standardize == "global" else 1.0
    expected = [[filled, 1.0], [known, 0.0]] if indicator else [[filled], [known]]
    assert made.encode(rows).tolist() == expected


def test_gaps_in_test_rows_are_filled_also_where_training_rows_had_none():
    rng = np.random.default_rng(0)
    train = table(random_rows(rng, 30, missing=0.0), KINDS)
    test = table([dict.fromkeys(KINDS)], {**KINDS, "site": "empty"})
    made = design(*(replace(term, indicator=False) for term in TERMS), standardize="global", missing="indicator")
    rows = made.prepare(train, test)[1]
    assert dict(zip(made.schema.features, rows.x[0].tolist(), strict=True)) == {
        "age": 0.0, "site=Oslo": 0.0, "site=Århus": 0.0, "site=other": 1.0, "time": 0.0, "stage=2": 0.0,
        "stage=other": 1.0, "smoker": 0.0,
    }  # fmt: skip


def test_missing_cells_are_refused_by_name_in_train_and_test_rows_unless_the_run_says_what_becomes_of_them():
    whole = table([{"a": 1.0, "b": 2.0}] * 4, {"a": "number", "b": "number"})
    holes = table([{"a": 1.0, "b": None}, {"a": None, "b": None}], {"a": "number", "b": "number"})
    strict = design(Term("a", "number"), Term("b", "number"), missing="error")
    for pair in ((whole, holes), (holes, whole)):
        with pytest.raises(ValueError, match="column 'b' has 2 missing cells: fill them, or add missing=mean"):
            strict.prepare(*pair)
    assert strict.prepare(whole, whole)[0].x.tolist() == [[1.0, 2.0]] * 4


def test_gaps_in_a_column_that_the_design_does_not_use_are_none_of_its_business():
    holes = table([{"a": 1.0, "b": None}], {"a": "number", "b": "number"})
    assert design(Term("a", "number"), missing="error").encode(holes).tolist() == [[1.0]]


def test_an_empty_column_goes_with_any_kind():
    empty = table([dict.fromkeys(KINDS)] * 2, dict.fromkeys(KINDS, "empty"))
    missing = table([dict.fromkeys(KINDS)] * 2, KINDS)
    np.testing.assert_array_equal(design().encode(empty), design().encode(missing))


def test_a_category_of_nothing_but_rare_values_leaves_its_indicator_alone():
    terms = Term("site", "category", indicator=True), Term("stage", "category"), Term("age", "number", 0.0, 1.0)
    made = design(*terms)
    assert made.schema.features == ("site is missing", "age")
    rows = table([{"site": "a", "stage": "1", "age": 3.0}, {"site": None, "stage": None, "age": None}], {
        "site": "category", "stage": "category", "age": "number",
    })  # fmt: skip
    assert made.encode(rows).tolist() == [[0.0, 3.0], [1.0, 0.0]]


# --------------------------------------------------------------------------------------------------- how it is found


@given(st.permutations([*KINDS, "extra"]), st.integers(0, 2**32))
def test_columns_are_found_by_name_in_any_order_and_others_are_not_looked_at(order, seed):
    rng = np.random.default_rng(seed)
    rows = [{**row, "extra": None} for row in random_rows(rng, 12)]
    kinds = {**KINDS, "extra": "empty"}
    shuffled = table(rows, {name: kinds[name] for name in order})
    assert design().encode(shuffled).tobytes() == design().encode(table(rows, kinds)).tobytes()


@given(st.integers(0, 2**32), st.permutations(SITES), st.sampled_from(["global", "none"]))
def test_the_order_in_which_a_client_numbers_its_categories_changes_nothing(seed, levels, standardize):
    rows = table(random_rows(np.random.default_rng(seed), 15), KINDS)
    x = rows.x.copy()
    x[:, 3] = [np.nan if cell is None else levels.index(cell) for cell in cells(rows, "site")]
    features = list(rows.columns.features)
    features[3] = Feature("site", "category", tuple(levels))
    renumbered = Table(x, rows.y, replace(rows.columns, features=tuple(features)))
    made = design(standardize=standardize)
    assert made.encode(renumbered).tobytes() == made.encode(rows).tobytes()


def test_an_absent_column_is_named():
    with pytest.raises(ValueError, match="column 'time' is absent: the columns are age, site, stage, smoker"):
        design().encode(table([], {name: KINDS[name] for name in ("age", "site", "stage", "smoker")}))
    with pytest.raises(ValueError, match="column 'age' is absent: the columns are none"):
        design().encode(table([], {}))


@pytest.mark.parametrize(
    ("name", "there", "here"),
    [
        ("age", "category", "number"),
        ("age", "boolean", "number"),
        ("smoker", "number", "boolean"),
        ("site", "number", "category"),
        ("site", "boolean", "category"),
    ],
)
def test_a_column_of_another_kind_is_named_with_both_sides(name, there, here):
    rows = table([], {**KINDS, name: there})
    with pytest.raises(
        ValueError, match=f"column {name!r} is a {there} here and a {here} in the model: write it alike"
    ):
        design().encode(rows)


def test_rows_are_never_written_to_nor_handed_on():
    rows = table(random_rows(np.random.default_rng(0), 10, missing=0.0), KINDS)
    before = rows.x.tobytes()
    for standardize in ("global", "local", "none"):
        for part in design(standardize=standardize).prepare(rows, rows):
            assert not np.shares_memory(part.x, rows.x)
            part.x[:] = -1.0
    assert rows.x.tobytes() == before


def test_a_client_without_test_rows_has_none():
    rows = table(random_rows(np.random.default_rng(0), 4), KINDS)
    for standardize in ("global", "local", "none"):
        train, test = design(standardize=standardize).prepare(rows, rows.rows(np.arange(0)))
        assert (len(train), len(test)) == (4, 0)
        assert test.x.shape[1] == train.x.shape[1]


# ------------------------------------------------------------------------------------------------------- the label


def test_classes_are_counted_as_the_design_counts_them():
    rows = table([{"v": 1.0}] * 4, {"v": "number"}, classes=("b", "a", "never"), y=[0, 1, 1, 0])
    made = design(Term("v", "number"), missing="error", classes=("a", "b", "c"))
    assert made.targets(rows).tolist() == [1, 0, 0, 1]
    assert made.targets(rows).dtype == np.int64


def test_a_class_that_the_model_has_not_learned_is_named():
    rows = table([{"v": 1.0}] * 2, {"v": "number"}, classes=("no", "maybe"), y=[0, 1])
    with pytest.raises(ValueError, match="label 'y' has the class 'maybe', not one of no, yes"):
        design(Term("v", "number"), missing="error").targets(rows)


def test_a_label_that_is_a_number_stays_one():
    rows = table([{"v": 1.0}] * 2, {"v": "number"}, classes=(), y=[0.5, -3.0])
    made = design(Term("v", "number"), missing="error", classes=())
    assert made.rows(rows).y.tolist() == [0.5, -3.0]
    assert made.prepare(rows, rows)[1].y.dtype == np.float64


@pytest.mark.parametrize(("there", "here"), [("numbers", "classes"), ("classes", "numbers")])
def test_classes_and_numbers_do_not_go_together_in_either_direction(there, here):
    held = {"numbers": ((), [0.5, 1.0]), "classes": (("no", "yes"), [0, 1])}
    classes, y = held[there]
    rows = table([{"v": 1.0}] * 2, {"v": "number"}, classes=classes, y=y)
    made = design(Term("v", "number"), missing="error", classes=held[here][0])
    for use in (made.targets, made.rows, lambda rows: made.prepare(rows, rows)):
        with pytest.raises(ValueError, match=f"^label 'y' holds {there} here and {here} in the model$"):
            use(rows)


# -------------------------------------------------------------------------------------------------------- as a whole


def test_the_schema_and_the_raw_columns_are_those_of_the_terms():
    made = design()
    assert made.schema.features == (
        "age", "site=Oslo", "site=Århus", "site=other", "site is missing", "time", "stage=2", "stage=other", "smoker",
        "smoker is missing",
    )  # fmt: skip
    assert (made.schema.label, made.schema.classes) == ("y", ("no", "yes"))
    assert (made.schema.shift, made.schema.scale) == (0.0, 1.0)
    features = made.raw_columns.features
    assert [feature.name for feature in features] == ["age", "site", "time", "stage", "smoker"]
    assert {feature.name: feature.kind for feature in features} == KINDS
    assert features[1].levels == ("Bern", "Oslo", "Århus")


def test_the_scaling_of_the_models_columns_undoes_it():
    rows = table(random_rows(np.random.default_rng(0), 20), KINDS)
    plain = design().encode(rows)
    shift, scale = design(standardize="global").scaling()
    np.testing.assert_allclose(design(standardize="global").encode(rows) * scale + shift, plain, rtol=1e-12)
    assert shift.tolist() == [50.0, 0, 0, 0, 0, 1.7e9 + 30, 0, 0, 0.25, 0]
    shift, scale = design().scaling()
    assert (set(shift), set(scale)) == ({0.0}, {1.0})
    assert design(standardize="local").scaling() is None


names = st.text(min_size=1, max_size=5)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)
any_terms = st.lists(
    st.builds(Term, names, st.sampled_from(["number", "boolean"]), finite, positive, st.just(()), st.booleans())
    | st.builds(
        Term, names, st.just("category"), st.none(), st.none(), st.lists(names, unique=True).map(tuple), st.booleans()
    ),
    min_size=1,
    max_size=4,
).map(tuple)  # fmt: skip


def columns_of(terms):
    return [name for term in terms for name in term.columns]


@given(
    any_terms.filter(lambda terms: 0 < len(columns_of(terms)) == len(set(columns_of(terms)))),
    st.text(), st.lists(st.text()).map(tuple), st.sampled_from(["global", "local", "none"]),
    st.sampled_from(["error", "mean", "indicator"]),
)  # fmt: skip
def test_a_design_survives_its_own_json_to_the_bit(terms, label, classes, standardize, missing):
    made = Design(terms, label, classes, standardize, missing)
    back = Design.from_json(json.loads(json.dumps({**made.to_json(), "else": 1})))
    assert back == made
    assert repr(back) == repr(made)  # -0.0 is not 0.0
    assert hash(back) == hash(made)


def test_means_that_were_not_needed_are_null_in_json():
    made = design(Term("a", "number"), Term("b", "category", categories=("x",)), missing="error")
    first, second = in_json(made)["features"]
    assert first == {"name": "a", "kind": "number", "mean": None, "scale": None}
    assert second == {"name": "b", "kind": "category", "categories": ["x"]}


@pytest.mark.parametrize("kind", ["number", "boolean"])
@pytest.mark.parametrize(
    ("standardize", "missing"),
    [("global", "error"), ("none", "mean"), ("local", "mean"), ("none", "indicator"), ("local", "indicator")],
)
def test_a_number_that_is_to_be_scaled_or_filled_needs_a_mean_and_a_scale(kind, standardize, missing):
    known = Term("b", "number", 1.0, 1.0)
    for unknown in (Term("a", kind), Term("a", kind, mean=1.0), Term("a", kind, scale=1.0)):
        with pytest.raises(ValueError, match=r"^column 'a' is to be scaled or filled, and has no mean and scale$"):
            design(known, unknown, standardize=standardize, missing=missing)
    assert design(known, Term("c", "category", categories=("x",)), standardize=standardize, missing=missing)


@pytest.mark.parametrize("standardize", ["none", "local"])
def test_a_number_that_is_neither_needs_none(standardize):
    assert design(Term("a", "number"), standardize=standardize, missing="error").schema.features == ("a",)


def in_json(made):
    return json.loads(json.dumps(made.to_json()))


PLAIN = in_json(design(standardize="global"))
KNOWN = {"mean": 0.0, "scale": 1.0}
NONSENSE = {
    "an unknown standardize": {"standardize": "median"},
    "an unknown missing": {"missing": "drop"},
    "a standardize that is a list": {"standardize": ["none"]},
    "a missing that is null": {"missing": None},
    "a label that is a number": {"label": 3},
    "a label that is null": {"label": None},
    "classes that are one text": {"classes": "yes"},
    "classes that are numbers": {"classes": [0, 1]},
    "categories that are one text": {"features": [{"name": "a", "kind": "category", "categories": "xyz"}]},
    "categories that are numbers": {"features": [{"name": "a", "kind": "category", "categories": [1, 2]}]},
    "categories that are null": {"features": [{"name": "a", "kind": "category", "categories": None}]},
    "an indicator that is text": {"features": [{"name": "a", "kind": "number", "indicator": "no", **KNOWN}]},
    "a name that is a number": {"features": [{"name": 3, "kind": "number", **KNOWN}]},
    "a kind that is a list": {"features": [{"name": "a", "kind": ["number"], **KNOWN}]},
    "a mean that is a list": {"features": [{"name": "a", "kind": "number", **KNOWN, "mean": [0.0]}]},
    "a scale that is true": {"features": [{"name": "a", "kind": "number", **KNOWN, "scale": True}]},
    "a feature that is a list": {"features": [["a", "number"]]},
    "features of an unknown kind": {"features": [{"name": "a", "kind": "date"}]},
    "features without a name": {"features": [{"kind": "number", "mean": 0.0, "scale": 1.0}]},
    "features with more": {"features": [{"name": "a", "kind": "number", "mean": 0.0, "scale": 1.0, "median": 3}]},
    "features that are text": {"features": "age"},
    "features that are null": {"features": None},
    "no features": {"features": []},
    "a scale of 0": {"features": [{"name": "a", "kind": "number", "mean": 0.0, "scale": 0.0}]},
    "a negative scale": {"features": [{"name": "a", "kind": "number", "mean": 0.0, "scale": -1.0}]},
    "a mean that is not finite": {"features": [{"name": "a", "kind": "number", "mean": float("nan"), "scale": 1.0}]},
    "a scale that is not finite": {"features": [{"name": "a", "kind": "number", "mean": 0, "scale": float("inf")}]},
    "a mean that is text": {"features": [{"name": "a", "kind": "number", "mean": "0", "scale": 1.0}]},
    "no mean to scale by": {"features": [{"name": "a", "kind": "number"}]},
    "two features of one name": {"features": [{"name": "a", "kind": "number", "mean": 0.0, "scale": 1.0}] * 2},
    "classes that are null": {"classes": None},
}


@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
def test_json_that_is_no_design_is_refused(change):
    assert Design.from_json(PLAIN) == design(standardize="global")
    with pytest.raises((ValueError, KeyError, TypeError)):
        Design.from_json({**PLAIN, **change})


@pytest.mark.parametrize("key", PLAIN)
def test_json_that_lacks_a_part_is_refused(key):
    with pytest.raises(KeyError, match=key):
        Design.from_json({name: value for name, value in PLAIN.items() if name != key})


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        ((Term("a", "number"), Term("a", "boolean")), "a"),
        ((Term("a=b", "number"), Term("a", "category", categories=("x", "b"))), "a=b"),
        ((Term("a is missing", "number"), Term("a", "number", indicator=True)), "a is missing"),
        ((Term("a=other", "number"), Term("a", "category", categories=("x",))), "a=other"),
        ((Term("a", "category", categories=("x", "b=c")), Term("a=b", "category", categories=("x", "c"))), "a=b=c"),
    ],
)
def test_two_columns_of_one_name_are_refused_by_name(terms, name):
    with pytest.raises(ValueError, match=f"two columns would be called '{name}'"):
        design(*terms)


def test_with_nothing_left_to_learn_from_there_is_no_design():
    with pytest.raises(ValueError, match="no column is left to learn from"):
        design(Term("site", "category"), Term("stage", "category"))


@given(st.integers(0, 2**32))
def test_scaled_training_rows_of_all_have_mean_0_and_spread_1(seed):
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=50), 1.7e9 + rng.integers(0, 60, size=50), 1e12 + rng.normal(size=50)])
    moments = Moments.of(x)
    numbers = zip("abc", moments.mean.tolist(), moments.scale().tolist(), strict=True)
    made = design(*(Term(name, "number", mean, scale) for name, mean, scale in numbers), standardize="global")
    encoded = made.encode(Table(x, np.zeros(50, dtype=np.int64), Columns.of_numbers("abc", "y", ("no", "yes"))))
    np.testing.assert_allclose(encoded.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(encoded.std(axis=0), 1.0, rtol=1e-9)
