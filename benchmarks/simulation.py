"""Many clients in Flower's simulation: what a round costs here, in a plain loop, and in stock Flower.

Generated data (784 features, 10 classes), one local epoch in batches of 10. `--model`: softmax regression (60 examples
a client), an mlp of 64 hidden units (60 examples), or the CNN of McMahan et al. 2017 (100 examples).

  fl-app   the project on Flower's Ray engine, two nodes that host all clients, two worker processes
  loop     the same clients' `NumPyClient.fit` and a weighted mean in a plain loop, one process, shards in memory
  torch    the same in PyTorch as one writes it: the module, `torch.optim.SGD` as it comes, a mean of state dicts
  many     as loop, with `Task.fit_many` for groups of clients, where the task offers it or `--together` asks for it
  stock    Flower's own FedAvg and ClientApps (benchmarks/stock_app.py), one node per client, two worker processes

A round is measured by the server, after the first one, and the median counts: shards that a worker makes on first use
and the start of Flower (10 s and more) are not in it, the checkpoint is. All train the same clients in the same round
with the same seeds, except that stock Flower draws its own cohorts; the params of fl-app are compared with those of
loop and torch at the end. BLAS and PyTorch have one thread in each process. Repeats take turns, so that a busy machine
slows all.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits
from torch.nn import functional

from benchmarks.figures import heading, ratios, spread
from benchmarks.flower_app import SIMULATION, run_flower_app
from fl_app.assembly import build_strategy, build_task, fit_config, local_design
from fl_app.config import RunConfig
from fl_app.groups import LARGEST
from fl_app.job import new_job, run_job
from fl_app.rows import prepared_rows
from strategies.sampling import Draw, derive_seed, round_rng
from tasks.base import Arrays, Config, Fit, Shard, Task
from tasks.fit_config import FitConfig
from tasks.torch_task import TorchTask, choose_device

NODES = 2
MEMORY_OF_SHARDS = "all shards stay in memory: about 0.4 MB a client, 0.6 MB for cnn"


@dataclass(frozen=True)
class Model:
    """What is trained: in words, on how many rows a client, and by which keys of a run."""

    title: str
    examples: int
    keys: Mapping[str, Any]


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "softmax": Model("Softmax regression 784x10", 60, {"task": "logistic", "task-args": ""}),
        "mlp": Model("Perceptron 784x64x10", 60, {"task": "mlp", "task-args": "hidden=64"}),
        "cnn": Model("CNN of 1,663,370 parameters", 100, {"task": "cnn", "task-args": "channels=32,64 hidden=512"}),
    }
)


@dataclass
class Seconds:
    """Seconds of a round, the median of each repeat."""

    app: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)
    torch: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    stock: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and print."""
    options = _options()
    model = _model(options)
    heading(f"{model.title}, {options.clients} clients with {model.examples} examples, {options.rounds} rounds")
    shards = _shards(_config(model, options.clients, options.clients, 1))
    for cohort in options.cohorts:
        seconds, differences = Seconds(), []
        for _ in range(options.repeats):
            config = _config(model, options.clients, cohort, options.rounds)
            task = build_task(config, local_design(config).schema)
            app_s, app_params = run_app(config, task)
            loop_s, loop_params = run_loop(config, task, shards, together=False)
            differences += [float(np.abs(a - b).max()) for a, b in zip(app_params, loop_params, strict=True)]
            seconds.app.append(app_s)
            seconds.loop.append(loop_s)
            if isinstance(task, TorchTask):
                torch_s, torch_params = run_torch(config, task, shards)
                differences += [float(np.abs(a - b).max()) for a, b in zip(app_params, torch_params, strict=True)]
                seconds.torch.append(torch_s)
            if task.fits_many(fit_config(config, 1, "train", seed=0)):
                seconds.many.append(run_loop(config, task, shards, together=True)[0])
            if options.stock_rounds:
                seconds.stock.append(run_stock(_config(model, options.clients, cohort, options.stock_rounds)))
        _print(cohort, seconds, max(differences))


def run_app(config: RunConfig, task: Task) -> tuple[float, Arrays]:
    """Seconds of a round of the project on Flower, and the final params."""
    with TemporaryDirectory() as scratch:
        job = new_job(config, SIMULATION.with_num_supernodes(NODES), "flower", Path(scratch) / "run")
        summary, status = run_job(job, lambda line: None)
        if status:
            raise RuntimeError(summary["error"])
        rounds = [json.loads(line)["seconds"]["total"] for line in job.folder.rounds.read_text().splitlines()]
        model = load_file(job.folder.model)
    return median(rounds[1:]), tuple(model[name] for name in task.array_names)


def run_loop(config: RunConfig, task: Task, shards: dict[str, Shard], *, together: bool) -> tuple[float, Arrays]:
    """The same in a plain loop; `together`: over groups of clients."""
    sampler, train = build_strategy(config).sampler, _train_together if together else _train_each
    params = task.initial_arrays(config.seed)
    seconds = []
    with threadpool_limits(config.threads):
        for number in range(1, config.rounds + 1):
            began = perf_counter()
            totals, weight = [np.zeros_like(array) for array in params], 0
            common = fit_config(config, number, "train", seed=0)
            cohort = [
                shards[client] for client in sampler.sample(tuple(shards), Draw(number, round_rng(config.seed, number)))
            ]
            seeds = [derive_seed(config.seed, "fit", number, shard.client) for shard in cohort]
            for arrays, examples, _ in train(task, params, cohort, common, seeds):
                for total, array in zip(totals, arrays, strict=True):
                    np.add(total, examples * array, out=total)
                weight += examples
            params = tuple(total / weight for total in totals)
            seconds.append(perf_counter() - began)
    return median(seconds[1:]), params


def run_torch(config: RunConfig, task: TorchTask, shards: dict[str, Shard]) -> tuple[float, Arrays]:
    """The same in plain PyTorch, without a line of the project's in the training."""
    device = choose_device(config.device)
    sampler, module = build_strategy(config).sampler, task.build().to(device)
    asked = FitConfig.read(fit_config(config, 1, "train", seed=0))
    rows = {client: _tensors(shard, device) for client, shard in shards.items()}
    start = [torch.from_numpy(array).to(device) for array in task.initial_arrays(config.seed)]
    params = dict(zip(task.array_names, start, strict=True))
    seconds = []
    torch.set_num_threads(config.threads)
    for number in range(1, config.rounds + 1):
        began = perf_counter()
        sums = {name: torch.zeros_like(value) for name, value in params.items()}
        cohort = sampler.sample(tuple(shards), Draw(number, round_rng(config.seed, number)))
        for client in cohort:
            x, y = rows[client]
            module.load_state_dict(params)
            optimizer = torch.optim.SGD(module.parameters(), lr=asked.learning_rate, weight_decay=asked.l2)
            generator = torch.Generator().manual_seed(derive_seed(config.seed, "fit", number, client))
            for batch in torch.randperm(len(x), generator=generator).to(device).split(asked.batch_size):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                functional.cross_entropy(module(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for name, value in module.state_dict().items():
                sums[name] += len(x) * value
        weight = sum(len(rows[client][0]) for client in cohort)
        params = {name: value / weight for name, value in sums.items()}
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - began)
    return median(seconds[1:]), tuple(params[name].cpu().numpy() for name in task.array_names)


def _tensors(shard: Shard, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = np.array(shard.train.x, np.float32), np.array(shard.train.y, np.int64)
    return torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)


def _train_each(
    task: Task, params: Arrays, shards: Sequence[Shard], config: Config, seeds: Sequence[int]
) -> Iterator[Fit]:
    for shard, seed in zip(shards, seeds, strict=True):
        yield task.make_client(shard).fit(list(params), {**config, "seed": seed})


def _train_together(
    task: Task, params: Arrays, shards: Sequence[Shard], config: Config, seeds: Sequence[int]
) -> Iterator[Fit]:
    for first in range(0, len(shards), LARGEST):
        group = slice(first, first + LARGEST)
        for result in task.fit_many(params, shards[group], config, seeds[group]):
            if isinstance(result, Exception):
                raise result
            yield result


def run_stock(config: RunConfig) -> float:
    """The same in stock Flower."""
    with TemporaryDirectory() as scratch:
        config = config.model_copy(update={"out": scratch})
        rounds: list[float] = run_flower_app(Path(__file__).with_name("stock_app.py"), config, config.num_clients)
    return median(rounds[1:])


def _model(options: argparse.Namespace) -> Model:
    model = MODELS[options.model]
    if options.model == "softmax":
        return model
    together = f" together={options.together}" if options.together > 1 else ""
    keys = {**model.keys, "task-args": model.keys["task-args"] + together, "device": options.device}
    return replace(model, keys=keys)


def _config(model: Model, clients: int, cohort: int, rounds: int) -> RunConfig:
    return RunConfig.parse(
        {
            **model.keys,
            "data": "synthetic",
            "data-args": f"features=784 classes=10 examples={model.examples}",
            "num-clients": clients,
            "clients-per-round": cohort,
            "rounds": rounds,
            "local-epochs": 1,
            "batch-size": 10,
            "test-fraction": 0.0,
            "standardize": "none",
            "baselines": False,
            "standard-errors": False,
        }
    )


def _shards(config: RunConfig) -> dict[str, Shard]:
    rows = prepared_rows(config, local_design(config))
    return {client: rows.shard(client) for client in rows.clients}


def _print(cohort: int, seconds: Seconds, difference: float) -> None:
    print(f"{cohort} clients a round")
    print(f"  {'':8}{'s/round':28}{'client updates/s':>18}")
    for name, values in vars(seconds).items():
        if values:
            shown = "fl-app" if name == "app" else name
            print(f"  {shown:8}{spread(values, '.3f'):28}{cohort / median(values):18,.0f}")
    print(f"  fl-app takes {spread(ratios(seconds.app, seconds.loop))} times as long as the loop")
    if seconds.torch:
        print(f"  fl-app takes {spread(ratios(seconds.app, seconds.torch))} times as long as plain PyTorch")
    if seconds.many:
        print(f"  many takes {spread(ratios(seconds.many, seconds.loop))} times as long as the loop")
    if seconds.stock:
        print(f"  fl-app is {spread(ratios(seconds.stock, seconds.app), '.1f')} times as fast as stock Flower")
    print(f"  largest difference of a param to fl-app's: {difference:.0e}")
    print()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A round of fl-app beside a loop and stock Flower.")
    parser.add_argument("--model", choices=MODELS, default="softmax", help="what is trained")
    parser.add_argument("--device", default="auto", help="of mlp and cnn: auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--together", type=int, default=1, help="of mlp and cnn: clients that torch.func.vmap trains at once"
    )
    parser.add_argument("--clients", type=int, default=1_000, help=f"how many there are; {MEMORY_OF_SHARDS}")
    parser.add_argument("--cohorts", type=int, nargs="+", default=[100, 1_000], help="clients a round, one or more")
    parser.add_argument("--rounds", type=int, default=20, help="of fl-app and the loop; 3 or more")
    parser.add_argument("--stock-rounds", type=int, default=5, help="of stock Flower; 0 = leave it out")
    parser.add_argument("--repeats", type=int, default=3, help="of everything")
    options = parser.parse_args()
    if options.model == "softmax" and (options.together != 1 or options.device != "auto"):
        parser.error("--device and --together are for mlp and cnn")
    if options.rounds < 3 or options.stock_rounds in (1, 2) or max(options.cohorts) > options.clients:
        parser.error("3 rounds or more, and no more clients a round than there are")
    return options


if __name__ == "__main__":
    main()
