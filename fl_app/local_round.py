"""One node's part of a round: for each client NumPyClient.fit -> check -> Update -> pipeline -> fold.

A client that fails in any way costs its own update, never that of another client. The details of what went wrong may
quote data, so they are logged here and stay here; the server is told only a reason, one of a fixed list.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from logging import WARNING
from typing import Any, cast

import numpy as np
from flwr.client import NumPyClient
from flwr.common.logger import log

from fl_app.assembly import Scalar, finetune_config, fit_config
from fl_app.deadline import Worker
from fl_app.errors import Refused
from fl_app.groups import Groups
from fl_app.policy import charge
from fl_app.site import Site
from strategies.history import Dropped
from strategies.private_means import PrivateMeans
from strategies.private_metrics import PrivateMetrics
from strategies.protection import Protection
from strategies.rounds import check_metrics
from strategies.sampling import derive_seed
from strategies.survey import COMMON, FINETUNED, WITHOUT_PERSONAL, SumsByKind
from strategies.survey import PIPELINE as SURVEY_PIPELINE
from strategies.transform import Round
from strategies.update import Arrays, DropReason, ExactSum, FixedPoint, InvalidUpdate, Update, check_magnitude
from strategies.vector_release import VectorRelease
from strategies.wire import Answer, Order, encoded_bytes
from strategies.work import Curvature, Delta, LocalWork, check_template, template_of
from tasks.base import Fit, KeepsState, Task

# A client may take at most this share of the time left in the round, so that the node answers in time however many
# clients hang.
SHARE_OF_TIME_LEFT = 0.5
TIME_TO_REPLY = 0.1  # of the round, for the way back

Work = Callable[[Site, Order, Arrays], Answer]


@dataclass(frozen=True, slots=True)
class Start:
    """What a client's work begins with."""

    params: Arrays
    beside: Arrays = ()
    """What the server's optimiser broadcasts with the params."""
    personal: Arrays = ()
    """The client's own arrays of the model; () where they are as the task begins them."""
    state: Arrays = ()
    """What the strategy's work at this client kept after its last update that was used."""


def train(site: Site, order: Order, params: Arrays, beside: Arrays = ()) -> Answer:
    """Train the clients of an order from `params`.

    The answer holds their sum as one update where the node folds, else one update of each client that gave a good one.
    The arrays that a client keeps until the next round are stored in one list: its personal arrays, the state of the
    strategy's work, the state of the pipeline.
    """
    grid, order = FixedPoint(order.fraction_bits), replace(order, fold=site.folds(order))
    used_rounds = dict(zip(order.clients, order.used_rounds, strict=True))
    pipeline, work, mine = site.strategy.pipeline, site.strategy.work, len(site.task.personal_names)
    stateful, private = site.strategy.stateful or bool(mine), site.strategy.protection is not None
    asked = fit_config(site.config, order.round, work.request, seed=0, metrics=site.train_metrics)
    config = {**asked, **work.asks()}
    if site.ledgers is not None and site.strategy.protection is not None:
        release = site.strategy.protection.announced(order.public)
        charge(site.policy, site.ledgers, order, site.strategy.protection, release)
    groups = _groups(site, order, config, Start(params, beside))
    own, template = work.num_state_arrays(params), work.returns(params)

    def contribute(client: str) -> tuple[Update, Arrays]:
        state = site.store.load(client, used_rounds[client]) if stateful else ()
        personal, state = state[:mine], state[mine:]
        start = Start(params, beside, personal, state[:own])
        if groups is None:
            update, kept = _fit(site, client, {**config, "seed": _fit_seed(site, order, client)}, work, start)
        else:
            update, kept = _checked(site, client, config, work, start, groups.take(client))
        seed = derive_seed(site.config.seed, "encode", order.round, client)
        info = Round(order.round, seed, grid, order.public, template)
        update, state = pipeline.encode(update, state[own:], info)
        update = replace(update, payload_bytes=encoded_bytes(update.arrays))
        if private:  # counts and measurements of rows would go beside the noise
            update = replace(update, num_examples=0, metric_sums={})
        elif not site.tells_counts:
            update = replace(update, num_examples=0)
        if order.fold:
            update = pipeline.limit(pipeline.decode_each(update, info), info)
        return update, (*kept, *state)

    def keep(client: str, state: Arrays) -> None:
        if stateful:
            site.store.save(client, used_rounds[client], order.round, state)

    return _collect(order, contribute, keep, groups, secret=site.strategy.sampler.secret)


def _fit_seed(site: Site, order: Order, client: str) -> int:
    return derive_seed(site.config.seed, "fit", order.round, client)


def _groups(site: Site, order: Order, config: dict[str, Scalar], start: Start) -> Groups | None:
    """The clients of the order in groups that are trained at once; None where they are trained one by one.

    Which of the two follows from the configuration alone.
    """
    task, work = site.task, site.strategy.work
    if work.stateful or task.personal_names or not task.fits_many(config):
        return None
    given = work.prepare(start.params, start.beside, ())

    def train(clients: Sequence[str]) -> Sequence[Fit | Exception]:
        shards = [site.rows.shard(client) for client in clients]
        seeds = [_fit_seed(site, order, client) for client in clients]
        return task.fit_many(tuple(array.copy() for array in given), shards, config, seeds)

    return Groups(train, order.clients, sum(array.nbytes for array in given))


def evaluate(site: Site, order: Order, params: Arrays) -> Answer:
    """Measure `params` on the test rows of an order's clients.

    The updates hold exact metric sums and no arrays; where privacy is promised, a vector of metrics under noise.
    """
    protection = site.strategy.protection
    if protection is not None and protection.metrics is not None:
        return _evaluate_under_noise(site, order, params, protection)
    _check_may_measure(site)
    config = fit_config(site.config, order.round, site.strategy.work.request, seed=0)
    personal = _personal(site, order)

    def measure(client: str) -> tuple[Update, Arrays]:
        sums = _evaluated(site, client, config, Start(params, personal=personal(client)))
        return Update((), (client,), metric_sums=sums), ()

    return _collect(order, measure, keep=lambda client, state: None)


def survey(site: Site, order: Order, params: Arrays, *, curvature: bool, kinds: tuple[str, ...]) -> Answer:
    """Measure models of these kinds on the test rows of an order's clients; with `curvature` also send their Hessians.

    `kinds` are those of `strategies.survey`. Each model is made from `params`; what is trained here for it is forgotten
    afterwards.
    """
    _check_may_measure(site)
    asked, info = Curvature(), Round(0, 0, FixedPoint(order.fraction_bits))
    config, spec = fit_config(site.config, 1, asked.request, seed=0), SumsByKind(site.task, kinds)
    personal = _personal(site, order)

    def look(client: str) -> tuple[Update, Arrays]:
        shard = site.rows.shard(client)
        start = Start(params, personal=personal(client))
        models = {COMMON: start, WITHOUT_PERSONAL: Start(params)}
        if FINETUNED in kinds:
            models[FINETUNED] = _finetuned(site, client, start)
        sums = spec.join({kind: _evaluated(site, client, config, models[kind]) for kind in kinds})
        if not curvature:
            return Update((), (client,), num_examples=len(shard.train), metric_sums=sums), ()
        if len(shard.train) < site.config.min_examples:  # the Hessian of few rows is little less than the rows
            few = f"min-examples={site.config.min_examples}"
            raise InvalidUpdate("declined", f"no standard errors from {len(shard.train)} rows, {few}")
        update, _ = _fit(site, client, config, asked, start)
        update = replace(update, metric_sums=sums)
        return SURVEY_PIPELINE.encode(update, (), info)

    return _collect(order, look, keep=lambda client, state: None)


def _check_may_measure(site: Site) -> None:
    """Raise Refused where privacy is promised: exact metrics are then measured for nobody."""
    if site.strategy.protection is not None:
        what = f"strategy={site.config.strategy} promises privacy"
        raise Refused("the server asks for exact metrics", what, "nothing is measured here in such a run")


def means(site: Site, order: Order, params: Arrays) -> Answer:
    """The means of the clients' features, under the noise that the run promises. `params` is empty and not used."""
    protection, rows = site.strategy.protection, site.rows
    if protection is None or not protection.means:
        raise Refused("the server asks for means", f"strategy={site.config.strategy}", "this run releases none")
    asked = PrivateMeans(protection, len(rows.design.numbers))
    return _release(
        site,
        order,
        asked.vectors,
        lambda client: asked.contribution(rows.shard(client).train.x[:, rows.design.numbers]),
    )


def _evaluate_under_noise(site: Site, order: Order, params: Arrays, protection: Protection) -> Answer:
    """Metrics of `params` at each client, under the noise that the run promises."""
    asked, personal = PrivateMetrics(protection, site.task.metric_ranges), _personal(site, order)

    def contribution(client: str) -> Arrays:
        tests = site.rows.shard(client).test
        # Without test rows a task may raise. The client would be dropped, and the server would learn that it has none.
        measured = site.task.measure_rows((*params, *personal(client)), tests) if len(tests) else {}
        return asked.contribution(measured, len(tests))

    return _release(site, order, asked.vectors, contribution)


def _release(site: Site, order: Order, vectors: VectorRelease, contribution: Callable[[str], Arrays]) -> Answer:
    """One vector of each client of an order, under noise; the site's ledgers are charged before any is computed."""
    if site.ledgers is not None:
        charge(site.policy, site.ledgers, order, vectors.promise, vectors.release)
    order, pipeline = replace(order, fold=site.folds(order)), vectors.pipeline
    info = Round(order.round, 0, FixedPoint(order.fraction_bits), template=vectors.template)

    def contribute(client: str) -> tuple[Update, Arrays]:
        update, _ = pipeline.encode(Update(contribution(client), (client,)), (), info)
        update = replace(update, payload_bytes=encoded_bytes(update.arrays))
        return pipeline.limit(update, info) if order.fold else update, ()

    return _collect(order, contribute, keep=lambda client, state: None)


def _collect(
    order: Order,
    contribute: Callable[[str], tuple[Update, Arrays]],
    keep: Callable[[str, Arrays], None],
    groups: Groups | None = None,
    *,
    secret: bool = False,
) -> Answer:
    """Call `contribute` for each client of an order and collect the updates of those that give one in time.

    `keep` stores the state of these clients alone: a call that overran goes on in the thread that it was left in, and
    nothing that it computes is used. `secret`: the log must not tell who took part.
    """
    fold = ExactSum(FixedPoint(order.fraction_bits))
    updates: list[Update] = []
    dropped: list[Dropped] = []
    deadline = time.monotonic() + (1 - TIME_TO_REPLY) * order.timeout_s
    with Worker() as worker:
        for client in order.clients:
            try:
                if groups is not None:
                    groups.prepare(client, worker, _share_of_time(deadline))
                update, state = worker.call(partial(contribute, client), _share_of_time(deadline))
                keep(client, state)
                if order.fold:
                    fold.add(update)
                else:
                    updates.append(update)
            except Exception as error:  # a client may raise anything; the run goes on without it
                dropped.append(Dropped(client, _reason(error)))
                what = f"client {client} in round {order.round} dropped"
                if secret:
                    what = "a client dropped"
                elif not order.round:
                    what = f"client {client} left out of an exchange beside the rounds"
                log(WARNING, "%s: %s: %s", what, type(error).__name__, error)
    return Answer((fold.total(),) if len(fold) else tuple(updates), tuple(dropped))


def _share_of_time(deadline: float) -> float:
    """How many seconds the next call may take."""
    return max(0.0, SHARE_OF_TIME_LEFT * (deadline - time.monotonic()))


def _reason(error: Exception) -> DropReason:
    if isinstance(error, InvalidUpdate):
        return error.reason
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ArithmeticError):
        return "non-finite"
    return "memory" if isinstance(error, MemoryError) else "raised"


def _personal(site: Site, order: Order) -> Callable[[str], Arrays]:
    """A function from a client to its personal arrays after its last update that was used.

    It gives () where the arrays are still as the task begins them.
    """
    used_rounds = dict(zip(order.clients, order.used_rounds, strict=True))
    mine = len(site.task.personal_names)
    return lambda client: site.store.load(client, used_rounds[client])[:mine] if mine else ()


def _client(site: Site, client: str, personal: Arrays) -> NumPyClient:
    made = site.task.make_client(site.rows.shard(client))
    if site.task.personal_names:
        cast(KeepsState, made).state = personal
    return made


def _evaluated(site: Site, client: str, config: dict[str, Scalar], model: Start) -> dict[str, Fraction]:
    """The metric sums that one client's evaluate returns for a model. Raises InvalidUpdate, or what evaluate raises."""
    returned = _client(site, client, model.personal).evaluate([array.copy() for array in model.params], config)
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise InvalidUpdate("keys", "evaluate must return (loss, number of examples, metric sums)")
    return _exact(returned[2], site.task)


def _finetuned(site: Site, client: str, start: Start) -> Start:
    """The model after `finetune-epochs` more epochs of plain training on this client's rows."""
    config = finetune_config(site.config, derive_seed(site.config.seed, "finetune", client))
    made = _client(site, client, start.personal)
    returned = made.fit([array.copy() for array in start.params], config)
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise InvalidUpdate("keys", "fit must return (arrays, number of examples, metrics)")
    _contribution(Delta(), start, returned[0])
    return Start(tuple(returned[0]), personal=_own_arrays(site.task, made))


def _own_arrays(task: Task, client: NumPyClient) -> Arrays:
    """The personal arrays that fit has left in the client's `state`. Raises InvalidUpdate."""
    if not task.personal_names:
        return ()
    arrays = tuple(np.asarray(array) for array in cast(KeepsState, client).state)
    check_template(arrays, template_of(task.personal_start))
    if not all(np.isfinite(array).all() for array in arrays):
        raise InvalidUpdate("non-finite", "personal arrays that are not finite")
    return arrays


def _fit(site: Site, client: str, config: dict[str, Scalar], work: LocalWork, start: Start) -> tuple[Update, Arrays]:
    """Run one client's fit and check all that it returns.

    Returns the update, and the arrays that the client keeps, without those of the pipeline. Raises InvalidUpdate, or
    what fit raises.
    """
    given = work.prepare(start.params, start.beside, start.state)
    made = _client(site, client, start.personal)
    returned = made.fit([array.copy() for array in given], config)
    update, state = _checked(site, client, config, work, start, returned)
    return update, (*_own_arrays(site.task, made), *state)


def _checked(
    site: Site, client: str, config: dict[str, Scalar], work: LocalWork, start: Start, returned: Any
) -> tuple[Update, Arrays]:
    """The update that follows from what a client's fit returned, and the next state of the strategy's work.

    Raises InvalidUpdate.
    """
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise InvalidUpdate("keys", "fit must return (arrays, number of examples, metrics)")
    arrays, num_examples, metrics = returned
    contribution, state = _contribution(work, start, arrays)
    if isinstance(num_examples, bool) or not isinstance(num_examples, int | np.integer):
        raise InvalidUpdate("weight", f"number of examples {num_examples!r}, expected an integer")
    most = len(site.rows.shard(client).train)
    if not 1 <= num_examples <= most:
        raise InvalidUpdate("weight", f"number of examples {num_examples}, expected 1 to {most}")
    sums = _exact(metrics, site.task) if config["metrics"] else {}
    return Update(contribution, (client,), num_examples=int(num_examples), metric_sums=sums), state


def _contribution(work: LocalWork, start: Start, returned: Any) -> tuple[Arrays, Arrays]:
    if not isinstance(returned, list | tuple) or not all(isinstance(a, np.ndarray | np.generic) for a in returned):
        raise InvalidUpdate("keys", "fit must return a list of numpy arrays")
    arrays = tuple(np.asarray(array) for array in returned)
    check_template(arrays, work.returns(start.params))
    contribution, state = work.contribution(start.params, arrays, start.state)
    check_magnitude(contribution)
    return contribution, state


def _exact(metrics: Any, task: Task) -> dict[str, Fraction]:
    """Metric sums as exact rationals. Raises InvalidUpdate("metrics") for sums that no rows can have."""
    if not isinstance(metrics, Mapping):
        raise InvalidUpdate("metrics", f"metrics of type {type(metrics).__name__}, expected a mapping")
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise InvalidUpdate("metrics", f"{name}={value!r}, expected a finite number")
    sums = {name: Fraction(value.item() if isinstance(value, np.number) else value) for name, value in metrics.items()}
    check_metrics(sums, task)
    return sums
