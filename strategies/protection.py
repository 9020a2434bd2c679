"""What a strategy promises of differential privacy, and the noise that keeps the promise.

Both come from one object: the transform that adds noise asks it how much, the round loop asks it what a round costs,
and the report reads from it what was promised. So what is claimed cannot differ from what is done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import sqrt
from typing import Any, Protocol

from privacy.accounting import Relation, Release, Sampling, Spent, Unit, calibrate, spent

MEANS = "means of the features"
MEANS_SHARE = 0.1
"""The share of the budget that goes to the means of the features, where they are released
(`strategies.private_means`)."""

METRICS = "metrics on test rows"

BESIDE = (MEANS, METRICS)
"""The releases that are made besides those of the rounds of training."""


@dataclass(frozen=True)
class Promise:
    """How much privacy: an epsilon to stay within, a noise multiplier, or both; and delta.

    Raises ValueError where neither is given, and for values out of range.
    """

    target_epsilon: float
    noise_multiplier: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta:g}: expected above 0 and below 1, such as 1e-5")
        if self.target_epsilon < 0 or self.noise_multiplier < 0:
            name = "target-epsilon" if self.target_epsilon < 0 else "noise-multiplier"
            raise ValueError(f"{name} is below 0: expected a number above 0")
        if not self.target_epsilon and not self.noise_multiplier:
            raise ValueError("how private is the run to be: set target-epsilon, such as 3, or noise-multiplier")


@dataclass(frozen=True)
class Protection:
    """Gaussian noise, round after round, on something that one unit can move no further than a bound.

    The noise multiplier is the promise's, if it names one; else the smallest that keeps all planned releases within the
    target epsilon. Where the promise names both, the target is a budget, which ends the run before the round that would
    exceed it.

    The multiplier is computed when it is first asked for. The server knows the sampling, and can compute it; a node
    does where clients add the noise, and else need not, so that its `sampling` may be None.
    """

    unit: Unit
    """What is protected: a client with all its rows, or a single row."""
    relation: Relation
    """Which federations are neighbours: one unit more or less, or one replaced by another."""
    mechanism: str
    """In words, for privacy.json."""
    promise: Promise
    clip_norm: float | None
    """The L2 norm to which one unit's contribution is clipped; None where the run adapts it."""
    sampling: Sampling | None
    """How units are drawn for a release."""
    rounds: int
    """How many are planned."""
    by_clients: bool = False
    """Whether the clients add the noise, and not the server."""
    per_round: int = 1
    """How many releases of one unit a round makes at most."""
    every: int = 1
    """So many rounds together cost as much as one release does."""
    means: bool = False
    """Whether the means of the features are released before the first round, for MEANS_SHARE of the target."""
    metrics: Release | None = None
    """All planned releases of metrics, which have a noise of their own (`strategies.private_metrics`)."""
    what: str = "sum of updates"
    """What a round releases, in words."""
    trust: tuple[str, ...] = ()
    """Whom one has to trust, in sentences for privacy.json."""
    not_covered: tuple[str, ...] = ()
    """What this promise does not cover, likewise."""

    @cached_property
    def noise_multiplier(self) -> float:
        """The standard deviation of the noise, divided by the bound on what one unit contributes.

        Raises ValueError where no noise reaches the target.
        """
        if self.promise.noise_multiplier:
            return self.promise.noise_multiplier
        count = self.per_round * -(-self.rounds // self.every)
        promise, sampling = self.promise, self._known_sampling
        try:
            return calibrate(promise.target_epsilon, promise.delta, self.relation, sampling, count, self.beside)
        except ValueError as error:
            if self.metrics is None:
                raise
            planned = f"noisy-metrics={self.metrics.noise_multiplier:g} plans {self.metrics.count} releases of metrics"
            raise ValueError(
                f"{error}; {planned}, which spend of it too: raise noisy-metrics or evaluate-every"
            ) from error

    @property
    def beside(self) -> list[Release]:
        """All planned releases besides those of the rounds."""
        means = [Release(MEANS, self.means_noise, Sampling("none"))] if self.means else []
        return means + ([self.metrics] if self.metrics else [])

    @cached_property
    def means_noise(self) -> float:
        """The noise multiplier of the means of the features.

        The promise's, if it names no target; else the one that spends MEANS_SHARE of the target, where the cost of a
        release is taken to be 1 / multiplier^2.
        """
        if self.promise.noise_multiplier and not self.promise.target_epsilon:
            return self.promise.noise_multiplier
        once = calibrate(self.promise.target_epsilon, self.promise.delta, self.relation, Sampling("none"), 1)
        return once / sqrt(MEANS_SHARE)

    def charge(self, nth: int) -> Release | None:
        """What the nth round releases, counted from the start or the last resume; None where it is paid for already."""
        if (nth - 1) % self.every:
            return None
        return Release(self.what, self.noise_multiplier, self._known_sampling, self.per_round)

    def check_budget(self) -> None:
        """Raises ValueError where the target does not even pay for the means of the features and one round."""
        target, noise = self.promise.target_epsilon, self.promise.noise_multiplier
        if not (target and noise):
            return
        first = [release for release in self.beside if release.what == MEANS]
        first.append(Release(self.what, noise, self._known_sampling, self.per_round))
        epsilon = spent(first, self.relation, self.promise.delta).epsilon
        if epsilon > target:
            raise ValueError(
                f"the first round alone costs epsilon {epsilon:.4g}, more than target-epsilon={target:g}: raise one of"
                " target-epsilon and noise-multiplier, or leave noise-multiplier out, to have it computed"
            )

    @property
    def _known_sampling(self) -> Sampling:
        if self.sampling is None:
            raise ValueError("the number of clients is not known here: set num-clients, which a private run publishes")
        return self.sampling

    def announce(self) -> dict[str, float | int | str]:
        """What the server tells the nodes about a round's release, for the ledgers that sites keep."""
        sampling = self._known_sampling
        return {
            "privacy.noise-multiplier": self.noise_multiplier,
            "privacy.sampling": sampling.kind,
            "privacy.rate": sampling.rate,
            "privacy.size": sampling.size,
            "privacy.population": sampling.population,
        }

    def announced(self, public: Mapping[str, Any]) -> Release:
        """What one client releases in a round that it takes part in, as its site enters it into its ledger.

        A client that adds the noise itself knows; else it follows from `public`, what the server announced. Raises
        ValueError where that is missing or malformed.
        """
        if self.by_clients:
            return Release(self.what, self.noise_multiplier, self._known_sampling, self.per_round)
        try:
            kind, rate = public["privacy.sampling"], float(public["privacy.rate"])
            drawn = Sampling(kind, rate, int(public["privacy.size"]), int(public["privacy.population"]))
            return Release(self.what, float(public["privacy.noise-multiplier"]), drawn, self.per_round)
        except (KeyError, TypeError) as error:
            raise ValueError("the server does not say what a round costs: install the same version on both") from error

    def terms(self) -> dict[str, Any]:
        """All that the noise follows from, as JSON. A run can be resumed only where it is unchanged."""
        return {
            "mechanism": self.mechanism,
            "clip_norm": self.clip_norm,
            "noise_multiplier": self.noise_multiplier,
            "target_epsilon": self.promise.target_epsilon or None,
            "sampling": asdict(self._known_sampling),
            "per_round": self.per_round,
            "every": self.every,
            "means_noise": self.means_noise if self.means else None,
            **({"metrics_noise": self.metrics.noise_multiplier} if self.metrics else {}),
        }


class Ledger(Protocol):
    """What has been released, in order (`privacy.ledger` is one on disk)."""

    @property
    def releases(self) -> Sequence[Release]:
        """All releases, those of earlier parts of the run included."""

    def append(self, round_: int, attempt: int, *releases: Release) -> None:
        """Enter what is about to be released. When this returns the entry would survive a crash."""


class BudgetSpent(Exception):
    """The next round would exceed the target."""


class Accountant:
    """Charges rounds to a ledger, and says what they come to."""

    def __init__(self, protection: Protection, ledger: Ledger) -> None:
        self._protection, self._ledger = protection, ledger
        self._charged = 0

    def charge(self, round: int, attempt: int) -> None:
        """Enter what an attempt (0, 1, ...) at a round is going to release.

        A second attempt releases something new only where clients add the noise; else nothing is entered. Raises
        BudgetSpent, and enters nothing, where the release would exceed the target.
        """
        if attempt and not self._protection.by_clients:
            return
        self._charged += 1
        release = self._protection.charge(self._charged)
        if release is not None:
            self._enter(round, attempt, release)

    def charge_metrics(self, round: int) -> None:
        """Enter a release of metrics after a round.

        Raises BudgetSpent, and enters nothing, where the release would exceed the target.
        """
        if self._protection.metrics is None:
            raise ValueError("this run releases no metrics: set noisy-metrics")
        self._enter(round, 0, replace(self._protection.metrics, count=1))

    def _enter(self, round: int, attempt: int, release: Release) -> None:
        target = self._protection.promise.target_epsilon
        if target and self._spent([*self._ledger.releases, release]).epsilon > target:
            raise BudgetSpent(f"round {round} would exceed epsilon {target:g} by the {release.what}")
        self._ledger.append(round, attempt, release)

    def epsilon(self) -> float:
        """The epsilon of all that the ledger holds."""
        return self._spent(self._ledger.releases).epsilon

    def _spent(self, releases: Sequence[Release]) -> Spent:
        return spent(releases, self._protection.relation, self._protection.promise.delta)
