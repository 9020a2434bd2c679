"""One node in one run: what the server has told it, and what it works with for its clients."""

import json
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context

from fl_app.assembly import begin, build_dataset, build_strategy, build_task, open_data
from fl_app.caller import CALLER
from fl_app.client_state import ClientStore, file_name
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.held_model import HeldModel
from fl_app.own_files import OwnFiles
from fl_app.policy import Ask, Declined, Policy, checked_policy
from fl_app.rows import PreparedRows, prepared_rows
from fl_app.site_ledger import SiteLedgers
from fl_app.tensors import params_sha256
from fl_app.variants import variant_config, variant_entry, variant_of
from strategies.base import ComposedStrategy
from strategies.wire import Order
from tasks.base import Schema, Task
from tasks.data.base import OwnFile
from tasks.data.design import Design


@dataclass(frozen=True)
class Common:
    """What the server repeats in every message of a run, since a node may start a new process for each message.

    `job` is the name by which sites know the run. `design` is the one that enrolment came to. `train_metrics`: clients
    measure the model they receive. `variant` is the run's number where several are played in one. `held_sha256` is the
    hash of the model's arrays that do not travel, which every process has to make or read itself; empty where there are
    none.
    """

    job: str
    train_metrics: bool
    design: Design
    variant: int | None = None
    held_sha256: str = ""

    def values(self) -> dict[str, Any]:
        """As a Flower ConfigRecord takes it."""
        design = zlib.compress(json.dumps(self.design.to_json()).encode())
        held = {"held-sha256": self.held_sha256} if self.held_sha256 else {}
        told = {"job": self.job, "train-metrics": self.train_metrics, "design": design}
        return {**told, **variant_entry(self.variant), **held}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Common":
        """The inverse of `values`."""
        design = Design.from_json(json.loads(zlib.decompress(values["design"])))
        held = str(values.get("held-sha256", ""))
        return cls(str(values["job"]), bool(values["train-metrics"]), design, variant_of(values), held)


@dataclass(frozen=True)
class Site:
    """What one node works with in one run. Made anew for every message."""

    config: RunConfig
    client: str | None
    """The only client of a node with a file of its own."""
    strategy: ComposedStrategy
    task: Task
    rows: PreparedRows
    store: ClientStore
    train_metrics: bool
    held_model: HeldModel
    ledgers: SiteLedgers | None
    """What its clients have spent of privacy; None in a simulation."""
    policy: Policy | None
    """What the site demands; None where it demands nothing."""

    @classmethod
    def of(cls, context: Context, common: Common, ask: Ask = "train") -> "Site":
        """From a message's context and what the server sent with it.

        Raises Declined where the site's policy forbids what the message asks, or the site's files have changed since
        its client enrolled.
        """
        config = variant_config(context.run_config, common.variant)
        ledgers, metrics = own_ledgers(config, common.job, context.node_config), common.train_metrics
        policy = checked_policy(config, context.node_config, ask, ledgers, ask == "train" and metrics)
        check_reading(config, context.node_config)
        strategy, state = build_strategy(config), state_folder(config, context.node_config)
        _check_design(strategy, common.design)
        if own := own_file(context.node_config):
            OwnFiles(own, state, common.job, context.node_id).check()
        return cls(
            config=config,
            client=own.client if own else None,
            strategy=strategy,
            task=_task(config, common, context.node_config),
            rows=prepared_rows(config, common.design, own),
            store=ClientStore(state, common.job),
            held_model=HeldModel(state / file_name(common.job) / f"node-{context.node_id}"),
            ledgers=ledgers,
            policy=policy,
            train_metrics=common.train_metrics and strategy.protection is None,
        )

    def check_clients(self, order: Order) -> None:
        """Raises Declined for an order to a client that this node does not host: it would charge another's ledger."""
        if self.client is not None and set(order.clients) != {self.client}:
            raise Declined(
                "client", f"the order is for {len(order.clients)} clients, this node has {self.client} alone"
            )

    @property
    def tells_counts(self) -> bool:
        """Whether the number of a client's rows may leave the node."""
        return self.policy is None or self.policy.release.counts

    def folds(self, order: Order) -> bool:
        """Whether this node adds up the updates of an order's clients.

        The server has to ask for it and the site to allow it; for a single client the site need not, since the sum is
        then that client's own update.
        """
        allowed = self.policy is None or self.policy.release.folding or len(order.clients) == 1
        return order.fold and allowed


def held_sha256(task: Task) -> str:
    """The hash of the model's arrays that do not travel; empty where there are none."""
    return params_sha256(task.held_names, task.held) if task.held_names else ""


def _task(config: RunConfig, common: Common, node_config: Mapping[str, Any]) -> Task:
    """The run's task, with the model's arrays that do not travel.

    These follow from the run's seed, or are read from the file `init`, which at a site only its node config may name.
    Raises Refused where they are not the same as the server's.
    """
    task = build_task(config, common.design.schema)
    if not task.held_names:
        return task
    init = str(node_config.get("init", "")) or (config.init if simulated() else "")
    path = Path(init).expanduser()
    stamp = (path.stat().st_mtime_ns, path.stat().st_size) if init and path.is_file() else None
    task, found = _held(config, common.design.schema, str(path) if init else "", stamp)
    if found != common.held_sha256:
        what = f"{_few(task.held_names)} do not travel and are others here (sha256 {found}) than at the server"
        if config.init:
            where = f"init={config.init}, whose arrays have sha256 {common.held_sha256}"
            remedy = "bring that file to this site and start the node with --node-config 'init=\"FILE\"'"
        else:
            where = f"task={config.task}, seed={config.seed}, expected sha256 {common.held_sha256}"
            remedy = "install the same versions of PyTorch and of the model's code on server and nodes"
        raise Refused(what, where, remedy)
    return task


@lru_cache(maxsize=4)
def _held(config: RunConfig, schema: Schema, init: str, stamp: tuple[int, int] | None) -> tuple[Task, str]:
    """The task and the hash of what it holds. `stamp` changes with the file."""
    task, _ = begin(build_task(config, schema), config, init)
    return task, held_sha256(task)


def _check_design(strategy: ComposedStrategy, design: Design) -> None:
    """Raises Declined for a design that undoes the promise, whatever the run says: it comes from the server."""
    if strategy.protection is not None and strategy.protection.unit == "record" and design.standardize == "local":
        raise Declined("design", "it scales by the client's own rows, so that each depends on all the others")


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more arrays" if len(names) > 3 else "")


def check_reading(config: RunConfig, node_config: Mapping[str, Any]) -> None:
    """Raise Refused for a run that names files to read at a site: there only the node config may name them."""
    if own_file(node_config) is None and build_dataset(config).names_files and not simulated():
        remedy = 'start the node with --node-config \'client="NAME" data="FILE.csv" label="COLUMN"\''
        raise Refused("the run names files to read at this site", f"data-args={config.data_args!r}", remedy)


def own_file(node_config: Mapping[str, Any]) -> OwnFile | None:
    """The file of rows that the node config names; None where it names none. Raises Refused for an incomplete one."""
    if "data" not in node_config:
        return None
    missing = [key for key in ("client", "label") if not str(node_config.get(key, ""))]
    if missing:
        remedy = 'expected --node-config \'client="NAME" data="FILE.csv" label="COLUMN"\''
        raise Refused("the node says too little of its data", f"no {missing[0]} in its node config", remedy)
    path, test = (str(node_config.get(key, "")) for key in ("data", "test-data"))
    tests = str(Path(test).expanduser()) if test else ""
    return OwnFile(str(node_config["client"]), str(Path(path).expanduser()), str(node_config["label"]), tests)


def hosted_clients(config: RunConfig, node_config: Mapping[str, Any]) -> tuple[str, ...]:
    """The clients of one node: the owner of its file, or every num-partitions-th of the run's data, from the
    partition-id-th on. Raises Refused."""
    if own := own_file(node_config):
        return (own.client,)
    try:
        first, step = int(node_config["partition-id"]), int(node_config["num-partitions"])
    except KeyError as error:
        remedy = 'start the node with --node-config "partition-id=0 num-partitions=2"'
        raise Refused(
            "the node does not say which clients it hosts", f"no {error} in its node config", remedy
        ) from None
    return open_data(config).clients[first::step]


def simulated() -> bool:
    """Whether this process simulates nodes: for `fl-app run` on this machine, or as a worker of Flower's Ray engine."""
    ray = sys.modules.get("ray")
    return CALLER in os.environ or (ray is not None and ray.is_initialized())


def own_ledgers(config: RunConfig, job: str, node_config: Mapping[str, Any]) -> SiteLedgers | None:
    """The ledgers of a node with a file of its own, as one run sees them; None in a simulation."""
    return SiteLedgers(state_folder(config, node_config), job) if own_file(node_config) else None


def state_folder(config: RunConfig, node_config: Mapping[str, Any]) -> Path:
    """Where clients' state is kept: what the site says; in a simulation below the run's folder; else Flower's own."""
    if "state" in node_config:
        return Path(str(node_config["state"]))
    if config.out and "partition-id" in node_config:
        return Path(config.out) / "state"
    return Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr")) / "client-state"
