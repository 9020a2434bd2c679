"""The project's own files, and the folder from which ``flwr run`` builds the app bundle (FAB).

A clone or editable install keeps the project files beside the packages; an installed wheel carries copies of them in
``fl_app/_project`` (see ``pyproject.toml``). The app folder is assembled the same way from both, in a scratch folder,
so that ``fl-app run`` works from anywhere and nothing of the caller's folder gets into the bundle.
"""

import shutil
import tempfile
from pathlib import Path

PACKAGES = ("fl_app", "privacy", "strategies", "tasks")
BUNDLED_FILES = ("pyproject.toml", "README.md", "LICENSE")

_FL_APP = Path(__file__).resolve().parent
_INSTALLED_PROJECT = _FL_APP / "_project"


def project_file(name: str) -> Path:
    """The project file called ``name``, such as ``pyproject-flower.toml``.

    Raises FileNotFoundError when neither an installed wheel nor a clone provides it.
    """
    candidates = (_INSTALLED_PROJECT / name, _FL_APP.parent / name)
    for path in candidates:
        if path.is_file():
            return path
    looked_at = " and ".join(str(path) for path in candidates)
    raise FileNotFoundError(f"{name} of fl-app is missing (looked at {looked_at}); install fl-app again")


def write_app_tree(destination: Path) -> None:
    """Assemble the Flower app in ``destination``, which is created and must not exist yet.

    It then holds the Python sources of the packages, ``pyproject.toml``, ``README.md`` and ``LICENSE``, and
    nothing else. Raises FileExistsError when it exists, FileNotFoundError when the installation is incomplete.
    """
    destination.mkdir(parents=True)
    for name in BUNDLED_FILES:
        shutil.copyfile(project_file(name), destination / name)
    for package in PACKAGES:
        _copy_sources(_FL_APP.parent / package, destination / package)


def build_bundle() -> bytes:
    """The bundle (FAB) that a run of the installed version sends: a zip, the same to the byte wherever it is built.

    Raises FileNotFoundError when the installation is incomplete.
    """
    from flwr.cli.build import build_fab_from_disk

    with tempfile.TemporaryDirectory() as scratch:
        app = Path(scratch) / "app"
        write_app_tree(app)
        return build_fab_from_disk(app)


def _copy_sources(package: Path, destination: Path) -> None:
    if not (package / "__init__.py").is_file():
        raise FileNotFoundError(f"package {package.name} of fl-app is missing at {package}; install fl-app again")
    for source in package.rglob("*.py"):
        target = destination / source.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
