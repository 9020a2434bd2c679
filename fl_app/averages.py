"""What the runs of a comparison come to: mean and standard deviation of each configuration, for files and terminals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fl_app.config import RunConfig
from fl_app.console import WIDTH, human_bytes, short_number
from fl_app.results import versions
from fl_app.run_folder import RunFolder

COMMON_NAME = "(as given)"
SHORTEST_NAME = 16
_TOLD = ("metrics", "baselines", "rounds", "seconds", "payload_up", "payload_down", "params_sha256", "error")


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one configuration: what differs from the common one, and each run's own configuration."""

    name: str
    overrides: Mapping[str, Any]
    configs: tuple[RunConfig, ...]


def averages(common: RunConfig, groups: Sequence[Group]) -> dict[str, Any]:
    """The content of comparison.json, from the summaries of the runs that were played."""
    return {
        "schema": 1,
        "configurations": [_configuration(group) for group in groups],
        "config": common.values(),
        "versions": versions(),
        "out": common.out,
    }


def _configuration(group: Group) -> dict[str, Any]:
    runs = [_run(config) for config in group.configs]
    means, deviations = _statistics([run["metrics"] or {} for run in completed(runs)])
    return {"name": group.name, "overrides": dict(group.overrides), "runs": runs, "mean": means, "sd": deviations}


def _run(config: RunConfig) -> dict[str, Any]:
    """What is told of one run; one that was not played has no numbers."""
    folder = RunFolder(Path(config.out))
    summary = folder.read_summary() if folder.summary.exists() else dict.fromkeys(_TOLD) | {"status": "not-run"}
    return {"seed": config.seed, **{key: summary[key] for key in ("status", *_TOLD)}, "out": config.out}


def _statistics(metrics: Sequence[Mapping[str, float | None]]) -> tuple[dict[str, float], dict[str, float | None]]:
    """Mean and sample standard deviation of each metric, over the runs that know it; of one run there is no latter."""
    known: dict[str, list[float]] = {}
    for found in metrics:
        for name, value in found.items():
            if value is not None:
                known.setdefault(name, []).append(value)
    means = {name: fmean(values) for name, values in known.items()}
    return means, {name: stdev(values) if len(values) > 1 else None for name, values in known.items()}


# ---------------------------------------------------------------------------------------------------- terminal


def completed(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs that are in the mean."""
    return [run for run in runs if run["status"] == "completed"]


def display_name(name: str) -> str:
    """A configuration as tables call it."""
    return " ".join(name.split()) or COMMON_NAME


def mean_and_sd(configuration: Mapping[str, Any], metric: str) -> str:
    """Such as `0.953 ± 0.004`; without the deviation where there was one run, empty where there was none."""
    mean, deviation = configuration["mean"].get(metric), configuration["sd"].get(metric)
    if mean is None:
        return ""
    return short_number(mean) + ("" if deviation is None else f" \N{PLUS-MINUS SIGN} {_deviation(deviation)}")


def _deviation(value: float) -> str:
    return f"{value:.3f}" if 0.0005 <= value < 100 or value == 0 else f"{value:.1e}".replace("e-0", "e-")


def table_lines(found: Mapping[str, Any], width: int = WIDTH) -> list[str]:
    """A line for each configuration: name, completed runs, as many metrics as fit, payload and seconds of a run."""
    configurations = found["configurations"]
    metrics = list(dict.fromkeys(name for c in configurations for name in c["mean"]))
    columns = [["n", *(str(len(completed(c["runs"]))) for c in configurations)]]
    metric_columns = [[name, *(mean_and_sd(c, name) for c in configurations)] for name in metrics]
    costs = [["payload", *(_payload(c) for c in configurations)], ["seconds", *(_seconds(c) for c in configurations)]]
    names = ["configuration", *(display_name(c["name"]) for c in configurations)]
    longest = max(map(len, names))
    room = width - sum(map(_width, [*columns, *costs]))
    for column in metric_columns:
        if len(columns) > 1 and room - _width(column) < min(longest, 2 * SHORTEST_NAME):
            break
        columns.append(column)
        room -= _width(column)
    name_width = min(longest, max(room, SHORTEST_NAME))
    rows = zip(
        *[[_cut(name, name_width).ljust(name_width) for name in names], *_aligned([*columns, *costs])], strict=True
    )
    return ["  ".join(row).rstrip() for row in rows]


def _width(column: Sequence[str]) -> int:
    return 2 + max(map(len, column))


def _aligned(columns: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[cell.rjust(_width(column) - 2) for cell in column] for column in columns]


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 3] + "..."


def _payload(configuration: Mapping[str, Any]) -> str:
    runs = completed(configuration["runs"])
    return human_bytes(round(fmean(run["payload_up"] + run["payload_down"] for run in runs))) if runs else ""


def _seconds(configuration: Mapping[str, Any]) -> str:
    runs = completed(configuration["runs"])
    return f"{fmean(run['seconds']['rounds'] for run in runs):.1f}" if runs else ""
