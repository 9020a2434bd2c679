"""Tasks whose model gives outputs for rows, of which everything else is measured."""

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import Arrays, Rows, Schema, Shard, Sums, Task
from tasks.measures import Measures


class MeasuredTask(Task):
    """A task that says what its model gives for rows; what is measured of that, its `Measures` say."""

    def __init__(self, schema: Schema, measures: Measures) -> None:
        super().__init__(schema)
        self.measures = measures
        self.metric_names, self.reports, self.server_reports = measures.sums, measures.reports, measures.server_reports
        self.metric_ranges = measures.ranges

    @abstractmethod
    def outputs(self, arrays: Arrays, x: NDArray[Any]) -> NDArray[np.float64]:
        """For rows x (n, d): logits (n, K), of two classes (n, 1), or numbers (n, 1)."""

    def measure(self, arrays: Arrays, rows: Rows) -> dict[str, float | int]:
        return self.measures.of(self.outputs(arrays, rows.x), rows.y)

    def measure_rows(self, arrays: Arrays, rows: Rows) -> dict[str, NDArray[Any]]:
        return self.measures.of_each(self.outputs(arrays, rows.x), rows.y)

    def check_sums(self, sums: Sums) -> None:
        super().check_sums(sums)
        self.measures.check(sums)

    def summarise(self, sums: Sums) -> dict[str, float]:
        return self.measures.means(sums)

    def mean_loss(self, sums: Sums) -> float:
        """That of the metrics which training lowers; nan without examples."""
        return self.summarise(sums)[self.measures.loss_name]

    def evaluate(self, arrays: Arrays, rows: Rows) -> dict[str, float]:
        outputs = self.outputs(arrays, rows.x)
        return {**self.summarise(self.measures.of(outputs, rows.y)), **self.measures.on_rows(outputs, rows.y)}

    def predict(self, arrays: Arrays, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        return self.measures.predict(self.outputs(arrays, x))

    def calibration(self, arrays: Arrays, rows: Rows) -> tuple[float, float] | None:
        return self.measures.calibration(self.outputs(arrays, rows.x), rows.y) if len(rows) else None

    def check_columns(self, shard: Shard) -> None:
        """Refuse (ValueError) a shard whose columns are not the schema's in number."""
        expected = len(self.schema.features)
        for rows in (shard.train, shard.test):
            if rows.x.shape[1] != expected:
                raise ValueError(
                    f"client {shard.client!r} has {rows.x.shape[1]} feature columns, the schema has {expected}: "
                    "give it the columns that the others have"
                )
