"""The ServerApp: configuration -> enrolment -> strategy -> results."""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from threadpoolctl import threadpool_limits

from fl_app.assembly import build_dataset, build_strategy, build_task, first_params, open_data
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.console import round_line
from fl_app.enrolment import Enrolment
from fl_app.errors import Refused
from fl_app.results import Ending, finish
from fl_app.rows import prepared_rows
from fl_app.run_folder import RunFolder, default_folder
from fl_app.site import Common
from strategies import wire
from strategies.base import ServerState, Setting, TooFewClients
from strategies.history import RoundReport
from tasks.base import Task

OnLine = Callable[[Mapping[str, Any]], None]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says. Raises when the run failed, so that Flower knows it too."""
    config = RunConfig.parse(context.run_config)
    if not config.out:
        config = config.model_copy(update={"out": str(default_folder(config, Path.cwd()))})
    serve(grid, config)


def serve(grid: Grid, config: RunConfig, on_line: OnLine | None = None) -> dict[str, Any]:
    """One run from enrolment to summary.json, which is returned. `config.out` names the folder of its results.

    `on_line` gets the line of each round, as in rounds.jsonl; without it they are logged. A run that fails writes its
    summary and the last good model, and then raises.
    """
    folder = RunFolder(Path(config.out))
    earlier = Checkpoint.read(folder.checkpoint) if config.resume else None
    if earlier is None:
        folder.create()
    log(INFO, "results in %s", folder.path)
    try:
        with threadpool_limits(config.threads):
            reason = _Run(grid, config, folder, earlier, on_line).play()
    except Exception as error:
        reason = "too-few-clients" if isinstance(error, TooFewClients) else "error"
        told = str(error) if isinstance(error, TooFewClients | Refused) else f"{type(error).__name__}: {error}"
        finish(folder, config, Ending("failed", reason, told))
        raise
    return finish(folder, config, Ending("completed", reason))


@dataclass
class _Run:
    grid: Grid
    config: RunConfig
    folder: RunFolder
    earlier: Checkpoint | None
    on_line: OnLine | None

    def play(self) -> str:
        """Enrol, train, record; the reason for which the run ended."""
        began = time.monotonic()
        config, earlier = self.config, self.earlier
        strategy = build_strategy(config)
        at_server = build_dataset(config).server_held
        enrolment = Enrolment(
            config,
            wants_moments=config.standardize == "global" and earlier is None,
            schema=earlier.schema if earlier else open_data(config).schema if at_server else None,
            known=frozenset(open_data(config).clients) if at_server else None,
        )
        enrolment.open(self.grid)
        if enrolment.schema is None:
            raise TooFewClients("no client has enrolled")
        task = build_task(config, enrolment.schema)
        statistics = earlier.statistics if earlier else None
        if earlier is None and config.standardize == "global":
            statistics = enrolment.statistics()
        params = earlier.state.params if earlier else first_params(task, config)
        start = Checkpoint(
            config=config,
            job=earlier.job if earlier else uuid.uuid4().hex,
            state=earlier.state if earlier else ServerState(0, params, strategy.server_optimizer.init(params)),
            schema=enrolment.schema,
            array_names=task.array_names,
            statistics=statistics,
            clients=len(enrolment),
            metrics_on="server" if at_server else "clients",
            startup_s=time.monotonic() - began,
            resumed_from=earlier.state.round if earlier else None,
        )
        history = self.folder.rewind(start.state.round) if earlier else []
        Checkpoint.commit(start.prepare(self.folder.checkpoint), self.folder.checkpoint)

        def record(report: RoundReport, state: ServerState) -> None:
            self._record(replace(start, state=state), report)

        common = Common(start.job, train_metrics=not at_server, statistics=statistics).values()
        result = strategy.start(
            self.grid,
            wire.params_record(params),
            num_rounds=config.rounds,
            timeout=config.round_timeout_s,
            train_config=ConfigRecord(common),
            evaluate_config=ConfigRecord(common),
            evaluate_fn=_evaluation(task, start) if at_server else None,
            setting=Setting(
                roster=enrolment,
                metrics=task,
                train_metrics=not at_server,
                evaluate_every=1 if at_server else config.evaluate_every,
                resume=start.state,
                history=history,
                on_round=record,
            ),
        )
        return result.stop_reason

    def _record(self, checkpoint: Checkpoint, report: RoundReport) -> None:
        """The line of a round before its checkpoint takes effect: a resume finds both, or goes back to the round."""
        began = time.monotonic()
        prepared = checkpoint.prepare(self.folder.checkpoint)
        spent = time.monotonic() - began
        seconds = {**report.seconds, "checkpoint": spent, "total": report.seconds["total"] + spent}
        report = replace(report, seconds=seconds)
        self.folder.append_round(report)
        Checkpoint.commit(prepared, self.folder.checkpoint)
        if self.on_line:
            self.on_line(report.to_json())
        else:
            log(INFO, "%s", round_line(report.to_json(), self.config.rounds, checkpoint.clients))


def _evaluation(task: Task, start: Checkpoint) -> Any:
    """Central evaluation on the test rows of all clients, for data that the server holds as well."""
    rows = prepared_rows(start.config, start.statistics).test_rows()

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        params = wire.read_params(RecordDict({"params": arrays}))
        return MetricRecord({**task.evaluate(params, rows)}) if len(rows) else None

    return evaluate
