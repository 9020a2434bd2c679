"""The command line: thin. `fl_app.job` runs, `fl_app.registry` lists."""

import errno
import json
import sys
import textwrap
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer
import typer.core

from fl_app import __version__
from fl_app.commands import words
from fl_app.commands.audit import audit
from fl_app.commands.check import check
from fl_app.commands.compare import compare
from fl_app.commands.deploy import deploy
from fl_app.commands.export import export
from fl_app.commands.model import predict, show
from fl_app.commands.privacy import privacy
from fl_app.config import KEYS, RunConfig
from fl_app.console import WIDTH, Progress
from fl_app.errors import Refused, one_line
from fl_app.job import Engine, Job, new_job, resumed_job, run_job
from fl_app.profiles import Profile, chosen_profile
from fl_app.registry import REGISTRIES, describe, names
from fl_app.report import closing_lines

typer.core.HAS_RICH = False  # else "[required]" is escaped for rich, which does not write the help of this program

cli = typer.Typer(
    name="fl-app",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fl-app {__version__}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", show_default=False, is_eager=True, callback=_show_version, help="show it")
    ] = False,
) -> None:
    """Federated learning on Flower: train one model on data that never leave their owners."""


@cli.command()
def run(
    profile: words.Profile = None,
    c: words.RunKeys = None,
    engine: words.Engine = "flower",
    nodes: words.Nodes = None,
    out: words.Out = None,
    resume: Annotated[str | None, typer.Option(metavar="DIR", help="go on with the run of this folder")] = None,
    profiles: words.Profiles = None,
    as_json: Annotated[bool, typer.Option("--json", show_default=False, help="the summary as JSON on stdout")] = False,
    debug: words.Debug = False,
) -> None:
    """Run a federation and wait for its end. PROFILE is simulation (the default) or another of pyproject-flower.toml.

    Exit status 0 completed, 1 failed, 2 refused, 130/143 interrupted.
    """
    if engine not in ("flower", "inline"):
        raise Refused(f"engine {engine!r}", "--engine", "expected flower or inline")
    if resume is not None and not resume.strip():
        raise Refused("no folder", '--resume ""', "name one")
    job = _job(
        chosen_profile(profile, nodes, Path.cwd(), profiles, None if resume is None else Path(resume)),
        words.pairs(c or []),
        "inline" if engine == "inline" else "flower",
        out,
        resume,
    )
    with Progress(job.config.rounds, job.clients) as progress:
        progress.status("starting Flower ..." if engine == "flower" else "training")
        summary, status = run_job(job, progress.round)
    if as_json:
        print(json.dumps(summary, indent=2))
    for line in closing_lines(summary, Path.cwd()):
        print(line, file=sys.stderr if as_json else sys.stdout)
    if summary["error"]:
        print(f"error: the run failed: {job.folder.path}: {summary['error']}", file=sys.stderr)
    raise typer.Exit(status)


@cli.command("list")
def list_(
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """List what a run can be made of, with all arguments, and the keys of a run."""
    plural = {"strategy": "strategies", "data": "data"}
    listing = {plural.get(kind, f"{kind}s"): [describe(kind, name) for name in names(kind)] for kind in REGISTRIES}
    if as_json:
        print(json.dumps(listing, indent=2))
        return
    for group, entries in listing.items():
        print(f"{group}:")
        for entry in entries:
            print(_wrapped(f"  {entry['name']}: {entry['doc']}", indent=4))
            for argument in entry["args"]:
                print(_wrapped(f"    {_argument_line(argument)}", indent=6))
    print("keys of a run (-c KEY=VALUE):")
    defaults = RunConfig.parse({}).values()
    for key, field in KEYS.items():
        default = json.dumps(defaults[key]).strip('"')
        print(_wrapped(f"  {key}: {field.description}" + (f" (default {default})" if default else ""), indent=4))


for command in (compare, predict, show, export, check):
    cli.command()(command)
cli.add_typer(privacy, name="privacy")
cli.add_typer(audit, name="audit")
cli.add_typer(deploy, name="deploy")


def main() -> None:
    """The entry point: every error that is the user's is one line on stderr."""
    debug = "--debug" in sys.argv
    try:
        status = cli(standalone_mode=False)
    except click.exceptions.Abort:
        print("interrupted", file=sys.stderr)
        status = 130
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        status = 2
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "fl-app"
        # typer and click each add what was probably meant
        told = error.message if "Did you mean" in error.message else error.format_message()
        status = _complain(f"{told.rstrip('.')}: {where}: see {where} --help", debug)
    except Refused as error:
        status = _complain(str(error), debug)
    except Exception as error:  # a fault of this program, or of the machine: no disk, no memory
        told = f"{one_line(f'{type(error).__name__}: {error}')}: fl-app: run again with --debug"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = "the disk is full: fl-app: make room; a run goes on with fl-app run --resume DIR"
        _complain(told, debug)
        status = 1
    sys.exit(status or 0)


def _complain(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return 2


def _job(profile: Profile, texts: Mapping[str, str], engine: Engine, out: str | None, resume: str | None) -> Job:
    if resume is not None:
        if out is not None:
            raise Refused("--out with --resume", f"--resume {resume}", "a resumed run goes on in its own folder")
        return resumed_job(Path(resume), texts, profile, engine)
    config = words.config_with_out(texts, out)
    if config.resume:
        raise Refused("resume=true", "-c resume=true", "use --resume DIR")
    return new_job(config, profile, engine, Path.cwd())


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)


def _argument_line(argument: Mapping[str, Any]) -> str:
    default = "required" if argument["default"] is None else f"default {argument['default']}"
    return f"{argument['name']}: {argument['doc']} ({argument['type']}, {default})"


if __name__ == "__main__":
    main()
