"""One node's part of a round: for each client NumPyClient.fit -> check -> Update -> pipeline -> fold.

A client that fails in any way costs its own update, never its neighbours'. What went wrong in detail is logged here
and stays here, since it may quote data; only the reason, one of a fixed list, travels.
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

# A client may take this share of what is left of the round: however many hang, the node answers in time.
SHARE_OF_TIME_LEFT = 0.5
TIME_TO_REPLY = 0.1  # of the round, for the way back

Work = Callable[[Site, Order, Arrays], Answer]


@dataclass(frozen=True, slots=True)
class Start:
    """What a client's work begins with: the params, what the server sent beside them, and what the client kept.

    personal: the client's own arrays of the model. state: of the strategy's work.
    """

    params: Arrays
    beside: Arrays = ()
    personal: Arrays = ()
    state: Arrays = ()


def train(site: Site, order: Order, params: Arrays, beside: Arrays = ()) -> Answer:
    """Train the clients of an order from `params`; one folded update, or one of each good client.

    `beside` is what the server sent with the params. What a client keeps is its personal arrays, then the work's state,
    then the pipeline's.
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
        if private:  # with the noise nothing else may be sent that rows were counted or measured for
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
    """The clients of the order in groups where task and strategy train so: a matter of the configuration alone."""
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
    """Measure `params` on the test rows of the clients of an order; metric sums only, or what noise hides."""
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
    """Measure models of these kinds on the test rows of the clients of an order, and the curvature of their objectives.

    All begin with `params`; what is trained here is measured and forgotten.
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
    """Refuse exact metrics where privacy is promised, whoever asks for them."""
    if site.strategy.protection is not None:
        what = f"strategy={site.config.strategy} promises privacy"
        raise Refused("the server asks for exact metrics", what, "nothing is measured here in such a run")


def means(site: Site, order: Order, params: Arrays) -> Answer:
    """The means of the clients' features, as the run's promise allows. `params` are none."""
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
    """The clients' part of a release of metrics, as the run's promise allows."""
    asked, personal = PrivateMetrics(protection, site.task.metric_ranges), _personal(site, order)

    def contribution(client: str) -> Arrays:
        tests = site.rows.shard(client).test
        # A task may raise where there are no rows, and that there are none must not show where clients are protected.
        measured = site.task.measure_rows((*params, *personal(client)), tests) if len(tests) else {}
        return asked.contribution(measured, len(tests))

    return _release(site, order, asked.vectors, contribution)


def _release(site: Site, order: Order, vectors: VectorRelease, contribution: Callable[[str], Arrays]) -> Answer:
    """A vector of each client of an order, charged to the site's ledgers before any is computed."""
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
    """The updates of all clients that give one in time. State is kept only of those: a call that overran and ends
    later, on the thread it was left on, changes nothing. `secret`: the log must not tell who took part."""
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
    """What the next call may take."""
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
    """The personal arrays of a client after its last used update; none where they are as they begin."""
    used_rounds = dict(zip(order.clients, order.used_rounds, strict=True))
    mine = len(site.task.personal_names)
    return lambda client: site.store.load(client, used_rounds[client])[:mine] if mine else ()


def _client(site: Site, client: str, personal: Arrays) -> NumPyClient:
    made = site.task.make_client(site.rows.shard(client))
    if site.task.personal_names:
        cast(KeepsState, made).state = personal
    return made


def _evaluated(site: Site, client: str, config: dict[str, Scalar], model: Start) -> dict[str, Fraction]:
    """The metric sums of one client's evaluate. Raises InvalidUpdate, or what evaluate raises."""
    returned = _client(site, client, model.personal).evaluate([array.copy() for array in model.params], config)
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise InvalidUpdate("keys", "evaluate must return (loss, number of examples, metric sums)")
    return _exact(returned[2], site.task)


def _finetuned(site: Site, client: str, start: Start) -> Start:
    """A model after `finetune-epochs` more of plain training on this client's rows."""
    config = finetune_config(site.config, derive_seed(site.config.seed, "finetune", client))
    made = _client(site, client, start.personal)
    returned = made.fit([array.copy() for array in start.params], config)
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise InvalidUpdate("keys", "fit must return (arrays, number of examples, metrics)")
    _contribution(Delta(), start, returned[0])
    return Start(tuple(returned[0]), personal=_own_arrays(site.task, made))


def _own_arrays(task: Task, client: NumPyClient) -> Arrays:
    """What fit left as the client's personal arrays. Raises InvalidUpdate."""
    if not task.personal_names:
        return ()
    arrays = tuple(np.asarray(array) for array in cast(KeepsState, client).state)
    check_template(arrays, template_of(task.personal_start))
    if not all(np.isfinite(array).all() for array in arrays):
        raise InvalidUpdate("non-finite", "personal arrays that are not finite")
    return arrays


def _fit(site: Site, client: str, config: dict[str, Scalar], work: LocalWork, start: Start) -> tuple[Update, Arrays]:
    """Run one client's fit and check all that it returned; the update, and what the client keeps but for the pipeline.

    Raises InvalidUpdate, or what fit raises.
    """
    given = work.prepare(start.params, start.beside, start.state)
    made = _client(site, client, start.personal)
    returned = made.fit([array.copy() for array in given], config)
    update, state = _checked(site, client, config, work, start, returned)
    return update, (*_own_arrays(site.task, made), *state)


def _checked(
    site: Site, client: str, config: dict[str, Scalar], work: LocalWork, start: Start, returned: Any
) -> tuple[Update, Arrays]:
    """The update that a client's fit returned, and the work's next state. Raises InvalidUpdate."""
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
    """The metric sums as exact rationals. Raises InvalidUpdate("metrics") for what no rows can give."""
    if not isinstance(metrics, Mapping):
        raise InvalidUpdate("metrics", f"metrics of type {type(metrics).__name__}, expected a mapping")
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise InvalidUpdate("metrics", f"{name}={value!r}, expected a finite number")
    sums = {name: Fraction(value.item() if isinstance(value, np.number) else value) for name, value in metrics.items()}
    check_metrics(sums, task)
    return sums
