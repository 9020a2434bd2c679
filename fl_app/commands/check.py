"""A site's dry run."""

import json
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from fl_app.caller import set_caller
from fl_app.commands import words
from fl_app.config import RunConfig
from fl_app.console import WIDTH
from fl_app.errors import Refused
from fl_app.site_check import check_lines, examine


def check(
    data: Annotated[str | None, typer.Option(metavar="F.csv", help="the site's file")] = None,
    label: Annotated[str | None, typer.Option(help="its label column")] = None,
    test_data: Annotated[str | None, typer.Option(metavar="F.csv", help="its rows to test on")] = None,
    client: Annotated[str, typer.Option(help="the site's name")] = "site",
    node_config: Annotated[
        str, typer.Option(help='the same as its node is started with: \'client="a" data="a.csv" label="y"\'')
    ] = "",
    policy: Annotated[str | None, typer.Option(metavar="F.toml", help="what the site demands of a run")] = None,
    c: words.RunKeys = None,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """A site's dry run: what a run would read, tell and train here. Nothing is sent."""
    if data is None and not node_config.strip():
        raise Refused("no data", "fl-app check", "give --data F.csv --label COLUMN, or --node-config")
    if data is not None and node_config.strip():
        raise Refused("two files", "--data and --node-config", "give one of them")
    if data is not None and not label:
        raise Refused("it is not said which column is the label", f"--data {data}", "add --label COLUMN")
    given = {"client": client, "data": data, "label": label, "test-data": test_data}
    node = words.node_config(node_config) or {key: value for key, value in given.items() if value is not None}
    if policy is not None:
        if node.get("policy"):
            raise Refused("two policies", f"--policy {policy} and --node-config", "give one of them")
        node["policy"] = policy
    set_caller(Path.cwd())
    config = RunConfig.parse_texts({"data": "csv", **words.pairs(c or [])})
    found = examine(config, node)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for site in found:
        for line in check_lines(site):
            print(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    print("nothing was sent")
