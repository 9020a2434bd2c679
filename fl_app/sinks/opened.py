"""The sinks of one run, opened: a sink that fails is logged once and switched off, and never fails the run."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr.common.logger import log

from fl_app import registry
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.sinks import PACKAGES, Sink


class OpenSinks:
    """Several sinks as one that never raises."""

    def __init__(self, makers: Mapping[str, Callable[[], Sink]]) -> None:
        """Open them by name, in order."""
        self._open: dict[str, Sink] = {}
        for name, make in makers.items():
            try:
                self._open[name] = make()
            except Exception as error:  # a tracking server that is away, a full disk: the run needs none of them
                _switched_off(name, error)

    def round(self, line: Mapping[str, Any]) -> None:
        """Pass a line of rounds.jsonl on to each."""
        self._each(lambda sink: sink.round(line))

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Close each; a second call does nothing."""
        self._each(lambda sink: sink.close(summary))
        self._open.clear()

    def _each(self, call: Callable[[Sink], None]) -> None:
        for name, sink in list(self._open.items()):
            try:
                call(sink)
            except Exception as error:  # see above
                del self._open[name]
                _switched_off(name, error)


def check_sinks(names: str) -> None:
    """Refuse, before a run starts, a sink that does not exist or whose package is not installed.

    `names`: the run's key `sinks`, separated by blanks.
    """
    wanted = names.split()
    for name in wanted:
        if wanted.count(name) > 1:
            raise Refused(f"{name!r} is given twice", f"sinks={names}", "give it once")
        package = PACKAGES.get(name)
        if package is not None and find_spec(package) is None:
            raise Refused(f"sinks={name}", f"package {package} is not installed", f"pip install 'fl-app[{name}]'")
        registry.resolve("sink", name)


def open_sinks(names: str, folder: Path, config: RunConfig) -> OpenSinks:
    """The sinks of a run whose results go to `folder`. Raises Refused as `check_sinks`, and nothing else."""
    check_sinks(names)
    return OpenSinks({name: _maker(registry.resolve("sink", name), folder, config) for name in names.split()})


def scalars(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line by their path, such as "metrics/accuracy"; of a list (`dropped`) its length."""
    found: dict[str, float] = {}
    for key, value in line.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= scalars(value, f"{name}/")
        elif isinstance(value, list):
            found[name] = float(len(value))
        elif isinstance(value, int | float):
            found[name] = float(value)
    return found


def _maker(cls: Callable[[Path, RunConfig], Sink], folder: Path, config: RunConfig) -> Callable[[], Sink]:
    return lambda: cls(folder, config)


def _switched_off(name: str, error: Exception) -> None:
    log(WARNING, "sink %s is switched off, the run goes on: %s: %s", name, type(error).__name__, error)
