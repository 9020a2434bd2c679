"""Epsilon of many Gaussian releases, twice: by Renyi divergences and by privacy loss distributions.

Both are upper bounds, so the smaller may be claimed. Everything is computed by Google's dp-accounting, which takes a
second to import and is therefore imported where it is used: a node never pays for it.

Here `noise` is the standard deviation over the L2 distance of two NEIGHBOURING sums: the noise multiplier for
add-remove, half of it for replace-one (`privacy.accounting` halves, once; dp-accounting's RdpAccountant never does and
its PLDAccountant does by itself, so neither is told of replace-one where the distance matters).
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Amplification = Literal["poisson", "fixed", "none"]

STEPS_PER_DEVIATION = 32  # of the grid of privacy losses, in one release: epsilon is right to about 2e-4 of itself
FINEST_STEP, LARGEST_STEP = 2.0**-30, 2.0**-9
COARSEST_STEP = 16.0  # beyond it no loss distribution is computed
MOST_POINTS = 2**17  # in the grid of one release: about 0.6 s to make
LOG_TAIL = -36.0  # of the probability that the grid of one release counts as an infinite loss
TAIL = 8.3  # where that lies, in standard deviations


class Group(NamedTuple):
    """`times` releases alike. `rate` is the probability that the unit in question takes part in one."""

    noise: float
    amplification: Amplification
    rate: float
    times: int


# ------------------------------------------------------------------------------------------------------ Renyi


def rdp_epsilon(groups: Sequence[Group], delta: float) -> float:
    """Epsilon by Renyi differential privacy; infinite where no noise is added.

    Poisson: Mironov, Talwar, Zhang 2019 (arXiv:1908.10530). Without replacement: Wang, Balle, Kasiviswanathan 2019
    (arXiv:1808.00087), theorem 27. At orders where dp-accounting gives more than without sampling, or nothing, the
    bound is that without sampling: the sum over a cohort drawn blindly is a mixture, and the divergence of mixtures is
    at most that of their worst parts.
    """
    if not groups:
        return 0.0
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS, compute_epsilon  # type: ignore[import-untyped]

    total = sum(group.times * _renyi_divergences(*group[:3]) for group in groups)
    with _quiet():
        return float(compute_epsilon(DEFAULT_RDP_ORDERS, total, delta)[0])


@lru_cache(maxsize=256)
def _renyi_divergences(noise: float, amplification: Amplification, rate: float) -> NDArray[np.float64]:
    """Of one release, at dp-accounting's default orders; infinite where it finds none."""
    import dp_accounting as dp  # type: ignore[import-untyped]
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    def divergences(event: Any, relation: Any = dp.NeighboringRelation.ADD_OR_REMOVE_ONE) -> NDArray[np.float64]:
        found = RdpAccountant(neighboring_relation=relation).compose(event).rdp
        return np.where(np.isnan(found), np.inf, found)  # what could not be computed bounds nothing

    gaussian = dp.GaussianDpEvent(noise)
    with _quiet():
        try:
            plain = divergences(gaussian)
            if amplification == "none":
                return plain
            if amplification == "poisson":
                return np.minimum(plain, divergences(dp.PoissonSampledDpEvent(rate, gaussian)))
            # Of the event's two sizes only the ratio is read, which is the rate.
            event = dp.SampledWithoutReplacementDpEvent(1.0, rate, gaussian)
            return np.minimum(plain, divergences(event, dp.NeighboringRelation.REPLACE_ONE))
        except (OverflowError, ZeroDivisionError):  # the noise is too small for any divergence to be a number
            return divergences(dp.NonPrivateDpEvent())


# -------------------------------------------------------------------------------------------- loss distributions


def pld_epsilon(groups: Sequence[Group], delta: float) -> float | None:
    """Epsilon by privacy loss distributions (Koskela et al. 2020, arXiv:1906.03049), discretised upwards.

    Without sampling the closed form is used (Balle & Wang 2018, arXiv:1805.06530). Else the grid errs to the safe side
    (Doroshenko et al. 2022, arXiv:2207.04380). Its sums by FFT err to both sides, by less than 1e-15 of probability for
    every release (measured: 1e-16); this much of delta is set aside.

    None where the noise is so small that the grid would be too coarse (below about 0.001, epsilon about a million), or
    where delta is below what is set aside.
    """
    if not groups:
        return 0.0
    groups = _without_sampling_merged(groups)
    if any(group.noise == 0.0 for group in groups):
        return math.inf
    rounding = 1e-13 + 1e-15 * sum(group.times for group in groups)
    step = _step(groups)
    if step > COARSEST_STEP:
        return None
    if len(groups) == 1 and groups[0].amplification == "none":
        from privacy.analytic import analytic_gaussian_epsilon

        return analytic_gaussian_epsilon(delta, groups[0].noise)
    if delta <= rounding:
        return None
    with _quiet():
        parts = [_loss_distribution(*group[:3], step).self_compose(group.times) for group in groups]
        total = reduce(lambda one, other: one.compose(other), parts)
        return max(0.0, float(total.get_epsilon_for_delta(delta - rounding)))


def _without_sampling_merged(groups: Sequence[Group]) -> list[Group]:
    """Gaussian releases of everybody are together one Gaussian release, exactly."""
    sampled = [group for group in groups if group.amplification != "none"]
    plain = [group for group in groups if group.amplification == "none"]
    if not plain:
        return sampled
    smallest = min(group.noise for group in plain)
    # Relative to the smallest, so that no square overflows.
    weight = sum(group.times * (smallest / group.noise) ** 2 for group in plain) if smallest else 1.0
    return [*sampled, Group(smallest / math.sqrt(weight), "none", 1.0, 1)]


def _step(groups: Sequence[Group]) -> float:
    """The width of the grid: a power of two, so that ledgers which differ little share their distributions."""
    variance = sum(group.times * _loss_variance(group) for group in groups)
    mean_deviation = math.sqrt(variance / sum(group.times for group in groups))
    step = min(LARGEST_STEP, mean_deviation / STEPS_PER_DEVIATION)
    step = max(step, max(map(_loss_range, groups)) / MOST_POINTS, FINEST_STEP)
    return 2.0 ** math.floor(math.log2(step)) if math.isfinite(step) else math.inf


def _loss_variance(group: Group) -> float:
    """Roughly: log(1 + chi-squared divergence), which is exact without sampling."""
    exponent = 1 / group.noise / group.noise
    if exponent > 50:
        return max(0.0, exponent + 2 * math.log(group.rate))
    return math.log1p(group.rate**2 * math.expm1(exponent))


def _loss_range(group: Group) -> float:
    """From the smallest to the largest loss that the grid of one release must hold."""
    largest = (0.5 / group.noise + TAIL) / group.noise
    if group.rate == 1.0:
        return 2 * largest
    sampled = largest + math.log(group.rate) if largest > 50 else math.log1p(group.rate * math.expm1(largest))
    return 2 * sampled if group.amplification == "fixed" else sampled - math.log1p(-group.rate)


@lru_cache(maxsize=32)
def _loss_distribution(noise: float, amplification: Amplification, rate: float, step: float) -> Any:
    """Of one release: dp-accounting's, with a dense grid."""
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_gaussian_mechanism  # type: ignore[import-untyped]

    if amplification == "fixed":
        return PrivacyLossDistribution(_fixed_size_losses(noise, rate, step))
    found = from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=step, log_mass_truncation_bound=LOG_TAIL
    )
    if rate == 1.0:
        return PrivacyLossDistribution(found._pmf_remove.to_dense_pmf())
    return PrivacyLossDistribution(found._pmf_remove.to_dense_pmf(), found._pmf_add.to_dense_pmf())


def _fixed_size_losses(noise: float, rate: float, step: float) -> Any:
    """For a cohort of fixed size drawn without replacement, under replace-one, which dp-accounting lacks.

    Let P, Q be the sums of neighbouring cohorts. Then for neighbouring populations, for every epsilon >= 0, the
    hockey-stick divergence is at most that of (1 - rate) Q + rate P from Q (Balle, Barthe, Gaboardi 2018,
    arXiv:1807.01647), and this is attained. The relation is symmetric, so the divergence at -epsilon follows from the
    one at epsilon. A pair with this profile dominates the release, so its composition bounds any adaptive composition
    (Zhu, Dong, Wang 2022, arXiv:2106.08567). Composing the two directions of Poisson sampling apart, as for add-remove,
    would not: each direction dominates one half of the profile only.
    """
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap  # type: ignore[import-untyped]
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss  # type: ignore[import-untyped]

    towards = GaussianPrivacyLoss(
        noise, sampling_prob=rate, adjacency_type=AdjacencyType.REMOVE, log_mass_truncation_bound=LOG_TAIL
    )
    points = math.ceil(towards.connect_dots_bounds().epsilon_upper / step)
    losses = np.arange(points + 1) * step
    above = np.asarray(towards.get_delta_for_epsilon(losses))
    below = np.exp(-losses) * above - np.expm1(-losses)
    profile = np.concatenate((below[:0:-1], above))
    return create_pmf_pessimistic_connect_dots_fixed_gap(step, -points, points, profile).to_dense_pmf()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without dp-accounting's warnings of orders that it leaves out, and numpy's of the same.

    A warning of absl gives the root logger a handler if it has none, which would show everybody's messages for good.
    """
    absl, root, nowhere = logging.getLogger("absl"), logging.getLogger(), logging.NullHandler()
    before = absl.disabled
    absl.disabled = True
    root.addHandler(nowhere)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        root.removeHandler(nowhere)
        absl.disabled = before
