"""What privacy costs: accuracy at an epsilon, and time. Three questions, each with its target.

clients   1,000 synthetic clients, 100 a round, softmax regression of 1,010 parameters: the strategies that protect
          clients at epsilon 1, 3 and 8, beside fedavg for as many rounds with the same local training
records   breast-cancer, 10 clients: record-dp-fedavg at epsilon 1 and 3 beside fedavg with its default keys, with the
          same declared scaling. Several declarations: which numbers a practitioner would have to know beforehand
time      what clipping and noise take of a round at a million parameters, and DP-SGD of plain SGD

delta is 1e-5 throughout. Keys were chosen on seeds below 300, which are not among those measured. The runs use the
inline engine, whose results are Flower's to the bit (tests show that).
"""

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import fl_app
from benchmarks.figures import heading, ratios, spread
from privacy.accounting import Sampling
from strategies.base import Basics
from strategies.dp_fedavg import DPFedAvg
from strategies.protection import Promise, Protection
from strategies.transform import Round
from strategies.update import FixedPoint, Update
from strategies.work import PrivateDelta, template_of
from tasks.base import Rows, Schema, Shard, Task
from tasks.data import bundled

Values = NDArray[np.float64]

FIRST_SEED = 1000
POINTS = 3.0  # of accuracy, to the run without noise
SHARE = 0.10  # of a round, clipping and noise
RATIO = 2.0  # of an epoch of DP-SGD to one of SGD

CLIENTS: Mapping[str, Any] = {
    "data": "synthetic",
    "data-args": "features=100 classes=10 examples=60 separation=3 label-skew=0.5",
    "num-clients": 1000,
    "clients-per-round": 100,
    "rounds": 30,
    "local-epochs": 1,
    "learning-rate": 0.3,
    "l2": 0.0,
    "standardize": "declared",
}
PROTECTING_CLIENTS = {
    "dp-fedavg": "clip-norm=0.2",
    "dp-fedavg-adaptive": "quantile=0.2",
    "dp-ftrl": "clip-norm=0.2",
}
RECORDS: Mapping[str, Any] = {"data": "breast-cancer", "num-clients": 10}
DP_SGD: Mapping[str, Any] = {
    "strategy": "record-dp-fedavg",
    "batch-size": 0,
    "local-epochs": 1,
    "rounds": 10,
    "learning-rate": 10.0,
    "l2": 0.0,
}
ARGS = "clip-norm=0.2"
QUIET: Mapping[str, Any] = {"baselines": False, "standard-errors": False}


def main() -> None:
    """Measure and print."""
    options = _options()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    heading("What privacy costs, delta 1e-5")
    parts = {"clients": clients, "records": records, "time": cost}
    for name in options.part or parts:
        parts[name](options.quick, options.seeds)


# ------------------------------------------------------------------------------------------------------------ accuracy


def clients(quick: bool, seeds: int) -> None:
    """Table of the strategies that protect clients."""
    seeds, epsilons = seeds or (1 if quick else 3), (3,) if quick else (1, 3, 8)
    print(f"1,000 synthetic clients, 100 a round, {CLIENTS['rounds']} rounds: accuracy, mean of {seeds} seeds")
    plain = accuracy({**CLIENTS, "strategy": "fedavg"}, seeds)
    print(f"  {'fedavg':22}{'':9}{_shown(plain)}")
    at_three = []
    for strategy, args in PROTECTING_CLIENTS.items():
        for epsilon in epsilons:
            keys = {"strategy": strategy, "strategy-args": f"target-epsilon={epsilon} delta=1e-5 {args}"}
            found = accuracy({**CLIENTS, **keys}, seeds)
            at_three += [_points(found, plain)] if epsilon == 3 else []
            print(f"  {strategy:22}epsilon {epsilon}{_shown(found)}{_points(found, plain):+7.2f} points", flush=True)
    print(f"  at epsilon 3: {max(at_three):+.2f} points, {POINTS:g} asked: {_verdict(max(at_three) >= -POINTS)}\n")


def records(quick: bool, seeds: int) -> None:
    """Table of the ways to declare the columns of breast-cancer."""
    seeds = seeds or (10 if quick else 100)
    print(f"breast-cancer, 10 clients, records protected: accuracy, mean of {seeds} seeds")
    with TemporaryDirectory() as scratch:
        for name, keys in declarations(Path(scratch)).items():
            plain = accuracy({**RECORDS, **keys, "standardize": "declared"}, seeds)
            print(f"  {name:46}fedavg   {_shown(plain)}")
            for epsilon in (1, 3):
                args = {"strategy-args": f"target-epsilon={epsilon} delta=1e-5 {ARGS}"}
                found = accuracy({**RECORDS, "standardize": "declared", **keys, **DP_SGD, **args}, seeds)
                gap, error = _points(found, plain), 100 * float(np.std(found - plain)) / sqrt(seeds)
                told = f": {_verdict(gap >= -POINTS)}" if epsilon == 1 else ""
                print(f"  {'':46}epsilon {epsilon}{_shown(found)}{gap:+7.2f} +- {error:.2f} points{told}", flush=True)
    print()


def declarations(folder: Path) -> dict[str, dict[str, Any]]:
    """The keys of a run by what is declared of the columns.

    The statistics are those of the public data set itself, since nothing else is published of its columns. They are
    rounded, to show how little of them it takes.
    """
    table = bundled.BreastCancer().table()
    mean, deviation = table.x.mean(axis=0), table.x.std(axis=0)
    ends = np.array([table.x.min(axis=0), table.x.max(axis=0)])
    halves, reach = (ends[1] - ends[0]) / 2, np.quantile(table.x, 0.99, axis=0) - mean
    columns: dict[str, list[dict[str, Any]]] = {
        "usual range, mean -+ sqrt(3) deviations": [
            {"range": [_rounded(m - sqrt(3) * s, 2), _rounded(m + sqrt(3) * s, 2)]}
            for m, s in zip(mean, deviation, strict=True)
        ],
        "range to where 99 % lie, about the mean": [
            {"range": [_rounded(m - r, 2), _rounded(m + r, 2)]} for m, r in zip(mean, reach, strict=True)
        ],
        "range as wide as all values, about the mean": [
            {"range": [_rounded(m - half, 3), _rounded(m + half, 3)]} for m, half in zip(mean, halves, strict=True)
        ],
        "mean and deviation, 1 digit": [
            {"mean": _rounded(m, 1), "scale": _rounded(s, 1)} for m, s in zip(mean, deviation, strict=True)
        ],
        "least and greatest value": [{"range": [_rounded(low, 4), _rounded(high, 4)]} for low, high in ends.T],
    }
    known: dict[str, dict[str, Any]] = {"as bundled: mean and deviation, 2 digits": {}}
    for number, (name, entries) in enumerate(columns.items(), 1):
        known[name] = {"schema": str(_declared(folder / f"{number}.json", entries))}
    known[f"{name}, standardize=private"] = {**known[name], "standardize": "private"}
    return known


def _declared(path: Path, entries: list[dict[str, Any]]) -> Path:
    features = [{"name": name, **entry} for name, entry in zip(bundled.CELL_NUCLEI, entries, strict=True)]
    path.write_text(json.dumps({"label": "diagnosis", "classes": ["benign", "malignant"], "features": features}))
    return path


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def accuracy(keys: Mapping[str, Any], seeds: int) -> Values:
    """Test accuracy of the final model, by seed: (seeds,)."""
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        with TemporaryDirectory() as scratch:
            result = fl_app.run({**QUIET, **keys}, engine="inline", seed=seed, out=f"{scratch}/run")
        if result.status != "completed" or result.metrics is None:
            raise RuntimeError(result.summary["error"])
        found.append(result.metrics["accuracy"])
    return np.array(found, np.float64)


def _shown(found: Values) -> str:
    return f"{found.mean():8.4f} ({found.min():.4f} to {found.max():.4f})"


def _points(found: Values, plain: Values) -> float:
    return 100 * float(np.mean(found - plain))


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


# ---------------------------------------------------------------------------------------------------------------- time


def cost(quick: bool, seeds: int) -> None:
    """Times of the parts of a round, and of an epoch."""
    repeats = 3 if quick else 7
    with threadpool_limits(1):
        _cost_of_rounds(repeats)
        _cost_of_epochs(repeats)


def _cost_of_rounds(repeats: int) -> None:
    from tasks.cnn import CnnTask
    from tasks.mlp import MlpTask

    schema = Schema(tuple(f"pixel{i}" for i in range(784)), "digit", tuple("0123456789"))
    print(
        "Clipping and noise in a round of dp-fedavg, 100 clients on one core: 600 rows each, one epoch in batches of 10"
    )
    wide: dict[str, Callable[[], Task]] = {
        "perceptron 784x1250x10, 993,760 parameters": lambda: MlpTask(schema, hidden="1250"),
        "CNN, 1,663,370 parameters": lambda: CnnTask(schema, channels="32,64", hidden=512),
    }
    for name, make in wide.items():
        measured = [_parts(make(), schema) for _ in range(repeats + 1)]  # seconds: fit, fold, clip, noise
        parts = np.array(measured[1:])  # the first warms up
        fit, fold, clip, noise = parts.T
        shares = (100 * clip + noise) / (100 * (fit + fold + clip) + noise)
        milliseconds = (f"{label} {1e3 * np.median(values):.1f}" for label, values in zip(
            ("a client's training", "its exact sum", "its clipping, at both ends", "noise of the round"),
            parts.T, strict=True))  # fmt: skip
        told = f"share {spread(100 * shares, '.1f')} %, below {100 * SHARE:g} asked"
        print(f"  {name}: {told}: {_verdict(float(np.median(shares)) < SHARE)}")
        print(f"    ms: {', '.join(milliseconds)}", flush=True)
    print()


def _parts(task: Task, schema: Schema) -> tuple[float, float, float, float]:
    """Seconds of a client's training (a sixth of its rows, times 6), of its sum, of its clipping, of the noise."""
    strategy = DPFedAvg(Basics(population=1000, clients_per_round=100), noise_multiplier=1.0, clip_norm=0.1)
    client, params = task.make_client(_shard(schema, 100)), task.initial_arrays(0)
    given = [array.copy() for array in params]
    fit, returned = _timed(lambda: client.fit(given, {**FIT, "batch-size": 10}))
    update = Update(tuple(a - b for a, b in zip(returned[0], params, strict=True)), ("0",))
    grid = FixedPoint.for_weight(1000)
    info = Round(1, 0, grid, template=template_of(params))
    pipeline, fold = strategy.pipeline, strategy.aggregator.start(grid)
    clip, clipped = _timed(lambda: pipeline.limit(pipeline.encode(update, (), info)[0], info))
    folding, _ = _timed(lambda: fold.add(clipped))
    noise, _ = _timed(lambda: pipeline.decode_sum(fold.total(), (), info))
    return 6 * fit, folding, clip, noise


def _cost_of_epochs(repeats: int) -> None:
    from tasks.mlp import MlpTask

    schema = Schema(tuple(f"pixel{i}" for i in range(784)), "digit", tuple("0123456789"))
    for hidden in ("64", "256"):
        task, rows = MlpTask(schema, hidden=hidden), 6000
        client, params = task.make_client(_shard(schema, rows)), task.initial_arrays(0)
        record = Protection(
            "record", "add-remove", "DP-SGD", Promise(0.0, 1.0, 1e-5), 1.0, Sampling("poisson", 100 / rows), 1
        )
        asked = PrivateDelta(protection=record, rate=100 / rows, steps=rows // 100).asks()
        plain: list[float] = []
        private: list[float] = []
        for _ in range(repeats + 1):  # the first warms up
            for times, more in ((plain, {}), (private, asked)):
                given = [array.copy() for array in params]
                times.append(_timed(lambda: client.fit(given, {**FIT, "batch-size": 100, **more}))[0])  # noqa: B023  (called at once)
        quotients = ratios(private[1:], plain[1:])
        told = f"{spread(quotients)} times, {RATIO:g} asked: {_verdict(float(np.median(quotients)) <= RATIO)}"
        print(f"An epoch of DP-SGD beside SGD, perceptron 784x{hidden}x10, {rows} rows in batches of 100: {told}")
    print()


FIT: Mapping[str, Any] = {
    "solver": "sgd", "local-epochs": 1, "local-steps": 0, "batch-size": 100, "learning-rate": 0.05, "l1": 0.0,
    "l2": 0.0, "seed": 0, "metrics": False, "device": "cpu", "threads": 1,
}  # fmt: skip


def _shard(schema: Schema, count: int) -> Shard:
    rng = np.random.default_rng(0)
    rows = Rows(rng.standard_normal((count, len(schema.features))), rng.integers(len(schema.classes), size=count))
    return Shard("0", rows, rows)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, which other work on the machine does not lengthen so much, and what came of it."""
    began = process_time()
    result = work()
    return process_time() - began, result


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy at an epsilon, and what clipping, noise and DP-SGD take.")
    parser.add_argument("--part", action="append", choices=("clients", "records", "time"), help="all by default")
    parser.add_argument(
        "--seeds", type=int, default=0, help="runs of each configuration; 0 = 3 of clients, 100 of records"
    )
    parser.add_argument("--quick", action="store_true", help="fewer seeds, epsilons and repeats")
    return parser.parse_args()


if __name__ == "__main__":
    main()
