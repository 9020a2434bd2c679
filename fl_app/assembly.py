"""From a run configuration to the objects of a run: strategy, data, columns, task.

Server and nodes call these functions with the same configuration, and so work with equal objects.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_app import registry
from fl_app.config import RunConfig
from fl_app.errors import Refused, suggestion
from strategies.base import Basics, ComposedStrategy
from strategies.protection import Protection
from strategies.stopping import StopRule
from strategies.update import Arrays
from tasks.base import Schema, Task
from tasks.data.agreement import Rules, agree, check_rows, describe, misfit, sort_out
from tasks.data.base import Dataset, DataSource, OwnFile, Split
from tasks.data.declared import as_asked, in_ranges, read_declaration
from tasks.data.design import Design
from tasks.schedules import learning_rate

Scalar = bool | bytes | float | int | str


@lru_cache(maxsize=8)
def build_strategy(config: RunConfig, clients: int = 0, noise_multiplier: float = 0.0) -> ComposedStrategy:
    """The strategy, its sampler and its stop rule. Raises Refused.

    `clients` is their number, which the server knows (see `population`) and a node does not; `noise_multiplier` is that
    of the earlier part of a resumed run. 0 = not known.
    """
    stop: StopRule = registry.build("stop", config.stop, config.stop_args)
    basics = Basics(
        clients_per_round=config.clients_per_round,
        over_selection=config.over_selection,
        stop=stop,
        min_clients=config.min_clients,
        seed=config.seed,
        rounds=config.rounds,
        population=clients,
        noise_multiplier=noise_multiplier,
        batch_size=config.batch_size,
        min_examples=config.min_examples,
        local_epochs=config.local_epochs,
        local_steps=config.local_steps,
        private_means=config.standardize == "private",
        noisy_metrics=config.noisy_metrics,
        evaluate_every=config.evaluate_every,
    )
    strategy: ComposedStrategy = registry.build("strategy", config.strategy, config.strategy_args, basics)
    if config.noisy_metrics and strategy.protection is None:
        what, where = f"noisy-metrics={config.noisy_metrics:g}", f"strategy={config.strategy} promises no privacy"
        raise Refused(what, where, "without a promise nothing needs noise: leave it out")
    return strategy


def population(config: RunConfig) -> int:
    """The number of clients, as it is known before they enrol: from the run, or from data that can be opened here.

    0 where only the sites know it.
    """
    dataset = build_dataset(config)
    if config.num_clients or (dataset.at_sites and not dataset.names_files):
        return config.num_clients
    return len(open_data(config).clients)


def build_dataset(config: RunConfig) -> Dataset:
    """The data source; nothing is read yet. Raises Refused."""
    dataset: Dataset = registry.build("data", config.data, config.data_args)
    return dataset


def rules(config: RunConfig) -> Rules:
    """How the clients of a run agree on their columns."""
    dataset = build_dataset(config)
    return Rules(config.standardize, dataset.missing, dataset.positive, config.min_examples)


def split_of(config: RunConfig) -> Split:
    """How the run divides its data. Raises Refused."""
    return Split(
        num_clients=config.num_clients,
        partition=registry.build("partition", config.partition, config.partition_args),
        test_fraction=config.test_fraction,
        seed=config.seed,
        target=cast(type[Task], registry.resolve("task", config.task)).wants(registry.given("task", config.task_args)),
    )


@lru_cache(maxsize=4)
def open_data(config: RunConfig, own: OwnFile | None = None) -> DataSource:
    """The clients and their rows, the same in every process. With `own`, a site's file, the one client of that site.

    Raises Refused where there are no rows, or where they cannot be divided as the run says.
    """
    split, dataset = split_of(config), build_dataset(config)
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
    """The design that enrolment will come to, made beforehand from data that can be opened here.

    Where the server does not hold the rows it is made from the columns of the first client alone, without statistics.
    Raises Refused, naming the client, where the clients' columns differ or their rows cannot be used.
    """
    design = agreed_beforehand(config, build_strategy(config))
    if design is None:
        return _design_of_rows(config)
    data, agreed = open_data(config), rules(config)
    for client in data.clients:
        try:
            division = data.divide(client)
            check_rows(division.train, agreed)
            check_rows(division.test, agreed)
            if why := misfit(design, division.train.columns):
                raise ValueError(why)
        except ValueError as error:
            raise Refused("the rows cannot be used", f"client {client}", str(error)) from error
    return design


def _design_of_rows(config: RunConfig) -> Design:
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
def declared_design(config: RunConfig) -> Design | None:
    """The design as far as it is declared: by the run's schema file, or by a data source that knows its columns.

    None where neither declares it. No row is read. Raises Refused for a file that is no schema.
    """
    dataset = build_dataset(config)
    if config.schema_:
        try:
            design: Design | None = read_declaration(Path(config.schema_))
        except ValueError as error:
            raise Refused("the schema cannot be used", f"schema={config.schema_}", str(error)) from error
    else:
        design = dataset.declared(split_of(config))
    return None if design is None else as_asked(design, config.standardize, dataset.missing)


def agreed_beforehand(config: RunConfig, strategy: ComposedStrategy) -> Design | None:
    """The declared design, for a run whose clients do not agree on one from their rows; None for any other run.

    That is a run which asks for declared columns, or which promises privacy: statistics and categories that come from
    rows would break the promise. Raises Refused where such a run declares nothing.
    """
    private = strategy.protection is not None
    if config.standardize == "private" and not private:
        remedy = "use a strategy that does, or standardize=global or declared"
        raise Refused("standardize=private", f"strategy={config.strategy} promises no privacy", remedy)
    if config.standardize != "declared" and not config.schema_ and not private:
        return None
    design = declared_design(config)
    if design is not None:
        return in_ranges(design) if config.standardize == "private" else design
    what = f"strategy={config.strategy} promises privacy: nothing may be learned of the columns from the rows"
    what = what if private else f"standardize={config.standardize}"
    remedy = "declare the columns, with their ranges, categories and classes, in a JSON file: schema=FILE"
    raise Refused(what, f"data={config.data} declares no columns", remedy)


@lru_cache(maxsize=4)
def build_task(config: RunConfig, schema: Schema) -> Task:
    """The task for these columns, checked against the rest of the run.

    Raises Refused, also for a fit config that its clients would refuse in every round.
    """
    task: Task = registry.build("task", config.task, config.task_args, schema)
    try:
        task.check_device(config.device)
    except ValueError as error:
        raise Refused(f"device={config.device}", f"{config.task} cannot use it", str(error)) from error
    strategy = build_strategy(config)
    measured = task.reports + (task.server_reports if measured_at_server(task, config) else ())
    measured = tuple(task.metric_ranges) if config.noisy_metrics else measured
    for metric in strategy.basics.stop.reads:
        if metric and metric not in measured:
            raise Refused(f"unknown metric {metric!r}", f"stop={config.stop}", suggestion(metric, measured))
        if config.test_fraction == 0:
            what = f"stop={config.stop} reads {metric or 'a metric'}"
            raise Refused(what, "test-fraction=0", "keep some rows for tests")
    usual, asked = fit_config(config, 1, strategy.work.request, seed=0), strategy.work.asks()
    fit = {**usual, **asked}
    for option in asked:
        if option not in (*task.fit_options, *usual):
            remedy = f"{config.task} heeds {', '.join(task.fit_options) or 'no such key'}: use another strategy"
            raise Refused(f"{config.task} does not heed {option}", f"strategy={config.strategy} needs it", remedy)
    if strategy.protection is not None:
        _check_private(config, strategy.protection, task)
    try:
        task.check_config(fit)
        if config.finetune_epochs:
            task.check_config(finetune_config(config, seed=0))
    except ValueError as error:
        raise Refused(f"{config.task} cannot train so", f"strategy={config.strategy}", str(error)) from error
    return task


def _check_private(config: RunConfig, protection: Protection, task: Task) -> None:
    """Raise Refused for what would let something be known of rows that the noise does not cover."""
    where = f"strategy={config.strategy} promises privacy"
    if config.finetune_epochs:
        what = f"finetune-epochs={config.finetune_epochs} is reported by metrics of each client"
        raise Refused(what, where, "leave it out")
    if task.statistics_names:
        what = f"{task.statistics_names[0]} is averaged over the clients, a statistic of their rows"
        remedy = "use a model without batch normalisation, or keep its layers local with task-args batch-norm=local"
        raise Refused(what, where, remedy)
    if protection.metrics is not None:
        _check_noisy_metrics(config, protection, task)
    if config.standardize == "local" and protection.unit == "record":
        what = "standardize=local makes every row depend on all others of its client"
        raise Refused(what, where, "set standardize=global, which is by declared ranges here, or none")


def _check_noisy_metrics(config: RunConfig, protection: Protection, task: Task) -> None:
    """Raise Refused where metrics cannot be released under noise: nothing bounds them, or there are no test rows."""
    where = f"noisy-metrics={config.noisy_metrics:g}"
    if not task.metric_ranges:
        remedy = "leave noisy-metrics out, or declare ranges in Task.metric_ranges"
        raise Refused(f"no metric of {config.task} has a range that bounds what a row adds", where, remedy)
    if not task.schema.classes and config.standardize == "none":
        what = "the errors of a label that is a number have no range with standardize=none"
        raise Refused(what, where, "set standardize=global, which is by the declared scale of the label here")
    if protection.unit == "record" and task.personal_names:
        what = f"{task.personal_names[0]} stays at the client: a row that it learned from would be in every metric"
        raise Refused(what, where, "leave personal layers out, or noisy-metrics")
    if not config.test_fraction:
        raise Refused(where, "test-fraction=0", "keep some rows for tests")


def measured_at_server(task: Task, config: RunConfig) -> bool:
    """Whether the server measures the model: it can, where it has test rows and all arrays of the model.

    Where privacy is promised the clients measure nothing, unless under noise. The server then also measures on rows
    that it generates, which in other runs are left to the clients.
    """
    if config.noisy_metrics:
        return False
    dataset = build_dataset(config)
    private = build_strategy(config).protection is not None
    return (dataset.server_held or (private and not dataset.at_sites)) and not task.personal_names


def begin(task: Task, config: RunConfig, init: str) -> tuple[Task, Arrays]:
    """The task, holding the model's arrays that do not travel, and the params that training starts from.

    Both are drawn by the task from the run's seed, or read from the file `init`. That file has to hold all params. It
    may lack all frozen arrays, or all personal ones; those are then drawn. Raises Refused where it does not fit.
    """
    params, held = task.initial_arrays(config.seed), task.initial_held(config.seed)
    if not init:
        return task.holding(held), params
    started = dict(zip(task.array_names + task.held_names, params + held, strict=True))
    found = _tensors(init)
    needed = set(task.array_names)
    for group in (set(task.frozen_names), set(task.personal_names)):
        needed |= group if group & set(found) else set()
    _check_names(init, set(found), needed, set(started))
    for name, array in found.items():
        started[name] = _fitting(name, array, started[name], f"init={init}")
    return task.holding(tuple(started[n] for n in task.held_names)), tuple(started[n] for n in task.array_names)


def _tensors(init: str) -> Mapping[str, np.ndarray]:
    try:
        found = load_file(init)
        for name, array in found.items():
            if array.dtype.kind not in "fiub":  # numpy knows more of them once a library has brought some
                raise TypeError(f"{name} is of type {array.dtype}")
        return found
    except (SafetensorError, OSError, TypeError, KeyError) as error:  # a file can hold types that numpy lacks
        remedy = f"name a model.safetensors of 32- or 64-bit numbers ({type(error).__name__}: {error})"
        raise Refused("cannot read the initial params", f"init={init}", remedy) from error


def _check_names(init: str, found: set[str], needed: set[str], known: set[str]) -> None:
    missing, surplus = sorted(needed - found), sorted(found - known)
    if not missing and not surplus:
        return
    faults = [f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("surplus", surplus)) if names]
    remedy = f"expected {', '.join(sorted(known))}"
    raise Refused(f"arrays that do not fit: {'; '.join(faults)}", f"init={init}", remedy)


def _fitting(name: str, array: np.ndarray, expected: np.ndarray, where: str) -> np.ndarray:
    """The array in the dtype of the expected one. Only integers are converted: counters may be stored as such.

    Raises Refused for another shape or dtype, and for values that are not finite.
    """
    if array.dtype.kind in "iu" and expected.dtype == np.float64 and (array.astype(np.float64) == array).all():
        array = array.astype(np.float64)
    if (array.shape, array.dtype) != (expected.shape, expected.dtype):
        came = f"{name} of shape {array.shape} and dtype {array.dtype}"
        raise Refused(came, where, f"expected shape {expected.shape} and dtype {expected.dtype}")
    if not np.isfinite(array).all():
        raise Refused(f"{name} holds values that are not finite", where, "start from another model")
    return array


def finetune_config(config: RunConfig, seed: int) -> dict[str, Scalar]:
    """What `NumPyClient.fit` is told when the rounds are over: to train on, as in the last of them."""
    asked = fit_config(config, config.rounds, "train", seed=seed)
    return {**asked, "local-epochs": config.finetune_epochs, "local-steps": 0}


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
