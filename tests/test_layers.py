"""Who may import what. The layers stand in pyproject.toml; here they are kept, with the rules finer than a package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

# Beside these nothing of strategies/ knows Flower.
PRIVATE = {"private_means.py", "private_metrics.py", "vector_release.py"}
FLOWER_IN_STRATEGIES = {"base.py", "rounds.py", "survey.py", "exchange.py", "wire.py", *PRIVATE}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_flower(path):
    return {name for name in imports(path) if name == "flwr" or name.startswith("flwr.")}


def test_the_layers_of_pyproject_hold():
    """In a process of its own, since import-linter sets up logging anew for all that follows."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    outcome = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout


def test_flower_is_known_to_eight_files_of_strategies():
    knowing = {path.name for path in (PROJECT / "strategies").rglob("*.py") if of_flower(path)}
    assert knowing == FLOWER_IN_STRATEGIES


def test_tasks_know_flowers_numpy_client_and_nothing_else_of_it():
    names = set().union(*(of_flower(path) for path in (PROJECT / "tasks").rglob("*.py")))
    assert names == {"flwr.client.NumPyClient"}


@pytest.mark.parametrize("package", ["fl_app", "privacy", "strategies", "tasks"])
def test_the_product_does_not_know_its_tests(package):
    """But for the contract suites, which authors of extensions run with pytest."""
    files = set((PROJECT / package).rglob("*.py")) - set((PROJECT / "fl_app/contracts").rglob("*.py"))
    names = set().union(*(set(imports(path)) for path in files))
    assert not {name for name in names if name.split(".")[0] in ("tests", "pytest", "hypothesis", "conftest")}


def test_the_product_does_not_import_its_contract_suites():
    names = set().union(*(set(imports(path)) for path in (PROJECT / "fl_app").rglob("*.py")))
    outside = [path for path in (PROJECT / "fl_app").rglob("*.py") if path.parent.name != "contracts"]
    assert any(name.startswith("fl_app.contracts") for name in names)
    assert not {name for path in outside for name in imports(path) if name.startswith("fl_app.contracts")}


def test_a_node_imports_what_its_task_needs_and_no_more():
    """A deployed node starts a process for every message: each import is paid every round."""
    program = """
import sys
from runs import run
run(__import__("pathlib").Path(sys.argv[1]), rounds=1, data="synthetic", standardize="global")
print(*sorted({"torch", "sklearn", "scipy", "ray", "rich", "typer"} & set(sys.modules)))
"""
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-c", program, f"{out}/run"],
            env={"PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests/fl_app'}", "HOME": out},
            capture_output=True,
            text=True,
            check=True,
        )
    assert set(done.stdout.split()) <= {"typer", "rich"}  # which Flower itself imports


SITES = """
import sys
import flwr.serverapp, flwr.supernode.cli  # as Flower's processes for a run and a message do
flower = set(sys.modules)
from pathlib import Path
from hospitals import patients, write_csv
from fl_app.client_app import app
from fl_app.config import RunConfig
from fl_app.inline import InlineGrid
from fl_app.server_app import serve
folder = Path(sys.argv[1])
config = RunConfig.parse({"data": "csv", "rounds": 1, "out": str(folder / "out")})
grid = InlineGrid(app, config.values(), 2)
for client, context in zip("ab", grid._contexts.values()):
    data = write_csv(folder / f"{client}.csv", patients(60, ord(client)))
    context.node_config = {"client": client, "data": str(data), "label": "outcome", "state": str(folder / client)}
assert serve(grid, config)["client_updates"] == 2
print(*{name.partition(".")[0] for name in set(sys.modules) - flower} - sys.stdlib_module_names)
"""


def test_a_round_between_sites_imports_four_libraries_beside_flower(tmp_path):
    environment = {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests/fl_app'}", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SITES, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    packages = {name for name in done.stdout.split() if not name.startswith("_")}  # numpy's own begin so
    own = {"fl_app", "privacy", "strategies", "tasks", "hospitals"}
    assert packages == own | {"numpy", "pydantic", "safetensors", "threadpoolctl"}
