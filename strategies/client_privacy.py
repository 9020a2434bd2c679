"""What the strategies that protect whole clients have in common: how a cohort is drawn, and whom one must trust."""

from typing import Literal

from strategies.base import Basics
from strategies.protection import Promise, Protection
from strategies.sampling import Poisson, Sampler, SecretFixedSize, clients_per_round

CohortSampling = Literal["poisson", "fixed", "none"]

CENTRAL_TRUST = (
    "Whoever runs the server: it sees the clipped update of every client, or of every node's clients together, and adds"
    " the noise.",
    "The nodes, for the clients they host: they clip, and may add up several clients' updates before they send them.",
    "The machines' randomness: noise and cohorts come from the operating system.",
)

SECRET_TRUST = (
    *CENTRAL_TRUST,
    "That nobody learns who was drawn in which round: whoever can watch the network of a client can tell.",
)


def cohort_sampler(sampling: CohortSampling, basics: Basics) -> Sampler:
    """The sampler of that kind, for the run's `clients-per-round` (0 = all). Raises ValueError for a cohort larger than
    the population."""
    if sampling == "none":
        return clients_per_round(basics.clients_per_round)
    size = basics.clients_per_round or basics.population
    return Poisson(size, basics.population) if sampling == "poisson" else SecretFixedSize(size, basics.population)


def central_protection(
    basics: Basics, sampler: Sampler, promise: Promise, *, mechanism: str, clip_norm: float | None, what: str
) -> Protection:
    """Of whole clients, whose cohort this sampler draws, by noise that the server adds.

    Neighbours differ by adding or removing a client; with a cohort of fixed size one takes the place of another.
    """
    return Protection(
        unit="client",
        relation="replace-one" if isinstance(sampler, SecretFixedSize) else "add-remove",
        mechanism=mechanism,
        promise=promise,
        clip_norm=clip_norm,
        sampling=sampler.describe() if basics.population else None,  # a node does not know the number of clients
        rounds=basics.rounds,
        means=basics.private_means,
        metrics=basics.metrics,
        what=what,
        trust=SECRET_TRUST if sampler.secret else CENTRAL_TRUST,
    )
