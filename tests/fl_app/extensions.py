"""Tasks, data and strategies of a user's own, by `module:Attr`: clients that misbehave, and state that must be kept."""

import sys
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import SGD
from strategies.transform import Opens, Transform, chain
from strategies.transforms.weighting import ByExamples
from strategies.work import Delta
from tasks.base import Schema
from tasks.data.base import PartitionedTable, TableDataset
from tasks.data.bundled import BreastCancer
from tasks.data.design import Missing
from tasks.data.table import Columns, Feature, Table
from tasks.logistic import LogisticTask


class HeldByClients(BreastCancer):
    """Breast cancer, which the server may not open: the clients measure the model."""

    server_held = False


class UnreadableSource(PartitionedTable):
    """One client's rows hold a missing value, another's cannot be read at all."""

    def _divide(self, client):
        division = super()._divide(client)
        if client == "03":
            division.train.x[0, 0] = np.nan
        if client == "05":
            raise ValueError("row 17: John Smith")
        return division


class Unreadable(HeldByClients):
    """Breast cancer with two clients whose rows cannot be used."""

    def open(self, split):
        return UnreadableSource(self.table(), split)


class UnevenSource(PartitionedTable):
    """Client 01 has its columns in another order, 03 lacks one, 05 has one more, 07 writes another label."""

    def _divide(self, client):
        division = super()._divide(client)
        change = {"01": self._turned, "03": self._less, "05": self._more, "07": self._other_label}.get(client)
        return (
            division if change is None else replace(division, train=change(division.train), test=change(division.test))
        )

    def _turned(self, table):
        features = table.columns.features[::-1]
        return replace(table, x=table.x[:, ::-1], columns=replace(table.columns, features=features))

    def _less(self, table):
        return table.without("mean area")

    def _more(self, table):
        features = (*table.columns.features, Feature("mean aera"))
        return Table(np.column_stack([table.x, table.x[:, 0]]), table.y, replace(table.columns, features=features))

    def _other_label(self, table):
        return replace(table, columns=replace(table.columns, classes=("benign", "Malignant")))


class Uneven(HeldByClients):
    """Breast cancer in which clients describe their rows differently."""

    def open(self, split):
        return UnevenSource(self.table(), split)


class Mixed(TableDataset):
    """Numbers of very different size, a boolean, a category with rare values, and gaps in all of them.

    Args:
        missing: what becomes of the gaps
    """

    server_held = False

    def __init__(self, *, missing: Missing = "indicator") -> None:
        self.missing = missing

    def table(self):
        rng = np.random.default_rng(0)
        size, levels = 600, ("ward", "ICU", "at home", "elsewhere")
        columns = Columns(
            (Feature("seen"), Feature("age"), Feature("smoker", "boolean"), Feature("place", "category", levels)),
            "outcome",
            ("alive", "dead"),
        )
        age, smoker = rng.normal(60, 15, size), rng.integers(2, size=size)
        place = rng.choice(4, size, p=[0.5, 0.3, 0.19, 0.01])
        y = (rng.random(size) < 1 / (1 + np.exp(-(age - 60) / 15 - smoker + (place == 1)))).astype(np.int64)
        x = np.column_stack([1.7e9 + rng.integers(0, 3600, size), age, smoker, place])
        return Table(np.where(rng.random(x.shape) < 0.05, np.nan, x), y, columns)


class FaultyTask(LogisticTask):
    """Logistic regression in which some clients misbehave from some round on.

    Args:
        fault: what they do
        clients: which, separated by commas
        from_round: since when
    """

    def __init__(self, schema: Schema, *, fault: str, clients: str = "03", from_round: int = 1) -> None:
        super().__init__(schema)
        self.fault, self.bad, self.from_round = fault, clients.split(","), from_round

    def make_client(self, shard):
        client = super().make_client(shard)
        if shard.client in self.bad:
            return FaultyClient(client, self.fault, self.from_round)
        return client


class FaultyClient:
    """Wraps a client's answers."""

    def __init__(self, client, fault, from_round):
        self.client, self.fault, self.from_round = client, fault, from_round

    def fit(self, parameters, config):
        arrays, n, metrics = self.client.fit(parameters, config)
        if config["round"] < self.from_round:
            return arrays, n, metrics
        return FAULTS[self.fault](list(arrays), n, dict(metrics))

    def evaluate(self, parameters, config):
        loss, n, metrics = self.client.evaluate(parameters, config)
        return EVALUATION_FAULTS.get(self.fault, lambda *answer: answer)(loss, n, metrics)


def raising(arrays, n, metrics):
    raise RuntimeError("the row of patient 17 is broken")


def hanging(arrays, n, metrics):
    time.sleep(60)
    return arrays, n, metrics


def exiting(arrays, n, metrics):
    sys.exit(3)


def out_of_memory(arrays, n, metrics):
    raise MemoryError


def writing(arrays, n, metrics):
    for array in arrays:
        np.add(array, 1e9, out=array)
    return arrays, n, metrics


def with_first(change):
    return lambda arrays, n, metrics: ([change(arrays[0]), *arrays[1:]], n, metrics)


def with_weight(n):
    return lambda arrays, _, metrics: (arrays, n, metrics)


# fault -> what fit answers; REASONS says what the server must call it
FAULTS = {
    "raises": raising,
    "hangs": hanging,
    "exits": exiting,
    "memory": out_of_memory,
    "nan": with_first(lambda a: a * np.nan),
    "infinity": with_first(lambda a: a + np.inf),
    "huge": with_first(lambda a: a + 1e30),
    "shape": with_first(lambda a: a[:, :-1]),
    "broadcasts": with_first(lambda a: a[:, :1]),
    "dtype": with_first(lambda a: a.astype(np.float32)),
    "objects": with_first(lambda a: a.astype(object)),
    "fewer-arrays": lambda arrays, n, metrics: (arrays[:1], n, metrics),
    "more-arrays": lambda arrays, n, metrics: ([*arrays, arrays[0]], n, metrics),
    "no-tuple": lambda arrays, n, metrics: arrays,
    "no-arrays": lambda arrays, n, metrics: (None, n, metrics),
    "lists": lambda arrays, n, metrics: ([a.tolist() for a in arrays], n, metrics),
    "metric-names": lambda arrays, n, metrics: (arrays, n, {"accuracy": 1.0}),
    "metric-nan": lambda arrays, n, metrics: (arrays, n, dict.fromkeys(metrics, float("nan"))),
    "metric-text": lambda arrays, n, metrics: (arrays, n, dict.fromkeys(metrics, "good")),
    "metric-none": lambda arrays, n, metrics: (arrays, n, None),
    "weight-zero": with_weight(0),
    "weight-negative": with_weight(-5),
    "weight-absurd": with_weight(10**15),
    "weight-float": with_weight(12.5),
    "weight-true": with_weight(True),
    "weight-none": with_weight(None),
}

REASONS = {
    "raises": "raised",
    "exits": "raised",
    "hangs": "timeout",
    "memory": "memory",
    "nan": "non-finite",
    "infinity": "non-finite",
    "huge": "non-finite",
    "shape": "shape",
    "broadcasts": "shape",
    "dtype": "dtype",
    "objects": "dtype",
    "fewer-arrays": "keys",
    "more-arrays": "keys",
    "no-tuple": "keys",
    "no-arrays": "keys",
    "lists": "keys",
    "metric-names": "metrics",
    "metric-nan": "metrics",
    "metric-text": "metrics",
    "metric-none": "metrics",
    "weight-zero": "weight",
    "weight-negative": "weight",
    "weight-absurd": "weight",
    "weight-float": "weight",
    "weight-true": "weight",
    "weight-none": "weight",
}

EVALUATION_FAULTS = {
    "metric-nan": lambda loss, n, metrics: (loss, n, dict.fromkeys(metrics, float("nan"))),
    "raises": raising,
}


class NoBaselineTask(LogisticTask):
    """Logistic regression that cannot be trained on pooled rows, nor by one client alone."""

    def train_alone(self, rows, configs):
        raise ValueError("Expected more than 1 value per channel when training")


class WritingTask(LogisticTask):
    """Clients that write into the arrays they receive, as many NumPyClients do; that must hurt nobody else."""

    def make_client(self, shard):
        return WritingClient(super().make_client(shard))


class WritingClient:
    def __init__(self, client):
        self.client = client

    def fit(self, parameters, config):
        answer = self.client.fit([p.copy() for p in parameters], config)
        for array in parameters:
            np.add(array, 1e9, out=array)
        return answer


@dataclass(frozen=True)
class Residual(Transform):
    """Keeps half of every update back and sends it with the next one: error feedback, in small."""

    num_state_arrays: ClassVar[int] = 2
    opens: ClassVar[Opens] = Opens.EITHER

    def encode(self, update, state, round):
        kept = state or tuple(np.zeros_like(a) for a in update.arrays)
        whole = tuple(a + k for a, k in zip(update.arrays, kept, strict=True))
        sent = tuple(w / 2 for w in whole)
        return replace(update, arrays=sent), tuple(w - s for w, s in zip(whole, sent, strict=True))


class ResidualAvg(ComposedStrategy):
    """FedAvg with client state."""

    def __init__(self, basics: Basics) -> None:
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(ByExamples(10**6), Residual()),
            aggregator=WeightedMean(),
            server_optimizer=SGD(),
        )


class Listed(WeightedMean):
    """A mean that wants every client's update by itself, so that nodes may not fold."""

    needs_each = True


class UnfoldedAvg(ComposedStrategy):
    """FedAvg from the clients' single updates."""

    def __init__(self, basics: Basics) -> None:
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(ByExamples(10**6)),
            aggregator=Listed(),
            server_optimizer=SGD(),
        )
