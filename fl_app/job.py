"""One run from a checked configuration to its summary, whichever engine it takes place in."""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fl_app.assembly import build_dataset, build_strategy, build_task, first_params, open_data
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.flower_engine import run_on_flower
from fl_app.profiles import Profile
from fl_app.results import Ending, finish
from fl_app.run_folder import RunFolder, default_folder

Engine = Literal["flower", "inline"]
OnLine = Callable[[Mapping[str, Any]], None]

EXIT_STATUS = {"completed": 0, "failed": 1}
INTERRUPTED_STATUS = {"SIGINT": 130, "SIGTERM": 143}


@dataclass(frozen=True)
class Job:
    """A run that nothing is known to stand against."""

    config: RunConfig
    folder: RunFolder
    profile: Profile
    engine: Engine
    clients: int


def new_job(config: RunConfig, profile: Profile, engine: Engine, caller: Path) -> Job:
    """Check the configuration as a whole and make the folder of its results. Raises Refused."""
    _check_engine(profile, engine)
    if config.init:
        config = config.model_copy(update={"init": str(caller / Path(config.init).expanduser())})
    clients = _check(config)
    folder = RunFolder(
        (caller / Path(config.out).expanduser() if config.out else default_folder(config, caller)).resolve()
    )
    folder.create()
    config = config.model_copy(update={"out": str(folder.path)})
    return Job(config, folder, profile, engine, clients)


def resumed_job(path: Path, texts: Mapping[str, str], profile: Profile, engine: Engine) -> Job:
    """The run of a folder, to go on after its last complete round. Raises Refused.

    Everything comes from the checkpoint; of `texts` only `rounds` may be there, and only to raise it.
    """
    _check_engine(profile, engine)
    folder = RunFolder(path.expanduser().resolve())
    checkpoint = Checkpoint.read(folder.checkpoint)
    if others := sorted(set(texts) - {"rounds"}):
        raise Refused(f"-c {others[0]}", f"--resume {path}", "a resumed run takes all but rounds from its folder")
    config = RunConfig.parse_texts(texts, checkpoint.config.values())
    if config.rounds < checkpoint.config.rounds:
        raise Refused(f"rounds={config.rounds}", f"--resume {path}", f"expected {checkpoint.config.rounds} or more")
    completed = folder.summary.exists() and folder.read_summary()["status"] == "completed"
    if completed and config.rounds == checkpoint.config.rounds:
        raise Refused("nothing left to do", f"--resume {path}", f"raise rounds with -c rounds={config.rounds + 10}")
    config = config.model_copy(update={"out": str(folder.path), "resume": True})
    return Job(config, folder, profile, engine, _check(config))


def run_job(job: Job, on_line: OnLine) -> tuple[dict[str, Any], int]:
    """Run it; the summary and the exit status. `on_line` gets every line of rounds.jsonl as it comes.

    Raises Refused, with nothing touched, where another run is using the folder.
    """
    began = time.monotonic()
    with job.folder.locked():
        earlier_s = _rewind(job.folder) if job.config.resume else 0.0
        summary, status = _inline(job, on_line) if job.engine == "inline" else _on_flower(job, on_line)
        rounds_s = summary["seconds"]["rounds"]
        startup_s = time.monotonic() - began - (rounds_s - earlier_s)
        summary["seconds"] = {"startup": startup_s, "rounds": rounds_s, "total": startup_s + rounds_s}
        job.folder.write_json(job.folder.summary, summary)
    return summary, status


def _rewind(folder: RunFolder) -> float:
    """Back to the last checkpoint; the seconds that the rounds up to it took."""
    played = Checkpoint.read(folder.checkpoint).state.round
    if (found := len(folder.read_rounds(played))) != played:
        raise Refused(f"damaged {folder.rounds.name}: {found} of {played} rounds", str(folder.path), "start a new run")
    return sum(report.seconds["total"] for report in folder.rewind(played))


def _check_engine(profile: Profile, engine: Engine) -> None:
    if engine == "inline" and not profile.is_local:
        raise Refused("--engine inline", f"profile {profile.name}", "a deployment runs on its own machines")


def _check(config: RunConfig) -> int:
    """Build what the run will build, where errors still have a person to read them; the number of clients."""
    build_strategy(config)
    data = open_data(config)
    task = build_task(config, data.schema)
    if not config.resume:
        first_params(task, config)
    if len(data.clients) < config.min_clients:
        where = f"min-clients={config.min_clients}"
        raise Refused(f"the data have {len(data.clients)} clients", where, "lower min-clients")
    if config.standardize == "global" and build_dataset(config).server_held:
        largest = max(len(data.shard(client).train) for client in data.clients)
        if largest < config.min_examples:
            what = f"no client has min-examples={config.min_examples} training rows, the largest has {largest}"
            raise Refused(what, "standardize=global", "lower min-examples, use fewer clients, or standardize=local")
    return len(data.clients)


def _on_flower(job: Job, on_line: OnLine) -> tuple[dict[str, Any], int]:
    outcome = run_on_flower(job.config.values(), job.folder.path, job.profile, on_line=on_line, log_path=job.folder.log)
    if outcome.interrupted:
        summary = finish(job.folder, job.config, Ending("stopped", "interrupted"))
        return summary, INTERRUPTED_STATUS[outcome.interrupted]
    if not outcome.finished:
        summary = finish(job.folder, job.config, Ending("failed", "error", outcome.error))
        return summary, EXIT_STATUS["failed"]
    summary = job.folder.read_summary()
    return summary, EXIT_STATUS[summary["status"]]


class _Terminated(BaseException):
    """SIGTERM, raised where the main thread is: like KeyboardInterrupt, no error handler may swallow it."""


def _inline(job: Job, on_line: OnLine) -> tuple[dict[str, Any], int]:
    from fl_app import client_app, server_app
    from fl_app.inline import InlineGrid

    logging.getLogger("flwr").setLevel(logging.WARNING)  # the progress line tells what Flower's INFO lines would
    grid = InlineGrid(client_app.app, job.config.values(), int(job.profile.federation.get("num-supernodes", 2)))
    try:
        with _sigterm_raises():
            summary = server_app.serve(grid, job.config, on_line)
    except KeyboardInterrupt:
        return finish(job.folder, job.config, Ending("stopped", "interrupted")), INTERRUPTED_STATUS["SIGINT"]
    except _Terminated:
        return finish(job.folder, job.config, Ending("stopped", "interrupted")), INTERRUPTED_STATUS["SIGTERM"]
    except Exception:
        if not job.folder.summary.exists():
            raise
        summary = job.folder.read_summary()
    return summary, EXIT_STATUS[summary["status"]]


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
