"""The bundle holds the app and nothing else, from a clone and from an installed wheel."""

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fl_app.bundle import BUNDLED_FILES, PACKAGES, project_file, write_app_tree

# Flower builds with an interface that its own dependency has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A project like this one, with files around it that are nobody's business."""
    folder = tmp_path / "clone"
    for package in PACKAGES:
        (folder / package / "inner").mkdir(parents=True)
        (folder / package / "__init__.py").touch()
        (folder / package / "inner" / "part.py").write_text("part = 1\n")
        (folder / package / "data.json").write_text("{}")
    for name in ("bundle.py", "server_app.py", "client_app.py"):
        (folder / "fl_app" / name).write_text((PROJECT / "fl_app/bundle.py").read_text())
    for name in BUNDLED_FILES:
        (folder / name).write_text((PROJECT / name).read_text() if (PROJECT / name).exists() else name)
    for name in ("pyproject-flower.toml", "conftest.py", "notes.md", "runs/r1/summary.json", "site/policy.toml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


def install(clone: Path, site_packages: Path) -> Path:
    """What installing the wheel of ``clone`` leaves: the packages, with the project files inside."""
    for package in PACKAGES:
        shutil.copytree(clone / package, site_packages / package)
    (site_packages / "fl_app/_project").mkdir()
    for name in BUNDLED_FILES:
        shutil.copy(clone / name, site_packages / "fl_app/_project")
    return site_packages


def bundle_of(root: Path, folder: Path) -> set[str]:
    """The names in the FAB that the fl_app package in ``root`` builds, called from an empty folder."""
    folder.mkdir()
    program = "import pathlib, fl_app.bundle; fl_app.bundle.write_app_tree(pathlib.Path('app'))"
    subprocess.run([sys.executable, "-c", program], cwd=folder, env={"PYTHONPATH": str(root)}, check=True)
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder / "app"))) as fab:
        return set(fab.namelist())


def test_the_bundle_holds_the_packages_and_three_files_only(clone: Path, tmp_path: Path) -> None:
    from_clone = bundle_of(clone, tmp_path / "caller")
    modules = {f"{package}/{name}" for package in PACKAGES for name in ("__init__.py", "inner/part.py")}
    modules |= {f"fl_app/{name}.py" for name in ("bundle", "server_app", "client_app")}
    assert from_clone == modules | {*BUNDLED_FILES, ".info/CONTENT"}
    assert bundle_of(install(clone, tmp_path / "site-packages"), tmp_path / "empty") == from_clone


def test_this_project_builds(tmp_path: Path) -> None:
    write_app_tree(tmp_path / "app")
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tmp_path / "app"))) as fab:
        names = set(fab.namelist())
    assert {"fl_app/server_app.py", "fl_app/client_app.py", "strategies/__init__.py", "tasks/__init__.py"} <= names
    others = {name for name in names if not (name.endswith(".py") and name.split("/")[0] in PACKAGES)}
    assert others == {*BUNDLED_FILES, ".info/CONTENT"}


def test_an_existing_folder_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        write_app_tree(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_of_the_project_is_named() -> None:
    assert project_file("pyproject-flower.toml").is_file()
    with pytest.raises(FileNotFoundError, match=r"nosuch\.toml.*install fl-app again"):
        project_file("nosuch.toml")
