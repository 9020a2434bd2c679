"""Audits of what the strategies claim: canaries are planted, and what is released says which of them were there.

Everything but the canaries is the product: strategy, round loop, messages, clipping at the node and at the server, the
exact sum, noise, and inside a client DP-SGD. A canary is a client whose update is far longer than the clip norm, in a
direction of its own (for record-dp-fedavg a row with such a gradient), there or not by a fair coin (for
local-dp-fedavg, where neighbours differ by a replacement, in its direction or against it). Its score is the inner
product of all that is released with that direction. Three lower bounds on epsilon, each with 95 % confidence:

one run      Steinke, Nasr & Jagielski 2023 (arXiv:2305.08846), theorem 5.2: takes nothing for granted, but cannot come
             near the claim. It guesses the coins of the `guesses` canaries with the most extreme scores.
trade-off    The same guesses against the whole trade-off curve of a Gaussian mechanism instead of one (epsilon, delta):
             Mahloujifar, Melis & Chaudhuri 2024 (arXiv:2410.22235). Valid where noise is Gaussian.
canary-wise  Every canary a trial of its own: error rates of a threshold set in advance, by Clopper & Pearson, made a
             Gaussian trade-off curve (Nasr et al. 2023, arXiv:2302.07956). The tightest; valid where the noise of
             different coordinates is independent, too.

A claim that one of them exceeds is wrong. `--noise-factor` and `--no-clip` break the mechanism, and leave the claim.
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, inf
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom

from benchmarks.figures import heading
from fl_app.inline import InlineGrid
from privacy.accounting import Release, spent
from privacy.analytic import analytic_gaussian_epsilon
from privacy.entropy import SYSTEM, Entropy
from strategies import wire
from strategies.base import Basics, ComposedStrategy, ServerState, Setting
from strategies.dp_fedavg import DPFedAvg
from strategies.dp_fedavg_adaptive import DPFedAvgAdaptive
from strategies.dp_ftrl import DPFTRL
from strategies.history import RoundReport
from strategies.local_dp_fedavg import LocalDPFedAvg
from strategies.protection import Promise, Protection
from strategies.record_dp_fedavg import RecordDPFedAvg
from strategies.roster import Member, Roster
from strategies.transform import Pipeline, Round, Transform
from strategies.transforms.clipping import CLIP, AdaptiveClip, Clip
from strategies.transforms.correlated_noise import CorrelatedNoiseOnSum, coefficients
from strategies.transforms.noise import LocalNoise, NoiseOnSum
from strategies.update import Arrays, ExactSum, FixedPoint, Update
from strategies.work import PrivateDelta
from tasks.base import Rows, Schema, Shard
from tasks.logistic import LogisticTask

Vector = NDArray[np.float64]
Coins = NDArray[np.bool_]
Contribute = Callable[[str, Arrays], Arrays]

ERROR = 0.05
DELTA = 1e-5
LONG = 100.0
"""Length of a canary's update, and of the gradient of a canary's row, in clip norms: honest nodes clip it."""
ROUNDS = 2
BANDS = 4
"""Of dp-ftrl, and so the rounds of its audit: one stretch, which is one release."""
LEARNING_RATE = 0.01
"""Of record-dp-fedavg: so small that no step changes the direction of a later gradient."""


@dataclass(frozen=True)
class Fault:
    """How the mechanism differs from what it claims. noise_factor: of the noise's standard deviation."""

    noise_factor: float = 1.0
    clip: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a run claims, and what it released of its canaries.

    mu: the claim as that of a Gaussian mechanism, the distance of neighbouring releases in standard deviations.
    scores: (m,) in units that make an honest canary's 1/2 where it is there and -1/2 where it is not, plus noise.
    coins: (m,) whether they were there.
    """

    epsilon: float
    mu: float
    scores: Vector
    coins: Coins


@dataclass(frozen=True)
class Bounds:
    """Of `guesses` coins `correct` were guessed; the three lower bounds on epsilon, in the order of the file."""

    guesses: int
    correct: int
    one_run: float
    trade_off: float
    canary_wise: float

    @property
    def highest(self) -> float:
        """What no right claim is below, but for the error."""
        return max(self.one_run, self.trade_off, self.canary_wise)


# ------------------------------------------------------------------------------------------------------------- bounds


def bounds(outcome: Outcome, guesses: int, delta: float = DELTA) -> Bounds:
    """The audit. `guesses` and the threshold (0) are chosen before the scores are seen."""
    scores, coins = outcome.scores, outcome.coins
    guessed = np.argsort(-np.abs(scores))[:guesses]
    correct = int(((scores[guessed] > 0) == coins[guessed]).sum())
    false = np.array([(scores[~coins] > 0).mean(), (scores[coins] <= 0).mean()])
    counts = np.array([(~coins).sum(), coins.sum()])
    m = len(coins)
    return Bounds(
        guesses,
        correct,
        _largest(lambda epsilon: one_run_error(m, guesses, correct, epsilon, delta) < ERROR),
        _epsilon(_largest(lambda mu: not may_be_so_good(m, guesses, correct, mu)), delta),
        _epsilon(_separation(false, counts), delta),
    )


def one_run_error(m: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The probability of so many correct guesses under (epsilon, delta), at most: theorem 5.2 of arXiv:2305.08846."""
    accuracy = 1 / (1 + exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, accuracy))
    fewer = np.arange(1, correct + 1)
    alpha = np.max(np.cumsum(binom.pmf(correct - fewer, guesses, accuracy)) / fewer, initial=0.0)
    return min(1.0, tail + 2 * m * delta * float(alpha))


def may_be_so_good(m: int, guesses: int, correct: int, mu: float, error: float = ERROR) -> bool:
    """Whether a Gaussian mechanism of this mu can let so many of the guesses be correct with probability `error`.

    Flipping one coin turns "guess i is right, and c - 1 others are" into "it is wrong, and c - 1 others are right". So
    with p_j, the probability of j right guesses, and the trade-off curve f, for every c (arXiv:2410.22235):

        sum_(j >= c) j p_j / m  <=  1 - f(sum_(j >= c-1) (guesses - j) p_j / m)

    From p_correct = error downwards each p is as small as this allows; together they must not exceed 1.
    """
    right, wrong, total = correct * error, (guesses - correct) * error, error
    for c in range(correct, 0, -1):
        needed = m * float(ndtr(ndtri(right / m) - mu))
        p = max(0.0, (needed - wrong) / (guesses - c + 1))
        right, wrong, total = right + (c - 1) * p, wrong + (guesses - c + 1) * p, total + p
        if total > 1:
            return False
    return True


def _separation(false: Vector, counts: NDArray[np.int_]) -> float:
    """A lower bound on mu, from the shares of false positives and negatives of so many trials."""
    wrong = np.rint(false * counts)
    above = beta.ppf(1 - ERROR / 2, wrong + 1, counts - wrong)
    return max(0.0, float(-ndtri(np.where(wrong < counts, above, 1.0)).sum()))


def _largest(excluded: Callable[[float], bool]) -> float:
    """The end of the interval from 0 on that is excluded."""
    low, high = 0.0, 40.0
    if not excluded(low + 1e-6):
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if excluded(middle) else (low, middle)
    return low


def _epsilon(mu: float, delta: float) -> float:
    return analytic_gaussian_epsilon(delta, 1 / mu) if mu > 1e-3 else 0.0


# ----------------------------------------------------------------------------------------------- the broken mechanisms


class UnlimitedNoise(NoiseOnSum):
    """Noise on the sum, at a server that does not clip again."""

    def limit(self, update: Update, round: Round) -> Update:
        return update


class UnlimitedCorrelatedNoise(CorrelatedNoiseOnSum):
    """The same of correlated noise."""

    def limit(self, update: Update, round: Round) -> Update:
        return update


class UnclippedUnits(AdaptiveClip):
    """Updates in units of the announced norm, however long."""

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        units = tuple(array / float(round.public[CLIP]) for array in update.arrays)
        return replace(update, arrays=(*units, np.full(1, -self.bit_scale / 2))), state


def break_it(strategy: ComposedStrategy, fault: Fault, entropy: Entropy) -> None:
    """Build the fault, and the source of the noise, into a strategy."""
    pipeline = (_broken(step, fault, entropy) for step in strategy.pipeline.transforms)
    strategy.pipeline = Pipeline(tuple(step for step in pipeline if step is not None))
    if isinstance(work := strategy.work, PrivateDelta):
        strategy.work = replace(work, protection=_weaker(work.protection, fault))


def _broken(step: Transform, fault: Fault, entropy: Entropy) -> Transform | None:
    match step:
        case Clip():
            return step if fault.clip else None
        case AdaptiveClip() if not fault.clip:
            return UnclippedUnits(step.initial, step.quantile, step.learning_rate, step.bit_scale, step.expected)
        case NoiseOnSum():
            central = NoiseOnSum if fault.clip else UnlimitedNoise
            return central(_weaker(step.protection, fault), step.sensitivity, entropy)
        case CorrelatedNoiseOnSum():
            correlated = CorrelatedNoiseOnSum if fault.clip else UnlimitedCorrelatedNoise
            return correlated(_weaker(step.protection, fault), step.sensitivity, step.bands, entropy)
        case LocalNoise():
            return LocalNoise(_weaker(step.protection, fault), step.clip_norm, entropy)
    return step


def _weaker(protection: Protection, fault: Fault) -> Protection:
    """The protection with the faulty noise; inside a client, where it clips by it, without a clip that matters."""
    widened = 1.0 if fault.clip or protection.unit == "client" else 10 * LONG
    noise = fault.noise_factor * protection.noise_multiplier / widened
    clip_norm = None if protection.clip_norm is None else protection.clip_norm * widened
    return replace(protection, promise=Promise(0.0, noise, protection.promise.delta), clip_norm=clip_norm)


# --------------------------------------------------------------------------------------------------------------- runs


class MemoryLedger:
    """A ledger that nobody reads: the claim is that of the strategy before it was broken."""

    def __init__(self) -> None:
        self.releases: list[Release] = []

    def append(self, round_: int, attempt: int, *releases: Release) -> None:
        """Keeps them."""
        self.releases += releases


@dataclass(frozen=True)
class Members:
    """A roster that stays as it is."""

    clients: tuple[str, ...]
    node: int

    def current(self, grid: Any) -> Roster:
        """All clients, on one node."""
        return Roster(Member(client, self.node, 1) for client in self.clients)


def play(
    strategy: ComposedStrategy, clients: tuple[str, ...], params: Arrays, contribute: Contribute, rounds: int
) -> tuple[list[ServerState], list[dict[str, Arrays]]]:
    """All rounds of a strategy: the server's states, the first included, and what each client sent in each round."""
    sent: list[dict[str, Arrays]] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order, received = wire.read_order(message.content), wire.read_params(message.content)
        grid, pipeline = FixedPoint(order.fraction_bits), strategy.pipeline
        info = Round(order.round, 0, grid, order.public, strategy.work.returns(received))
        fold = ExactSum(grid)
        sent.append({})
        for client in order.clients:  # as fl_app/local_round.py
            update, _ = pipeline.encode(Update(contribute(client, received), (client,)), (), info)
            sent[-1][client] = update.arrays
            update = replace(update, payload_bytes=wire.encoded_bytes(update.arrays))
            fold.add(pipeline.limit(pipeline.decode_each(update, info), info))
        return Message(wire.answer_content(wire.Answer((fold.total(),), ())), reply_to=message)

    grid = InlineGrid(app, {}, nodes=1)
    states = [strategy.first_state(params)]

    def keep(report: RoundReport, state: ServerState) -> None:
        states.append(state)

    setting = Setting(roster=Members(clients, next(iter(grid.get_node_ids()))), ledger=MemoryLedger(), on_round=keep)
    start: ArrayRecord = wire.params_record(params)
    strategy.start(grid, start, num_rounds=rounds, setting=setting)
    return states, sent


def audited(
    name: str,
    *,
    epsilon: float,
    canaries: int,
    fault: Fault = Fault(),
    entropy: Entropy = SYSTEM,
    seed: int | None = None,
) -> Outcome:
    """One run of a strategy that claims `epsilon` at DELTA. `entropy`: of the noise; `seed`: of the coins."""
    # Another stream than any that the entropy of a test may have from the same seed: noise must not know the coins.
    coins = np.random.default_rng(None if seed is None else [seed, 0xC01]).random(canaries) < 0.5
    rounds = BANDS if name == "dp-ftrl" else ROUNDS
    population = canaries * BANDS if name == "dp-ftrl" else canaries
    size = canaries if name == "dp-ftrl" else 0
    basics = Basics(clients_per_round=size, min_clients=0, rounds=rounds, population=population)
    strategy = BUILD[name](basics, epsilon)
    protection = strategy.protection
    assert protection is not None
    releases = [release for n in range(1, rounds + 1) if (release := protection.charge(n))]
    claimed = spent(releases, protection.relation, DELTA).epsilon
    distance = 2 if protection.relation == "replace-one" else 1
    mu = distance * sum(release.count for release in releases) ** 0.5 / protection.noise_multiplier
    break_it(strategy, fault, entropy)
    return Outcome(claimed, mu, SCORES.get(name, _central)(strategy, coins, rounds, entropy), coins)


BUILD: dict[str, Callable[[Basics, float], ComposedStrategy]] = {
    "dp-fedavg": lambda basics, epsilon: DPFedAvg(basics, target_epsilon=epsilon, delta=DELTA, sampling="none"),
    "dp-fedavg-adaptive": lambda basics, epsilon: DPFedAvgAdaptive(
        basics, target_epsilon=epsilon, delta=DELTA, sampling="none"
    ),
    "dp-ftrl": lambda basics, epsilon: DPFTRL(basics, target_epsilon=epsilon, delta=DELTA, bands=BANDS),
    "local-dp-fedavg": lambda basics, epsilon: LocalDPFedAvg(basics, target_epsilon=epsilon, delta=DELTA),
    "record-dp-fedavg": lambda basics, epsilon: RecordDPFedAvg(basics, target_epsilon=epsilon, delta=DELTA),
}


def _central(strategy: ComposedStrategy, coins: Coins, rounds: int, entropy: Entropy) -> Vector:
    """Of the models that a trusted server publishes; who is not there is not in the roster.

    Correlated noise is made white again first: C n = Z, and a client of round 1 moves C x by (c_0, c_1, ...).
    """
    names = _names(len(coins))
    place = {name: i for i, name in enumerate(names)}

    def contribute(client: str, params: Arrays) -> Arrays:
        canary = np.zeros(len(coins))
        canary[place[client]] = LONG
        return (canary,)

    there = tuple(name for name, coin in zip(names, coins, strict=True) if coin)
    states, _ = play(strategy, there, (np.zeros(len(coins)),), contribute, rounds)
    models = np.array([state.params[0] for state in states])
    sums = np.diff(models, axis=0) * len(coins)  # the fixed divisor: (rounds, m)
    if strategy.pipeline.begin():
        sums, weights = _white(strategy.pipeline, states, sums)
    else:
        weights = np.ones(rounds)
    return np.asarray(weights @ sums / (weights @ weights) - 0.5)


def _white(pipeline: Pipeline, states: list[ServerState], sums: Vector) -> tuple[Vector, Vector]:
    """What was released in units of the clip norm with independent noise, and what a canary moves of it."""
    if any(isinstance(step, AdaptiveClip) for step in pipeline.transforms):
        norms = np.array([float(state.pipeline[0]) for state in states[:-1]])
        return sums / norms[:, None], np.ones(len(sums))
    c = coefficients(BANDS)
    return np.array([c[: t + 1][::-1] @ sums[: t + 1] for t in range(BANDS)]), c


def _local(strategy: ComposedStrategy, coins: Coins, rounds: int, entropy: Entropy) -> Vector:
    """Of what each client sends."""
    side = dict(zip(_names(len(coins)), np.where(coins, LONG, -LONG), strict=True))
    _, sent = play(
        strategy, tuple(side), (np.zeros(4),), lambda client, params: (np.array([side[client], 0, 0, 0]),), rounds
    )
    return np.array([np.mean([arrays[client][0][0] for arrays in sent]) / 2 for client in side])


def _records(strategy: ComposedStrategy, coins: Coins, rounds: int, entropy: Entropy) -> Vector:
    """Of the models that one client with all the rows makes. Row i has one feature, the ith, and class 1."""
    m, there = len(coins), np.flatnonzero(coins)
    x = np.zeros((len(there), m))
    x[np.arange(len(there)), there] = 2 * LONG  # the gradient is half of it, as the model knows nothing yet
    task = LogisticTask(Schema(_names(m), "there", ("no", "yes")))
    task.entropy = entropy
    rows = Rows(x, np.ones(len(there), np.int64))
    client = task.make_client(Shard("0", rows, rows))
    config = {
        "solver": "sgd", "local-epochs": 1, "local-steps": 0, "batch-size": 0, "learning-rate": LEARNING_RATE,
        "l1": 0.0, "l2": 0.0, "seed": 0, "metrics": False, **strategy.work.asks(),
    }  # fmt: skip

    def contribute(name: str, params: Arrays) -> Arrays:
        returned: Any = client.fit([array.copy() for array in params], config)
        return strategy.work.contribution(params, tuple(returned[0]), ())[0]

    states, _ = play(strategy, ("0",), tuple(task.initial_arrays(0)), contribute, rounds)
    moved = states[-1].params[0].ravel() - states[0].params[0].ravel()
    return np.asarray(moved * len(there) / (LEARNING_RATE * rounds) - 0.5)  # the divisor of a step is public


SCORES: dict[str, Callable[[ComposedStrategy, Coins, int, Entropy], Vector]] = {
    "local-dp-fedavg": _local,
    "record-dp-fedavg": _records,
}


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"{i:06}" for i in range(count))


# --------------------------------------------------------------------------------------------------------------- table


def main() -> None:
    """Audit and print."""
    options = _options()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    heading(f"Lower bounds on epsilon at delta {DELTA:g}, each with {1 - ERROR:.0%} confidence")
    fault = Fault(options.noise_factor, not options.no_clip)
    guesses = options.guesses or options.canaries // 10
    print(f"{options.canaries} canaries, guesses at the {guesses} most extreme; fault: {_told(fault)}")
    print(f"{'':20}{'claimed':>9}{'correct':>12}{'one run':>9}{'trade-off':>11}{'canary-wise':>13}  the claim")
    for name in options.strategy or BUILD:
        outcome = audited(name, epsilon=options.epsilon, canaries=options.canaries, fault=fault)
        found = bounds(outcome, guesses)
        verdict = "is EXCEEDED" if found.highest > outcome.epsilon else "stands"
        print(
            f"{name:20}{outcome.epsilon:9.3f}{f'{found.correct}/{guesses}':>12}{found.one_run:9.2f}"
            f"{found.trade_off:11.2f}{_shown(found.canary_wise):>13}  {verdict}",
            flush=True,
        )


def _told(fault: Fault) -> str:
    told = [] if fault.noise_factor == 1 else [f"noise times {fault.noise_factor:g}"]
    return " and ".join([*told, *([] if fault.clip else ["no clip"])]) or "none"


def _shown(epsilon: float) -> str:
    return f"{epsilon:.2f}" if epsilon < inf else "inf"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Lower bounds on epsilon by planted canaries.")
    parser.add_argument("--strategy", action="append", choices=tuple(BUILD), help="all by default; may be repeated")
    parser.add_argument("--epsilon", type=float, default=4.4, help="what the strategy is asked to keep")
    parser.add_argument("--canaries", type=int, default=4000)
    parser.add_argument("--guesses", type=int, default=0, help="0 = a tenth of the canaries")
    parser.add_argument("--noise-factor", type=float, default=1.0, help="of the noise that the claim needs")
    parser.add_argument("--no-clip", action="store_true", help="leave the clip out, at the nodes and at the server")
    return parser.parse_args()


if __name__ == "__main__":
    main()
