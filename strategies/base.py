"""The one round loop, of all strategies. A strategy chooses the parts that the loop is made of, and overrides nothing.

configure_train   sampler -> cohort -> orders to the nodes that host it
Exchange          replies come one by one
aggregate_train   check -> pipeline.decode_each -> fold -> pipeline.decode_sum -> aggregate -> server optimiser
evaluation        at the server, or by an exchange with the clients
RoundReport       -> stop rule -> on_round (report, checkpoint)
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from privacy.accounting import Release, Sampling
from strategies import wire
from strategies.aggregation import Aggregator
from strategies.downlink import Downlink, StepCodec
from strategies.exchange import Exchange
from strategies.history import Metrics, MetricSpec, RoundReport
from strategies.optimizers import Contributors, ServerOptimizer
from strategies.private_metrics import PrivateMetrics, Ranges
from strategies.protection import METRICS, Accountant, BudgetSpent, Ledger, Protection
from strategies.roster import Member, Roster
from strategies.rounds import OpenRound, Plain, relative_change
from strategies.sampling import Draw, Sampler, clients_per_round, derive_seed, round_rng
from strategies.stopping import Rounds, StopReason, StopRule
from strategies.transform import IllegalChain, Pipeline, Round
from strategies.update import Arrays, ExactSum, FixedPoint, Update
from strategies.work import LocalWork

ATTEMPTS = 2


class Diverged(RuntimeError):
    """The server's step gave a NaN or an infinity. The params before the step are kept."""


class TooFewClients(RuntimeError):
    """A round had too few good updates twice, or the federation has too few clients."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """All that a run needs to go on after `round` rounds; a checkpoint holds it."""

    round: int
    params: Arrays
    optimizer: Arrays
    """The state of the server optimiser."""
    used_rounds: Mapping[str, int] = field(default_factory=dict)
    """The last round that used an update of each client. Empty where clients keep no state."""
    pipeline: Arrays = ()
    """The server's state of the pipeline."""
    sent: Arrays = ()
    """The model that clients were sent last, where compression on the way down makes it differ from the params."""
    asked_rounds: Mapping[str, int] = field(default_factory=dict)
    """The last round for which each client was drawn. Empty where the sampler does not need it."""


class RosterSource(Protocol):
    """Where the loop gets the clients from that it can ask. Also enrols nodes that have joined since."""

    def current(self, grid: Grid) -> Roster:
        """The roster for the next round."""


Observer = Callable[[RoundReport, ServerState], None]


class NodesAsClients:
    """A roster without enrolment: every node is one client, named by the node's id, with one example."""

    def current(self, grid: Grid) -> Roster:
        """All nodes now connected."""
        return Roster(Member(str(node), node, 1) for node in grid.get_node_ids())


@dataclass(frozen=True)
class Basics:
    """What every strategy is given, whatever its parts: the keys of the run that concern the loop.

    The first five are for the loop itself. From the others follows the noise of strategies that promise privacy.
    """

    clients_per_round: int = 0
    """0 = all."""
    over_selection: float = 0.0
    """The share of `clients_per_round` that is drawn on top of it."""
    stop: StopRule = field(default_factory=Rounds)
    min_clients: int = 2
    seed: int = 0
    rounds: int = 1
    population: int = 0
    """The number of clients, which a run that promises privacy publishes. 0 where it is not known, as at a node."""
    noise_multiplier: float = 0.0
    """That of an earlier part of the run, which a resumed run keeps. 0 = to be computed from the promise."""
    batch_size: int = 0
    min_examples: int = 1
    local_epochs: int = 1
    local_steps: int = 0
    private_means: bool = False
    """Whether the means of the features are released, with noise, before the first round."""
    noisy_metrics: float = 0.0
    """The noise multiplier of a release of metrics that clients measure. 0 = no such releases."""
    evaluate_every: int = 0
    """Rounds between two of these releases; 0 = one at the end."""

    @property
    def metrics(self) -> Release | None:
        """All releases of metrics that the planned rounds come to; None for none.

        A run that a stop rule ends earlier makes no more of them than are planned here.
        """
        if not self.noisy_metrics:
            return None
        count = -(-self.rounds // (self.evaluate_every or self.rounds))
        return Release(METRICS, self.noisy_metrics, Sampling("none"), count)


@dataclass(frozen=True)
class Setting:
    """What one run of a strategy has around it: the clients, the metrics, and what came before."""

    roster: RosterSource = field(default_factory=NodesAsClients)
    metrics: MetricSpec | None = None
    """Which metric sums clients return. None = they measure nothing."""
    metric_ranges: Ranges = field(default_factory=dict)
    """The ranges of the metrics that clients measure under noise (strategies/private_metrics.py)."""
    fold: bool = True
    """Whether nodes may add up their clients' updates."""
    train_metrics: bool = False
    """Whether clients measure the model that they receive, and send the sums with their updates."""
    client_state: bool = False
    """Whether the model has arrays that stay at the clients, so that clients keep state whatever the strategy."""
    evaluate_every: int = 0
    """Rounds between two evaluations; 0 = one at the end."""
    resume: ServerState | None = None
    """Where an earlier part of the run ended. `history` holds the reports of its rounds."""
    history: Sequence[RoundReport] = ()
    ledger: Ledger | None = None
    """Where a strategy that promises privacy writes what it spends. Without one it cannot run."""
    on_round: Observer = lambda report, state: None


@dataclass
class RunResult(Result):
    """Flower's result, with why the run ended and what each round did; `used_rounds` as in `ServerState`."""

    stop_reason: StopReason = "rounds"
    history: list[RoundReport] = field(default_factory=list)
    used_rounds: Mapping[str, int] = field(default_factory=dict)


class ComposedStrategy(Strategy):
    """A Flower strategy made of parts. Named strategies choose the parts in `__init__` and override nothing.

    Constructors are pure: the client builds the same object from the same configuration to get the same pipeline.
    Raises IllegalChain where the parts cannot work together.
    """

    def __init__(
        self,
        basics: Basics,
        *,
        work: LocalWork,
        pipeline: Pipeline,
        aggregator: Aggregator,
        server_optimizer: ServerOptimizer,
        sampler: Sampler | None = None,
        downlink: StepCodec | None = None,
    ) -> None:
        """`sampler` draws the cohorts; without one they are `clients_per_round` clients drawn at random. `downlink`
        encodes the model on its way to the clients; without one all of it is sent in every round.
        """
        if aggregator.needs_each and pipeline.seals:
            raise IllegalChain(f"{type(aggregator).__name__} needs every client's update, which the pipeline seals")
        if aggregator.needs_each and pipeline.opens_sum:
            raise IllegalChain(
                f"{type(aggregator).__name__} needs every client's update, which the pipeline opens on the sum only"
            )
        if pipeline.sensitivity is not None and not aggregator.divisor_is_public:
            raise IllegalChain(
                f"{type(aggregator).__name__} divides by what depends on private counts,"
                " which noise on the sum does not hide: use a fixed public denominator"
            )
        if basics.over_selection and (pipeline.protection or work.protection):
            raise IllegalChain(
                "over-selection lets the fastest clients decide who takes part,"
                " on which no promise of privacy can rest: leave it out"
            )
        self.basics = basics
        self.work = work
        self.pipeline = pipeline
        self.aggregator = aggregator
        self.server_optimizer = server_optimizer
        self.sampler = sampler or clients_per_round(basics.clients_per_round, basics.over_selection)
        self.downlink = downlink
        self._setting = Setting()
        self._timeout_s = 3600.0
        self._state = ServerState(0, (), ())
        self._open: OpenRound | None = None
        self._down: Downlink | None = None
        self._accountant: Accountant | None = None

    @property
    def nodes_may_fold(self) -> bool:
        """Whether a sum of several clients' updates is all that the server needs."""
        return not self.aggregator.needs_each

    @property
    def stateful(self) -> bool:
        """Whether the strategy has clients keep state between rounds: for the work or for the pipeline."""
        return self.work.stateful or self.pipeline.stateful

    @property
    def protection(self) -> Protection | None:
        """The promise of privacy, kept by noise in the pipeline or in the clients' work; None for no promise."""
        return self.pipeline.protection or self.work.protection

    # -------------------------------------------------------------------------------------------- the loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        setting: Setting | None = None,
    ) -> RunResult:
        """Run rounds until the last one, or until a stop rule ends the run.

        `timeout` is the deadline of one exchange in seconds; for the other arguments see Flower's `Strategy.start`.
        Raises TooFewClients when a round cannot be completed; the last good model is then in the state that `on_round`
        was given last.
        """
        self._setting = setting = setting or Setting()
        self._timeout_s = timeout
        self._open = None
        self._down = None if self.downlink is None else Downlink(self.downlink, self.basics.seed)
        params = wire.read_params(RecordDict({"params": initial_arrays}))
        self._state = self.first_state(params)
        if (resume := setting.resume) is not None:
            self._state = resume
        self._accountant = self._new_accountant()
        result = RunResult(arrays=wire.params_record(self._state.params), history=list(setting.history))
        result.used_rounds = self._state.used_rounds
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()

        def evaluate(number: int) -> Metrics | None:
            began = time.monotonic()
            if evaluate_fn is not None:
                metrics = evaluate_fn(number, result.arrays)
            else:
                metrics = self._evaluate_on_clients(grid, number, result.arrays, evaluate_config)
            self._round.seconds["evaluate"] += time.monotonic() - began
            return _as_metrics(metrics)

        if result.history and (reason := self.basics.stop(result.history)):  # it broke off after its last round
            result.stop_reason = reason
            return result
        for number in range(self._state.round + 1, num_rounds + 1):
            due = number == num_rounds or bool(setting.evaluate_every and number % setting.evaluate_every == 0)
            try:
                report, reason = self._play(grid, number, result, train_config, evaluate, due)
            except BudgetSpent:
                result.stop_reason = "budget"
                break
            if report.clipped:
                who = ", ".join(report.clipped)
                log(WARNING, "round %d: updates beyond the clip norm, clipped again: %s", number, who)
            _enter(result, report, at_server=evaluate_fn is not None)
            setting.on_round(report, replace(self._state, pipeline=self.pipeline.kept(self._state.pipeline)))
            if reason:
                result.stop_reason = reason
                break
        return result

    def first_state(self, params: Arrays) -> ServerState:
        """The state before round 1, for a run that starts from `params`."""
        return ServerState(0, params, self.server_optimizer.init(params), pipeline=self.pipeline.begin())

    def _new_accountant(self) -> Accountant | None:
        if self.protection is None:
            return None
        if self._setting.ledger is None:
            raise ValueError(f"{type(self).__name__} promises privacy: it needs a ledger to write what it spends")
        return Accountant(self.protection, self._setting.ledger)

    def _play(
        self,
        grid: Grid,
        number: int,
        result: RunResult,
        config: ConfigRecord,
        evaluate: Callable[[int], Metrics | None],
        due: bool,
    ) -> tuple[RoundReport, StopReason | None]:
        """One round: training, and evaluation where it is due or the run ends. Its report, and why the run ends."""
        began, before = time.monotonic(), self._state.params
        metrics = self._train(grid, number, result, config)
        change = relative_change(before, self._state.params)
        report = self._report(evaluate(number) if due else None, metrics, change)
        reason = self.basics.stop([*result.history, report])
        if reason and not due:
            report = self._report(evaluate(number), metrics, change)
        return replace(report, seconds={**report.seconds, "total": time.monotonic() - began}), reason

    def _train(self, grid: Grid, number: int, result: RunResult, config: ConfigRecord) -> Metrics | None:
        """One round of training, tried once more with the same cohort when too few updates are good.

        Returns the metrics that came with the updates. Raises TooFewClients, and BudgetSpent before an attempt that the
        privacy budget does not pay for.
        """
        for attempt in range(ATTEMPTS):
            if self._accountant is not None:
                self._accountant.charge(number, attempt)
            began = time.monotonic()
            replies = Exchange(grid, self.configure_train(number, result.arrays, config, grid), self._timeout_s)
            now = self._round
            now.attempts += 1
            arrays, metrics = self.aggregate_train(number, replies)
            now.count_bytes(replies)
            now.seconds["send"] += replies.send_s
            now.seconds["wait"] += replies.wait_s
            # Replies are folded while others are awaited.
            now.seconds["fold"] += time.monotonic() - began - replies.send_s - replies.wait_s
            if arrays is not None:
                result.arrays, result.used_rounds = arrays, self._state.used_rounds
                return _as_metrics(metrics)
        named = [f"{d.client} ({d.reason})" for d in now.dropped]
        raise TooFewClients(
            f"round {number}: {now.good} of {len(now.cohort)} clients gave a good update"
            f", {self._needed}"
            + (f"; dropped: {', '.join(named[:5])}{', ...' if len(named) > 5 else ''}" if named else "")
        )

    def _evaluate_on_clients(
        self, grid: Grid, number: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> MetricRecord | None:
        if self._accountant is not None:
            return self._evaluate_under_noise(grid, number, arrays, config, self._accountant)
        if self._setting.metrics is None:
            return None
        replies = Exchange(grid, self.configure_evaluate(number, arrays, config, grid), self._timeout_s)
        metrics = self.aggregate_evaluate(number, replies)
        self._round.count_bytes(replies)
        return metrics

    def _evaluate_under_noise(
        self, grid: Grid, number: int, arrays: ArrayRecord, config: ConfigRecord, accountant: Accountant
    ) -> MetricRecord | None:
        """Metrics that clients measure, released with noise.

        None where the run releases no such metrics, the budget does not pay for them, or no client gave any.
        """
        if self.protection is None or self.protection.metrics is None:
            return None
        try:
            accountant.charge_metrics(number)
        except BudgetSpent as spent:
            log(WARNING, "no metrics: %s", spent)
            return None
        asked = PrivateMetrics(self.protection, self._setting.metric_ranges)
        order = replace(self._order(), fold=True)
        found = asked.ask(grid, self._round, arrays, config, order, self.basics.population)
        return None if found is None else MetricRecord(dict(found))

    # ------------------------------------------------------------------------------- Flower's five methods

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The orders of a round, one or more messages to each node that hosts part of its cohort.

        The cohort is drawn once. A second call for the same round asks the same clients again, as far as they are
        still connected, at whatever node they are by then.
        """
        if self._open is None or self._open.info.number != server_round:
            self._open = self._draw(server_round, grid)
        else:
            roster, cohort = self._setting.roster.current(grid), self._open.cohort
            here = self._grid(roster, [client for client in cohort if client in roster])
            self._open.roster, self._open.info = roster, replace(self._open.info, grid=here)
        beside = wire.params_record(self.server_optimizer.broadcast(self._state.params, self._state.optimizer))
        model = self._down or Plain(arrays)
        return self._open.ask_train(model, config, self._order(), self.work.returns(self._state.params), beside)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies as they come and take one server step.

        Returns the new params and the metrics that came with the updates; (None, None), with nothing changed, where
        fewer updates were good than the round needs.
        """
        now, before = self._round, self._state
        fold, taken = self.aggregator.start(now.info.grid), set[str]()
        for update in now.admit(replies, self._train_metrics, self.work.returns(before.params)):
            with now.dropping(update):
                fold.add(update)
                taken.update(update.clients)
                now.payload_up += update.payload_bytes
            if len(fold) >= self.sampler.awaited(len(now.cohort)):
                break
        now.close()
        now.good, now.dropped = len(fold), now.failures()
        total = fold.total()
        now.left_out = taken - set(total.clients)
        if self._down is not None:
            self._down.settle(now.following, now.lost, total.clients)
        if now.good < max(0 if self.sampler.secret else self.basics.min_clients, self.aggregator.fewest):
            return None, None
        total = total if now.good else self._nothing(before.params)
        total, pipeline = self.pipeline.decode_sum(total, before.pipeline, now.info)
        aggregate = self.aggregator.finish(total, now.info.grid)
        who = Contributors(total.clients, total.weight, now.roster_weight)
        params, optimizer = self.server_optimizer.step(before.params, aggregate, before.optimizer, who)
        params, pipeline = self.pipeline.settle(params, pipeline, now.info)
        if not all(np.isfinite(array).all() for array in params):
            raise Diverged(f"round {server_round}: the server's step gave values that are not finite")
        keep = self.stateful or self._setting.client_state
        used = {**before.used_rounds, **dict.fromkeys(total.clients, server_round)} if keep else {}
        asked = {**before.asked_rounds, **dict.fromkeys(now.cohort, server_round)} if self.sampler.spaced else {}
        self._state = ServerState(server_round, params, optimizer, used, pipeline, before.sent, asked)
        return wire.params_record(params), self._summarised(total)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Every client of the roster measures the model on its test rows."""
        return self._round.ask_evaluate(arrays, config, replace(self._order(), fold=True))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Exact metrics over the test rows of all clients that answered."""
        total = ExactSum(self._round.info.grid)
        for update in self._round.admit(replies, self._setting.metrics):
            total.add(update)
        return self._summarised(total.total())

    def summary(self) -> None:
        """Nothing: the run's configuration says it all, and the report repeats it."""

    # ---------------------------------------------------------------------------------------------- pieces

    @property
    def _round(self) -> OpenRound:
        if self._open is None:
            raise RuntimeError("no round is open: configure_train comes first")
        return self._open

    @property
    def _train_metrics(self) -> MetricSpec | None:
        return self._setting.metrics if self._setting.train_metrics and self.protection is None else None

    @property
    def _needed(self) -> str:
        fewest, asked = self.aggregator.fewest, f"min-clients={self.basics.min_clients}"
        return f"{type(self.aggregator).__name__} needs {fewest}" if fewest > self.basics.min_clients else asked

    def _draw(self, number: int, grid: Grid) -> OpenRound:
        roster = self._setting.roster.current(grid)
        draw = Draw(number, round_rng(self.basics.seed, number), self._state.asked_rounds)
        cohort = self.sampler.sample(roster.clients, draw)
        if len(cohort) < self.aggregator.fewest:
            raise TooFewClients(f"round {number}: a cohort of {len(cohort)} clients, {self._needed}")
        info = Round(
            number,
            derive_seed(self.basics.seed, "round", number),
            self._grid(roster, cohort),
            template=self.work.returns(self._state.params),
        )
        if self._down is not None:
            sent = self._down.advance(number, self._state.params, self._state.sent)
            self._state = replace(self._state, sent=sent)
        public = dict(self.pipeline.announce(self._state.pipeline, info))
        if self.protection is not None:
            public |= self.protection.announce()
        return OpenRound(roster, cohort, replace(info, public=public), self.pipeline)

    def _grid(self, roster: Roster, cohort: Sequence[str]) -> FixedPoint:
        """The finest grid on which the round's sum cannot overflow.

        Clients are told the grid. So where privacy is promised it follows from public numbers alone, and gives away
        neither the size of a secret cohort nor who is connected.
        """
        if self.protection is None:
            return FixedPoint.for_weight(sum(self.pipeline.max_weight(roster[c].num_examples) for c in cohort))
        everybody = max(len(roster), self.basics.population)
        sensitivity = self.pipeline.sensitivity
        if sensitivity is None:
            return FixedPoint.for_weight(everybody * self.pipeline.max_weight(1))
        return FixedPoint.for_reach(everybody * sensitivity + self.pipeline.headroom)

    def _nothing(self, params: Arrays) -> Update:
        """The sum of no updates."""
        template = self.pipeline.opened(self.work.returns(params))
        return Update(tuple(np.zeros(shape, np.int64) for shape, _ in template), (), weight=0, on_grid=True)

    def _order(self) -> wire.Order:
        """The round's order to all nodes; `OpenRound` makes of it one for each node, with the node's own clients."""
        used = self._state.used_rounds
        return wire.Order(
            round=self._round.info.number,
            clients=tuple(used),
            used_rounds=tuple(used.values()),
            fraction_bits=self._round.info.grid.fraction_bits,
            timeout_s=float(self._timeout_s),
            fold=self._setting.fold and self.nodes_may_fold,
            public=self._round.info.public,
        )

    def _summarised(self, total: Update) -> MetricRecord | None:
        if self._setting.metrics is None or not total.metric_sums:
            return None
        return MetricRecord(dict(self._setting.metrics.summarise(total.metric_sums)))

    def _report(self, metrics: Metrics | None, train_metrics: Metrics | None, change: float) -> RoundReport:
        now = self._round
        report = RoundReport(
            round=now.info.number,
            metrics=metrics,
            train_metrics=train_metrics,
            online=len(now.roster),
            expected_clients=len(now.cohort),
            attempts=now.attempts,
            good=now.good,
            dropped=now.dropped,
            clipped=tuple(sorted(now.clipped)),
            left_out=tuple(sorted(now.left_out)),
            bytes_up=now.bytes_up,
            bytes_down=now.bytes_down,
            payload_up=now.payload_up,
            payload_down=now.payload_down,
            params_change=change,
            seconds=dict(now.seconds),
            epsilon=None if self._accountant is None else self._accountant.epsilon(),
        )
        if not self.sampler.secret:
            return report
        return replace(
            report,
            online=None,
            expected_clients=self.sampler.cohort_size(len(now.roster)),
            good=None,
            dropped=(),
            clipped=None,
            left_out=None,
            bytes_up=None,
            bytes_down=None,
            payload_up=None,
            payload_down=None,
        )


def _as_metrics(record: MetricRecord | None) -> Metrics | None:
    return None if record is None else {k: float(v) for k, v in record.items() if not isinstance(v, list)}


def _enter(result: RunResult, report: RoundReport, at_server: bool) -> None:
    """Enter a round into the history and into Flower's own fields."""
    result.history.append(report)
    if report.train_metrics is not None:
        result.train_metrics_clientapp[report.round] = MetricRecord(dict(report.train_metrics))
    if report.metrics is not None:
        where = result.evaluate_metrics_serverapp if at_server else result.evaluate_metrics_clientapp
        where[report.round] = MetricRecord(dict(report.metrics))
