"""The ServerApp: configuration -> enrolment -> strategy -> results."""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from threadpoolctl import threadpool_limits

from fl_app.assembly import (
    agreed_beforehand,
    begin,
    build_dataset,
    build_strategy,
    build_task,
    measured_at_server,
    open_data,
    population,
)
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.console import round_line
from fl_app.enrolment import Enrolment
from fl_app.errors import Refused
from fl_app.findings import Findings, coefficients, compared, kinds_of_models, surveyed_sites, wants_curvature
from fl_app.promise import open_ledger, settled_strategy
from fl_app.receipts import audited
from fl_app.results import Ending, finish
from fl_app.rows import pooled, prepared_rows
from fl_app.run_folder import RunFolder, default_folder, write_atomically
from fl_app.served import served
from fl_app.sinks.opened import OpenSinks, open_sinks
from fl_app.site import Common, held_sha256
from fl_app.tensors import tensor_bytes
from fl_app.variants import play
from strategies import wire
from strategies.base import ComposedStrategy, RunResult, ServerState, Setting, TooFewClients
from strategies.history import RoundReport
from strategies.private_means import PrivateMeans
from strategies.protection import Ledger, Protection
from strategies.roster import Roster
from strategies.survey import survey
from strategies.update import Arrays
from tasks.base import Task
from tasks.data.declared import centred
from tasks.data.design import Design

OnLine = Callable[[Mapping[str, Any]], None]

MAY_CHANGE = frozenset({"rounds", "out", "resume"})
"""Keys in which a resumed run may differ from what it goes on with."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says. Raises where the run failed, so that Flower marks it as failed too."""
    config = RunConfig.parse(context.run_config)
    if config.variants:
        play(context.run_config, lambda config, variant: serve(grid, config, variant=variant))
        return
    if not config.out:
        config = config.model_copy(update={"out": str(default_folder(config, Path.cwd()))})
    serve(grid, config)


def serve(grid: Grid, config: RunConfig, on_line: OnLine | None = None, variant: int | None = None) -> dict[str, Any]:
    """One run from enrolment to summary.json, which is returned. `config.out` names the folder of its results.

    `on_line` is called with each line of rounds.jsonl; without it a line for people is logged for each round. `variant`
    is the run's number where several are played in one. A run that fails writes its summary and the last good model,
    and then raises.
    """
    folder = RunFolder(Path(config.out))
    if not config.resume:
        folder.create()
    with served(folder.path):
        return _served(grid, config, folder, on_line, variant)


def _served(
    grid: Grid, config: RunConfig, folder: RunFolder, on_line: OnLine | None, variant: int | None
) -> dict[str, Any]:
    earlier = _earlier(config, folder) if config.resume else None
    log(INFO, "results in %s", folder.path)
    sinks = open_sinks(config.sinks, folder.path, config)
    try:
        with threadpool_limits(config.threads):
            seen = audited(grid, config, folder.path)
            reason, findings = _Run(seen, config, folder, earlier, on_line, sinks, variant).play()
    except Exception as error:
        reason = "too-few-clients" if isinstance(error, TooFewClients) else "error"
        told = str(error) if isinstance(error, TooFewClients | Refused) else f"{type(error).__name__}: {error}"
        sinks.close(finish(folder, config, Ending("failed", reason, told)))
        raise
    else:
        summary = finish(folder, config, Ending("completed", reason), findings)
        sinks.close(summary)
        return summary
    finally:
        sinks.close(None)  # the run was broken off; else they are closed already


def _earlier(config: RunConfig, folder: RunFolder) -> Checkpoint:
    """The checkpoint from which a run is resumed. Raises Refused where the configuration is not that of the run."""
    checkpoint = Checkpoint.read(folder.checkpoint)
    told, was = config.values(), checkpoint.config.values()
    changed = [f"{key}={told[key]} (was {was[key]})" for key in told if key not in MAY_CHANGE and told[key] != was[key]]
    if changed:
        raise Refused("a resumed run with another configuration", ", ".join(changed), "leave them as they were")
    return checkpoint


@dataclass
class _Run:
    grid: Grid
    config: RunConfig
    folder: RunFolder
    earlier: Checkpoint | None
    on_line: OnLine | None
    sinks: OpenSinks
    variant: int | None

    def play(self) -> tuple[str, Findings]:
        """Enrol the clients, train, record every round, and look back once training is over.

        Returns the reason for which training ended, and what was found out afterwards.
        """
        began = time.monotonic()
        config, earlier = self.config, self.earlier
        strategy = settled_strategy(config, self.folder)
        job, private = earlier.job if earlier else uuid.uuid4().hex, strategy.protection is not None
        enrolment = self._enrolment(strategy, job)
        design = enrolment.open(self.grid)
        ledger = open_ledger(self.folder, strategy.protection)
        if strategy.protection is not None and strategy.protection.means and earlier is None:
            design = self._centred(strategy.protection, design, enrolment, job, ledger)
        task, params = self._begin(build_task(config, design.schema))
        at_server = measured_at_server(task, config)
        start = Checkpoint(
            config=config,
            job=job,
            state=earlier.state if earlier else strategy.first_state(params),
            design=design,
            array_names=task.array_names,
            clients=len(enrolment),
            metrics_on="server" if at_server else None if private and not config.noisy_metrics else "clients",
            startup_s=time.monotonic() - began,
            resumed_from=earlier.state.round if earlier else None,
            frozen_names=task.frozen_names,
            personal_names=task.personal_names,
        )
        history = self.folder.rewind(start.state.round) if earlier else []
        Checkpoint.commit(start.prepare(self.folder.checkpoint), self.folder.checkpoint)

        def record(report: RoundReport, state: ServerState) -> None:
            self._record(replace(start, state=state), report)

        train_metrics = not (at_server or private or enrolment.unmeasured)
        common = ConfigRecord(Common(start.job, train_metrics, design, self.variant, held_sha256(task)).values())
        result = strategy.start(
            self.grid,
            wire.params_record(params),
            num_rounds=config.rounds,
            timeout=config.round_timeout_s,
            train_config=common,
            evaluate_config=common,
            evaluate_fn=_evaluation(task, start, enrolment.clients) if at_server else None,
            setting=Setting(
                roster=enrolment,
                metrics=task,
                metric_ranges=task.metric_ranges,
                train_metrics=train_metrics,
                client_state=bool(task.personal_names),
                evaluate_every=1 if at_server else config.evaluate_every,
                resume=start.state,
                history=history,
                ledger=ledger,
                on_round=record,
            ),
        )
        return result.stop_reason, self._look_back(task, design, result, enrolment.current(self.grid), common)

    def _enrolment(self, strategy: ComposedStrategy, job: str) -> Enrolment:
        """The enrolment, with what is known before any node is asked: the clients' names, and declared columns."""
        config, earlier = self.config, self.earlier
        server_held = build_dataset(config).server_held
        return Enrolment(
            config,
            known=frozenset(open_data(config).clients) if server_held else None,
            design=earlier.design if earlier else agreed_beforehand(config, strategy),
            job=job,
            variant=self.variant,
            private=strategy.protection is not None,
            population=strategy.basics.population,
        )

    def _centred(
        self, protection: Protection, design: Design, enrolment: Enrolment, job: str, ledger: Ledger | None
    ) -> Design:
        """The declared design, with features centred at their means, which the clients release under noise."""
        config, asked = self.config, PrivateMeans(protection, len(design.numbers))
        if not asked.size:
            return design
        if ledger is None:
            raise RuntimeError("a promise without a ledger")
        ledger.append(0, 0, asked.vectors.release)
        means = asked.ask(
            self.grid,
            enrolment.current(self.grid),
            ConfigRecord(Common(job, False, design, self.variant).values()),
            population(config),
            fold=True,
            timeout_s=config.round_timeout_s,
        )
        if means is None:
            raise TooFewClients("no client gave the means of its features: see the logs of the nodes")
        return centred(design, means.tolist())

    def _begin(self, task: Task) -> tuple[Task, Arrays]:
        """The task, holding the model's arrays that do not travel, and the params that training starts from.

        A new run writes the former into its folder; a resumed one reads them there.
        """
        if self.earlier is None:
            task, params = begin(task, self.config, self.config.init)
            if task.held_names:
                write_atomically(self.folder.held, tensor_bytes(dict(zip(task.held_names, task.held, strict=True))))
            return task, params
        if task.held_names:
            task = task.holding(self.folder.read_held(task.held_names))
        return task, self.earlier.state.params

    def _look_back(
        self, task: Task, design: Design, result: RunResult, roster: Roster, common: ConfigRecord
    ) -> Findings:
        """What is found out after the last round: by one more exchange, where it is needed, and from rows here."""
        config, params = self.config, wire.read_params(RecordDict({"params": result.arrays}))
        kinds = kinds_of_models(task, config)
        private, at_sites = build_strategy(config).protection is not None, build_dataset(config).at_sites
        curvature = not private and wants_curvature(task, config, params, design)
        seen = None
        if curvature or ((at_sites or len(kinds) > 1) and not private):
            log(INFO, "training is over: one more exchange for the report")
            seen = survey(
                self.grid,
                roster,
                params,
                common,
                metrics=task,
                curvature=curvature,
                fold=not at_sites and len(kinds) == 1,
                timeout_s=config.round_timeout_s,
                kinds=kinds,
                used_rounds=result.used_rounds,
            )
        found = Findings()
        if not at_sites and (not private or config.unprotected_baselines):
            shards = list(prepared_rows(config, design).shards(roster.clients))
            found = compared(task, config, shards, params, seen)
        elif seen is not None:
            found = Findings(sites=surveyed_sites(task, seen, {c: roster[c].num_examples for c in roster.clients}))
        if private:
            found = Findings(unprotected=found.unprotected_json())
        return replace(found, coefficients=coefficients(task, config, params, design, seen))

    def _record(self, checkpoint: Checkpoint, report: RoundReport) -> None:
        """Write a round's line of rounds.jsonl, and then its checkpoint.

        After a crash between the two, a resume plays the round again and cuts off the line.
        """
        began = time.monotonic()
        prepared = checkpoint.prepare(self.folder.checkpoint)
        spent = time.monotonic() - began
        seconds = {**report.seconds, "checkpoint": spent, "total": report.seconds["total"] + spent}
        report = replace(report, seconds=seconds)
        self.folder.append_round(report)
        Checkpoint.commit(prepared, self.folder.checkpoint)
        self.sinks.round(report.to_json())
        if self.on_line:
            self.on_line(report.to_json())
        else:
            log(INFO, "%s", round_line(report.to_json(), self.config.rounds, checkpoint.clients))


def _evaluation(task: Task, start: Checkpoint, clients: Iterable[str]) -> Any:
    """Central evaluation on the test rows of these clients, for data that the server holds as well."""
    rows = pooled([shard.test for shard in prepared_rows(start.config, start.design).shards(clients)])

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        params = wire.read_params(RecordDict({"params": arrays}))
        return MetricRecord({**task.evaluate(params, rows)}) if len(rows) else None

    return evaluate
