"""The same as the command line, from Python: `fl_app.run(...)` and `fl_app.compare(...)`."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from fl_app.comparison import PlannedRun, new_comparison, run_comparison
from fl_app.config import KEYS, RunConfig
from fl_app.console import short_number
from fl_app.errors import Refused, suggestion
from fl_app.job import Engine, Job, new_job, resumed_job, run_job
from fl_app.profiles import Profile, chosen_profile
from fl_app.run_folder import RunFolder
from fl_app.signals import INTERRUPTED_STATUS

OnRound = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a run left behind: the content of its files.

    summary: summary.json. rounds: the lines of rounds.jsonl. sites: sites.json, None where there is none. model:
    model.json and params: model.safetensors in the order of the model; None and empty where a run failed before it
    had a model. out: the folder.
    """

    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    sites: dict[str, Any] | None
    model: dict[str, Any] | None
    params: dict[str, NDArray[Any]]
    out: Path

    @classmethod
    def read(cls, out: Path | str) -> "Result":
        """That of a finished run in a folder. Raises Refused where there is none."""
        folder = RunFolder(Path(out).expanduser().resolve())
        if not folder.summary.exists():
            raise Refused("no finished run", str(folder.path), "name the folder of a run that has ended")
        summary, model = folder.read_summary(), folder.read_json(folder.about_model)
        found = load_file(folder.model) if model else {}
        return cls(
            summary=summary,
            rounds=[report.to_json() for report in folder.read_rounds(summary["rounds"])],
            sites=folder.read_json(folder.sites),
            model=model,
            params={about["name"]: found[about["name"]] for about in model["arrays"]} if model else {},
            out=folder.path,
        )

    @property
    def status(self) -> str:
        """`completed` or `failed`."""
        return str(self.summary["status"])

    @property
    def metrics(self) -> dict[str, float | None] | None:
        """Of the final model; None where it was not evaluated."""
        found: dict[str, float | None] | None = self.summary["metrics"]
        return found

    @property
    def baselines(self) -> dict[str, Any] | None:
        """The same model on pooled rows and by each client alone; None where they were not computed."""
        found: dict[str, Any] | None = self.summary["baselines"]
        return found

    def __repr__(self) -> str:
        known = [f"{name} {short_number(value)}" for name, value in (self.metrics or {}).items() if value is not None]
        told = ", ".join([f"{self.status} after {self.summary['rounds']} rounds", *known])
        return f"<Result: {told}, in {self.out}>"


def run(
    config: Mapping[str, Any] | None = None,
    *,
    profile: str | None = None,
    engine: Engine = "flower",
    nodes: int | None = None,
    profiles: Path | str | None = None,
    resume: Path | str | None = None,
    on_round: OnRound | None = None,
    **keys: Any,
) -> Result:
    """Run a federation, wait for its end and read what it left.

    A key of a run stands in `config` or is a keyword argument, which wins; `-` and `_` are the same in its name. Values
    have the type of the key; an int will do for a float, a mapping for `..._args` and a Path for text. `profiles` is
    the folder of a pyproject-flower.toml, such as a deployment's. `resume` is the folder of a run to go on with: then
    `rounds` alone may be given. `on_round` gets every line of rounds.jsonl as it comes.

    A run that fails gives a Result of that status. Raises fl_app.errors.Refused, before anything starts, for what
    cannot be run; KeyboardInterrupt, with the files written, when Ctrl-C stopped the run, and SystemExit after SIGTERM.
    """
    values = typed_values({**_kebab(config or {}), **_kebab(keys)})
    job = _job(values, _profile(profile, nodes, profiles, resume), engine, resume)
    _, status = run_job(job, on_round or _ignore)
    _raise_interruption(status)
    return Result.read(job.folder.path)


def compare(
    configs: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]],
    config: Mapping[str, Any] | None = None,
    *,
    seeds: int = 3,
    profile: str | None = None,
    engine: Engine = "flower",
    nodes: int | None = None,
    profiles: Path | str | None = None,
    on_end: Callable[[str, Mapping[str, Any]], None] | None = None,
    **keys: Any,
) -> dict[str, Any]:
    """Play several configurations with several seeds in one start of the engine; the content of comparison.json.

    `configs`: the keys in which each configuration differs, by its name or in a list, where its keys are its name.
    `config` and keyword arguments are common to all, as in `run`. `on_end` gets the name of the configuration and the
    summary of each run that is over. Raises as `run`.
    """
    common = RunConfig.parse(typed_values({**_kebab(config or {}), **_kebab(keys)}))
    differing = _configurations(configs)
    comparison = new_comparison(common, differing, seeds, _profile(profile, nodes, profiles), engine, Path.cwd())
    found, status = run_comparison(comparison, _Watch(on_end or _ignore))
    _raise_interruption(status)
    return found


class _Watch:
    def __init__(self, on_end: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._on_end = on_end

    def round(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        """Nothing: the files have it."""

    def end(self, run: PlannedRun, summary: Mapping[str, Any]) -> None:
        """A run is over."""
        self._on_end(run.configuration, summary)


def _profile(name: str | None, nodes: int | None, profiles: Any, resume: Any = None) -> Profile:
    named, resumed = (None if path is None else Path(path) for path in (profiles, resume))
    return chosen_profile(name, nodes, Path.cwd(), named, resumed)


def _job(values: Mapping[str, Any], profile: Profile, engine: Engine, resume: Any) -> Job:
    if resume is not None:
        return resumed_job(Path(resume), {key: str(value) for key, value in values.items()}, profile, engine)
    parsed = RunConfig.parse(values)
    if parsed.resume:
        raise Refused("resume=true", "resume", "give the folder of the run")
    return new_job(parsed, profile, engine, Path.cwd())


def _configurations(configs: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if isinstance(configs, Mapping):
        return {name: typed_values(_kebab(values)) for name, values in configs.items()}
    found: dict[str, Any] = {}
    for values in map(typed_values, map(_kebab, configs)):
        name = shlex.join(f"{key}={value}" for key, value in values.items())
        if name in found:
            raise Refused("two configurations are the same", name, "give it once")
        found[name] = values
    return found


def typed_values(values: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The values of keys as a run config has them. Raises Refused for an unknown key and a value of another type."""
    return {key: _typed(key, value) for key, value in values.items()}


def _kebab(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).replace("_", "-"): value for key, value in values.items()}


def _typed(key: str, value: Any) -> str | int | float | bool:
    if key not in KEYS:
        raise Refused(f"unknown key {key!r}", f"{key}={value}", suggestion(key, KEYS))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping) and key.endswith("-args"):
        return shlex.join(f"{name.replace('_', '-')}={_text(found)}" for name, found in value.items())
    if type(value) is int and KEYS[key].annotation is float:
        return float(value)
    if not isinstance(value, str | int | float | bool):
        raise Refused(f"a {type(value).__name__}", f"{key}={value!r}", "give a text or a number")
    return value


def _text(value: Any) -> str:
    """A value within arguments, as it is typed on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ignore(*_: Any) -> None:
    """Nobody wants to know."""


def _raise_interruption(status: int) -> None:
    if status == INTERRUPTED_STATUS["SIGINT"]:
        raise KeyboardInterrupt
    if status == INTERRUPTED_STATUS["SIGTERM"]:
        raise SystemExit(status)
