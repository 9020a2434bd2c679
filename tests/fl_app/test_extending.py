"""Every file and every command of docs/extending.md works as it stands, and passes the contract suites."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from fl_app.config import RunConfig
from fl_app.registry import ENTRY_POINT_GROUPS
from fl_app.sinks.opened import open_sinks

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "docs/extending.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S) for line in block.splitlines()]
QUICK = ["-c", "rounds=3", "-c", "num-clients=4"]


def blocks(language: str) -> dict[str, str]:
    """{file name: content} of the fenced blocks that begin with the name of their file."""
    found = re.findall(rf"^```{language}\n(# (\S+)\n.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return {name: content for content, name in found}


@pytest.fixture
def folder(caller: Path) -> Path:
    """An empty folder with the files of the document in it."""
    for name, content in blocks("python").items():
        (caller / name).write_text(content)
    return caller


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(PROJECT), "HOME": str(folder)}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_python_block_is_a_file_with_its_name() -> None:
    names = {"my_task.py", "my_transform.py", "my_strategy.py", "my_data.py", "my_sink.py", "test_extensions.py"}
    assert set(blocks("python")) == names
    assert TEXT.count("```python\n") == len(names)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs_where_the_files_are_without_pythonpath(folder: Path, command: str) -> None:
    program, *words = shlex.split(command)
    assert (program, words[0]) == ("fl-app", "run")
    done = call(folder, "-P", "-m", "fl_app.cli", *words, "--engine", "inline", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "completed"


def test_the_task_learns(folder: Path) -> None:
    words = shlex.split(next(command for command in COMMANDS if "my_task" in command))[1:]
    done = call(folder, "-P", "-m", "fl_app.cli", *words, "--engine", "inline", "--json", *QUICK)
    assert json.loads(done.stdout)["metrics"]["accuracy"] > 0.9


def test_an_update_of_eight_bits_is_an_eighth_of_the_payload(folder: Path) -> None:
    def payload(*words: str) -> int:
        wide = ["-c", "data=synthetic", "-c", "data-args=features=784 classes=10", "-c", "baselines=false"]
        run = ["-P", "-m", "fl_app.cli", "run", "--engine", "inline", "--json", *QUICK, *wide, *words]
        up: int = json.loads(call(folder, *run).stdout)["payload_up"]
        return up

    assert payload("-c", "strategy=my_strategy:SmallFedAvg") < 0.15 * payload()


def test_the_sink_writes_its_diary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    sinks = open_sinks("my_sink:Diary", folder, RunConfig())
    sinks.round({"round": 1, "good": 3, "expected_clients": 4})
    sinks.close({"status": "completed"})
    assert (folder / "diary.txt").read_text() == "round 1: 3 of 4 clients\ncompleted\n"


def test_the_files_pass_the_contract_suites(folder: Path) -> None:
    done = call(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error::RuntimeWarning")
    assert done.returncode == 0, done.stdout
    passed = int(re.findall(r"(\d+) passed", done.stdout)[-1])
    assert passed > 40


def test_the_entry_points_name_what_the_files_define(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    project = tomllib.loads(blocks("toml")["pyproject.toml"])["project"]
    assert set(project["entry-points"]) <= set(ENTRY_POINT_GROUPS.values())
    for group in ENTRY_POINT_GROUPS.values():
        assert f"`{group}`" in TEXT or f'"{group}"' in TEXT
    for entries in project["entry-points"].values():
        for target in entries.values():
            module, _, name = target.partition(":")
            assert hasattr(import_module(module), name)
            monkeypatch.delitem(sys.modules, module)
