"""The documents tell the truth: every key is in the README, and the examples run as they stand."""

import json
import re
from pathlib import Path

import pytest
from runs import run

from fl_app.config import KEYS, RunConfig

PROJECT = Path(__file__).parents[2]


def test_the_readme_has_exactly_two_commands_of_set_up_and_they_make_their_own_environment():
    blocks = re.findall(r"^```sh\n(.*?)^```", (PROJECT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert len(block.strip().splitlines()) == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt ")


def test_the_readme_tells_every_key_with_its_default():
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (.*?) \|", (PROJECT / "README.md").read_text(), re.MULTILINE))
    assert list(rows) == list(KEYS)
    for key, value in RunConfig().values().items():
        shown = json.dumps(value).strip('"')
        assert rows[key].strip().strip("`") == shown, key


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("my_task", {"task": "my_task:CautiousTask", "task_args": "scale=0.1"}),
        ("my_strategy", {"strategy": "my_strategy:SlowFedAvg", "strategy_args": "step=0.7"}),
    ],
)
def test_the_examples_of_the_design_run(tmp_path, monkeypatch, name, keys):
    blocks = re.findall(r"^```python\n(.*?)^```", (PROJECT / "docs/design.md").read_text(), re.MULTILINE | re.DOTALL)
    (source,) = [block for block in blocks if block.startswith(f"# {name}.py")]
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert run(tmp_path / "out", **keys)[0]["status"] == "completed"
