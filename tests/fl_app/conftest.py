"""What the tests of the wiring share: runs on the inline engine, in milliseconds and in a folder of their own."""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_app import client_app, server_app
from fl_app.assembly import open_data
from fl_app.caller import CALLER
from fl_app.cli import main
from fl_app.config import RunConfig
from fl_app.inline import InlineGrid
from fl_app.run_folder import RunFolder

SMALL = {
    "data": "synthetic",
    "data-args": "features=3 examples=30 label-skew=0.5",
    "num-clients": 4,
    "rounds": 3,
    "batch-size": 8,
}


def _small_config(**changes: Any) -> RunConfig:
    return RunConfig.parse({**SMALL, **{key.replace("_", "-"): value for key, value in changes.items()}})


@pytest.fixture(scope="session")
def small_config() -> Callable[..., RunConfig]:
    """small_config(rounds=5): four clients of a small problem; changes by key, with _ for -."""
    return _small_config


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine of a site: no simulation is at work here."""
    monkeypatch.delenv(CALLER, raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    open_data.cache_clear()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """log(): what server and nodes logged from warnings on, with the texts of exceptions.

    Flower's logger, to which all of it goes, does not propagate.
    """
    flower = logging.getLogger("flwr")
    flower.addHandler(caplog.handler)
    yield lambda: "\n".join(
        record.getMessage() + (f" {record.exc_info[1]}" if record.exc_info else "")
        for record in caplog.records
        if record.levelno >= logging.WARNING
    )
    flower.removeHandler(caplog.handler)


@dataclass(frozen=True)
class Run:
    """A finished run: what `serve` returned and the folder that it wrote."""

    summary: dict[str, Any]
    folder: RunFolder


Serve = Callable[..., Run]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """serve(name, nodes=2, app=..., on_line=None, **changes): the real ServerApp and ClientApp on an InlineGrid."""

    def serve(
        name: str = "run",
        *,
        nodes: int = 2,
        app: Any = client_app.app,
        grid: type[InlineGrid] = InlineGrid,
        on_line: Any = None,
        **changes: Any,
    ) -> Run:
        config = _small_config(out=str(tmp_path / name), **changes)
        summary = server_app.serve(grid(app, config.values(), nodes), config, on_line)
        return Run(summary, RunFolder(tmp_path / name))

    return serve


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    status: int
    out: str
    err: str

    def refusal(self) -> str:
        """The one line of an error that a person can mend; fails where the command did anything else."""
        assert self.status == 2, self
        assert self.out == ""
        assert len(self.err.splitlines()) == 1, self.err
        assert self.err.startswith("error: ")
        what, where, remedy = self.err.removeprefix("error: ").rstrip("\n").split(": ", 2)
        assert what
        assert where
        assert remedy
        return self.err.rstrip("\n")


Command = Callable[..., Outcome]


@pytest.fixture
def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder that commands are called from."""
    folder = tmp_path / "caller"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fl_app(caller: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """fl_app("run", "-c", "rounds=3"): the command line in this process."""

    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fl-app", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ending:
            main()
        captured = capfd.readouterr()
        return Outcome(int(ending.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What the server logged as a warning; Flower's logger does not propagate."""
    flower = logging.getLogger("flwr")
    flower.addHandler(caplog.handler)
    yield lambda: "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    flower.removeHandler(caplog.handler)


@pytest.fixture
def fl_app_run(fl_app: Command) -> Command:
    """fl_app_run("--json", rounds=2): `fl-app run` on the inline engine with the small problem."""

    def call(*words: object, **changes: Any) -> Outcome:
        settings = {**SMALL, **{key.replace("_", "-"): value for key, value in changes.items()}}
        pairs = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return fl_app("run", "--engine", "inline", *pairs, *words)

    return call
