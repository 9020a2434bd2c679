"""What a node has at hand to work for its clients in one run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context

from fl_app.assembly import build_strategy, build_task, open_data
from fl_app.client_state import ClientStore
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.rows import PreparedRows, Statistics, prepared_rows
from strategies.base import ComposedStrategy
from tasks.base import Task


@dataclass(frozen=True)
class Common:
    """What the server tells every node in every message, since a node may start a new process for each.

    `statistics` are the frozen ones of the run. `train_metrics`: clients measure the model they receive.
    """

    job: str
    train_metrics: bool
    statistics: Statistics | None

    def values(self) -> dict[str, Any]:
        """As a Flower ConfigRecord takes it."""
        values: dict[str, Any] = {"job": self.job, "train-metrics": self.train_metrics}
        if self.statistics is not None:
            values |= {"mean": list(self.statistics[0]), "scale": list(self.statistics[1])}
        return values

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Common":
        """The inverse of `values`."""
        statistics = (tuple(values["mean"]), tuple(values["scale"])) if "mean" in values else None
        return cls(str(values["job"]), bool(values["train-metrics"]), statistics)


@dataclass(frozen=True)
class Site:
    """The parts of a run at one node."""

    config: RunConfig
    strategy: ComposedStrategy
    task: Task
    rows: PreparedRows
    store: ClientStore
    train_metrics: bool

    @classmethod
    def of(cls, context: Context, common: Common) -> "Site":
        """From a message's context and what the server sent with it."""
        config = RunConfig.parse(context.run_config)
        return cls(
            config=config,
            strategy=build_strategy(config),
            task=build_task(config, open_data(config).schema),
            rows=prepared_rows(config, common.statistics),
            store=ClientStore(_state_folder(config, context.node_config), common.job),
            train_metrics=common.train_metrics,
        )


def hosted_clients(config: RunConfig, node_config: Mapping[str, Any]) -> tuple[str, ...]:
    """The clients of one node: every num-partitions-th, from the partition-id-th on. Raises Refused."""
    try:
        first, step = int(node_config["partition-id"]), int(node_config["num-partitions"])
    except KeyError as error:
        remedy = 'start the node with --node-config "partition-id=0 num-partitions=2"'
        raise Refused(
            "the node does not say which clients it hosts", f"no {error} in its node config", remedy
        ) from None
    return open_data(config).clients[first::step]


def _state_folder(config: RunConfig, node_config: Mapping[str, Any]) -> Path:
    """Where clients' state is kept: what the site says; in a simulation below the run's folder; else Flower's own."""
    if "state" in node_config:
        return Path(str(node_config["state"]))
    if config.out and "partition-id" in node_config:
        return Path(config.out) / "state"
    return Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr")) / "client-state"
