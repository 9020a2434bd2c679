"""The server's side of `benchmarks.server_memory`: enrolment and one round, with its own memory measured.

Everything else is the project's: its ClientApp, its enrolment, its round loop. The task has a wide model and next to
no training, so that what is measured is the memory of moving and adding updates.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context
from flwr.client import NumPyClient
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from fl_app.assembly import build_strategy, build_task
from fl_app.client_app import app as client
from fl_app.config import RunConfig
from fl_app.enrolment import Enrolment
from fl_app.site import Common
from strategies import wire
from strategies.base import Setting
from tasks.base import Arrays, Config, Rows, Schema, Shard, Sums, Task

__all__ = ["WideTask", "client", "server"]

server = ServerApp()


class WideTask(Task):
    """A vector of float32 params; a client's training adds one number to all of them.

    Args:
        params: how many
    """

    array_names = ("params",)
    metric_names = ()

    def __init__(self, schema: Schema, *, params: int = 1_000_000) -> None:
        super().__init__(schema)
        self.params = params

    def initial_arrays(self, seed: int) -> Arrays:
        """Zeros."""
        return (np.zeros(self.params, np.float32),)

    def make_client(self, shard: Shard) -> "WideClient":
        """The client of this shard."""
        return WideClient(np.float32(shard.train.x.mean()), len(shard.train))

    def check_config(self, config: Config) -> None:
        """Nothing can be wrong with it."""

    def measure(self, arrays: Arrays, rows: Rows) -> dict[str, float | int]:
        """No metrics."""
        return {}

    def summarise(self, sums: Sums) -> dict[str, float]:
        """No metrics."""
        return {}


class WideClient(NumPyClient):
    """Adds `step` to every param."""

    def __init__(self, step: np.float32, examples: int) -> None:
        self.step = step
        self.examples = examples

    def fit(self, parameters: list[NDArray[Any]], config: Config) -> tuple[list[NDArray[Any]], int, dict[str, Any]]:
        """One addition and no metrics."""
        return [parameters[0] + self.step], self.examples, {}


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Writes the bytes after enrolment, at the peak of a round and after it, and its seconds, folded and not."""
    config = RunConfig.parse(context.run_config)
    enrolment = Enrolment(config)
    design = enrolment.open(grid)
    task, strategy = build_task(config, design.schema), build_strategy(config)
    common = ConfigRecord(Common("benchmark", train_metrics=False, design=design).values())
    measured = []
    for fold in (True, False):
        params = wire.params_record(task.initial_arrays(config.seed))
        before = _forget_peak()
        began = time.monotonic()
        strategy.start(
            grid,
            params,
            num_rounds=1,
            timeout=config.round_timeout_s,
            train_config=common,
            setting=Setting(roster=enrolment, fold=fold),
        )
        seconds = time.monotonic() - began
        memory = {"before": before, "peak": _memory("VmHWM"), "after": _memory("VmRSS")}
        measured.append({"fold": fold, "seconds": seconds, **memory})
    (Path(config.out) / "result.json").write_text(json.dumps(measured))


def _memory(line: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most since it was last forgotten."""
    status = Path("/proc/self/status").read_text()
    return next(1024 * int(row.split()[1]) for row in status.splitlines() if row.startswith(f"{line}:"))


def _forget_peak() -> int:
    """Start a new peak from what is in memory now, which is returned."""
    with Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")  # proc(5): resets the peak resident set size
    return _memory("VmRSS")
