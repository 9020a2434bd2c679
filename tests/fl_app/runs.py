"""Runs on the inline engine, in milliseconds."""

from pathlib import Path
from typing import Any

from fl_app import client_app
from fl_app.config import RunConfig
from fl_app.inline import InlineGrid
from fl_app.run_folder import RunFolder
from fl_app.server_app import serve

# Small and quick; keyword arguments of `run` override it.
QUICK = {"rounds": 3, "num-clients": 10, "batch-size": 16, "local-epochs": 2, "enrol-timeout-s": 5.0}


def run(
    out: Path, *, nodes: int = 2, grid: type[InlineGrid] = InlineGrid, on_line: Any = lambda line: None, **keys: Any
) -> tuple[dict[str, Any], RunFolder]:
    """Serve one run; keys in snake_case. The summary and the folder."""
    values = {**QUICK, **{key.replace("_", "-"): value for key, value in keys.items()}, "out": str(out)}
    config = RunConfig.parse(values)
    return serve(grid(client_app.app, config.values(), nodes), config, on_line), RunFolder(out)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, and what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
