"""The default job: how close federated training comes to the pooled model, and how long it takes.

Accuracy: the job of `fl-app run` with its defaults but the strategy, once for each seed, which deals the rows to the
clients anew. The pooled model is the exact optimum of the same objective on all clients' training rows, scaled by the
same statistics and measured on the same test rows. The runs use the inline engine, whose results are Flower's to the
bit (tests show that).

Time, with --time: the wall time of a whole process `python -m fl_app.cli run`, from typing it to its end, with the
engines in turn. The installed command differs by a start script only.
"""

import argparse
import logging
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from benchmarks.figures import heading, spread
from fl_app.config import RunConfig
from fl_app.job import new_job, run_job
from fl_app.profiles import load_profile

STRATEGIES = ("fedavg", "fednewton")
ENGINES = ("flower", "inline")


def main() -> None:
    """Measure and print."""
    options = _options()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    heading(f"The default job over {options.seeds} seeds: test accuracy, and the difference to the pooled model")
    print(f"{'seed':6}{'pooled':>10}" + "".join(f"{name:>16}{'points':>9}" for name in STRATEGIES))
    table = np.array([accuracies(seed) for seed in range(options.seeds)])
    for seed, row in enumerate(table):
        print(_row(str(seed), row))
    print(_row("mean", table.mean(axis=0)))
    if options.time:
        print(f"\nSeconds from typing `fl-app run` to its end, {options.time} runs of each engine in turn")
        seconds = np.array([[wall_time(engine) for engine in ENGINES] for _ in range(options.time)])
        for engine, values in zip(ENGINES, seconds.T, strict=True):
            print(f"  {engine:8}{spread(values.tolist())}")


def accuracies(seed: int) -> list[float]:
    """Test accuracy of the pooled model and of each strategy."""
    found: list[float] = []
    for strategy in STRATEGIES:
        with TemporaryDirectory() as scratch:
            config = RunConfig.parse({"seed": seed, "strategy": strategy})
            job = new_job(config, load_profile(None, Path(scratch)), "inline", Path(scratch))
            summary, status = run_job(job, lambda line: None)
            if status:
                raise RuntimeError(summary["error"])
            if not found:
                found.append(summary["baselines"]["pooled"]["accuracy"])
            found.append(summary["metrics"]["accuracy"])
    return found


def wall_time(engine: str) -> float:
    """Seconds of a whole `fl-app run` process."""
    with TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "fl_app.cli", "run", "--engine", engine, "--out", f"{scratch}/run"]
        began = perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return perf_counter() - began


def _row(name: str, accuracy: np.ndarray) -> str:
    pooled, *federated = accuracy
    columns = (f"{value:16.4f}{100 * (value - pooled):+9.2f}" for value in federated)
    return f"{name:6}{pooled:10.4f}" + "".join(columns)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy and wall time of the default job.")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each strategy")
    parser.add_argument("--time", type=int, default=0, nargs="?", const=3, metavar="RUNS", help="runs of each engine")
    return parser.parse_args()


if __name__ == "__main__":
    main()
