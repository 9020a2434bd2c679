"""Several configurations, each with several seeds, in one start of the engine: what `fl-app compare` plays.

Every run is checked before the first begins, and leaves the files of a run in a folder of its own. What they come to
together is in comparison.json and comparison.html (fl_app/averages.py, fl_app/page/comparison.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fl_app.averages import Group, averages
from fl_app.config import RunConfig
from fl_app.deploy.attachment import attachment
from fl_app.errors import Refused, one_line
from fl_app.flower_engine import Outcome, RunOutput, play_on_flower
from fl_app.job import (
    Engine,
    check_config,
    check_engine,
    check_workers,
    inline_grid,
    located,
)
from fl_app.page.comparison import comparison_page
from fl_app.profiles import Profile
from fl_app.results import Ending, finish
from fl_app.run_folder import RunFolder, new_folder, write_atomically
from fl_app.signals import INTERRUPTED_STATUS, Interruption, Terminated, sigterm_raises
from fl_app.variants import differences, play, variants_text

RESULT, PAGE = "comparison.json", "comparison.html"
NOT_TO_DIFFER = {
    "out": "every run has a folder of its own: name theirs with --out",
    "resume": "a comparison starts from the beginning",
    "variants": "it is set by fl-app compare",
    "seed": "-c seed=S sets the first seed of all configurations, --seeds how many there are",
}
LONGEST_SLUG = 40


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison, whose configuration has been checked."""

    configuration: str
    config: RunConfig

    @property
    def folder(self) -> RunFolder:
        """Where its results go."""
        return RunFolder(Path(self.config.out))

    def lines(self) -> list[dict[str, Any]]:
        """The lines of its rounds.jsonl, as many as there are."""
        return [report.to_json() for report in self.folder.read_rounds(self.config.rounds)]


@dataclass(frozen=True)
class Comparison:
    """The runs, configuration by configuration and seed by seed; `common` is what they share."""

    common: RunConfig
    names: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    profile: Profile
    engine: Engine

    @property
    def folder(self) -> RunFolder:
        """Where all results go."""
        return RunFolder(Path(self.common.out))

    def group(self, name: str) -> Group:
        """The runs of one configuration."""
        configs = tuple(run.config for run in self.runs if run.configuration == name)
        differing = differences(self.common, configs[0])
        return Group(name, {k: v for k, v in differing.items() if k not in NOT_TO_DIFFER}, configs)

    def submitted(self) -> RunConfig:
        """The one run that the engine sees."""
        return self.common.model_copy(
            update={"variants": variants_text(self.common, [run.config for run in self.runs])}
        )


class Watcher(Protocol):
    """Whoever wants to be told of rounds and ends of runs as they happen."""

    def round(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        """A line of a run's rounds.jsonl."""

    def end(self, run: PlannedRun, summary: Mapping[str, Any]) -> None:
        """A run is over."""


def new_comparison(
    common: RunConfig,
    configurations: Mapping[str, Mapping[str, Any]],
    seeds: int,
    profile: Profile,
    engine: Engine,
    caller: Path,
) -> Comparison:
    """Check every run and make the folder of the results. Raises Refused, naming the configuration.

    `configurations`: by name, the keys in which they differ from the common one. `seeds`: how many runs each has, the
    first with the seed of the common configuration.
    """
    check_engine(profile, engine)
    if seeds < 1:
        raise Refused(f"{seeds} seeds", "--seeds", "give a number of at least 1")
    for key in ("resume", "variants"):
        if common.values()[key]:
            raise Refused(f"{key} in a comparison", f"-c {key}={common.values()[key]}", NOT_TO_DIFFER[key])
    out = (caller / Path(common.out).expanduser() if common.out else new_folder(caller, "compare")).resolve()
    if (out / RESULT).exists():
        raise Refused(f"{RESULT} exists", f"--out {out}", "choose another folder")
    runs = []
    for number, (name, values) in enumerate(configurations.items(), start=1):
        folder = out / f"{number:02d}-{_slug(name)}"
        for seed in range(common.seed, common.seed + seeds):
            runs.append(_planned(name, {**common.values(), "seed": seed}, values, folder, profile, caller))
    for run in runs:
        check_workers(run.config, profile, engine)
    RunFolder(out).create()
    return Comparison(located(common, out, caller), tuple(configurations), tuple(runs), profile, engine)


def _planned(
    name: str, common: Mapping[str, Any], values: Mapping[str, Any], folder: Path, profile: Profile, caller: Path
) -> PlannedRun:
    out = folder / f"seed-{common['seed']}"
    try:
        if forbidden := sorted(set(values) & set(NOT_TO_DIFFER)):
            key = forbidden[0]
            raise Refused(f"{key!r} cannot differ between configurations", f"{key}={values[key]}", NOT_TO_DIFFER[key])
        config = located(RunConfig.parse({**common, **values}), out, caller)
        if out.exists():
            raise Refused("there are results already", str(out), "choose another folder with --out")
        check_config(config, profile)
    except Refused as error:
        raise Refused(error.what, f"{of_configuration(name)}, {error.where}", error.remedy) from error
    return PlannedRun(name, config)


def of_configuration(name: str) -> str:
    """A configuration as errors name it."""
    return f'configuration "{name}"' if name.strip() else "the common configuration"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())[:LONGEST_SLUG].strip("-.") or "common"


def run_comparison(comparison: Comparison, watcher: Watcher) -> tuple[dict[str, Any], int]:
    """Play all runs; returns the content of comparison.json and the exit status.

    Where a run fails the others are played all the same.

    Raises Refused, with nothing touched, where another run is using the folder.
    """
    folder = comparison.folder
    with folder.locked():
        outcome = (_inline if comparison.engine == "inline" else _on_flower)(comparison, watcher)
        _close(comparison, outcome)
        found = averages(comparison.common, [comparison.group(name) for name in comparison.names])
        html = comparison_page(found, {run.config.out: run.lines() for run in comparison.runs})
        write_atomically(folder.path / PAGE, html.encode())
        folder.write_json(folder.path / RESULT, found)
    if outcome.interrupted:
        return found, INTERRUPTED_STATUS[outcome.interrupted]
    ended = [run["status"] for configuration in found["configurations"] for run in configuration["runs"]]
    return found, int(any(status != "completed" for status in ended))


def _inline(comparison: Comparison, watcher: Watcher) -> Outcome:
    from fl_app import server_app

    submitted = comparison.submitted()
    grid = inline_grid(submitted, comparison.profile)

    def serve(config: RunConfig, number: int) -> None:
        run = comparison.runs[number]
        try:
            server_app.serve(grid, config, partial(watcher.round, run), variant=number)
        finally:
            if run.folder.summary.exists():
                watcher.end(run, run.folder.read_summary())

    interrupted: Interruption
    try:
        with sigterm_raises():
            play(submitted.values(), serve)
    except KeyboardInterrupt:
        interrupted = "SIGINT"
    except Terminated:
        interrupted = "SIGTERM"
    except Exception as error:  # every run that failed has said so in its summary
        return Outcome(finished=False, error=one_line(f"{type(error).__name__}: {error}"))
    else:
        return Outcome(finished=True)
    return Outcome(finished=False, interrupted=interrupted)


def _on_flower(comparison: Comparison, watcher: Watcher) -> Outcome:
    return play_on_flower(
        comparison.submitted().values(),
        _Outputs(comparison, watcher),
        comparison.profile,
        log_path=comparison.folder.log,
        prepare=partial(attachment, comparison.profile),
    )


class _Outputs:
    """The files of all runs, which come one run after the other."""

    def __init__(self, comparison: Comparison, watcher: Watcher) -> None:
        self._watcher = watcher
        self._open = [(run, RunOutput(run.folder.path, partial(watcher.round, run))) for run in comparison.runs]

    def is_finished(self) -> bool:
        """Whether the summaries of all runs are there."""
        return all(output.is_finished() for _, output in self._open)

    def is_served(self) -> bool:
        """Whether the ServerApp is at work in one of their folders."""
        return any(output.is_served() for _, output in self._open)

    def pass_on(self) -> None:
        """Tell the new lines of the run that is on, and which runs have ended."""
        while self._open:
            run, output = self._open[0]
            over = output.is_finished()  # asked first: no line comes after the summary
            output.pass_on()
            if not over:
                return
            self._watcher.end(run, run.folder.read_summary())
            del self._open[0]


def _close(comparison: Comparison, outcome: Outcome) -> None:
    """Write the summary of the run that was on when the engine ended; those after it were not run."""
    for run in comparison.runs:
        if not run.folder.summary.exists():
            run.folder.path.mkdir(parents=True, exist_ok=True)
            ending = Ending("failed", "error", outcome.error or "it ended without a result")
            finish(run.folder, run.config, Ending("stopped", "interrupted") if outcome.interrupted else ending)
            return
