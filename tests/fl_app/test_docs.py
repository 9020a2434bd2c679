"""The documents tell the truth: every key is in the README, with its default and meaning."""

import json
import re
from pathlib import Path

import pytest
import typer
from click import Group
from deployment_document import steps

from fl_app import registry
from fl_app.cli import cli
from fl_app.config import KEYS, RunConfig
from strategies import STRATEGIES

PROJECT = Path(__file__).parents[2]


def test_the_readme_has_exactly_two_commands_of_set_up_and_they_make_their_own_environment():
    blocks = re.findall(r"^```sh\n(.*?)^```", (PROJECT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert len(block.strip().splitlines()) == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt ")


def test_the_readme_tells_every_key_with_its_default_and_meaning():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.*?) ?\| (.*) \|$", (PROJECT / "README.md").read_text(), re.MULTILINE)
    defaults = {key: json.dumps(value).strip('"') for key, value in RunConfig().values().items()}
    assert rows == [
        (key, f"`{defaults[key]}`" if defaults[key] else "", field.description) for key, field in KEYS.items()
    ]


def test_the_page_on_the_design_says_of_every_module_of_the_wiring_what_it_is_for():
    text = (PROJECT / "docs" / "design.md").read_text()
    (table,) = re.findall(r"^\| modules \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    listed = [name for row in table.splitlines()[1:] for name in re.findall(r"`([a-z_]+/?)`", row.split("|")[1])]
    modules = [path.stem for path in (PROJECT / "fl_app").glob("[a-z]*.py")]
    packages = [f"{path.parent.name}/" for path in (PROJECT / "fl_app").glob("*/__init__.py")]
    assert sorted(listed) == sorted([*modules, *packages])


def test_the_page_of_strategies_tells_each_with_its_arguments():
    text = (PROJECT / "docs" / "strategies.md").read_text()
    for name in STRATEGIES:
        assert f"| `{name}` |" in text
        for argument in registry.arguments(registry.resolve("strategy", name)):
            assert f"| `{argument.name}` |" in text, (name, argument.name)


def test_a_deployment_takes_at_most_eight_commands():
    assert 0 < len([words for _, words in steps() if words]) <= 8


@pytest.mark.parametrize("words", [words for _, words in steps() if words], ids=" ".join)
def test_the_commands_of_a_deployment_are_such_as_fl_app_takes(words):
    command, context = typer.main.get_command(cli), None
    name = "fl-app"
    while isinstance(command, Group):
        context = command.make_context(name, list(words), parent=context)
        name, command, words = command.resolve_command(context, list(words))
    command.make_context(name, list(words), parent=context)
