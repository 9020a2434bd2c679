"""The same federation as a user of plain Flower writes it: the stock FedAvg strategy, one node per client.

The shards, the model and the local training are the project's; sampling, messages and averaging are all Flower's. A
worker keeps the shards that it has made, as the project's nodes do. Run by `benchmarks.simulation`.
"""

import json
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from threadpoolctl import threadpool_limits

from fl_app.assembly import build_task, fit_config, local_design
from fl_app.config import RunConfig
from fl_app.rows import prepared_rows
from strategies.sampling import derive_seed
from tasks.base import Shard

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Writes the seconds of each round: from the end of the one before to the end of its aggregation."""
    config = RunConfig.parse(context.run_config)
    while len(list(grid.get_node_ids())) < config.num_clients:  # Flower registers nodes while the ServerApp runs
        time.sleep(0.1)
    ends: list[float] = []

    def note_time(number: int, arrays: ArrayRecord) -> None:
        ends.append(time.monotonic())

    params = build_task(config, local_design(config).schema).initial_arrays(config.seed)
    FedAvg(
        fraction_train=config.clients_per_round / config.num_clients,
        fraction_evaluate=0.0,
        min_train_nodes=config.clients_per_round,
        min_available_nodes=config.num_clients,
    ).start(grid, ArrayRecord(list(params)), num_rounds=config.rounds, evaluate_fn=note_time)
    seconds = [after - before for before, after in pairwise(ends)]
    (Path(config.out) / "result.json").write_text(json.dumps(seconds))


@client.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client."""
    config = RunConfig.parse(context.run_config)
    number = cast(int, message.content.config_records["config"]["server-round"])
    params = message.content.array_records["arrays"].to_numpy_ndarrays()
    shard = _shard(config, int(context.node_config["partition-id"]))
    seed = derive_seed(config.seed, "fit", number, shard.client)
    with threadpool_limits(config.threads):
        task = build_task(config, local_design(config).schema)
        arrays, examples, _ = task.make_client(shard).fit(params, fit_config(config, number, "train", seed=seed))
    reply = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": examples})})
    return Message(reply, reply_to=message)


@cache
def _shard(config: RunConfig, partition: int) -> Shard:
    rows = prepared_rows(config, local_design(config))
    return rows.shard(rows.clients[partition])
