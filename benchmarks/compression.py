"""What compression saves, costs and loses: two parts.

codecs  every codec, and the chains that are of use, on one and the same update
runs    whole runs with the settings that are of use, beside one without compression

The table of codecs: bytes as they travel (headers of the arrays
included), how many times fewer than plain float32, encode and decode time on one core (the least of several repeats),
and the error ||decoded - update|| / ||update||. With error feedback the error is that of one round, which later rounds
send, and the time is that of a round with something left from the one before.

The update is 1M float32 in the shapes of a small convolutional network. Its elements are normal, of another size for
every layer and row, and a hundredth of them is ten times as large: heavier tails than noise, as updates have.

The table of runs: digits, 20 clients, dirichlet alpha=0.5, a convolutional network of 31,306 float32; payload in both
directions over the whole run, how many times less than plain, and the accuracy on the clients' test rows together. They
use the inline engine, whose results are Flower's to the bit (tests show that). `--plot FILE` keeps the page of the
comparison: accuracy over rounds, one line for each setting.
"""

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import fl_app
from benchmarks.figures import heading
from fl_app.comparison import PAGE
from strategies.transform import Pipeline, Round, chain
from strategies.transforms.cast import Cast
from strategies.transforms.entropy_coding import EntropyCoding
from strategies.transforms.feedback import with_feedback
from strategies.transforms.flatten import Flatten
from strategies.transforms.prune import MASK, Prune
from strategies.transforms.quantize import Quantize
from strategies.transforms.rotate import Rotate
from strategies.transforms.sparsify import RandomK, TopK
from strategies.update import Arrays, ExactSum, FixedPoint, Update
from strategies.wire import encoded_bytes
from strategies.work import template_of

SHAPES = ((32, 3, 5, 5), (32,), (64, 32, 5, 5), (64,), (1600, 575), (575,), (575, 46), (46,))

CHAINS: Mapping[str, Pipeline] = {
    "plain": chain(),
    "flatten": chain(Flatten()),
    "float16": chain(Flatten(), Cast("float16")),
    "bfloat16": chain(Flatten(), Cast("bfloat16")),
    "bfloat16, entropy": chain(Flatten(), Cast("bfloat16"), EntropyCoding()),
    "16 bits": chain(Flatten(), Quantize(16)),
    "8 bits": chain(Flatten(), Quantize(8)),
    "8 bits, nearest": chain(Flatten(), Quantize(8, rounding="nearest")),
    "8 bits, entropy": chain(Flatten(), Quantize(8), EntropyCoding()),
    "4 bits": chain(Flatten(), Quantize(4)),
    "4 bits, entropy": chain(Flatten(), Quantize(4), EntropyCoding()),
    "rotate": chain(Flatten(), Rotate()),
    "rotate, 8 bits": chain(Flatten(), Rotate(), Quantize(8)),
    "rotate, 4 bits": chain(Flatten(), Rotate(), Quantize(4)),
    "rotate, 4 bits, nearest": chain(Flatten(), Rotate(), Quantize(4, rounding="nearest")),
    "rotate, 2 bits": chain(Flatten(), Rotate(), Quantize(2)),
    "rotate, 1 bit": chain(Flatten(), Rotate(), Quantize(1)),
    "signs, feedback": chain(with_feedback(Flatten(), Quantize(1, rounding="nearest"))),
    "rotate, signs, feedback": chain(with_feedback(Flatten(), Rotate(), Quantize(1, rounding="nearest"))),
    "random 10 %": chain(RandomK(0.1)),
    "random 10 %, 8 bits": chain(RandomK(0.1), Quantize(8)),
    "top 10 %, 8 bits, entropy": chain(with_feedback(TopK(0.1), Quantize(8), EntropyCoding())),
    "top 1 %": chain(with_feedback(TopK(0.01))),
    "top 1 %, entropy": chain(with_feedback(TopK(0.01), EntropyCoding())),
    "top 1 %, 8 bits, entropy": chain(with_feedback(TopK(0.01), Quantize(8), EntropyCoding())),
    "top 1 %, 8 bits, padded": chain(with_feedback(TopK(0.01), Quantize(8), EntropyCoding(padded=True))),
    "top 1 %, 4 bits, entropy": chain(with_feedback(TopK(0.01), Quantize(4), EntropyCoding())),
    "top 0.1 %, 8 bits, entropy": chain(with_feedback(TopK(0.001), Quantize(8), EntropyCoding())),
    "pruned 80 %, entropy": chain(Prune(), EntropyCoding()),
    "pruned 80 %, 8 bits, entropy": chain(Prune(), Quantize(8), EntropyCoding()),
}


PLAIN = "plain fedavg"
NETWORK: Mapping[str, Any] = {
    "data": "digits",
    "num-clients": 20,
    "partition": "dirichlet",
    "partition-args": "alpha=0.5",
    "task": "cnn",
    "l2": 0.0,
    "learning-rate": 0.2,
    "batch-size": 32,
    "baselines": False,
}
SETTINGS: Mapping[str, str] = {
    "8 bits (the defaults)": "",
    "4 bits": "bits=4 down-bits=4",
    "1 bit": "bits=1 down-bits=4",
    "top 1 %, 8 bits": "top-k=0.01 bits=8",
    "top 3 %, 1 bit": "top-k=0.03 bits=1 down-top-k=0.1 down-bits=4",
    "pruned 80 %": "sparsity=0.8 prune-from=5 prune-to=20",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One chain on the update; seconds are the least of the repeats."""

    bytes: int
    encode_s: float
    decode_s: float
    error: float


def main() -> None:
    """Measure and print."""
    options = _options()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    heading("Compression")
    if options.part in ("codecs", "all"):
        with threadpool_limits(1):
            codecs(options.repeats)
    if options.part in ("runs", "all"):
        runs(options.rounds, options.seeds, options.only, options.plot)


def codecs(repeats: int) -> None:
    """The table of codecs."""
    update = an_update(np.random.default_rng(0))
    plain = measured(CHAINS["plain"], update, 1).bytes
    print(f"{'chain':30}{'bytes':>10}{'ratio':>8}{'encode ms':>11}{'decode ms':>11}{'error':>10}")
    for name, pipeline in CHAINS.items():
        found = measured(pipeline, update, repeats)
        times = f"{found.encode_s * 1e3:11.1f}{found.decode_s * 1e3:11.1f}"
        print(f"{name:30}{found.bytes:10}{plain / found.bytes:8.1f}{times}{found.error:10.2g}", flush=True)


def runs(rounds: int, seeds: int, only: list[str], plot: Path | None) -> None:
    """The table of training runs."""
    chosen = {name: args for name, args in SETTINGS.items() if name in only or not only}
    configs: dict[str, dict[str, Any]] = {PLAIN: {"strategy": "fedavg"}}
    configs |= {name: {"strategy": "compressed-fedavg", "strategy-args": args} for name, args in chosen.items()}
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "runs"
        found = fl_app.compare(configs, NETWORK, seeds=seeds, engine="inline", rounds=rounds, out=str(out))
        if plot is not None:
            plot.write_bytes((out / PAGE).read_bytes())
    played = {each["name"]: each["runs"] for each in found["configurations"]}
    broken = [run["error"] for name in played for run in played[name] if run["status"] != "completed"]
    if broken:
        raise RuntimeError(broken[0])
    print(f"\n{rounds} rounds, seeds 0 to {seeds - 1}; payload in kB, mean of the seeds")
    print(f"{'setting':26}{'up':>9}{'ratio':>8}{'down':>9}{'ratio':>8}   accuracy")
    for name in played:
        print(_run_line(name, played[name], played[PLAIN]) + f"  {SETTINGS.get(name, '')}".rstrip())


def _run_line(name: str, found: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    columns = ""
    for key in ("payload_up", "payload_down"):
        sent, of = (fmean(run[key] for run in each) for each in (found, plain))
        columns += f"{sent / 1e3:9.0f}{of / sent:8.1f}"
    accuracy, before = ([run["metrics"]["accuracy"] for run in each] for each in (found, plain))
    spread = f"{fmean(accuracy):.4f} ({min(accuracy):.4f} to {max(accuracy):.4f})"
    return f"{name:26}{columns}   {spread} {100 * (fmean(accuracy) - fmean(before)):+.2f} points"


def an_update(rng: np.random.Generator) -> Update:
    """1M float32."""
    return Update(tuple(_layer(rng, shape) for shape in SHAPES), ("client",), num_examples=100)


def _layer(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    rows = np.exp(rng.normal(size=(shape[0],) + (1,) * (len(shape) - 1)))
    outliers = 1 + 9 * (rng.random(shape) < 0.01)
    return np.asarray(rng.normal(size=shape) * rows * outliers / np.sqrt(shape[0])).astype(np.float32)


def measured(pipeline: Pipeline, update: Update, repeats: int) -> Measured:
    """One chain: what an honest client sends in its first round, and times of the second."""
    info = Round(1, 7, FixedPoint(30), template=template_of(update.arrays))
    info = replace(info, public={**pipeline.announce(pipeline.begin(), info), MASK: _mask(update)})
    encoded, state = pipeline.encode(update, (), info)
    return Measured(
        encoded_bytes(encoded.arrays),
        least(lambda: pipeline.encode(update, state, info), repeats),
        least(lambda: pipeline.decode_each(encoded, info), repeats) + _opening_s(pipeline, encoded, info, repeats),
        _relative_error(_opened(pipeline, encoded, info), update.arrays),
    )


def _mask(update: Update) -> bytes:
    """Of a model pruned to 80 % zeros."""
    size = sum(array.size for array in update.arrays)
    return np.packbits(np.random.default_rng(1).random(size) < 0.2).tobytes()


def least(work: Callable[[], object], repeats: int) -> float:
    """The seconds of the fastest call."""
    seconds = []
    for _ in range(repeats):
        began = perf_counter()
        work()
        seconds.append(perf_counter() - began)
    return min(seconds)


def _summed(pipeline: Pipeline, encoded: Update, info: Round) -> Update:
    total = ExactSum(info.grid)
    total.add(pipeline.decode_each(encoded, info))
    return total.total()


def _opening_s(pipeline: Pipeline, encoded: Update, info: Round, repeats: int) -> float:
    """Of what is left to do on the sum, once a round."""
    total = _summed(pipeline, encoded, info)
    return least(lambda: pipeline.decode_sum(total, pipeline.begin(), info), repeats)


def _opened(pipeline: Pipeline, encoded: Update, info: Round) -> Arrays:
    total, _ = pipeline.decode_sum(_summed(pipeline, encoded, info), pipeline.begin(), info)
    return tuple(info.grid.to_float(array, 1.0) for array in total.arrays)


def _relative_error(decoded: Arrays, sent: Arrays) -> float:
    pairs = list(zip(decoded, sent, strict=True))
    return float(
        np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b.astype(float) ** 2).sum() for _, b in pairs))
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bytes, time and error of compression, and the accuracy it leaves.")
    parser.add_argument("--part", choices=["codecs", "runs", "all"], default="all", help="what is measured")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each chain, of which the fastest counts")
    parser.add_argument("--rounds", type=int, default=30, help="of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each setting")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=[], help="these settings; all without")
    parser.add_argument("--plot", type=Path, help="a file for the page of the comparison")
    return parser.parse_args()


if __name__ == "__main__":
    main()
