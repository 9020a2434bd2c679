"""What strategies withstand of participants that lie: attacks x strategies, some of 20 clients lying, on digits.

label-flip       they train on wrong labels: class k is taken for the last but k
sign-flip        they send the opposite of their update
scaled-10, -100  they train on wrong labels and send so many times the update (Bagdasaryan et al. 2018,
                 arXiv:1807.00459)
noise            they send normal noise of standard deviation 1 instead
a-little         they conspire, and send the mean of their honest updates less 1.5 of their standard deviations in every
                 coordinate: outside by so little that it does not show (Baruch et al. 2019, arXiv:1902.06156)

Softmax regression, all keys at their defaults; accuracy after the last round on the test rows of all clients, whose
labels are right. `trimmed-mean` and `krum` are told how many may lie by --withstand, in all runs the same, since nobody
knows the number. The runs use the inline engine, whose results are Flower's to the bit (tests show that).
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from numpy.typing import NDArray

import fl_app
from benchmarks.figures import heading
from tasks.base import Rows, Schema, Shard
from tasks.logistic import LogisticTask

Arrays = list[NDArray[Any]]

CLIENTS = 20
ATTACKS = ("label-flip", "sign-flip", "scaled-10", "scaled-100", "noise", "a-little")
SCALES = {"sign-flip": -1.0, "scaled-10": 10.0, "scaled-100": 100.0}
STDDEVS_OFF = 1.5
PARTITIONS: Mapping[str, Mapping[str, Any]] = {
    "iid": {"partition": "iid"},
    "dirichlet alpha=0.5": {"partition": "dirichlet", "partition-args": "alpha=0.5"},
}


def main() -> None:
    """Run and print."""
    options = _options()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    heading(f"Digits, {CLIENTS} clients: accuracy with {_slashed(options.liars)} of them lying")
    args = {
        "fedavg": "",
        "norm-bound": "",
        "median": "",
        "trimmed-mean": f"trimmed={options.withstand / CLIENTS:g}",
        "krum": f"liars={options.withstand}",
    }
    print(_row("rows", "attack", args))
    print(_row("---", "---", ["---"] * len(args)))
    for name, partition in PARTITIONS.items():
        keys = {"rounds": options.rounds, **partition}
        for attack, counts in {"none": [0], **dict.fromkeys(ATTACKS, options.liars)}.items():
            cells = [
                _slashed([_accuracy({**keys, "strategy": s, "strategy-args": a}, attack, n, options) for n in counts])
                for s, a in args.items()
            ]
            print(_row(name, attack, cells), flush=True)


def _row(name: str, attack: str, cells: Any) -> str:
    return f"| {' | '.join([name, attack, *cells])} |"


def _slashed(values: Sequence[Any]) -> str:
    return " / ".join(str(value) for value in values)


def _accuracy(keys: Mapping[str, Any], attack: str, liars: int, options: argparse.Namespace) -> str:
    """The mean over the seeds, in percent; what happened where a run came to no end."""
    task = {"task": f"{__name__}:Attacked", "task-args": f"attack={attack} liars={liars}"}
    usual = {"data": "digits", "num-clients": CLIENTS, "baselines": False, "standard-errors": False}
    found = []
    for seed in range(options.seeds):
        CONSPIRATORS.clear()
        with TemporaryDirectory() as scratch:
            result = fl_app.run({**usual, **keys, **task}, engine="inline", seed=seed, out=f"{scratch}/run")
        if result.status != "completed":
            return "failed"
        found.append(result.summary["metrics"]["accuracy"])
    return f"{100 * np.mean(found):.0f}"


# ------------------------------------------------------------------------------------------------------- the liars


class Attacked(LogisticTask):
    """Softmax regression whose first clients lie.

    Args:
        attack: how
        liars: how many of them
    """

    def __init__(self, schema: Schema, *, attack: str = "none", liars: int = 0) -> None:
        super().__init__(schema)
        self.attack, self.liars = attack, liars

    def make_client(self, shard: Shard) -> Any:
        """One of the clients, which are named 00, 01, ..."""
        if int(shard.client) >= self.liars:
            return super().make_client(shard)
        if self.attack in ("label-flip", "scaled-10", "scaled-100"):
            wrong = len(self.schema.classes) - 1 - shard.train.y
            shard = Shard(shard.client, Rows(shard.train.x, wrong), shard.test)
        client = super().make_client(shard)
        if self.attack == "a-little":
            CONSPIRATORS[shard.client] = client
        return Liar(client, self.attack)


CONSPIRATORS: dict[str, NumPyClient] = {}
"""Those who know of each other: in the first round whoever was asked before."""


class Liar(NumPyClient):
    """Answers with something else than what it learned."""

    def __init__(self, client: NumPyClient, attack: str) -> None:
        self.client, self.attack = client, attack

    def fit(self, parameters: Arrays, config: Any) -> Any:
        """As the honest client, but with other arrays."""
        learned, count, metrics = self.client.fit(parameters, config)
        if self.attack == "noise":
            rng = np.random.default_rng(config["seed"])
            return [start + rng.normal(size=start.shape) for start in parameters], count, metrics
        if self.attack == "a-little":
            return a_little(parameters, config), count, metrics
        scale = SCALES.get(self.attack, 1.0)
        sent = [start + scale * (end - start) for start, end in zip(parameters, learned, strict=True)]
        return sent, count, metrics

    def evaluate(self, parameters: Arrays, config: Any) -> Any:
        """As the honest client."""
        return self.client.evaluate(parameters, config)


def a_little(parameters: Arrays, config: Any) -> Arrays:
    """mean - 1.5 * standard deviation of what the conspirators would have sent."""
    honest = [client.fit(parameters, config)[0] for client in CONSPIRATORS.values()]
    stacks = [np.stack(same) for same in zip(*honest, strict=True)]
    return [stack.mean(axis=0) - STDDEVS_OFF * stack.std(axis=0) for stack in stacks]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What strategies withstand of participants that lie.")
    parser.add_argument("--liars", type=int, nargs="+", default=[2, 4, 8], help=f"how many of {CLIENTS} clients lie")
    parser.add_argument("--withstand", type=int, default=8, help="how many trimmed-mean and krum are set to withstand")
    parser.add_argument("--rounds", type=int, default=20, help="of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each configuration, which are averaged")
    return parser.parse_args()


if __name__ == "__main__":
    main()
