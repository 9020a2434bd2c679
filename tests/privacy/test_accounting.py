"""What is claimed is never less than the truth, and is what the literature and dp-accounting say."""

import math
import subprocess
import sys
from pathlib import Path

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp
from scipy.stats import norm

from privacy.accounting import TOLERANCE, Release, Sampling, Spent, calibrate, curve, spent

EVERYONE = Sampling("none")
PROJECT = Path(__file__).parents[2]
DP = dp.NeighboringRelation


def poisson(rate, noise, count=1):
    return Release("sum", noise, Sampling("poisson", rate), count)


def fixed(size, population, noise, count=1):
    return Release("sum", noise, Sampling("fixed", size=size, population=population), count)


def everyone(noise, count=1):
    return Release("sum", noise, EVERYONE, count)


def gaussian_epsilon(noise, delta):
    """Of one Gaussian release, exactly (Balle, Wang 2018, arXiv:1805.06530)."""

    def excess(epsilon):
        upper = norm.logcdf(0.5 / noise - epsilon * noise)
        lower = epsilon + norm.logcdf(-0.5 / noise - epsilon * noise)
        return math.exp(upper) - math.exp(lower) - delta

    return brentq(excess, 0, 1 / noise**2 + 40 / noise, xtol=1e-12) if excess(0) > 0 else 0.0


# ------------------------------------------------------------------------------------------------- what others computed


def test_a_hundred_rounds_of_poisson_sampling_cost_what_the_projects_table_says():
    found = spent([poisson(0.1, 1.0, 100)], "add-remove", 1e-5)
    assert (round(found.pld, 3), round(found.rdp, 3)) == (7.047, 7.904)
    assert (found.epsilon, found.accountant) == (found.pld, "pld")


@pytest.mark.parametrize(
    ("rate", "noise", "count", "delta"),
    [(0.1, 1.0, 100, 1e-6), (0.01, 4.0, 1000, 1e-5), (0.5, 2.0, 10, 1e-9), (0.9, 0.7, 1, 1e-3), (1.0, 3.0, 30, 1e-9)],
)
def test_dp_accounting_called_directly_says_the_same_of_poisson_sampling(rate, noise, count, delta):
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)), count)
    found = spent([poisson(rate, noise, count)], "add-remove", delta)
    assert found.rdp == pytest.approx(RdpAccountant().compose(event).get_epsilon(delta), rel=1e-12)
    assert found.pld == pytest.approx(PLDAccountant().compose(event).get_epsilon(delta), rel=4e-4, abs=1e-6)


def test_orders_that_dp_accounting_cannot_compute_do_not_make_sampling_look_worse_than_none():
    event = dp.PoissonSampledDpEvent(0.875, dp.GaussianDpEvent(0.5))
    direct = RdpAccountant().compose(event, 53).get_epsilon(0.01)
    without = spent([everyone(0.5, 53)], "add-remove", 0.01)
    assert spent([poisson(0.875, 0.5, 53)], "add-remove", 0.01).rdp <= without.rdp < direct


def test_dp_accounting_called_directly_says_the_same_of_a_mixed_ledger():
    releases = [poisson(0.1, 1.0, 20), everyone(5.0, 3), poisson(0.2, 30.0, 20), everyone(20.0)]
    parts = [
        dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.0)), 20),
        dp.SelfComposedDpEvent(dp.GaussianDpEvent(5.0), 3),
        dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.2, dp.GaussianDpEvent(30.0)), 20),
        dp.GaussianDpEvent(20.0),
    ]
    event = dp.ComposedDpEvent(parts)
    found = spent(releases, "add-remove", 1e-5)
    assert found.rdp == pytest.approx(RdpAccountant().compose(event).get_epsilon(1e-5), rel=1e-12)
    assert found.pld == pytest.approx(PLDAccountant().compose(event).get_epsilon(1e-5), rel=4e-4)


def test_one_release_under_replace_one_has_twice_the_sensitivity_for_both_accountants():
    """9.997: what dp-accounting's PLD says under REPLACE_ONE. Its RDP says 4.73 there, which is less than the truth."""
    direct = PLDAccountant(DP.REPLACE_ONE).compose(dp.GaussianDpEvent(1.0)).get_epsilon(1e-5)
    ignoring = RdpAccountant(neighboring_relation=DP.REPLACE_ONE).compose(dp.GaussianDpEvent(1.0)).get_epsilon(1e-5)
    found = spent([everyone(1.0)], "replace-one", 1e-5)
    assert found.pld == pytest.approx(direct, abs=1e-4)
    assert round(found.pld, 3) == 9.997
    assert ignoring < 5 < found.pld < found.rdp


@pytest.mark.parametrize(("size", "population"), [(10, 100), (50, 100), (9, 10), (3, 1000)])
def test_dp_accounting_called_directly_says_the_same_of_fixed_sampling_or_more(size, population):
    """Where it says more, the bound without sampling is the smaller, and holds as well."""
    event = dp.SampledWithoutReplacementDpEvent(population, size, dp.GaussianDpEvent(2.0))
    direct = RdpAccountant(neighboring_relation=DP.REPLACE_ONE).compose(event, 10).get_epsilon(1e-5)
    plain = RdpAccountant().compose(dp.GaussianDpEvent(2.0), 10).get_epsilon(1e-5)
    found = spent([fixed(size, population, 4.0, 10)], "replace-one", 1e-5).rdp
    assert found <= min(direct, plain) * (1 + 1e-12)
    if size / population < 0.2:
        assert found == pytest.approx(direct, rel=1e-12)


# ----------------------------------------------------------------------------------------------------- published values


def moments_accountant(rate, noise, steps, delta, largest_order=32):
    """Abadi et al. 2016, arXiv:1607.00133, theorem 2, at whole orders, where the moments have a closed form."""

    def moment(order):
        k = np.arange(order + 1)
        chosen = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        return logsumexp(
            chosen + k * math.log(rate) + (order - k) * math.log1p(-rate) + (k * k - k) / (2 * noise * noise)
        )

    return min(
        (steps * moment(order) - math.log(delta)) / (order - 1) for order in range(2, largest_order + 1)
    )  # the moment of order - 1 of the privacy loss


def test_the_example_of_abadi_et_al_costs_their_epsilon_or_less():
    """q = 0.01, sigma = 4, 10,000 steps, delta = 1e-5: epsilon 1.26 (section 3.2 of arXiv:1607.00133)."""
    found = spent([poisson(0.01, 4.0, 10_000)], "add-remove", 1e-5)
    assert round(moments_accountant(0.01, 4.0, 10_000, 1e-5), 2) == 1.26
    assert 0.9 < found.pld < found.rdp < 1.26


@pytest.mark.parametrize(
    ("users", "cohort", "published"),
    [
        (10**5, 10**2, [0.97, 0.98, 1.00, 1.07, 1.18, 2.21, 7.50]),
        (10**6, 10**1, [0.68, 0.69, 0.69, 0.69, 0.69, 0.72, 0.73]),
        (10**6, 10**3, [1.17, 1.17, 1.20, 1.28, 1.39, 2.44, 8.13]),
        (10**6, 10**4, [1.73, 1.92, 2.08, 3.06, 8.49, 32.38, 187.01]),
        (10**9, 10**3, [0.84, 0.84, 0.84, 0.85, 0.88, 0.88, 0.88]),
    ],
)
def test_the_table_of_mcmahan_et_al_is_reproduced_and_not_exceeded(users, cohort, published):
    """Table 1 of arXiv:1710.06963: noise 1, delta = 1 / users^1.1, after 10^0, 10^1, ... 10^6 rounds."""
    delta = users**-1.1
    for power, epsilon in enumerate(published):
        assert round(moments_accountant(cohort / users, 1.0, 10**power, delta), 2) == epsilon
    found = spent([poisson(cohort / users, 1.0, 1000)], "add-remove", delta)
    assert found.pld <= found.rdp <= published[3] + 0.005


def test_the_language_model_of_mcmahan_et_al_costs_their_epsilon_or_less():
    """763,430 users, 5,000 a round, noise 1, 5,000 rounds, delta 1e-9: epsilon 4.634 (arXiv:1710.06963)."""
    found = spent([poisson(5000 / 763_430, 1.0, 5000)], "add-remove", 1e-9)
    assert round(moments_accountant(5000 / 763_430, 1.0, 5000, 1e-9), 3) == 4.634
    assert 2 < found.pld < found.rdp < 4.634


# ----------------------------------------------------------------------------------------- what can be computed exactly


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0, 200.0])
@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-10])
def test_releases_of_everyone_cost_what_one_gaussian_release_of_all_of_them_does(noise, count, delta):
    exact = gaussian_epsilon(noise / math.sqrt(count), delta)
    found = spent([everyone(noise, count)], "add-remove", delta)
    assert exact * (1 - 1e-9) <= found.pld <= exact * (1 + 1e-3) + 1e-6
    doubled = spent([everyone(2 * noise, count)], "replace-one", delta)
    assert doubled == found


@pytest.mark.parametrize("count", [100, 20_000])
@pytest.mark.parametrize("delta", [1e-5, 3e-10, 3e-11, 1e-12, 1e-14])
def test_rounding_errors_of_many_releases_never_make_the_claim_too_small(count, delta):
    """Sampling nearly everyone is as good as sampling everyone, but takes the long way."""
    found = spent([poisson(1 - 1e-9, math.sqrt(count), count)], "add-remove", delta)
    exact = gaussian_epsilon(1.0, delta)
    assert exact - 1e-6 <= found.epsilon
    if delta > 1e-13 * count:
        assert found.pld <= exact + 5e-3
    if delta < 1e-15 * count:
        assert (found.pld, found.accountant) == (None, "rdp")


def losses_and_probabilities(upper, lower, scale):
    """Of one release with these densities, each loss rounded down to the grid: composed, a lower bound."""
    x = np.linspace(-14 * scale, 14 * scale, 400_001)
    p, q = upper(x), lower(x)
    loss = np.floor(np.log(p / q) / STEP).astype(int)
    weights = np.bincount(loss - loss.min(), p * (x[1] - x[0]))
    return loss.min(), weights


STEP = 1e-3


def composed_epsilon(upper, lower, scale, count, delta):
    start, weights = losses_and_probabilities(upper, lower, scale)
    total = weights
    for _ in range(count - 1):
        total = np.convolve(total, weights) if len(total) < 2000 else _convolved(total, weights)
    loss = (start * count + np.arange(len(total))) * STEP

    def excess(epsilon):
        above = loss > epsilon
        return float(np.dot(-np.expm1(epsilon - loss[above]), total[above])) - delta

    return brentq(excess, 0, loss[-1]) if excess(0) > 0 else 0.0


def _convolved(a, b):
    size = len(a) + len(b) - 1
    return np.maximum(0, np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size), size))


def mixture(rate, mean, noise):
    return lambda x: (1 - rate) * norm.pdf(x, 0, noise) + rate * norm.pdf(x, mean, noise)


def attacks(rate, noise):
    """Pairs of sums that neighbouring populations do give: the others contribute nothing, or all the same."""
    yield mixture(rate, 1, noise), mixture(rate, -1, noise)  # the others contribute nothing
    yield mixture(rate, 2, noise), mixture(rate, 0, noise)  # the others contribute what the second does
    yield mixture(rate, 0, noise), mixture(rate, 2, noise)  # ... what the first does


@pytest.mark.parametrize(
    ("size", "population", "noise", "truth"),
    [(9, 10, 1, 9.84), (50, 100, 1, 8.98), (10, 100, 1, 6.58), (9, 10, 2, 4.25)],
)
def test_fixed_sampling_costs_what_the_worst_population_tells_and_not_what_add_remove_would_say(
    size, population, noise, truth
):
    rate = size / population
    worst = max(composed_epsilon(*attack, noise, 1, 1e-5) for attack in attacks(rate, noise))
    found = spent([fixed(size, population, noise)], "replace-one", 1e-5)
    assert worst == pytest.approx(truth, abs=0.006)
    assert worst <= found.pld <= worst + 0.003
    assert found.pld <= found.rdp
    wrong = RdpAccountant().compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))).get_epsilon(1e-5)
    assert wrong < worst - 0.5


@pytest.mark.parametrize("count", [3, 10])
@pytest.mark.parametrize(("size", "population", "noise"), [(9, 10, 2), (10, 100, 2), (50, 100, 5), (1, 100, 1.5)])
def test_no_attack_on_repeated_fixed_sampling_does_better_than_the_claim(size, population, noise, count):
    rate = size / population
    worst = max(composed_epsilon(*attack, noise, count, 1e-5) for attack in attacks(rate, noise))
    found = spent([fixed(size, population, noise, count)], "replace-one", 1e-5)
    assert worst <= found.pld <= found.rdp
    assert found.pld <= worst * 1.4 + 0.1  # a bound for attacks that change from release to release


def test_a_fixed_cohort_of_everyone_is_no_sampling():
    assert spent([fixed(7, 7, 2.0, 9)], "replace-one", 1e-5) == spent([everyone(2.0, 9)], "replace-one", 1e-5)


# ----------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("noise", [0.3, 0.8, 2.0, 20.0])
@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("delta", [1e-3, 1e-9])
def test_loss_distributions_never_claim_more_than_renyi_divergences(noise, count, delta):
    for release, relation in (
        (poisson(0.01, noise, count), "add-remove"),
        (poisson(0.3, noise, count), "add-remove"),
        (fixed(3, 10, noise, count), "replace-one"),
        (everyone(noise, count), "replace-one"),
    ):
        found = spent([release], relation, delta)
        assert found.pld <= found.rdp * (1 + 1e-3)
        assert found.epsilon == min(found.pld, found.rdp)


NOISES, COUNTS, DELTAS = st.floats(0.4, 50), st.integers(1, 300), st.floats(1e-9, 1e-2)


def cost(kind, rate, noise, count, delta):
    sampling = {
        "poisson": Sampling("poisson", rate),
        "fixed": Sampling("fixed", size=max(1, round(rate * 1000)), population=1000),
        "none": EVERYONE,
    }[kind]
    found = spent([Release("sum", noise, sampling, count)], "replace-one" if kind == "fixed" else "add-remove", delta)
    return np.array([found.pld, found.rdp])


@settings(max_examples=12)
@given(
    st.sampled_from(["poisson", "fixed", "none"]),
    st.floats(0.001, 1),
    NOISES,
    COUNTS,
    DELTAS,
    st.floats(1.01, 4),
    st.sampled_from(["noise", "count", "rate", "delta"]),
)
def test_less_noise_more_releases_a_higher_rate_or_a_smaller_delta_never_cost_less(
    kind, rate, noise, count, delta, factor, what
):
    base = {"rate": rate, "noise": noise, "count": count, "delta": delta}
    worse = (
        base
        | {
            "noise": {"noise": noise / factor},
            "count": {"count": math.ceil(count * factor)},
            "rate": {"rate": min(1.0, rate * factor)},
            "delta": {"delta": delta / factor},
        }[what]
    )
    assert (cost(kind, **worse) >= cost(kind, **base) * (1 - 2e-3) - 1e-7).all()


def test_neither_the_order_nor_the_grouping_of_releases_changes_the_cost():
    lines = [poisson(0.1, 1.0), poisson(0.1, 20.0), everyone(9.0)] * 5
    together = [poisson(0.1, 20.0, 5), everyone(9.0, 2), poisson(0.1, 1.0, 5), everyone(9.0, 3)]
    assert spent(lines, "add-remove", 1e-5) == spent(lines[::-1], "add-remove", 1e-5)
    assert spent(lines, "add-remove", 1e-5) == spent(together, "add-remove", 1e-5)


def test_a_release_of_counts_beside_the_updates_costs_something():
    alone = spent([poisson(0.1, 1.0, 10)], "add-remove", 1e-5)
    both = spent([poisson(0.1, 1.0, 10), poisson(0.1, 5.0, 10)], "add-remove", 1e-5)
    assert both.pld > alone.pld + 0.005
    assert both.rdp > alone.rdp + 0.005


def test_nothing_released_costs_nothing_and_no_noise_costs_everything():
    assert spent([], "add-remove", 1e-5) == Spent(0.0, 0.0)
    for release, relation in (
        (poisson(0.1, 0.0), "add-remove"),
        (fixed(1, 10, 0.0), "replace-one"),
        (everyone(0.0), "replace-one"),
    ):
        found = spent([release, everyone(3.0)], relation, 1e-5)
        assert (found, found.epsilon) == (Spent(math.inf, math.inf), math.inf)


@pytest.mark.parametrize("noise", [5e-324, 1e-100, 1e-9, 1e-4])
def test_hardly_any_noise_costs_a_huge_or_infinite_epsilon(noise):
    for release, relation in (
        (poisson(0.1, noise), "add-remove"),
        (fixed(1, 10, noise), "replace-one"),
        (everyone(noise), "add-remove"),
    ):
        assert spent([release], relation, 1e-5).epsilon > 1000


@pytest.mark.parametrize("noise", [1e4, 1e6, 1e9, 1e300])
def test_huge_noise_costs_hardly_anything(noise):
    for release, relation in (
        (poisson(0.1, noise), "add-remove"),
        (fixed(1, 10, noise), "replace-one"),
        (everyone(noise), "add-remove"),
    ):
        assert 0 <= spent([release], relation, 1e-5).epsilon < 1e-3


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 1.5, math.nan])
def test_a_delta_that_is_no_small_probability_is_refused(delta):
    for call in (
        lambda: spent([everyone(1.0)], "add-remove", delta),
        lambda: spent([], "add-remove", delta),
        lambda: curve([[everyone(1.0)]], "add-remove", delta),
        lambda: calibrate(1.0, delta, "add-remove", EVERYONE, 1),
    ):
        with pytest.raises(ValueError, match="delta between 0 and 1"):
            call()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("uniform",), "poisson, fixed or none"),
        (("poisson", 0.0), "above 0"),
        (("poisson", 1.1), "at most 1"),
        (("poisson", math.nan), "above 0"),
        (("poisson", 0.5, 5, 10), "belong to fixed"),
        (("none", 0.5), "everyone takes part"),
        (("fixed",), "size 0 of 0"),
        (("fixed", 1.0, 11, 10), "size 11 of 10"),
        (("fixed", 0.4, 5, 10), "a rate of 0.5, got 0.4"),
    ],
)
def test_a_sampling_that_is_none_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Sampling(*arguments)


def test_the_rate_of_fixed_sampling_follows_from_its_numbers():
    assert Sampling("fixed", size=5, population=20).rate == 0.25


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_noise_that_is_no_amount_is_refused(noise):
    with pytest.raises(ValueError, match="noise multiplier"):
        everyone(noise)


def test_a_count_of_none_is_refused():
    with pytest.raises(ValueError, match="1 or more"):
        everyone(1.0, 0)


def test_a_relation_that_the_sampling_has_no_guarantee_for_is_refused():
    with pytest.raises(ValueError, match="fixed size has no add-remove guarantee"):
        spent([fixed(5, 10, 1.0)], "add-remove", 1e-5)
    with pytest.raises(ValueError, match="fixed size has no add-remove guarantee"):
        spent([fixed(10, 10, 1.0)], "add-remove", 1e-5)
    with pytest.raises(ValueError, match="Poisson sampling is accounted for under add-remove"):
        spent([poisson(0.5, 1.0)], "replace-one", 1e-5)
    with pytest.raises(ValueError, match="add-remove or replace-one"):
        spent([everyone(1.0)], "add_remove", 1e-5)


# ---------------------------------------------------------------------------------------------------------- calibrating


@pytest.mark.parametrize(
    ("epsilon", "delta", "relation", "sampling", "count"),
    [
        (1.0, 1e-5, "add-remove", Sampling("poisson", 0.1), 20),
        (0.05, 1e-5, "add-remove", Sampling("poisson", 0.05), 100),
        (8.0, 1e-8, "add-remove", Sampling("poisson", 0.05), 300),
        (1.0, 1e-13, "add-remove", Sampling("poisson", 0.1), 20),
        (2.0, 1e-5, "replace-one", Sampling("fixed", size=10, population=50), 30),
        (3.0, 1e-8, "add-remove", EVERYONE, 50),
        (3.0, 1e-3, "replace-one", EVERYONE, 1),
        (100.0, 1e-5, "add-remove", EVERYONE, 10),
    ],
)
def test_a_calibrated_noise_keeps_the_target_and_a_little_less_does_not(epsilon, delta, relation, sampling, count):
    noise = calibrate(epsilon, delta, relation, sampling, count)
    assert spent([Release("sum", noise, sampling, count)], relation, delta).epsilon <= epsilon
    less = noise * (1 - 2 * TOLERANCE)
    assert spent([Release("sum", less, sampling, count)], relation, delta).epsilon > epsilon
    assert noise == float(f"{noise:.6g}")


def test_the_calibrated_noise_of_one_release_of_everyone_is_the_exact_one():
    noise = calibrate(1.0, 1e-5, "add-remove", EVERYONE, 1)
    exact = brentq(lambda z: gaussian_epsilon(z, 1e-5) - 1.0, 0.5, 50)
    assert exact <= noise <= exact * (1 + 1e-3)
    assert calibrate(1.0, 1e-5, "replace-one", EVERYONE, 1) == pytest.approx(2 * noise, rel=2 * TOLERANCE)


@pytest.mark.parametrize("relation", ["add-remove", "replace-one"])
@pytest.mark.parametrize("besides", [[everyone(30.0, 7)], [everyone(30.0, 2), everyone(90.0, 5)]], ids=["one", "two"])
def test_releases_of_everyone_beside_are_paid_for_exactly_and_without_dp_accounting(relation, besides, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)  # importing it would raise
    noise = calibrate(3.0, 1e-5, relation, EVERYONE, 10, besides)
    monkeypatch.undo()
    assert spent([everyone(noise, 10), *besides], relation, 1e-5).epsilon <= 3.0
    assert spent([everyone(noise * (1 - 2 * TOLERANCE), 10), *besides], relation, 1e-5).epsilon > 3.0
    for much in (everyone(0.1), everyone(0.0)):
        with pytest.raises(ValueError, match="no noise multiplier up to 1e"):
            calibrate(3.0, 1e-5, relation, EVERYONE, 10, [much])


def test_a_target_that_no_noise_reaches_is_refused_saying_what_would():
    with pytest.raises(ValueError, match="fewer rounds, a lower sampling rate, or a larger epsilon or delta"):
        calibrate(1e-9, 1e-12, "add-remove", EVERYONE, 10**6)
    for epsilon in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="finite epsilon above 0"):
            calibrate(epsilon, 1e-5, "add-remove", EVERYONE, 1)
    with pytest.raises(ValueError, match="1 or more releases"):
        calibrate(1.0, 1e-5, "add-remove", EVERYONE, 0)


# ---------------------------------------------------------------------------------------------------------------- curve


def test_the_curve_of_few_rounds_is_what_was_spent_after_each():
    rounds = [[poisson(0.2, 1.0), poisson(0.2, 9.0)] if number % 3 else [] for number in range(12)]
    for number, epsilon in enumerate(curve(rounds, "add-remove", 1e-5), 1):
        releases = [release for round_ in rounds[:number] for release in round_]
        assert epsilon == pytest.approx(spent(releases, "add-remove", 1e-5).epsilon, rel=1e-3)


def test_the_curve_of_many_rounds_never_understates_and_ends_exactly():
    rounds = [[poisson(0.1, 2.0)]] * 400
    found = curve(rounds, "add-remove", 1e-5, points=20)
    assert len(found) == 400
    assert list(found) == sorted(found)
    assert len(set(found)) == 20
    assert found[-1] == spent([poisson(0.1, 2.0, 400)], "add-remove", 1e-5).epsilon
    for number in (1, 2, 17, 100, 399):
        assert found[number - 1] >= spent([poisson(0.1, 2.0, number)], "add-remove", 1e-5).epsilon


def test_the_curve_of_no_rounds_is_empty():
    assert curve([], "add-remove", 1e-5) == ()


# -------------------------------------------------------------------------------------------------------------- imports


def test_a_node_that_imports_the_accounting_does_not_pay_for_dp_accounting():
    program = (
        "import sys, privacy.accounting, privacy.ledger; print({'dp_accounting', 'scipy', 'absl'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_dp_accountings_warnings_of_orders_that_it_leaves_out_reach_nobody():
    program = (
        "from privacy.accounting import *; spent([Release('', 2.0, Sampling('poisson', 0.5))], 'add-remove', 1e-5);"
        "import logging; logging.getLogger('absl').warning('but this'); print(logging.getLogger().handlers)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1
    assert "but this" in done.stderr
    assert done.stdout == "[]\n"  # the root logger has no handler that would show the messages of others
