"""Runs on the inline engine, as the contracts make them: in a folder of their own, in milliseconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_app import client_app, server_app
from fl_app.config import RunConfig
from fl_app.inline import InlineGrid
from fl_app.run_folder import RunFolder


def run_inline(out: Path, keys: Mapping[str, Any], *, nodes: int = 2) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One run with these keys: its summary and the lines of rounds.jsonl. Raises what fails the run."""
    config = RunConfig.parse({"enrol-timeout-s": 5.0, **keys, "out": str(out)})
    lines: list[dict[str, Any]] = []
    grid = InlineGrid(client_app.app, config.values(), nodes)
    summary = server_app.serve(grid, config, lambda line: lines.append(dict(line)))
    assert summary["rounds"] == len(lines) == len(RunFolder(out).read_rounds(config.rounds))  # noqa: S101
    return summary, lines
