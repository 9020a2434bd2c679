"""Several configurations, each with several seeds, in one start of the engine."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fl_app.averages import display_name, table_lines
from fl_app.commands import words
from fl_app.comparison import PAGE, Comparison, PlannedRun, new_comparison, of_configuration, run_comparison
from fl_app.config import from_text
from fl_app.console import WIDTH, Progress, short_number
from fl_app.errors import Refused
from fl_app.job import Engine
from fl_app.profiles import chosen_profile


def compare(
    profile: words.Profile = None,
    c: Annotated[list[str] | None, typer.Option("-c", metavar="KEY=VALUE", help="a key of all configurations")] = None,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", metavar='"KEY=VALUE ..."', help='one configuration; "" is the common one'),
    ] = None,
    seeds: Annotated[int, typer.Option(help="runs of each configuration, with the seeds from seed on")] = 3,
    engine: words.Engine = "flower",
    nodes: words.Nodes = None,
    out: words.Out = None,
    profiles: words.Profiles = None,
    as_json: Annotated[bool, typer.Option("--json", show_default=False, help="the result as JSON on stdout")] = False,
    debug: words.Debug = False,
) -> None:
    """Compare configurations over several seeds, in one start of the engine: mean, deviation, a table and a plot.

    Exit status 0 completed, 1 a run failed, 2 refused, 130/143 interrupted.
    """
    common = words.config_with_out(words.pairs(c or []), out)
    comparison = new_comparison(
        common,
        configurations(config or [""]),
        seeds,
        chosen_profile(profile, nodes, Path.cwd(), profiles),
        cast(Engine, engine),
        Path.cwd(),
    )
    with Progress(len(comparison.runs), 0) as progress:
        progress.status("starting Flower ..." if engine == "flower" else "training")
        found, status = run_comparison(comparison, Watch(comparison, progress))
    if as_json:
        print(json.dumps(found, indent=2))
    for line in [*table_lines(found), *closing(found, Path.cwd())]:
        print(line, file=sys.stderr if as_json else sys.stdout)
    for line in failures(found):
        print(line, file=sys.stderr)
    raise typer.Exit(status)


class Watch:
    """Shows a line for each run that is over, and on a terminal which run is on."""

    def __init__(self, comparison: Comparison, progress: Progress) -> None:
        self._total, self._progress, self._done = len(comparison.runs), progress, 0
        self._live = progress.is_live

    def round(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        """A round of a run: where it is on the bar."""
        if self._live:
            name = display_name(run.configuration)[:40]
            self._progress.status(f"{name}  seed {run.config.seed}  round {line['round']}/{run.config.rounds}")

    def end(self, run: PlannedRun, summary: Mapping[str, Any]) -> None:
        """A run is over."""
        self._done += 1
        metrics = [f"{k} {short_number(v)}" for k, v in (summary["metrics"] or {}).items() if v is not None]
        ended = "" if summary["status"] == "completed" else summary["status"]
        rounds = f"{summary['rounds']} round{'' if summary['rounds'] == 1 else 's'}"
        seconds = f"{summary['seconds']['rounds']:.1f} s"
        tail = "  ".join(filter(None, [f"seed {run.config.seed}", ended, rounds, *metrics[:1], seconds]))
        head = f"run {self._done}/{self._total}  "
        room = max(WIDTH - len(head) - len(tail) - 2, 10)
        name = display_name(run.configuration)
        name = name if len(name) <= room else name[: room - 3] + "..."
        self._progress.line(f"{head}{name}  {tail}", self._done)


def configurations(texts: list[str]) -> dict[str, dict[str, Any]]:
    """By the text of each, its keys with typed values. Raises Refused, naming the configuration."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        if text in found:
            raise Refused(f"{of_configuration(text)} is given twice", f'--config "{text}"', "give it once")
        try:
            pairs = words.pairs(shlex.split(text))
            found[text] = {key: from_text(key, value) for key, value in pairs.items()}
        except Refused as error:
            raise Refused(error.what, of_configuration(text), error.remedy) from error
        except ValueError as error:
            raise Refused("unbalanced quotes", f'--config "{text}"', 'write "key=value key=value"') from error
    return found


def closing(found: Mapping[str, Any], here: Path) -> list[str]:
    """What the table is of, and where everything is."""
    out = Path(found["out"])
    where = out.relative_to(here) if out.is_relative_to(here) else out
    return [
        "mean \N{PLUS-MINUS SIGN} standard deviation over the seeds; payload and seconds are a run's mean",
        f"results in {where}; {PAGE} shows them",
    ]


def failures(found: Mapping[str, Any]) -> list[str]:
    """An error line for each run that failed."""
    return [
        f"error: the run failed: {of_configuration(configuration['name'])} with seed {run['seed']}: {run['error']}"
        for configuration in found["configurations"]
        for run in configuration["runs"]
        if run["status"] == "failed"
    ]
