"""privacy.json in plain words, for a data-protection officer rather than an engineer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]

UNITS = {"client": "one client, with all of its rows", "record": "one row of a client"}
STRONG, MODERATE = 1.0, 10.0  # the tiers of "How to DP-fy ML", arXiv:2303.00654, section 5.2


@dataclass(frozen=True, slots=True)
class Part:
    """A heading and what stands below it: sentences, or with `listed` entries."""

    title: str
    texts: tuple[str, ...]
    listed: bool = False


def explained(privacy: Facts) -> list[Part]:
    """The promise of a run, from the content of privacy.json."""
    return [
        Part("What is protected", _protected(privacy)),
        Part("How strongly", _strength(privacy)),
        Part("By what", _mechanism(privacy)),
        Part("What was released", tuple(_release(release) for release in privacy["releases"]), listed=True),
        Part("Who must be trusted", tuple(privacy["trust"]), listed=True),
        Part("What is not covered", tuple(privacy["not_covered"]), listed=True),
    ]


def _protected(privacy: Facts) -> tuple[str, ...]:
    neighbours = {
        ("client", "add-remove"): "Two federations are neighbours if one has a client that the other lacks.",
        ("client", "replace-one"): "Two federations are neighbours if a client of one is exchanged for any other.",
        ("record", "add-remove"): "Two federations are neighbours if one has a row whose place is empty in the other.",
        ("record", "replace-one"): "Two federations are neighbours if a row of one is exchanged for any other.",
    }
    unit, relation = privacy["unit"], privacy["relation"]
    said = [f"The unit of protection is {UNITS[unit]}."]
    if "one_row_each" in privacy:
        said.append(f"Of each value of {privacy['one_row_each']!r} a client uses one row.")
    elif unit == "record":
        said.append("Whoever has several rows, such as a patient with several visits, is protected less.")
    return *said, neighbours[unit, relation]


def _strength(privacy: Facts) -> tuple[str, ...]:
    epsilon, delta = claimed(privacy), privacy["delta"]
    if epsilon is None:
        return ("No finite bound on what was spent is known: take the run as unprotected.",)
    found = {name.upper(): value for name, value in privacy["epsilon"].items() if value is not None}
    counted = " and ".join(f"{as_bound(value)} by {name}" for name, value in found.items())
    rounds = f"{privacy['rounds']} round{'' if privacy['rounds'] == 1 else 's'}"
    said = [f"After {rounds} epsilon is {as_bound(epsilon)} at delta {delta:g} ({counted}; the smaller one holds)."]
    if "planned_rounds" in privacy:
        why = "the stop rule reads results, so that the end of the run tells of them"
        said.append(f"That is what all {privacy['planned_rounds']} planned rounds would have cost: {why}.")
    if privacy.get("target_epsilon"):
        said.append(f"The run was told to spend no more than epsilon {privacy['target_epsilon']:g}.")
    return *said, odds(epsilon, delta), tier(epsilon)


def as_bound(epsilon: float) -> str:
    """In four digits, rounded up: a bound that is rounded down is none."""
    return f"{rounded_up(epsilon, 4):.4g}"


def rounded_up(value: float, digits: int) -> float:
    """The least number of so many significant digits that is not below a value. What is no amount stays as it is."""
    if not 1e-300 < value < math.inf:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return math.ceil(value / unit - 1e-9) * unit  # a value of no more digits stays as it is


def odds(epsilon: float, delta: float | None) -> str:
    """What an epsilon means for somebody who sees everything that was released."""
    factor = f"{rounded_up(math.exp(epsilon), 3):.3g}" if epsilon < 15 else "more than a million"
    exception = f", but for a chance of {delta:g}" if delta is not None else ""
    return (
        "Whatever was released, and whatever is computed from it, is at most"
        f" {factor} times as likely with a federation as with its neighbour{exception}."
    )


def tier(epsilon: float) -> str:
    """How much that is."""
    if epsilon <= STRONG:
        return "An epsilon of at most 1 is a strong promise."
    if epsilon <= MODERATE:
        return "An epsilon between 1 and 10 is a moderate promise."
    return "An epsilon above 10 promises little by itself."


def _mechanism(privacy: Facts) -> tuple[str, ...]:
    mechanism = privacy["mechanism"]
    clip, noise, sampling = privacy["clip_norm"], privacy["noise_multiplier"], privacy["sampling"]
    contribution = {"client": "A client's update", "record": "The gradient of a row"}[privacy["unit"]]
    bound = "a norm that follows the clients' norms, under noise" if clip is None else f"the L2 norm {clip:g}"
    unit = {"client": "client", "record": "row"}[privacy["unit"]]
    drawn = {
        "poisson": f"Every {unit} takes part in a release with probability {sampling['rate']:.4g}, drawn in secret.",
        "fixed": f"A share of {sampling['rate']:.4g} of the {unit}s takes part in a release, drawn in secret.",
        "none": f"Nothing is claimed for it that a {unit} may not take part in every release.",
    }
    everyone = sampling["kind"] != "none" and sampling["rate"] == 1
    measured = (_measured(privacy["metrics"], unit),) if "metrics" in privacy else ()
    length = privacy.get("noise_to_updates")
    beside = () if length is None else (f"All noise is {length:.2g} times as long as all updates together can be.",)
    return (
        f"{mechanism[0].upper()}{mechanism[1:]}.",
        f"{contribution} is clipped to {bound}; the noise has {noise:.4g} times that as its standard deviation.",
        f"Every {unit} takes part in every release." if everyone else drawn[sampling["kind"]],
        *beside,
        *measured,
    )


def _measured(metrics: Facts, unit: str) -> str:
    """How far the metrics of the run can be believed."""
    ranges = ", ".join(f"{name} from {low:g} to {high:g}" for name, (low, high) in metrics["ranges"].items())
    if metrics["stddev"] is None:
        stddev = ", ".join(f"{value:.2g} / n for {name}" for name, value in metrics["stddev_times_rows"].items())
        noise = f"of each client: together of a standard deviation of {stddev}, where each has n test rows"
    else:
        stddev = ", ".join(f"{value:.2g} for {name}" for name, value in metrics["stddev"].items())
        noise = f"of a standard deviation of up to {stddev}, and more where clients do not answer"
    return (
        "The metrics of this run are noised sums too: all clients measured the model on their test rows, of which each"
        f" counts within bounds ({ranges}). They hold noise {noise}, and cost every {unit} something."
    )


def _release(release: Facts) -> str:
    return f"{release['count']} x {release['what']}: {release['event']}"


def claimed(privacy: Facts) -> float | None:
    """The smaller of the bounds that the accountants know."""
    known = [value for value in privacy["epsilon"].values() if value is not None]
    return min(known, default=None)
