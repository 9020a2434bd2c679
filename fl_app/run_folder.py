"""The folder of a run: what stands where, written so that a crash leaves the old file or the new one."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.served import held
from strategies.history import RoundReport


def write_beside(path: Path, data: bytes, mode: int = 0o666) -> Path:
    """Write a file beside `path`, on the disk when this returns. Where that fails, nothing of it takes up the disk."""
    scratch = path.with_name(f".{path.name}.writing")
    scratch.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    return scratch


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by one with this content, on the disk before it takes the name."""
    write_beside(path, data).replace(path)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def rounds(self) -> Path:
        """One JSON object a round."""
        return self.path / "rounds.jsonl"

    @property
    def summary(self) -> Path:
        """The end of the run; it is there once the run is over."""
        return self.path / "summary.json"

    @property
    def checkpoint(self) -> Path:
        """The state after the last complete round."""
        return self.path / "checkpoint.safetensors"

    @property
    def held(self) -> Path:
        """The arrays that do not travel, as the run began with them; only where there are any."""
        return self.path / "held.safetensors"

    @property
    def model(self) -> Path:
        """The params."""
        return self.path / "model.safetensors"

    @property
    def about_model(self) -> Path:
        """What the params mean."""
        return self.path / "model.json"

    @property
    def sites(self) -> Path:
        """How the model does at each client."""
        return self.path / "sites.json"

    @property
    def ledger(self) -> Path:
        """What has been spent of privacy; only where it is promised."""
        return self.path / "ledger.jsonl"

    @property
    def privacy(self) -> Path:
        """What the run promises, and what that has come to."""
        return self.path / "privacy.json"

    @property
    def baselines(self) -> Path:
        """Comparisons that a promise of privacy does not cover; only where they were asked for."""
        return self.path / "baselines.json"

    @property
    def report(self) -> Path:
        """All of it on one page, for people."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """What Flower logged."""
        return self.path / "flower.log"

    def create(self) -> None:
        """Make the folder for a new run, which only its owner can open.

        Raises Refused, and touches nothing, where one has been or cannot be, and where CSV files lie.
        """
        for used in (self.summary, self.rounds, self.checkpoint, self.ledger):
            if used.exists():
                raise Refused(f"{used.name} exists", f"--out {self.path}", "choose another folder, or use --resume")
        if self.path.is_dir() and any(self.path.glob("*.csv")):
            raise Refused("a folder with CSV files", f"--out {self.path}", "results are passed on: keep data apart")
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise Refused("cannot write", f"--out {self.path}", f"{error.strerror}: choose another folder") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one run; gone with the process, however that ends. Raises Refused where another does."""
        with held(self.path / ".lock") as mine:
            if not mine:
                raise Refused("another run is using the folder", str(self.path), "wait for its end")
            yield

    def append_round(self, report: RoundReport) -> None:
        """Add a line to rounds.jsonl, on the disk when this returns."""
        with self.rounds.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report.to_json(), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_rounds(self, last: int) -> list[RoundReport]:
        """The rounds up to `last`; a line that a crash cut short, or a later one, is left out."""
        reports: list[RoundReport] = []
        if self.rounds.exists():
            for line in self.rounds.read_bytes().split(b"\n"):
                try:
                    report = RoundReport.from_json(json.loads(line))
                except (ValueError, KeyError, TypeError):  # no JSON, or no report
                    break
                if report.round <= last:
                    reports.append(report)
        return reports

    def rewind(self, last: int) -> list[RoundReport]:
        """Cut rounds.jsonl back to the rounds up to `last`, remove what an ending wrote, and return those rounds."""
        reports = self.read_rounds(last)
        lines = (json.dumps(report.to_json(), allow_nan=False) + "\n" for report in reports)
        write_atomically(self.rounds, "".join(lines).encode())
        for written in (self.summary, self.sites, self.report, self.privacy, self.baselines):
            written.unlink(missing_ok=True)
        return reports

    def read_held(self, names: Sequence[str]) -> tuple[NDArray[Any], ...]:
        """The arrays that do not travel. Raises Refused where they are lost."""
        try:
            found = load_file(self.held)
            return tuple(found[name] for name in names)
        except (SafetensorError, OSError, KeyError) as error:
            raise Refused(f"damaged {self.held.name}", str(self.held), f"start a new run ({error})") from error

    def read_summary(self) -> dict[str, Any]:
        """The end of the run."""
        try:
            content: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Refused(f"damaged {self.summary.name}", str(self.summary), "remove that file") from error
        return content

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """One of the JSON files; None where it is not there or damaged."""
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write one of the JSON files."""
        write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def default_folder(config: RunConfig, parent: Path) -> Path:
    """parent/runs/<time>-<task>-<strategy>, with a number behind it where two runs start in one second."""
    return new_folder(parent, *(part.rpartition(":")[2] for part in (config.task, config.strategy)))


def new_folder(parent: Path, *words: str) -> Path:
    """parent/runs/<time>-<word>-<word>, where there is nothing yet."""
    stem = "-".join([time.strftime("%Y%m%d-%H%M%S"), *words])
    folder, count = parent / "runs" / stem, 1
    while folder.exists():
        count += 1
        folder = parent / "runs" / f"{stem}-{count}"
    return folder
