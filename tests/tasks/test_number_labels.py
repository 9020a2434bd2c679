"""Labels that are numbers: described, agreed on and scaled as columns are, and refused where they are none."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.agreement import Rules, agree, check_rows, describe
from tasks.data.design import Design, Term
from tasks.data.table import Columns, Table

COLUMNS = Columns.of_numbers(["a", "b"], "price")


def table(y, seed=0):
    return Table(np.random.default_rng(seed).normal(size=(len(y), 2)), np.asarray(y, float), COLUMNS)


def design_of(tables, **rules):
    given = Rules(**{"standardize": "global", **rules})
    return agree({f"{k:02}": describe(rows, given) for k, rows in enumerate(tables)}, given)


@given(
    st.integers(0, 2**32), st.lists(st.integers(20, 60), min_size=1, max_size=6), st.sampled_from(["global", "local"]),
    st.sampled_from([0.0, 1e12]),
)  # fmt: skip
def test_the_label_is_scaled_by_the_pooled_mean_and_deviation_of_those_who_tell(seed, sizes, standardize, far):
    rng = np.random.default_rng(seed)
    tables = [table(far + rng.normal(k, 1 + k, size=size)) for k, size in enumerate(sizes)]
    design = design_of(tables, standardize=standardize)
    pooled = np.concatenate([rows.y for rows in tables])
    assert design.label_mean == pytest.approx(float(pooled.mean()), rel=1e-12, abs=1e-12)
    assert design.label_scale == pytest.approx(float((pooled - pooled.mean()).std()), rel=1e-6)
    assert (design.schema.shift, design.schema.scale) == (design.label_mean, design.label_scale)
    targets = np.concatenate([design.targets(rows) for rows in tables])
    assert [targets.mean(), targets.std()] == pytest.approx([0, 1], abs=1e-4)
    np.testing.assert_allclose(targets * design.label_scale + design.label_mean, pooled, rtol=1e-14, atol=1e-12)
    train, test = design.prepare(tables[0], tables[0])
    np.testing.assert_array_equal(train.y, design.targets(tables[0]))
    np.testing.assert_array_equal(test.y, train.y)
    assert design_of(reversed(tables), standardize=standardize).label_mean == design.label_mean


def test_unscaled_columns_have_an_unscaled_label():
    rows = table(np.arange(30.0))
    assert describe(rows, Rules("none")).label is None
    design = design_of([rows], standardize="none")
    assert (design.label_mean, design.label_scale) == (None, None)
    assert (design.schema.shift, design.schema.scale) == (0.0, 1.0)
    np.testing.assert_array_equal(design.targets(rows), rows.y)
    assert "label_mean" not in design.to_json()


def test_a_label_with_classes_tells_no_moments():
    rows = Table(np.zeros((30, 2)), np.arange(30) % 2, replace(COLUMNS, classes=("no", "yes")))
    assert describe(rows, Rules("global")).label is None


def test_few_rows_tell_nothing_of_their_label():
    few, many = table(np.full(19, 1e6)), table(np.arange(20.0))
    assert describe(few, Rules("global")).label is None
    assert describe(many, Rules("global")).label is not None
    assert design_of([few, many]).label_mean == 9.5
    with pytest.raises(ValueError, match=r"no client has min-examples=20 .*lower min-examples"):
        design_of([few], standardize="local")


def test_a_label_of_one_value_is_shifted_and_not_divided():
    design = design_of([table(np.full(30, 7.0))])
    assert (design.label_mean, design.label_scale) == (7.0, 1.0)


def test_a_design_comes_back_from_json_as_it_was():
    design = design_of([table(np.arange(30.0) / 7)])
    content = json.loads(json.dumps(design.to_json()))
    assert content["label_mean"] == design.label_mean
    assert Design.from_json(content) == design


@pytest.mark.parametrize(
    ("mean", "scale"), [(1.0, None), (None, 1.0), (1.0, 0.0), (1.0, -1.0), (float("nan"), 1.0), (1.0, float("inf"))]
)
def test_half_a_scaling_and_one_that_is_none_are_refused(mean, scale):
    term = Term("a", "number", 0.0, 1.0)
    with pytest.raises(ValueError, match="label 'y'"):
        Design((term,), "y", (), "global", "error", mean, scale)


def test_a_scaling_of_classes_and_one_that_is_no_number_are_refused():
    term = Term("a", "number", 0.0, 1.0)
    with pytest.raises(ValueError, match="label 'y' has a mean"):
        Design((term,), "y", ("n", "p"), "global", "error", 1.0, 1.0)
    content = Design((term,), "y", (), "global", "error", 1.0, 1.0).to_json()
    for wrong in ("7", True, [1.0]):
        with pytest.raises(TypeError, match="label_mean: expected a number"):
            Design.from_json({**content, "label_mean": wrong})


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "is missing in row 3"), (np.inf, "is inf in row 3"), (-np.inf, "-inf"), (1e31, "1e.31")],
)
def test_a_label_that_is_no_finite_number_is_refused_by_its_row(value, said):
    y = np.arange(30.0)
    y[3] = value
    with pytest.raises(ValueError, match=f"label 'price' {'' if said[0] == 'i' else 'is '}{said}"):
        check_rows(table(y), Rules("none"))
    y[5:7] = value
    with pytest.raises(ValueError, match="3 rows are like that"):
        describe(table(y), Rules("global"))
