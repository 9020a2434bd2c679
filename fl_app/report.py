"""The end of a run in words."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_app.console import WIDTH, short_number

REASONS = {
    "rounds": "all rounds done",
    "converged": "converged",
    "target": "target reached",
    "patience": "no more improvement",
    "budget": "privacy budget spent",
    "too-few-clients": "too few clients",
    "error": "an error",
    "interrupted": "interrupted",
}


def closing_lines(summary: Mapping[str, Any], here: Path) -> list[str]:
    """What a person wants to know once a run is over: how it ended, how good the model is, where everything is."""
    rounds = summary["rounds"]
    ending = f"{summary['status']} after {rounds} round{'' if rounds == 1 else 's'}"
    lines = [f"{ending} in {summary['seconds']['total']:.1f} s: {REASONS[summary['stop_reason']]}"]
    metrics = {name: value for name, value in (summary["metrics"] or {}).items() if value is not None}
    if metrics:
        where = "server's" if summary["metrics_on"] == "server" else "clients'"
        text = "  ".join(f"{name} {short_number(value)}" for name, value in metrics.items())
        lines += textwrap.wrap(f"{text}  ({where} test rows)", WIDTH)
    out = Path(summary["out"])
    lines.append(f"results in {out.relative_to(here) if out.is_relative_to(here) else out}")
    return lines
