"""Cohorts on which a promise of privacy rests: drawn as the accountant is told, foretold by no seed."""

import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2

from privacy.accounting import Sampling
from strategies.base import Basics
from strategies.client_privacy import central_protection, cohort_sampler
from strategies.protection import Promise
from strategies.sampling import Draw, Everyone, FixedSize, Poisson, SecretFixedSize, Spaced, round_rng

CLIENTS = tuple(f"{i:02}" for i in range(20))
ANY = Draw(1, round_rng(0, 1))


def source(seed):
    return random.Random(seed)


def drawn(sampler, times, clients=CLIENTS):
    return [sampler.sample(clients, ANY) for _ in range(times)]


def as_expected(counts, expected):
    """Pearson's test at one in a million; `expected` is a number for each of the counts."""
    counts, expected = np.array(counts, float), np.array(expected, float)
    return np.sum((counts - expected) ** 2 / expected) < chi2.isf(1e-6, counts.size - 1)


# ------------------------------------------------------------------------------------------------------------ Poisson


@pytest.mark.parametrize("size", [1, 5, 13])
def test_each_client_is_drawn_at_the_stated_rate_and_cohorts_have_binomial_sizes(size):
    sampler, times = Poisson(size, 20, source(size)), 4000
    cohorts = drawn(sampler, times)
    rate = sampler.describe().rate
    assert rate == size / 20
    counts = Counter(client for cohort in cohorts for client in cohort)
    spread = np.sqrt(times * rate * (1 - rate))
    assert all(abs(counts[client] - times * rate) < 5 * spread for client in CLIENTS)
    sizes = Counter(map(len, cohorts))
    likely = [k for k in range(21) if times * binom.pmf(k, 20, rate) > 5]
    assert as_expected([sizes[k] for k in likely], times * binom.pmf(likely, 20, rate))
    assert not as_expected([sizes[k] for k in likely], times * binom.pmf(likely, 20, rate + 0.03))


def test_clients_of_a_poisson_cohort_are_drawn_independently_and_come_in_order():
    times = 4000
    cohorts = drawn(Poisson(8, 20, source(0)), times)
    table = np.array([[client in cohort for client in CLIENTS] for cohort in cohorts], float)
    correlations = np.corrcoef(table.T) - np.eye(20)
    assert np.abs(correlations).max() < 5 / np.sqrt(times)
    assert np.abs(np.corrcoef(table[1:].ravel(), table[:-1].ravel())[0, 1]) < 5 / np.sqrt(table.size)
    assert all(list(cohort) == sorted(cohort) for cohort in cohorts)


def test_the_rate_of_a_poisson_cohort_is_exact_and_that_of_the_whole_population():
    """Not of those who happen to be there: with half of them the cohorts are half as large."""
    values = iter(range(7))

    class Counting(random.Random):
        def randrange(self, *args):
            assert args == (7,)
            return next(values)

    assert Poisson(3, 7, Counting()).sample(tuple("abcdefg"), ANY) == ("a", "b", "c")
    sizes = [len(cohort) for cohort in drawn(Poisson(10, 20, source(1)), 2000, CLIENTS[:10])]
    assert abs(np.mean(sizes) - 5) < 5 * np.sqrt(2.5 / 2000)


def test_a_poisson_cohort_may_be_empty_or_everybody():
    assert () in drawn(Poisson(1, 20, source(0)), 100)
    assert set(drawn(Poisson(20, 20), 5)) == {CLIENTS}
    assert Poisson(1, 20).sample((), ANY) == ()


# ---------------------------------------------------------------------------------------------------------- fixed size


def test_a_secret_cohort_of_fixed_size_is_any_subset_equally_often():
    clients, times = tuple("abcdef"), 6000
    cohorts = Counter(drawn(SecretFixedSize(3, 6, source(0)), times, clients))
    subsets = list(combinations(clients, 3))
    assert set(cohorts) == set(subsets)
    assert as_expected([cohorts[subset] for subset in subsets], [times / 20] * 20)


def test_who_is_drawn_and_absent_is_missing_and_nobody_takes_the_place():
    times, rate = 4000, 8 / 20
    cohorts = drawn(SecretFixedSize(8, 20, source(0)), times, CLIENTS[:15])
    counts = Counter(client for cohort in cohorts for client in cohort)
    spread = np.sqrt(times * rate * (1 - rate))
    assert all(abs(counts[client] - times * rate) < 5 * spread for client in CLIENTS[:15])
    assert min(map(len, cohorts)) < 6
    assert max(map(len, cohorts)) <= 8
    with pytest.raises(ValueError, match="21 clients are here, more than the 20"):
        SecretFixedSize(8, 20).sample((*CLIENTS, "20"), ANY)


# ------------------------------------------------------------------------------------------------------------- secrecy


@pytest.mark.parametrize("kind", [Poisson, SecretFixedSize])
def test_no_seed_of_anything_foretells_a_secret_cohort(kind):
    def cohorts():
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        torch.manual_seed(0)
        sampler = kind(10, 20)
        return [sampler.sample(CLIENTS, Draw(number, round_rng(7, number))) for number in range(1, 21)]

    first, second = cohorts(), cohorts()
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 3
    assert len(set(first)) > 15
    assert isinstance(kind(10, 20).source, random.SystemRandom)


def test_only_samplers_whose_draw_makes_the_promise_stronger_are_secret():
    assert Poisson(1, 2).secret
    assert SecretFixedSize(1, 2).secret
    assert not any(sampler.secret for sampler in (Spaced(1, 2), FixedSize(1), Everyone()))


# -------------------------------------------------------------------------------------------------- what is described


def test_the_accountant_is_told_what_is_drawn():
    assert Poisson(5, 20).describe() == Sampling("poisson", 0.25)
    assert SecretFixedSize(5, 20).describe() == Sampling("fixed", 0.25, 5, 20)
    for sampler in (Spaced(5, 20), FixedSize(5), Everyone()):
        assert sampler.describe() == Sampling("none")
    for sampler in (Poisson(5, 20), SecretFixedSize(5, 20), Spaced(5, 20)):
        assert [sampler.cohort_size(here) for here in (0, 3, 20)] == [5, 5, 5]


def promised_for(sampler, basics):
    promise = Promise(target_epsilon=1.0, noise_multiplier=0.0, delta=1e-5)
    return central_protection(basics, sampler, promise, mechanism="noise", clip_norm=1.0, what="sum")


def test_a_run_gets_the_sampler_and_the_relation_that_go_together():
    basics = Basics(clients_per_round=4, population=16)
    expected = {
        "poisson": (Poisson(4, 16), "add-remove", Sampling("poisson", 0.25)),
        "fixed": (SecretFixedSize(4, 16), "replace-one", Sampling("fixed", 0.25, 4, 16)),
        "none": (FixedSize(4), "add-remove", Sampling("none")),
    }
    for sampling, (sampler, relation, described) in expected.items():
        found = cohort_sampler(sampling, basics)
        promised = promised_for(found, basics)
        assert (found, promised.relation, promised.sampling) == (sampler, relation, described)
    assert cohort_sampler("poisson", Basics(population=16)) == Poisson(16, 16)
    assert cohort_sampler("none", Basics(population=16)) == Everyone()


@pytest.mark.parametrize("kind", [Poisson, SecretFixedSize, Spaced])
def test_a_cohort_larger_than_the_population_is_refused_and_an_unknown_population_has_no_rate(kind):
    for size in (21, 0):
        with pytest.raises(ValueError, match=f"clients-per-round={size} of 20 clients: expected 1 to 20"):
            kind(size, 20)
    with pytest.raises(ValueError, match="set num-clients"):
        _ = kind(5, 0).rate
    basics = Basics(clients_per_round=5, population=0)
    if kind is not Spaced:
        assert promised_for(kind(5, 0), basics).sampling is None


# -------------------------------------------------------------------------------------------------------------- spaced


@pytest.mark.parametrize(("size", "population"), [(1, 20), (5, 20), (6, 20), (7, 20), (20, 20)])
def test_a_client_is_used_once_in_so_many_rounds_whoever_is_online(size, population):
    sampler, rng = Spaced(size, population), np.random.default_rng(size)
    separation = population // size
    assert sampler.separation == separation
    used = {}
    for number in range(1, 200):
        online = [client for client in CLIENTS if rng.random() < 0.5 + 0.4 * np.sin(number)]
        before = dict(used)
        cohort = sampler.sample(online, Draw(number, round_rng(3, number), used))
        assert len(cohort) == len(set(cohort)) <= size
        assert set(cohort) <= set(online)
        assert list(cohort) == sorted(cohort)
        assert all(number - before[client] >= separation for client in cohort if client in before)
        used.update(dict.fromkeys(cohort, number))


def test_with_everybody_there_every_round_is_full_and_everybody_takes_part_equally_often():
    for size, population in ((5, 20), (4, 20), (7, 20), (3, 20)):
        sampler, used, counts = Spaced(size, population), {}, Counter()
        for number in range(1, 201):
            cohort = sampler.sample(CLIENTS, Draw(number, round_rng(3, number), used))
            assert len(cohort) == size
            used.update(dict.fromkeys(cohort, number))
            counts.update(cohort)
        apart = max(counts.values()) - min(counts[client] for client in CLIENTS)
        assert apart <= (1 if population % size == 0 else 0.1 * 200 * size / population)


def test_who_was_used_longest_ago_comes_first_and_ties_are_the_seeds_affair():
    used = {client: 10 + index for index, client in enumerate(CLIENTS[4:])}
    assert Spaced(4, 20).sample(CLIENTS, Draw(40, round_rng(0, 40), used)) == CLIENTS[:4]
    ties = {Spaced(4, 20).sample(CLIENTS, Draw(1, round_rng(seed, 1))) for seed in range(5)}
    assert len(ties) == 5
    assert len({Spaced(4, 20).sample(CLIENTS, Draw(1, round_rng(3, 1))) for _ in range(3)}) == 1
