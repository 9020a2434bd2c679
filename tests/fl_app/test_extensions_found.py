"""What is not built in is found: entry points of installed distributions, and modules of the caller's folder."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fl_app.caller import CALLER
from fl_app.superlink import flower_environment

PROJECT = Path(__file__).parents[2]
SMALL = ["-c", "data=synthetic", "-c", "data-args=features=3 examples=30", "-c", "num-clients=4", "-c", "rounds=2"]
Call = Callable[..., subprocess.CompletedProcess[str]]

TASK = """
from tasks.logistic import LogisticTask

class CautiousTask(LogisticTask):
    \"\"\"Logistic regression whose first model is not zero.

    Args:
        scale: of the first weights
    \"\"\"

    def __init__(self, schema, *, scale: float = 0.01) -> None:
        super().__init__(schema)
        self.scale = scale

    def initial_arrays(self, seed):
        return tuple(array + self.scale for array in super().initial_arrays(seed))
"""
STOP = """
from strategies.stopping import Rounds

class Never(Rounds):
    \"\"\"Never stops.\"\"\"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed distributions, beside those of this environment."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def install(site: Path, name: str, group: str, entries: Mapping[str, str], **modules: str) -> None:
    """What installing a wheel leaves: its modules and its metadata."""
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source)


@pytest.fixture
def fl_app(site: Path, caller: Path) -> Call:
    """The command line in a process of its own that imports nothing from its working folder by itself."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "fl_app.cli", *words]
        environment = {"PYTHONPATH": f"{PROJECT}:{site}", "HOME": str(caller)}
        return subprocess.run(command, cwd=caller, env=environment, capture_output=True, text=True, check=False)

    return call


def inline(fl_app: Call, *words: str) -> subprocess.CompletedProcess[str]:
    return fl_app("run", "--engine", "inline", "--json", *SMALL, *words)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def listed(fl_app: Call, group: str) -> dict[str, dict[str, object]]:
    done = fl_app("list", "--json")
    assert done.returncode == 0, done.stderr
    return {entry["name"]: entry for entry in json.loads(done.stdout)[group]}


def test_the_entry_point_of_an_installed_distribution_is_listed_and_runs_by_its_name(site: Path, fl_app: Call) -> None:
    install(site, "careful", "fl_app.tasks", {"cautious": "careful:CautiousTask"}, careful=TASK)
    assert listed(fl_app, "tasks")["cautious"] == {
        "name": "cautious",
        "doc": "Logistic regression whose first model is not zero.",
        "args": [{"name": "scale", "type": "float", "default": 0.01, "doc": "of the first weights"}],
    }
    done = inline(fl_app, "-c", "task=cautious", "-c", "task-args=scale=0.1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"]["task"] == "cautious"
    assert "did you mean 'cautious'" in refusal(inline(fl_app, "-c", "task=cautius"))


@pytest.mark.parametrize(
    ("group", "listing"),
    [("strategies", "strategies"), ("data", "data"), ("partitions", "partitions"), ("stops", "stops"), ("sinks",) * 2],
)
def test_every_kind_has_its_group(site: Path, fl_app: Call, group: str, listing: str) -> None:
    install(site, "more", f"fl_app.{group}", {"mine": "more:Mine"}, more="class Mine:\n    pass\n")
    entry = listed(fl_app, listing)["mine"]
    assert str(entry["doc"]).startswith("cannot be used: 'more:Mine' is no ")


def test_a_built_in_name_stays_what_it_is_whatever_is_installed(site: Path, fl_app: Call) -> None:
    before = listed(fl_app, "stops")
    install(site, "usurper", "fl_app.stops", {"rounds": "usurper:Never"}, usurper="raise RuntimeError('imported')")
    assert listed(fl_app, "stops") == before
    assert inline(fl_app, "-c", "stop=rounds").returncode == 0


def test_a_name_that_two_distributions_declare_is_refused_naming_both_where_it_is_asked_for(
    site: Path, fl_app: Call
) -> None:
    install(site, "one", "fl_app.stops", {"never": "one:Never"}, one=STOP)
    install(site, "other", "fl_app.stops", {"never": "other:Never"}, other=STOP)
    told = refusal(inline(fl_app, "-c", "stop=never"))
    assert "stop 'never' is declared by one (one:Never) and other (other:Never): stop=never: " in told
    assert inline(fl_app).returncode == 0
    assert inline(fl_app, "-c", "stop=one:Never").returncode == 0
    assert "declared by one" in str(listed(fl_app, "stops")["never"]["doc"])


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("def Never(:", "SyntaxError"),
        ("Nothing = 1", "has no attribute 'Never'"),
    ],
)
def test_a_broken_distribution_is_told_in_the_list_and_breaks_no_run_that_does_not_use_it(
    site: Path, fl_app: Call, source: str, error: str
) -> None:
    install(site, "broken", "fl_app.stops", {"never": "broken:Never"}, broken=source)
    entry = listed(fl_app, "stops")["never"]
    assert str(entry["doc"]).startswith("cannot be used: ")
    assert error in str(entry["doc"])
    assert "cannot be used: " in fl_app("list").stdout
    assert inline(fl_app).returncode == 0
    assert error in refusal(inline(fl_app, "-c", "stop=never"))


def test_a_task_of_the_callers_folder_runs_without_pythonpath_and_shadows_nothing(caller: Path, fl_app: Call) -> None:
    (caller / "my_task.py").write_text("import my_part\n" + TASK)
    (caller / "my_part.py").write_text("")
    for name in ("json", "numpy", "flwr", "strategies"):
        (caller / f"{name}.py").write_text("raise RuntimeError('shadowed')")
    done = inline(fl_app, "-c", "task=my_task:CautiousTask", "-c", "task-args=scale=0.1")
    assert done.returncode == 0, done.stderr


def test_without_the_variable_as_at_a_deployed_node_nothing_of_the_working_folder_is_imported(caller: Path) -> None:
    (caller / "my_stop.py").write_text(STOP)
    program = "from fl_app.registry import resolve; print(resolve('stop', 'my_stop:Never'))"
    command = [sys.executable, "-P", "-c", program]

    def call(**more: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(PROJECT), **more}
        return subprocess.run(command, cwd=caller, env=environment, capture_output=True, text=True, check=False)

    assert "cannot import 'my_stop:Never'" in call().stderr
    assert "my_stop.Never" in call(**{CALLER: str(caller)}).stdout


def test_a_deployment_is_not_told_where_the_caller_is(caller: Path, fl_app: Call) -> None:
    (caller / "my_stop.py").write_text(STOP)
    (caller / "pyproject-flower.toml").write_text('[superlink]\n[superlink.deployment]\naddress = "127.0.0.1:1"\n')
    assert "cannot import 'my_stop:Never'" in refusal(fl_app("run", "deployment", "-c", "stop=my_stop:Never"))


def test_only_the_processes_of_a_simulation_learn_the_callers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CALLER, "left over")
    assert CALLER not in flower_environment(tmp_path)
    assert flower_environment(tmp_path, caller=tmp_path)[CALLER] == str(tmp_path)


@pytest.mark.flower
def test_flower_runs_a_task_of_the_callers_folder_like_the_inline_engine_to_the_bit(caller: Path, fl_app: Call) -> None:
    (caller / "my_task.py").write_text(TASK)
    words = ["-c", "task=my_task:CautiousTask", "-c", "task-args=scale=0.1"]
    here = inline(fl_app, *words)
    there = fl_app("run", "--json", *SMALL, *words)
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout)["params_sha256"] == json.loads(here.stdout)["params_sha256"]


NET = """
from torch import nn


def make(features, outputs):
    return nn.Sequential(nn.Linear(features, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, outputs))
"""


@pytest.mark.flower
def test_flower_trains_a_network_of_the_callers_folder_like_the_inline_engine_to_the_bit(
    caller: Path, fl_app: Call
) -> None:
    (caller / "my_net.py").write_text(NET)
    words = ["-c", "task=torch", "-c", "task-args=model=my_net:make", "-c", "l2=0"]
    here = inline(fl_app, *words)
    there = fl_app("run", "--json", *SMALL, *words)
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout)["params_sha256"] == json.loads(here.stdout)["params_sha256"]
