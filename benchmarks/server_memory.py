"""The server's memory in one round of many clients with a model of 1M float32 params, in models of 4 MB.

Measured is the process that Flower calls flwr-simulation, by the kernel's count of its pages in memory: our ServerApp,
and with it Flower's store of messages and the driver of Ray. It is the difference between right after enrolment and
the peak of the round. The nodes train in processes of their own (two Ray workers), so their memory is not in it; nor is
what Ray keeps in shared memory unless the server has mapped it. Linux only.

  folded    a node adds up its clients' updates: one message a node, the server holds the model and one sum
  waves     nodes may not fold, as in most deployments: replies in messages of at most 64 MB, one in flight a node

Both rounds take place in one run, folded first; each starts from the memory that the process has then. benchmarks/
memory_app.py is what runs.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import heading
from benchmarks.flower_app import run_flower_app
from fl_app.config import RunConfig

NODES = 2


def main() -> None:
    """Measure and print."""
    options = _options()
    heading(f"Server memory: {options.clients} clients, {options.params:,} float32 params, one round, {NODES} nodes")
    model_bytes = 4 * options.params
    print(f"{'':8}{'before':>10}{'peak':>10}{'growth':>10}{'in models':>12}{'kept after':>13}{'round':>10}")
    with TemporaryDirectory() as scratch:
        config = _config(options.clients, options.params, scratch)
        measured = run_flower_app(Path(__file__).with_name("memory_app.py"), config, NODES)
    for row in measured:
        growth, kept = row["peak"] - row["before"], row["after"] - row["before"]
        print(
            f"{'folded' if row['fold'] else 'waves':8}{row['before'] / 1e6:7.0f} MB{row['peak'] / 1e6:7.0f} MB"
            f"{growth / 1e6:7.0f} MB{growth / model_bytes:12.1f}{kept / model_bytes:13.1f}{row['seconds']:8.1f} s"
        )


def _config(clients: int, params: int, out: str) -> RunConfig:
    return RunConfig.parse(
        {
            "task": "memory_app:WideTask",
            "task-args": f"params={params}",
            "data": "synthetic",
            "data-args": "features=1 examples=1",
            "num-clients": clients,
            "test-fraction": 0.0,
            "standardize": "none",
            "out": out,
        }
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How much memory a round takes at the server.")
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--params", type=int, default=1_000_000, help="of the model, 4 bytes each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
