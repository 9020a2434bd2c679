"""Sums and the area under the curve."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tasks.metrics import auc, class_means, macro_auc


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_auc_is_that_of_scikit_learn_with_ties(pairs):
    positive, scores = np.array([p for p, _ in pairs]), np.array([s for _, s in pairs], dtype=float)
    if positive.all() or not positive.any():
        assert auc(positive, scores) is None
    else:
        assert auc(positive, scores) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_auc_of_the_extremes():
    positive = np.array([False, False, True, True])
    assert auc(positive, np.array([1.0, 2.0, 3.0, 4.0])) == 1.0
    assert auc(positive, np.array([4.0, 3.0, 2.0, 1.0])) == 0.0
    assert auc(positive, np.zeros(4)) == 0.5
    assert auc(positive, np.array([1.0, 2.0, np.nan, 4.0])) is None


def test_macro_auc_needs_every_class():
    scores = np.random.default_rng(0).dirichlet(np.ones(3), size=20)
    y = np.arange(20) % 3
    assert macro_auc(y, scores) == pytest.approx(roc_auc_score(y, scores, multi_class="ovr"), abs=1e-12)
    assert macro_auc(y % 2, scores) is None


def test_means_of_fractions_are_divided_exactly_and_of_nothing_are_nan():
    sums = {"examples": 3, "correct": 2, "log_loss": Fraction(1, 10), "brier": 0.5}
    assert class_means(sums) == {"accuracy": 2 / 3, "log_loss": 1 / 30, "brier": 0.5 / 3}
    nothing = class_means({"examples": 0, "correct": 0, "log_loss": 0.0, "brier": 0.0})
    assert set(nothing) == {"accuracy", "log_loss", "brier"}
    assert all(np.isnan(value) for value in nothing.values())
