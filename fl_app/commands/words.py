"""What several commands have in common: their options, and the reading of the words behind these."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from flwr.common.config import parse_config_args

from fl_app.config import RunConfig
from fl_app.errors import Refused

RunKeys = Annotated[list[str] | None, typer.Option("-c", metavar="KEY=VALUE", help="a key of the run config")]
Profile = Annotated[str | None, typer.Argument(help="profile of pyproject-flower.toml")]
Profiles = Annotated[
    Path | None, typer.Option(metavar="DIR", help="folder of a pyproject-flower.toml, such as a deployment's")
]
Engine = Annotated[str, typer.Option(show_default=False, help="flower (default) or inline: one process")]
Nodes = Annotated[int | None, typer.Option(help="simulated nodes, instead of the profile's number")]
Out = Annotated[str | None, typer.Option(metavar="DIR", help="folder of the results")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="folder of the deployment")]
ModelFile = Annotated[str, typer.Argument(metavar="MODEL.json", help="model.json of a run, or its folder")]
Json = Annotated[bool, typer.Option("--json", show_default=False, help="as JSON")]
Debug = Annotated[bool, typer.Option("--debug", show_default=False, help="show tracebacks")]
"""Commands take it and do not read it: `fl_app.cli.main`, which prints errors, looks for the word itself."""


def pairs(words: list[str]) -> dict[str, str]:
    """KEY=VALUE words as a mapping; VALUE is literal. Raises Refused."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise Refused(f"{word!r} is no KEY=VALUE", f"-c {word}", "write -c KEY=VALUE")
        if key in found:
            raise Refused(f"{key!r} is given twice", f"-c {word}", "give it once")
        found[key] = value
    return found


def config_with_out(texts: Mapping[str, str], out: str | None) -> RunConfig:
    """The configuration of typed keys, with the folder of `--out`. Raises Refused."""
    if out is not None and not out.strip():
        raise Refused("no folder", '--out ""', "name one")
    if out is not None and "out" in texts:
        raise Refused("two output folders", f"--out {out} and -c out={texts['out']}", "give one")
    return RunConfig.parse_texts({**texts, "out": out} if out is not None else texts)


def node_config(text: str) -> dict[str, Any]:
    """What `flower-supernode --node-config` makes of a text. Raises Refused."""
    try:
        return dict(parse_config_args([text])) if text.strip() else {}
    except (click.ClickException, OSError, ValueError) as error:
        raise Refused("the node config cannot be read", text, "write 'key=\"text\" key=1'") from error
