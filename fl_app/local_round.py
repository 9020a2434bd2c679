"""One node's part of a round: for each client NumPyClient.fit -> check -> Update -> pipeline -> fold.

A client that fails in any way costs its own update, never its neighbours'. What went wrong in detail is logged here
and stays here, since it may quote data; only the reason, one of a fixed list, travels.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from logging import WARNING
from typing import Any

import numpy as np
from flwr.common.logger import log

from fl_app.assembly import Scalar, fit_config
from fl_app.deadline import Worker
from fl_app.site import Site
from strategies.history import Dropped
from strategies.rounds import check_metrics
from strategies.sampling import derive_seed
from strategies.survey import PIPELINE as SURVEY_PIPELINE
from strategies.transform import Round
from strategies.update import Arrays, DropReason, ExactSum, FixedPoint, InvalidUpdate, Update, check_magnitude
from strategies.wire import Answer, Order, encoded_bytes
from strategies.work import Curvature, LocalWork, check_template
from tasks.base import Task

# A client may take this share of what is left of the round: however many hang, the node answers in time.
SHARE_OF_TIME_LEFT = 0.5
TIME_TO_REPLY = 0.1  # of the round, for the way back

Work = Callable[[Site, Order, Arrays], Answer]


@dataclass(frozen=True, slots=True)
class Start:
    """What a client's work begins with: the params, what the server sent beside them, and what the client kept."""

    params: Arrays
    beside: Arrays = ()
    state: Arrays = ()


def train(site: Site, order: Order, params: Arrays, beside: Arrays = ()) -> Answer:
    """Train the clients of an order from `params`; one folded update, or one of each good client.

    `beside` is what the server sent with the params. What a client keeps is the work's state, then the pipeline's.
    """
    grid = FixedPoint(order.fraction_bits)
    used_rounds = dict(zip(order.clients, order.used_rounds, strict=True))
    stateful, pipeline, work = site.strategy.stateful, site.strategy.pipeline, site.strategy.work
    config = fit_config(site.config, order.round, work.request, seed=0, metrics=site.train_metrics)
    own = work.num_state_arrays(params)

    def contribute(client: str) -> tuple[Update, Arrays]:
        seed = derive_seed(site.config.seed, "fit", order.round, client)
        state = site.store.load(client, used_rounds[client]) if stateful else ()
        start = Start(params, beside, state[:own])
        update, kept = _fit(site, client, {**config, **work.settings, "seed": seed}, work, start)
        info = Round(order.round, derive_seed(site.config.seed, "encode", order.round, client), grid, order.public)
        update, state = pipeline.encode(update, state[own:], info)
        update = replace(update, payload_bytes=encoded_bytes(update.arrays))
        return pipeline.decode_each(update, info) if order.fold else update, (*kept, *state)

    def keep(client: str, state: Arrays) -> None:
        if stateful:
            site.store.save(client, used_rounds[client], order.round, state)

    return _collect(order, contribute, keep)


def evaluate(site: Site, order: Order, params: Arrays) -> Answer:
    """Measure `params` on the test rows of the clients of an order; metric sums only."""

    config = fit_config(site.config, order.round, site.strategy.work.request, seed=0)

    def measure(client: str) -> tuple[Update, Arrays]:
        return Update((), (client,), metric_sums=_exact(_evaluated(site, client, params, config), site.task)), ()

    return _collect(order, measure, keep=lambda client, state: None)


def survey(site: Site, order: Order, params: Arrays, *, curvature: bool) -> Answer:
    """Measure `params` on the test rows of the clients of an order, and the curvature of their objectives there."""
    asked, info = Curvature(), Round(0, 0, FixedPoint(order.fraction_bits))
    config = fit_config(site.config, 1, asked.request, seed=0)

    def look(client: str) -> tuple[Update, Arrays]:
        shard = site.rows.shard(client)
        sums = _exact(_evaluated(site, client, params, config), site.task)
        if not curvature:
            return Update((), (client,), num_examples=len(shard.train), metric_sums=sums), ()
        update, _ = _fit(site, client, config, asked, Start(params))
        update = replace(update, metric_sums=sums)
        return SURVEY_PIPELINE.encode(update, (), info)

    return _collect(order, look, keep=lambda client, state: None)


def _collect(
    order: Order, contribute: Callable[[str], tuple[Update, Arrays]], keep: Callable[[str, Arrays], None]
) -> Answer:
    """The updates of all clients that give one in time. State is kept only of those: a call that overran and ends
    later, on the thread it was left on, changes nothing."""
    fold = ExactSum(FixedPoint(order.fraction_bits))
    updates: list[Update] = []
    dropped: list[Dropped] = []
    with Worker() as worker:
        for client, left_s in _time_left(order):
            try:
                update, state = worker.call(partial(contribute, client), left_s)
                keep(client, state)
                if order.fold:
                    fold.add(update)
                else:
                    updates.append(update)
            except Exception as error:  # a client may raise anything; the run goes on without it
                dropped.append(Dropped(client, _reason(error)))
                log(WARNING, "client %s dropped in round %d: %s: %s", client, order.round, type(error).__name__, error)
    return Answer((fold.total(),) if len(fold) else tuple(updates), tuple(dropped))


def _time_left(order: Order) -> Iterator[tuple[str, float]]:
    deadline = time.monotonic() + (1 - TIME_TO_REPLY) * order.timeout_s
    for client in order.clients:
        yield client, max(0.0, SHARE_OF_TIME_LEFT * (deadline - time.monotonic()))


def _reason(error: Exception) -> DropReason:
    if isinstance(error, InvalidUpdate):
        return error.reason
    if isinstance(error, TimeoutError):
        return "timeout"
    return "memory" if isinstance(error, MemoryError) else "raised"


def _evaluated(site: Site, client: str, params: Arrays, config: dict[str, Scalar]) -> Any:
    """The metric sums that one client's evaluate returned, not yet checked."""
    returned = site.task.make_client(site.rows.shard(client)).evaluate([array.copy() for array in params], config)
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise InvalidUpdate("keys", "evaluate must return (loss, number of examples, metric sums)")
    return returned[2]


def _fit(site: Site, client: str, config: dict[str, Scalar], work: LocalWork, start: Start) -> tuple[Update, Arrays]:
    """Run one client's fit and check all that it returned; the update and the work's next state.

    Raises InvalidUpdate, or what fit raises.
    """
    shard = site.rows.shard(client)
    given = work.prepare(start.params, start.beside, start.state)
    returned = site.task.make_client(shard).fit([array.copy() for array in given], config)
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise InvalidUpdate("keys", "fit must return (arrays, number of examples, metrics)")
    arrays, num_examples, metrics = returned
    contribution, state = _contribution(work, start, arrays)
    if isinstance(num_examples, bool) or not isinstance(num_examples, int | np.integer):
        raise InvalidUpdate("weight", f"number of examples {num_examples!r}, expected an integer")
    if not 1 <= num_examples <= len(shard.train):
        raise InvalidUpdate("weight", f"number of examples {num_examples}, expected 1 to {len(shard.train)}")
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
