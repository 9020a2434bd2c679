"""The commands that take a trained model: predict and show."""

import json
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fl_app.caller import set_caller
from fl_app.commands import words
from fl_app.console import WIDTH, short_number
from fl_app.errors import Refused
from fl_app.model import Model, write_predictions
from tasks.base import Coefficients

ARRAYS = "model.safetensors"
INTERVAL = "95 % interval"
WIDTHS = {"coefficient": 12, "standard_error": 11, "odds_ratio": 11}


def predict(
    model: words.ModelFile,
    rows: Annotated[str, typer.Argument(metavar="IN.csv", help="rows to score; columns are found by name")],
    out: Annotated[str | None, typer.Option("-o", metavar="OUT.csv", help="file to write; default: stdout")] = None,
    delimiter: Annotated[str, typer.Option(help="auto, comma, semicolon, tab or pipe")] = "auto",
    debug: words.Debug = False,
) -> None:
    """Score new rows: the prediction and the probability of every class, one line for each row, in order."""
    set_caller(Path.cwd())
    loaded, source, target = Model.load(Path(model)), Path(rows), None if out is None else Path(out)
    if target is not None:
        _check_target(target, source, Path(model))
    scored = list(loaded.predict(source, delimiter))  # all of them, before anything is written
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if target is None:
        write_predictions(loaded, iter(scored), sys.stdout)
        return
    try:
        scratch = target.with_name(f".{target.name}.writing")
        with scratch.open("w", encoding="utf-8", newline="") as file:
            count = write_predictions(loaded, iter(scored), file)
        scratch.replace(target)
    except OSError as error:
        raise Refused("cannot write", f"-o {out}", f"{error.strerror}: choose another file") from error
    print(f"{count} rows scored, in {out}", file=sys.stderr)


def _check_target(target: Path, source: Path, model: Path) -> None:
    """Predictions replace no directory, nor what they are made from."""
    if target.is_dir():
        raise Refused("this is a directory", f"-o {target}", "name a file in it")
    folder = model if model.is_dir() else model.parent
    made_from = {"the rows themselves": source, "the model": folder / "model.json", "its arrays": folder / ARRAYS}
    for what, file in made_from.items():
        if target.exists() and file.exists() and target.samefile(file):
            raise Refused(f"it would replace {what}", f"-o {target}", "choose another file")


def show(
    model: words.ModelFile,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Show the coefficients of a linear model in original units, with odds ratios, standard errors and intervals."""
    set_caller(Path.cwd())
    loaded = Model.load(Path(model))
    found = loaded.coefficients()
    if as_json:
        print(json.dumps({"coefficients": list(found.rows), "note": found.note}, indent=2))
        return
    for line in coefficient_lines(found, loaded.design.label, loaded.design.classes):
        print(line)


def coefficient_lines(found: Coefficients, label: str, classes: tuple[str, ...]) -> list[str]:
    """A table for each output, 80 columns wide.

    Where standard errors were computed, a coefficient without one is not determined by the rows.
    """
    computed = any(row["standard_error"] is not None for row in found.rows)
    by_output: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in found.rows:
        by_output[row["output"]].append(row)
    lines: list[str] = []
    for output, rows in by_output.items():
        lines += textwrap.wrap(f"{label} = {output} against {classes[0]}" if classes else label, WIDTH)
        lines += [*_table(rows, computed, "odds ratio" if classes else ""), ""]
    if any(row["low"] is not None for row in found.rows):
        lines.append("The interval is that of the odds ratio." if classes else "The interval is the coefficient's.")
    return lines + textwrap.wrap(found.note, WIDTH)


def _table(rows: Sequence[Mapping[str, Any]], computed: bool, odds: str) -> list[str]:
    """Names get what room the numbers leave."""
    intervals = [_interval(row, computed) for row in rows]
    width = WIDTH - 2 - sum(WIDTHS.values()) - 2 - max(map(len, [INTERVAL, *intervals]))
    titles = zip(("coefficient", "std. error", odds), WIDTHS.values(), strict=True)
    interval = INTERVAL if any(row["low"] is not None for row in rows) else ""
    lines = [f"  {'':{width}}{''.join(f'{title:>{w}}' for title, w in titles)}  {interval}".rstrip()]
    for row, interval in zip(rows, intervals, strict=True):
        numbers = "".join(f"{_number(row[key]):>{w}}" for key, w in WIDTHS.items())
        lines.append(f"  {_shortened(row['feature'], width):{width}}{numbers}  {interval}".rstrip())
    return lines


def _interval(row: Mapping[str, Any], computed: bool) -> str:
    if row["standard_error"] is None:
        return "not determined" if computed else ""
    of = ("odds_low", "odds_high") if row["odds_ratio"] is not None else ("low", "high")
    low, high = (row[name] for name in of)
    return "" if low is None or high is None else f"{short_number(low)} to {short_number(high)}"


def _shortened(name: str, width: int) -> str:
    """Without its middle: at the end of a long name its category stands."""
    return name if len(name) <= width else f"{name[: (width - 3) // 2]}...{name[len(name) - (width - 2) // 2 :]}"


def _number(value: float | None) -> str:
    return "" if value is None else short_number(value)
