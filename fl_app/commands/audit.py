"""The command that reads an audit log."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fl_app.audit import Findings, key_beside, read_key, verify
from fl_app.commands import words

audit = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The audit logs of sites and server.")


@audit.callback()
def options() -> None:
    """The audit logs of sites and server."""


@audit.command("verify")
def verify_(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="an audit.jsonl")],
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="its key; default: the one beside it")] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER_LOG", help="of the other side, which keeps what it was shown of LOG")
    ] = None,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Check that an audit log is as it was written. Exit status 0 intact, 1 not.

    That its end is not missing shows only with --against.
    """
    path = log.expanduser()
    used = key.expanduser() if key is not None else key_beside(path)
    found = verify(path, read_key(used), against.expanduser() if against is not None else None)
    if as_json:
        print(json.dumps(_content(log, found), indent=2))
    elif found.problem is None:
        print(_line(found))
    if found.problem is not None:
        problem = found.problem
        what = f"entry {problem.entry} is {problem.what}"
        remedy = f"{problem.detail}; rely on nothing from there on, and compare with a copy"
        print(f"error: {what}: {log}: {remedy}", file=sys.stderr)
        raise typer.Exit(1)


def _content(log: Path, found: Findings) -> dict[str, Any]:
    told = asdict(found)
    return {"log": str(log), "intact": found.problem is None, **told}


def _line(found: Findings) -> str:
    parts = [f"intact: {found.entries} entries"]
    if found.recovered:
        parts.append(f"{found.recovered} of them after a crash")
    if found.shown is None:
        parts.append("whether its end is missing shows with --against the log of the other side")
    else:
        parts.append(f"{found.shown} of which the other side was shown")
    return ", ".join(parts)
