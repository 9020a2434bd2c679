"""Words of a command line, taken apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from flwr.common.config import parse_config_args

from fl_app.config import RunConfig
from fl_app.errors import Refused

Profiles = Annotated[
    Path | None, typer.Option(metavar="DIR", help="folder of a pyproject-flower.toml, such as a deployment's")
]


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
