"""What is released tells of canaries no more than the strategies claim; of a broken mechanism it tells more."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import ndtr
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent / "privacy"))

from seeded import SeededEntropy

from benchmarks.audit import BUILD, DELTA, Fault, audited, bounds, may_be_so_good, one_run_error
from privacy.analytic import analytic_gaussian_epsilon

CLAIM = 8.0
CANARIES = 600
RIGHT = Fault()


def audit(name, fault=RIGHT, seed=0, canaries=CANARIES):
    outcome = audited(name, epsilon=CLAIM, canaries=canaries, fault=fault, entropy=SeededEntropy(seed), seed=seed)
    return outcome, bounds(outcome, canaries // 10)


@pytest.mark.parametrize("name", BUILD)
def test_the_right_mechanism_keeps_its_claim_and_the_audit_comes_near(name):
    outcome, found = audit(name)
    assert 7.99 < outcome.epsilon <= CLAIM
    assert outcome.epsilon == pytest.approx(analytic_gaussian_epsilon(DELTA, 1 / outcome.mu), rel=1e-3)
    assert found.highest <= outcome.epsilon
    assert found.canary_wise > CLAIM / 2
    assert 1 < found.one_run < found.trade_off


@pytest.mark.parametrize("name", BUILD)
def test_noise_that_is_a_third_too_small_exceeds_the_claim(name):
    outcome, found = audit(name, Fault(noise_factor=2 / 3))
    assert found.canary_wise > outcome.epsilon


@pytest.mark.parametrize("name", BUILD)
def test_a_clip_that_is_left_out_exceeds_the_claim(name):
    outcome, found = audit(name, Fault(clip=False))
    assert found.canary_wise > outcome.epsilon


def test_without_a_clip_one_run_shows_it_with_nothing_taken_for_granted():
    outcome = audited(
        "dp-fedavg", epsilon=3.0, canaries=CANARIES, fault=Fault(clip=False), entropy=SeededEntropy(1), seed=1
    )
    assert bounds(outcome, 100).one_run > outcome.epsilon


def test_one_run_under_pure_privacy_is_a_binomial_and_delta_costs_more():
    assert one_run_error(1000, 100, 90, 2.0, 0.0) == pytest.approx(binom.sf(89, 100, 1 / (1 + np.exp(-2.0))))
    assert one_run_error(1000, 100, 90, 2.0, 1e-5) > one_run_error(1000, 100, 90, 2.0, 0.0)
    assert one_run_error(1000, 100, 0, 2.0, 1e-5) == 1


@pytest.mark.parametrize(("guesses", "correct", "mu"), [(12, 12, 1.0), (15, 13, 1.0), (15, 12, 0.5)])
def test_the_bound_by_the_trade_off_is_that_of_a_linear_program(guesses, correct, mu):
    """Over all laws of the number of right guesses; the curve is the envelope of its tangents."""
    m, j = 40, np.arange(guesses + 1)
    rows, most = [], []
    for c in range(1, guesses + 1):
        right, wrong = np.where(j >= c, j, 0) / m, np.where(j >= c - 1, guesses - j, 0) / m
        for x in np.linspace(-6, 6, 121):
            slope = np.exp(-mu * x - mu**2 / 2)
            rows.append(right - slope * wrong)
            most.append(ndtr(x + mu) - slope * ndtr(x))
    found = linprog(-(j >= correct).astype(float), A_ub=rows, b_ub=most, A_eq=np.ones((1, j.size)), b_eq=[1.0])
    assert not may_be_so_good(m, guesses, correct, mu, error=-found.fun * 1.01)
    assert may_be_so_good(m, guesses, correct, mu, error=-found.fun * 0.99)
