"""One run from a checked configuration to its summary, whichever engine it takes place in."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from flwr.common.logger import update_console_handler

from fl_app.assembly import (
    agreed_beforehand,
    begin,
    build_dataset,
    build_strategy,
    build_task,
    local_design,
    open_data,
)
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.deploy.attachment import attachment, signatures_to_send
from fl_app.errors import Refused
from fl_app.flower_engine import run_on_flower
from fl_app.gpus import check_gpus
from fl_app.profiles import Profile, note_profile
from fl_app.promise import settled_strategy
from fl_app.registry import with_absolute_paths
from fl_app.results import Ending, finish, write_summary
from fl_app.run_folder import RunFolder, default_folder
from fl_app.served import served
from fl_app.signals import INTERRUPTED_STATUS, Terminated, sigterm_raises
from fl_app.sinks.opened import check_sinks
from tasks.base import Task

if TYPE_CHECKING:
    from fl_app.inline import InlineGrid

Engine = Literal["flower", "inline"]
OnLine = Callable[[Mapping[str, Any]], None]

EXIT_STATUS = {"completed": 0, "failed": 1}


@dataclass(frozen=True)
class Job:
    """A run whose configuration has been checked as far as it can be before the start."""

    config: RunConfig
    folder: RunFolder
    profile: Profile
    engine: Engine
    clients: int


def new_job(config: RunConfig, profile: Profile, engine: Engine, caller: Path) -> Job:
    """Check the configuration as a whole and make the folder of its results. Raises Refused."""
    check_engine(profile, engine)
    if config.variants:
        raise Refused("several runs in one", "-c variants=...", "use fl-app compare")
    folder = caller / Path(config.out).expanduser() if config.out else default_folder(config, caller)
    config = located(config, folder.resolve(), caller)
    clients = check_config(config, profile)
    check_workers(config, profile, engine)
    run_folder = RunFolder(Path(config.out))
    run_folder.create()
    note_profile(profile, run_folder.path)
    return Job(config, run_folder, profile, engine, clients)


def located(config: RunConfig, out: Path, caller: Path) -> RunConfig:
    """The configuration with `out` as the folder of its results, and with absolute paths in place of relative ones.

    Every process of the run then reads the same files, whatever folder it works in.
    """
    update = {"out": str(out), "data_args": with_absolute_paths("data", config.data, config.data_args, caller)}
    for key in ("init", "schema_"):
        if named := getattr(config, key):
            update[key] = str(caller / Path(named).expanduser())
    return config.model_copy(update=update)


def resumed_job(path: Path, texts: Mapping[str, str], profile: Profile, engine: Engine) -> Job:
    """The run of a folder, to go on after its last complete round. Raises Refused.

    Everything comes from the checkpoint; of `texts` only `rounds` may be there, and only to raise it.
    """
    check_engine(profile, engine)
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
    check_workers(config, profile, engine)
    with served(folder.path):  # refused while a ServerApp writes there: a deployed run goes on without its caller
        pass
    return Job(config, folder, profile, engine, check_config(config, profile))


def run_job(job: Job, on_line: OnLine) -> tuple[dict[str, Any], int]:
    """Run the job; returns its summary and the exit status. `on_line` gets every line of rounds.jsonl as it comes.

    Raises Refused, with nothing touched, where another run is using the folder.
    """
    began = time.monotonic()
    with job.folder.locked():
        earlier_s = _rewind(job.folder) if job.config.resume else 0.0
        summary, status = _inline(job, on_line) if job.engine == "inline" else _on_flower(job, on_line)
        rounds_s = summary["seconds"]["rounds"]
        startup_s = time.monotonic() - began - (rounds_s - earlier_s)
        summary["seconds"] = {"startup": startup_s, "rounds": rounds_s, "total": startup_s + rounds_s}
        write_summary(job.folder, summary)
    return summary, status


def _rewind(folder: RunFolder) -> float:
    """Back to the last checkpoint; the seconds that the rounds up to it took."""
    played = Checkpoint.read(folder.checkpoint).state.round
    if (found := len(folder.read_rounds(played))) != played:
        raise Refused(f"damaged {folder.rounds.name}: {found} of {played} rounds", str(folder.path), "start a new run")
    return sum(report.seconds["total"] for report in folder.rewind(played))


def check_engine(profile: Profile, engine: Engine) -> None:
    """Raises Refused where the profile cannot run in this engine, or its bundles cannot get their signatures."""
    if engine not in get_args(Engine):
        raise Refused(f"engine {engine!r}", "--engine", "expected flower or inline")
    if engine == "inline" and not profile.is_local:
        raise Refused("--engine inline", f"profile {profile.name}", "a deployment runs on its own machines")
    signatures_to_send(profile)


def check_workers(config: RunConfig, profile: Profile, engine: Engine) -> None:
    """Raises Refused where the workers of a simulation cannot have the GPUs that the profile gives them."""
    if engine == "flower" and profile.is_local:
        check_gpus(profile, config.device)


def check_config(config: RunConfig, profile: Profile) -> int:
    """Build everything that the run will build, while there is still a person to read the errors.

    Returns the number of clients, as far as it is known. Raises Refused.
    """
    check_sinks(config.sinks)
    strategy = build_strategy(config)
    dataset = build_dataset(config)
    if not profile.is_local and dataset.names_files:
        remedy = "what is read at a site is named in its node config: leave it out here"
        raise Refused("a deployment whose run names files", f"data-args={config.data_args!r}", remedy)
    if strategy.protection is not None:
        settled_strategy(config, RunFolder(Path(config.out)))
        agreed_beforehand(config, strategy)
    if not profile.is_local and dataset.at_sites:
        _check_cohort(config, config.num_clients)
        return config.num_clients or config.min_clients
    data = open_data(config)
    _check_cohort(config, len(data.clients))
    task = build_task(config, local_design(config).schema)
    if profile.is_local:
        _check_device(task, config)
    if not config.resume:
        begin(task, config, config.init)
    if len(data.clients) < config.min_clients:
        where = f"min-clients={config.min_clients}"
        if len(data.clients) == 1:
            remedy = "put a second file in the folder, name a client-column, or set min-clients=1"
            raise Refused("there is one client only", where, remedy)
        raise Refused(f"the data have {len(data.clients)} clients", where, "lower min-clients")
    if len(data.clients) < config.clients_per_round:
        where = f"clients-per-round={config.clients_per_round}"
        raise Refused(f"the data have {len(data.clients)} clients", where, "lower clients-per-round; 0 = all")
    return len(data.clients)


def _check_cohort(config: RunConfig, clients: int) -> None:
    """Refuse rounds of fewer clients than the strategy can aggregate. `clients` is 0 where nobody knows yet."""
    fewest, cohort = build_strategy(config).aggregator.fewest, config.clients_per_round or clients
    if 0 < cohort < fewest:
        where = f"clients-per-round={cohort}" if config.clients_per_round else f"{cohort} clients"
        what = f"strategy={config.strategy} needs {fewest} clients in a round"
        raise Refused(what, where, "have more take part, or change strategy-args")


def _check_device(task: Task, config: RunConfig) -> None:
    try:
        task.check_device(config.device, here=True)
    except ValueError as error:
        raise Refused(f"device={config.device}", "this machine", str(error)) from error


def _on_flower(job: Job, on_line: OnLine) -> tuple[dict[str, Any], int]:
    outcome = run_on_flower(
        job.config.values(),
        job.folder.path,
        job.profile,
        on_line=on_line,
        log_path=job.folder.log,
        prepare=partial(attachment, job.profile),
    )
    if outcome.interrupted:
        summary = finish(job.folder, job.config, Ending("stopped", "interrupted"))
        return summary, INTERRUPTED_STATUS[outcome.interrupted]
    if not outcome.finished:
        summary = finish(job.folder, job.config, Ending("failed", "error", outcome.error))
        return summary, EXIT_STATUS["failed"]
    summary = job.folder.read_summary()
    return summary, EXIT_STATUS[summary["status"]]


def _inline(job: Job, on_line: OnLine) -> tuple[dict[str, Any], int]:
    from fl_app import server_app

    grid = inline_grid(job.config, job.profile)
    try:
        with sigterm_raises():
            summary = server_app.serve(grid, job.config, on_line)
    except KeyboardInterrupt:
        return finish(job.folder, job.config, Ending("stopped", "interrupted")), INTERRUPTED_STATUS["SIGINT"]
    except Terminated:
        return finish(job.folder, job.config, Ending("stopped", "interrupted")), INTERRUPTED_STATUS["SIGTERM"]
    except Exception:
        if not job.folder.summary.exists():
            raise
        summary = job.folder.read_summary()
    return summary, EXIT_STATUS[summary["status"]]


def inline_grid(config: RunConfig, profile: Profile) -> "InlineGrid":
    """The nodes of a profile in this process."""
    from fl_app import client_app
    from fl_app.inline import InlineGrid

    logging.getLogger("flwr").setLevel(logging.WARNING)  # the progress line tells what Flower's INFO lines would
    update_console_handler(colored=sys.stderr.isatty())
    return InlineGrid(client_app.app, config.values(), int(profile.federation.get("num-supernodes", 2)))
