"""What a run promises of privacy, on disk: its ledger, and privacy.json, which people read.

Here also stands whether a run can keep its promise at all, which is refused before the start.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

from fl_app.assembly import build_dataset, build_strategy, build_task, population
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.privacy_words import claimed as claimed_epsilon
from fl_app.run_folder import RunFolder
from privacy.accounting import Release, Sampling, curve, spent
from privacy.ledger import Ledger, Terms
from strategies.base import ComposedStrategy
from strategies.history import finite
from strategies.private_metrics import PrivateMetrics
from strategies.protection import BESIDE, METRICS, Protection
from strategies.transforms.noise import NoiseOnSum
from strategies.update import Arrays
from tasks.base import Schema

NOT_COVERED = (
    "What was declared before the run: column names, ranges, categories, classes, and the number of clients.",
    "That a client belongs to the federation, that it was found eligible, and when its node is online.",
    "How long rounds take.",
    "Other runs on the same rows: each spends its own epsilon, also those made to choose learning rates or clip norms.",
)
OF_SPLIT = (
    "How a client's rows fell into those to train and those to test on, which is taken as given: by their classes, so"
    " that without a row others could have fallen otherwise."
)
OF_ROWS = (
    "How many rows a client has to train and to test on: a row that is missing leaves its place empty. So who has many"
    " rows and who has few can be told: the promise is for single rows of a client, not for the client as a whole."
)
OF_PERSON = (
    "Several rows of one person together, such as a patient's visits: the promise is for each row by itself. For k rows"
    " of one person it holds with k times epsilon, and with delta times k exp((k - 1) epsilon)."
    ' data-args="group=COLUMN rows-per-group=1" has each client use one row of a person.'
)
OF_PERSON_ELSEWHERE = (
    "A person who is at several clients, or stands under several values of {column!r}: each is a unit of its own."
)
OF_MEANS = (
    "Whoever runs the server also sees the means of the features of every client, or of every node's clients together,"
    " before it adds the noise."
)
OF_METRICS = (
    "Whoever runs the server also sees the metrics of every client, or of every node's clients together, before it adds"
    " the noise."
)
OF_ROUNDING = (
    "The last bits of the metrics of a row: they are computed together with those of other rows, in floating point."
)
BY_DROPPING = "Which clients did not answer well in a round, and why: who takes part is no secret here."
UNMADE = ", planned and not made, but counted: a stop rule that reads results could end the run"
BY_SERVER = "The rows that the server tests the model on, whose metrics are exact."


def settled_strategy(config: RunConfig, folder: RunFolder) -> ComposedStrategy:
    """The strategy as the server builds it: with the number of clients and, in a resumed run, the noise used so far.

    Raises Refused where privacy rests on the number of clients and it is not known, where the budget of a new run does
    not pay for one round, and where a resumed run has lost its ledger.
    """
    if build_strategy(config).protection is None:
        return build_strategy(config)
    clients = population(config)
    if not clients:
        remedy = "set num-clients, which the promise makes public"
        raise Refused(f"strategy={config.strategy} promises privacy", "the number of clients is not known", remedy)
    noise = 0.0
    if folder.ledger.exists():
        noise = float(_read(folder).terms.mechanism["noise_multiplier"])
    strategy = build_strategy(config, clients, noise)
    try:
        assert strategy.protection is not None  # noqa: S101  (the same words made it above)
        strategy.protection.terms()
        if not config.resume:
            strategy.protection.check_budget()
        elif strategy.protection.by_clients and noise:  # without a ledger the next check says so
            _check_clients_noise(config, clients, noise)
    except ValueError as error:
        raise Refused("the promise cannot be kept", f"strategy-args={config.strategy_args!r}", str(error)) from error
    if config.resume:
        _check_nothing_is_forgotten(folder, strategy.protection)
    return strategy


def _check_clients_noise(config: RunConfig, clients: int, noise: float) -> None:
    """Raises ValueError where clients would add another noise than so far.

    They know how many rounds are planned, but not the ledger; so the noise they compute follows from `rounds`.
    """
    protection = build_strategy(config, clients).protection
    if protection is not None and protection.noise_multiplier != noise:
        raise ValueError(
            f"clients add the noise, of multiplier {noise:g} so far; for rounds={config.rounds} they would add"
            f" {protection.noise_multiplier:g}: leave rounds as they were, or start a new run"
        )


def _check_nothing_is_forgotten(folder: RunFolder, protection: Protection) -> None:
    """Raises Refused where the ledger lacks releases that the checkpoint's rounds made: it is lost, or an old copy."""
    played = Checkpoint.read(folder.checkpoint).state.round
    entries = _read(folder).entries if folder.ledger.exists() else ()
    trained = max((entry.round for entry in entries if entry.release.what not in BESIDE), default=1 - protection.every)
    paid = {entry.round for entry in entries if entry.release.what == METRICS}
    history = folder.read_rounds(played) if protection.metrics else []
    measured = {report.round for report in history if report.metrics}
    if trained + protection.every <= played or not measured <= paid:
        remedy = "restore it from a copy, or start a new run"
        raise Refused(f"the ledger lacks rounds of the {played} that were played", str(folder.ledger), remedy)


def open_ledger(folder: RunFolder, protection: Protection | None) -> Ledger | None:
    """The run's ledger. Raises Refused for one of another mechanism, or a damaged one."""
    if protection is None:
        return None
    try:
        return Ledger.open(folder.ledger, _terms(protection))
    except ValueError as error:
        raise Refused("the ledger does not fit", str(folder.ledger), str(error)) from error


def _terms(protection: Protection) -> Terms:
    return Terms(protection.unit, protection.relation, protection.promise.delta, protection.terms())


def _read(folder: RunFolder) -> Ledger:
    try:
        return Ledger.read(folder.ledger)
    except ValueError as error:
        raise Refused("the ledger cannot be read", str(folder.ledger), str(error)) from error


def privacy_json(folder: RunFolder, config: RunConfig, rounds: int, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The content of privacy.json after `rounds` rounds; None where nothing is promised.

    Everything that was written into the ledger counts, whether or not the round came to its end. Where results decide
    when the run ends, all that was planned counts: `epsilon` is then that of all rounds, `curve` that of each so far.
    """
    strategy = build_strategy(config)
    protection = strategy.protection
    if protection is None or not folder.ledger.exists():
        return None
    ledger = _read(folder)
    terms, mechanism = ledger.terms, ledger.terms.mechanism
    unmade = _unmade(ledger, config, rounds, protection)
    total = spent([*ledger.releases, *unmade], terms.relation, terms.delta)
    epsilons = curve(ledger.by_round(), terms.relation, terms.delta)
    epsilons += epsilons[-1:] * (rounds - len(epsilons))
    not_covered = [*NOT_COVERED, *protection.not_covered]
    column = build_dataset(config).one_row_each if terms.unit == "record" else ""
    of_person = OF_PERSON_ELSEWHERE.format(column=column) if column else OF_PERSON
    not_covered += [OF_ROWS, OF_SPLIT, of_person] if terms.unit == "record" else []
    not_covered += [OF_ROUNDING] if terms.unit == "record" and protection.metrics else []
    not_covered += [] if strategy.sampler.secret else [BY_DROPPING]
    not_covered += [BY_SERVER] if checkpoint.metrics_on == "server" else []
    content: dict[str, Any] = finite(
        {
            "schema": 1,
            "unit": terms.unit,
            **({"one_row_each": column} if column else {}),
            "relation": terms.relation,
            "mechanism": mechanism["mechanism"],
            "clip_norm": mechanism["clip_norm"],
            "noise_multiplier": mechanism["noise_multiplier"],
            "sampling": {"kind": mechanism["sampling"]["kind"], "rate": mechanism["sampling"]["rate"]},
            "rounds": rounds,
            **({"planned_rounds": config.rounds} if unmade else {}),
            "releases": _entries([*ledger.releases, *unmade]),
            "epsilon": _within(mechanism["target_epsilon"], pld=total.pld, rdp=total.rdp),
            "delta": terms.delta,
            "target_epsilon": mechanism["target_epsilon"],
            **_noise_to_updates(config, mechanism["noise_multiplier"], rounds, checkpoint.state.params),
            **_metrics(config, protection, checkpoint.design.schema),
            "curve": [[number, epsilon] for number, epsilon in enumerate(epsilons, 1)],
            "not_covered": not_covered,
            "trust": [*protection.trust, *_of_server(protection)],
        }
    )
    return content


def _of_server(protection: Protection) -> list[str]:
    """What is to be trusted to the server besides clipped updates, where it adds the noise."""
    if protection.by_clients:
        return []
    return [*([OF_MEANS] if protection.means else []), *([OF_METRICS] if protection.metrics else [])]


def _noise_to_updates(config: RunConfig, noise: float, rounds: int, params: Arrays) -> dict[str, Any]:
    """How long the noise of all rounds is beside all updates, were these as long as the clip norm and of one direction.

    Above 1 a run can hardly have learned anything. Told where the server adds new noise to each sum of updates: with
    noise multiplier z, P parameters, cohorts of m clients and T rounds it is z sqrt(P) sqrt(T) / m beside T, both in
    units of the clip norm.
    """
    strategy = build_strategy(config, population(config))
    if not rounds or not any(isinstance(transform, NoiseOnSum) for transform in strategy.pipeline.transforms):
        return {}
    cohort = strategy.sampler.cohort_size(strategy.basics.population)
    size = sum(array.size for array in params)
    return {"noise_to_updates": noise * sqrt(size / rounds) / cohort}


def _metrics(config: RunConfig, protection: Protection, schema: Schema) -> dict[str, Any]:
    """Ranges and noise of the run's metrics, where they are released with noise; else nothing. Where rows are protected
    the noise depends on how many test rows clients have: `stddev_times_rows` is to be divided by that number."""
    if protection.metrics is None:
        return {}
    asked = PrivateMetrics(protection, build_task(config, schema).metric_ranges)
    stddev, by_rows = asked.stddev(population(config)), protection.unit == "record"
    told = {"stddev": None if by_rows else stddev, "stddev_times_rows": stddev if by_rows else None}
    return {"metrics": {"ranges": asked.ranges, **told}}


def _unmade(ledger: Ledger, config: RunConfig, rounds: int, protection: Protection) -> list[Release]:
    """What is still planned after `rounds` rounds, where a stop rule may have read from results that it is not needed.

    When such a run ends tells of its results, and that the epsilon of the rounds played holds where results choose how
    many they are is not known (Rogers et al. 2016, arXiv:1605.08294). That of all planned rounds holds, since a run
    that ended before them shows less. A resumed part begins anew with what several rounds pay for.
    """
    if config.stop == "rounds":
        return []
    mechanism, made = ledger.terms.mechanism, [release for release in ledger.releases if release.what == METRICS]
    first = rounds if config.resume else 0
    paid, planned = (-(-(number - first) // mechanism["every"]) for number in (rounds, config.rounds))
    drawn, noise = Sampling(**mechanism["sampling"]), mechanism["noise_multiplier"]
    left = [(protection.what + UNMADE, noise, drawn, mechanism["per_round"] * (planned - paid))]
    if (metrics := protection.metrics) is not None:
        count = metrics.count - sum(release.count for release in made)
        left.append((METRICS + UNMADE, metrics.noise_multiplier, metrics.sampling, count))
    return [Release(*terms) for terms in left if terms[-1] > 0]


def _within(target: float | None, **epsilons: float | None) -> dict[str, float | None]:
    """No run exceeds its target, however many rounds are planned."""
    return {name: min(e, target) if target and e is not None else e for name, e in epsilons.items()}


def _entries(releases: Sequence[Release]) -> list[dict[str, Any]]:
    """Releases as privacy.json tells of them, those of the same thing together."""
    return [
        _entry([release for release in releases if release.what == what])
        for what in dict.fromkeys(release.what for release in releases)
    ]


def _entry(alike: Sequence[Release]) -> dict[str, Any]:
    sampling = alike[0].sampling
    drawn = {"poisson": f"Poisson sampling at rate {sampling.rate:.6g}", "none": "no sampling"}.get(
        sampling.kind, f"{sampling.size} of {sampling.population} without replacement"
    )
    event = f"Gaussian, noise multiplier {alike[0].noise_multiplier:.6g}, {drawn}"
    return {"what": alike[0].what, "count": sum(release.count for release in alike), "event": event}


def claimed(privacy: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part of privacy.json that also stands in summary.json."""
    if privacy is None:
        return None
    epsilon = claimed_epsilon(privacy)
    by = [name for name, value in privacy["epsilon"].items() if value is not None and value == epsilon]
    accountant = by[0] if by else None
    also: dict[str, Any] = {
        key: privacy[key] for key in ("planned_rounds", "noise_to_updates", "metrics") if key in privacy
    }
    return {"unit": privacy["unit"], "epsilon": epsilon, "delta": privacy["delta"], "accountant": accountant, **also}
