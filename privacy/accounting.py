"""What a run has spent: epsilon is a pure function of a list of releases and of delta.

A release is a sum over the units that take part (clients, or one client's records), each clipped in L2 norm, plus
Gaussian noise. The list says all that matters of it; whoever releases writes the list (`privacy.ledger`).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

from privacy.accountants import Group, pld_epsilon, rdp_epsilon

Unit = Literal["client", "record"]
Relation = Literal["add-remove", "replace-one"]
SamplingKind = Literal["poisson", "fixed", "none"]

LARGEST_NOISE = 1e6  # that counts: more is accounted for as this much, which dp-accounting still computes well
TOLERANCE = 1e-4  # of a calibrated noise multiplier, relative


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the units of one release are drawn, independently of all other releases.

    poisson: each takes part with probability `rate`, independently. fixed: a uniformly random set of `size` out of
    `population`, without replacement; `rate` follows from them. none: everyone takes part.
    Raises ValueError for what is none of these.
    """

    kind: SamplingKind
    rate: float = 1.0
    size: int = 0
    population: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("poisson", "fixed", "none"):
            raise ValueError(f"expected sampling poisson, fixed or none, got {self.kind!r}")
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"expected a sampling rate above 0 and at most 1, got {self.rate}")
        if self.kind == "fixed":
            self._fix_rate()
        elif self.size or self.population:
            raise ValueError(f"size and population belong to fixed sampling, not to {self.kind}: leave them out")
        elif self.kind == "none" and self.rate != 1.0:
            raise ValueError(f"without sampling everyone takes part: expected rate 1, got {self.rate}")

    def _fix_rate(self) -> None:
        if not 1 <= self.size <= self.population:
            raise ValueError(
                f"fixed sampling draws 1 or more out of the population, got size {self.size} of {self.population}"
            )
        rate = self.size / self.population
        if self.rate not in (1.0, rate):
            raise ValueError(f"{self.size} out of {self.population} is a rate of {rate}, got {self.rate}: leave it out")
        object.__setattr__(self, "rate", rate)


@dataclass(frozen=True, slots=True)
class Release:
    """`count` Gaussian releases alike.

    `noise_multiplier` is the standard deviation of the sum over the L2 bound on ONE unit's contribution (the clip
    norm), whatever the relation: that replacing a unit moves the sum by twice that bound is the accountant's affair.
    0 means no noise, which costs an infinite epsilon. Raises ValueError.
    """

    what: str
    noise_multiplier: float
    sampling: Sampling
    count: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"expected a finite noise multiplier of 0 or more, got {self.noise_multiplier}")
        if self.count < 1:
            raise ValueError(f"expected 1 or more releases, got {self.count}")


@dataclass(frozen=True, slots=True)
class Spent:
    """Epsilon by each accountant, both upper bounds.

    `pld` is None where no loss distribution can be computed: noise multipliers below about 0.001, and a delta below the
    rounding errors of the computation (1e-15 for every release).
    """

    pld: float | None
    rdp: float

    @property
    def epsilon(self) -> float:
        """The one to be claimed: the smaller."""
        return self.rdp if self.pld is None else min(self.pld, self.rdp)

    @property
    def accountant(self) -> Literal["pld", "rdp"]:
        """Whose number `epsilon` is."""
        return "pld" if self.epsilon == self.pld else "rdp"


def spent(releases: Sequence[Release], relation: Relation, delta: float) -> Spent:
    """Epsilon at `delta` of all these releases together.

    What is summed may depend on what earlier releases gave (a model is trained on them). The noise multipliers, the
    samplings and the number of releases must not: whoever stops when the results look good has the epsilon of all that
    was planned. The order does not matter. No releases cost nothing; one without noise costs an infinite epsilon.

    Raises ValueError for a delta that is not between 0 and 1, and for a sampling that has no guarantee under the
    relation.
    """
    _check_delta(delta)
    return _spent(_mechanisms(releases, relation), delta)


def within(target_epsilon: float, releases: Sequence[Release], relation: Relation, delta: float) -> bool:
    """Whether the epsilon that `spent` claims is at most this target.

    RDP is asked only where PLD does not confirm it. For releases of everybody PLD is a closed form, so that a site,
    which asks for every message, seldom has to import dp-accounting. Raises ValueError as `spent` does.
    """
    _check_delta(delta)
    groups = _groups(_mechanisms(releases, relation))
    pld = pld_epsilon(groups, delta)
    return (pld is not None and pld <= target_epsilon) or rdp_epsilon(groups, delta) <= target_epsilon


def curve(
    rounds: Sequence[Sequence[Release]], relation: Relation, delta: float, points: int = 100
) -> tuple[float, ...]:
    """The claimed epsilon after each round, given what each round released; never less than `spent` would say.

    Up to `points` rounds all are computed. Of more, about `points` are, the last among them, spread evenly over the
    square root of the round (epsilon grows about so); every other round shows the next one that is computed, which
    bounds it. Raises ValueError as `spent` does.
    """
    _check_delta(delta)
    wanted = _computed_rounds(len(rounds), points)
    so_far: Counter[_Mechanism] = Counter()
    found: list[float] = []
    for number, releases in enumerate(rounds, 1):
        so_far += _mechanisms(releases, relation)
        if number in wanted:
            epsilon = _spent(so_far, delta).epsilon
            found += [epsilon] * (number - len(found))
    return tuple(accumulate(found, max))  # grids differ a little, and what is spent is spent


def calibrate(
    target_epsilon: float,
    delta: float,
    relation: Relation,
    sampling: Sampling,
    count: int,
    beside: Sequence[Release] = (),
) -> float:
    """The smallest noise multiplier with which `count` releases, and those `beside` them, claim at most
    `target_epsilon` at `delta`.

    At most 1e-4 of itself too large, never too small: `spent` of the very number that is returned, which has six
    digits, is at most the target. Raises ValueError where no noise multiplier up to 1e6 reaches the target.
    """
    if not 0.0 < target_epsilon < math.inf:
        raise ValueError(f"expected a finite epsilon above 0, got {target_epsilon}")

    _check_delta(delta)
    if count < 1:
        raise ValueError(f"expected 1 or more releases, got {count}")
    if sampling.rate == 1.0 and all(release.sampling.rate == 1.0 for release in beside):
        return _without_sampling(target_epsilon, delta, relation, count, beside)

    def claimed(noise: float) -> float:
        return spent([Release("calibrated", noise, sampling, count), *beside], relation, delta).epsilon

    low, high = _bracket(claimed, target_epsilon)
    return _rounded_up(_narrowed(claimed, target_epsilon, low, high), claimed, target_epsilon)


def _without_sampling(
    target_epsilon: float, delta: float, relation: Relation, count: int, beside: Sequence[Release]
) -> float:
    """In closed form, and without dp-accounting: nodes whose clients add the noise need it in every message.

    Gaussian releases of everybody are together one, and the squares of their inverse noises add up.
    """
    from privacy.analytic import analytic_gaussian_noise

    together = analytic_gaussian_noise(target_epsilon, delta)
    others = [(release.count, _mechanism(release, relation).noise) for release in beside]
    left = 1 - sum(times * (together / noise) ** 2 if noise else math.inf for times, noise in others)
    distance = 2 if relation == "replace-one" else 1
    noise = distance * math.sqrt(count / left) * together if left > 0 else math.inf
    if noise > LARGEST_NOISE:
        raise _unreachable(target_epsilon)
    digits = 5 - math.floor(math.log10(noise))
    return round(math.ceil(noise * 10.0**digits) / 10.0**digits, digits)


def _unreachable(target_epsilon: float) -> ValueError:
    return ValueError(
        f"no noise multiplier up to {LARGEST_NOISE:g} gives epsilon {target_epsilon:g}: take fewer rounds, a lower"
        " sampling rate, or a larger epsilon or delta"
    )


# ------------------------------------------------------------------------------------------------------- what is alike


class _Mechanism(NamedTuple):
    """What two releases must share to cost the same."""

    noise: float
    amplification: SamplingKind
    rate: float


def _spent(mechanisms: Counter[_Mechanism], delta: float) -> Spent:
    groups = _groups(mechanisms)
    return Spent(pld_epsilon(groups, delta), rdp_epsilon(groups, delta))


def _groups(mechanisms: Counter[_Mechanism]) -> list[Group]:
    return [Group(*mechanism, count) for mechanism, count in sorted(mechanisms.items())]


def _mechanisms(releases: Sequence[Release], relation: Relation) -> Counter[_Mechanism]:
    counts: Counter[_Mechanism] = Counter()
    for release in releases:
        counts[_mechanism(release, relation)] += release.count
    return counts


def _mechanism(release: Release, relation: Relation) -> _Mechanism:
    """With the noise over the distance of neighbouring sums: a replaced unit moves the sum by twice its bound."""
    sampling = release.sampling
    if relation == "add-remove":
        if sampling.kind == "fixed":
            raise ValueError(
                "a cohort of fixed size has no add-remove guarantee: without the unit that leaves, another one takes"
                " its place, so neighbours differ by a replacement: state replace-one, or sample by poisson"
            )
        noise = release.noise_multiplier
    elif relation == "replace-one":
        if sampling.kind == "poisson":
            raise ValueError(
                "Poisson sampling is accounted for under add-remove alone: state add-remove, or sample a fixed size"
            )
        noise = release.noise_multiplier / 2
    else:
        raise ValueError(f"expected relation add-remove or replace-one, got {relation!r}")
    noise = min(noise, LARGEST_NOISE)  # to the safe side: less noise never costs less
    return _Mechanism(noise, "none" if sampling.rate == 1.0 else sampling.kind, sampling.rate)


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"expected a delta between 0 and 1, got {delta}")


def _computed_rounds(rounds: int, points: int) -> set[int]:
    if points < 1:
        raise ValueError(f"expected 1 or more points, got {points}")
    if rounds <= points:
        return set(range(1, rounds + 1))
    return {math.ceil(rounds * (point / points) ** 2) for point in range(1, points + 1)}


# --------------------------------------------------------------------------------------------------------- calibrating

_Claimed = Callable[[float], float]


def _bracket(claimed: _Claimed, target: float) -> tuple[float, float]:
    """A noise multiplier that costs more than the target, and one that does not; a factor of 4 apart."""
    low, high = 0.25, 1.0
    while claimed(high) > target:
        if high >= LARGEST_NOISE:
            raise _unreachable(target)
        low, high = high, min(high * 4, LARGEST_NOISE)
    while claimed(low) <= target:
        low, high = low / 4, low
    return low, high


def _narrowed(claimed: _Claimed, target: float, low: float, high: float) -> float:
    """The upper end of the bracket, drawn together by false position on logarithms, aimed beside the root.

    Each guess is shifted towards the wider side by a third of the tolerance, so that both ends come near; two guesses
    that together do not halve the bracket are followed by its middle.
    """
    shift = math.log1p(TOLERANCE) / 3
    left, right = math.log(low), math.log(high)
    at_left, at_right = _excess(claimed(low), target), _excess(claimed(high), target)
    widths = [math.inf, math.inf]
    while right - left > 2 * shift:
        guess = left + (right - left) * at_left / (at_left - at_right)
        guess += shift if guess - left < right - guess else -shift
        if not left < guess < right or right - left > widths[-2] / 2:
            guess = (left + right) / 2
        widths.append(right - left)
        excess = _excess(claimed(math.exp(guess)), target)
        if excess > 0:
            left, at_left = guess, excess
        else:
            right, at_right = guess, excess
    return math.exp(right)


def _excess(epsilon: float, target: float) -> float:
    """The logarithm of epsilon over the target, within bounds that a straight line can be drawn through."""
    return math.log(min(max(epsilon / target, 1e-3), 1e3))


def _rounded_up(noise: float, claimed: _Claimed, target: float) -> float:
    """To six digits, and on by units of the last until the target is kept: grids differ a little."""
    digits = 5 - math.floor(math.log10(noise))
    units = math.ceil(noise * 10.0**digits)
    while claimed(rounded := round(units / 10.0**digits, digits)) > target:
        units += 1
    return rounded
