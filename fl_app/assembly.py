"""From a run configuration to the objects of a run. Server and nodes call the same functions with the same result."""

from dataclasses import replace
from functools import lru_cache
from typing import cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_app import registry
from fl_app.config import RunConfig
from fl_app.errors import Refused, suggestion
from strategies.base import Basics, ComposedStrategy
from strategies.sampling import clients_per_round
from strategies.stopping import StopRule
from strategies.update import Arrays
from strategies.work import template_of
from tasks.base import Schema, Task
from tasks.data.agreement import Rules, agree, check_rows, describe, sort_out
from tasks.data.base import Dataset, DataSource, OwnFile, Split
from tasks.data.design import Design
from tasks.schedules import learning_rate

Scalar = bool | bytes | float | int | str


@lru_cache(maxsize=8)
def build_strategy(config: RunConfig) -> ComposedStrategy:
    """The strategy, its sampler and its stop rule. Raises Refused."""
    stop: StopRule = registry.build("stop", config.stop, config.stop_args)
    basics = Basics(clients_per_round(config.clients_per_round), stop, config.min_clients, config.seed)
    strategy: ComposedStrategy = registry.build("strategy", config.strategy, config.strategy_args, basics)
    return strategy


def build_dataset(config: RunConfig) -> Dataset:
    """The data source, not opened. Raises Refused."""
    dataset: Dataset = registry.build("data", config.data, config.data_args)
    return dataset


def rules(config: RunConfig) -> Rules:
    """How the clients of a run agree on their columns."""
    dataset = build_dataset(config)
    return Rules(config.standardize, dataset.missing, dataset.positive, config.min_examples)


@lru_cache(maxsize=4)
def open_data(config: RunConfig, own: OwnFile | None = None) -> DataSource:
    """The clients and their rows: the same in every process; at a site with a file of its own, its one client.

    Raises Refused where there are none or they cannot be dealt so.
    """
    split = Split(
        num_clients=config.num_clients,
        partition=registry.build("partition", config.partition, config.partition_args),
        test_fraction=config.test_fraction,
        seed=config.seed,
        target=cast(type[Task], registry.resolve("task", config.task)).target,
    )
    dataset = build_dataset(config)
    if own is not None:
        try:
            return dataset.for_site(own).open(split)
        except ValueError as error:
            raise Refused("the site's data cannot be used", f"client {own.client}", str(error)) from error
    if not dataset.partitioned and config.partition != RunConfig.model_fields["partition"].default:
        remedy = "these data are born divided: leave partition out, and see their own arguments with fl-app list"
        raise Refused(f"partition={config.partition}", f"data={config.data}", remedy)
    try:
        return dataset.open(split)
    except ValueError as error:
        raise Refused("the data cannot be used", f"data={config.data}", str(error)) from error


@lru_cache(maxsize=4)
def local_design(config: RunConfig) -> Design:
    """The design that enrolment will come to, from data that can be opened here.

    Where the server does not hold them, of the first client alone: columns, but no statistics. Raises Refused, naming
    the client, where the clients' columns do not go together or their rows cannot be used.
    """
    data, agreed = open_data(config), rules(config)
    clients = data.clients
    if not build_dataset(config).server_held:
        clients, agreed = clients[:1], replace(agreed, standardize="none", missing="mean", positive="", min_examples=1)
    descriptions = {}
    for client in clients:
        try:
            division = data.divide(client)
            check_rows(division.test, agreed)
            descriptions[client] = describe(division.train, agreed)
        except ValueError as error:
            raise Refused("the rows cannot be used", f"client {client}", str(error)) from error
    _, refused = sort_out(descriptions)
    for client, why in refused.items():
        raise Refused("the clients' columns differ", f"client {client}", why)
    try:
        design = agree(descriptions, agreed)
    except ValueError as error:
        raise Refused("the clients cannot agree on their columns", f"data={config.data}", str(error)) from error
    if len(design.classes) == 1:
        what = f"every row has {design.label} = {design.classes[0]!r}"
        raise Refused(what, f"data={config.data}", "a model needs two classes: is it the right label column?")
    for client in descriptions:
        try:
            design.targets(data.divide(client).test)
        except ValueError as error:
            raise Refused("the test rows cannot be used", f"client {client}", str(error)) from error
    return design


@lru_cache(maxsize=4)
def build_task(config: RunConfig, schema: Schema) -> Task:
    """The task for these columns. Raises Refused, also for a fit configuration that its clients would refuse."""
    task: Task = registry.build("task", config.task, config.task_args, schema)
    if config.device not in ("auto", *task.devices):
        remedy = f"expected auto or {', '.join(task.devices)}"
        raise Refused(f"device={config.device}", f"{config.task} cannot use it", remedy)
    strategy = build_strategy(config)
    measured = task.reports + (task.server_reports if build_dataset(config).server_held else ())
    for metric in strategy.basics.stop.reads:
        if metric not in measured:
            raise Refused(f"unknown metric {metric!r}", f"stop={config.stop}", suggestion(metric, measured))
        if config.test_fraction == 0:
            raise Refused(f"stop={config.stop} reads {metric}", "test-fraction=0", "keep some rows for tests")
    fit = {**fit_config(config, 1, strategy.work.request, seed=0), **strategy.work.settings}
    for option in strategy.work.settings:
        if option not in task.fit_options:
            remedy = f"{config.task} heeds {', '.join(task.fit_options) or 'no such key'}: use another strategy"
            raise Refused(f"{config.task} does not heed {option}", f"strategy={config.strategy} needs it", remedy)
    try:
        task.check_config(fit)
    except ValueError as error:
        raise Refused(f"{config.task} cannot train so", f"strategy={config.strategy}", str(error)) from error
    return task


def first_params(task: Task, config: RunConfig) -> Arrays:
    """The task's own initial params, or those of the `init` file. Raises Refused where these do not fit the task."""
    params = task.initial_arrays(config.seed)
    if not config.init:
        return params
    where = f"init={config.init}"
    try:
        found = load_file(config.init)
    except (SafetensorError, OSError) as error:
        raise Refused("cannot read the initial params", where, f"name a model.safetensors ({error})") from error
    expected = dict(zip(task.array_names, template_of(params), strict=True))
    if set(found) != set(expected):
        raise Refused(f"arrays {', '.join(sorted(found))}", where, f"expected {', '.join(sorted(expected))}")
    for name, (shape, dtype) in expected.items():
        if (found[name].shape, found[name].dtype) != (shape, dtype):
            came = f"{name} of shape {found[name].shape} and dtype {found[name].dtype}"
            raise Refused(came, where, f"expected shape {shape} and dtype {dtype}")
        if not np.isfinite(found[name]).all():
            raise Refused(f"{name} holds values that are not finite", where, "start from another model")
    return tuple(found[name] for name in task.array_names)


def fit_config(config: RunConfig, round: int, request: str, *, seed: int, metrics: bool = False) -> dict[str, Scalar]:
    """What `NumPyClient.fit` is told. `seed` is that of one client in one round."""
    try:
        rate = learning_rate(config.lr_schedule, config.learning_rate, round, config.rounds)
    except ValueError as error:
        raise Refused(f"lr-schedule={config.lr_schedule!r}", "lr-schedule", str(error)) from error
    return {
        "work": request,
        "round": round,
        "solver": config.solver,
        "local-epochs": config.local_epochs,
        "local-steps": config.local_steps,
        "batch-size": config.batch_size,
        "learning-rate": rate,
        "l1": config.l1,
        "l2": config.l2,
        "seed": seed,
        "metrics": metrics,
        "device": config.device,
        "threads": config.threads,
    }
