"""Generated data whose clients are born apart, with a knob for each way in which clients differ."""

import math
from typing import Literal

import numpy as np

from tasks.data.base import DEFAULT_CLIENTS, Dataset, DataSource, Split, client_ids, split_rows
from tasks.data.declared import declare
from tasks.data.design import Design
from tasks.data.draw import generator
from tasks.data.table import Columns, Division, Table


class Synthetic(Dataset):
    """Gaussian rows, generated client by client: as many clients as wanted, at no cost for those not asked for.

    A row of class c at client k is x = mean_c + shift_k + e, e ~ N(0, I). The class means come from the seed, so that
    all clients share one truth, in which log-odds are linear in x (without shift). Where the label is a number it is
    y = <truth, x> + e', with x = shift_k + e and e' ~ N(0, noise^2). The rows of a client come from (seed, client)
    alone. The run's partition is not used: nothing is there to be dealt out.

    Args:
        features: columns
        classes: classes, 2 or more
        examples: rows per client, on average with size-skew, before the test rows are split off
        label_skew: 0 to 1, the share of a client's rows that is of its own favourite class (drawn per client)
        feature_shift: standard deviation of a client's shift in each feature
        size_skew: sigma of the log-normal law of the clients' sizes
        separation: length of a class mean; two classes lie about 1.4 times as far apart, in units of e. Of a number
            the length of the truth
        target: whether the label is a class or a number; auto = as the task wants it
        noise: standard deviation of what x does not tell of a label that is a number
    """

    partitioned = False

    def __init__(
        self,
        *,
        features: int = 20,
        classes: int = 2,
        examples: int = 60,
        label_skew: float = 0.0,
        feature_shift: float = 0.0,
        size_skew: float = 0.0,
        separation: float = 2.0,
        target: Literal["auto", "class", "number"] = "auto",
        noise: float = 0.5,
    ) -> None:
        for name, count, least in (("features", features, 1), ("classes", classes, 2), ("examples", examples, 1)):
            if count < least:
                raise ValueError(f"data synthetic: {name} must be at least {least}, got {count}: raise it")
        if not 0 <= label_skew <= 1:
            raise ValueError(f"data synthetic: label-skew is a share within 0 and 1, got {label_skew}: try 0.5")
        knobs = (
            ("feature-shift", feature_shift), ("size-skew", size_skew), ("separation", separation), ("noise", noise)
        )  # fmt: skip
        for name, knob in knobs:
            if not 0 <= knob < math.inf:
                raise ValueError(f"data synthetic: {name} must be finite and 0 or more, got {knob}: try 1")
        self.features, self.classes, self.examples = features, classes, examples
        self.label_skew, self.feature_shift, self.size_skew = label_skew, feature_shift, size_skew
        self.separation, self.target, self.noise = separation, target, noise

    def declared(self, split: Split) -> Design:
        """The law itself, without what makes clients and classes differ: features of mean 0 and variance 1."""
        columns = SyntheticSource(self, split).columns
        label = (0.0, math.hypot(self.separation, self.noise) or 1.0)
        return declare(columns, dict.fromkeys(columns.names, (0.0, 1.0)), None if columns.classes else label)

    def open(self, split: Split) -> "SyntheticSource":
        """As many clients as wanted, by default as many as a table is dealt to."""
        return SyntheticSource(self, split)


class SyntheticSource(DataSource):
    """The clients of `Synthetic`; their rows are generated when they are asked for."""

    def __init__(self, law: Synthetic, split: Split) -> None:
        self._law, self._split = law, split
        names = [f"x{index}" for index in range(law.features)]
        self._numbers = (split.target if law.target == "auto" else law.target) == "number"
        if self._numbers and law.label_skew:
            raise ValueError(f"data synthetic: label-skew={law.label_skew} is for classes: leave it out")
        classes = tuple(str(label) for label in range(law.classes))
        self.columns = Columns.of_numbers(names, *(("y",) if self._numbers else ("class", classes)))
        self.clients = client_ids(split.num_clients or DEFAULT_CLIENTS)
        shape = (1 if self._numbers else law.classes, law.features)
        directions = generator(split.seed, "synthetic truth").standard_normal(shape)
        self._means = law.separation * directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def _divide(self, client: str) -> Division:
        law, rng = self._law, generator(self._split.seed, "synthetic client", client)
        spread = law.size_skew
        size = max(1, round(law.examples * math.exp(spread * rng.standard_normal() - spread**2 / 2)))
        shift = law.feature_shift * rng.standard_normal(law.features)
        if self._numbers:
            x = shift + rng.standard_normal((size, law.features))
            y = x @ self._means[0] + law.noise * rng.standard_normal(size)
            return split_rows(client, Table(x, y, self.columns), self._split)
        favourite = rng.integers(law.classes)
        y = np.where(rng.random(size) < law.label_skew, favourite, rng.integers(law.classes, size=size))
        x = rng.standard_normal((size, law.features))
        x += self._means[y] + shift
        return split_rows(client, Table(x, y, self.columns), self._split)
