"""Where the lines of a run go besides rounds.jsonl, each under the name that a run's `sinks` calls it by.

A sink of your own has the methods of `Sink` and a constructor `(folder: Path, config: RunConfig)`, where `folder` is
that of the run's results. Write what you need of another package inside the constructor, not at the top of the module:
`fl-app list` imports the module, and the package may not be installed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Sink(Protocol):
    """Takes the lines of one run as they come. What it raises costs the run nothing but this sink."""

    def round(self, line: Mapping[str, Any]) -> None:
        """One line of rounds.jsonl, on the disk when this is called."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """The end of the run: the content of summary.json, or None where the run was broken off before it."""


SINKS: Mapping[str, str] = MappingProxyType(
    {
        "tensorboard": "fl_app.sinks.tensorboard:TensorBoardSink",
        "mlflow": "fl_app.sinks.mlflow:MLflowSink",
    }
)

PACKAGES: Mapping[str, str] = MappingProxyType({"tensorboard": "tensorboard", "mlflow": "mlflow"})
"""What a built-in sink imports. Each comes with the extra of the sink's name."""
