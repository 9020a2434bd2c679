"""What a run leaves behind: the model and the summary, written from the checkpoint and rounds.jsonl alone.

So the same files are written by a ServerApp that has come to its end, and by the command line after it found that the
ServerApp is dead.
"""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from numpy.typing import NDArray

from fl_app import __version__
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.errors import Refused, one_line
from fl_app.findings import Findings
from fl_app.page import page
from fl_app.promise import claimed, privacy_json
from fl_app.run_folder import RunFolder, write_atomically
from fl_app.tensors import params_sha256, tensor_bytes
from strategies.history import Metrics, RoundReport, finite

NOTHING_FOUND = Findings()

Status = Literal["completed", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended. `stop_reason`: rounds, converged, target, patience, too-few-clients, error, interrupted."""

    status: Status
    stop_reason: str
    error: str | None = None


def finish(folder: RunFolder, config: RunConfig, ending: Ending, findings: Findings = NOTHING_FOUND) -> dict[str, Any]:
    """Write model.safetensors, model.json, sites.json, report.html and, last, summary.json; return the summary.

    Without a readable checkpoint there is no model and the summary says so.
    """
    checkpoint = _checkpoint(folder)
    history = folder.read_rounds(checkpoint.state.round) if checkpoint else []
    if checkpoint:
        config = checkpoint.config
        frozen = _frozen(folder, checkpoint)
        params = dict(zip(checkpoint.array_names, checkpoint.state.params, strict=True))
        write_atomically(folder.model, tensor_bytes({**params, **frozen}))
        folder.write_json(folder.about_model, {**_about_model(checkpoint, findings), **_about_held(checkpoint, frozen)})
    if findings.sites is not None:
        folder.write_json(folder.sites, finite(findings.sites))
    if findings.unprotected is not None:
        folder.write_json(folder.baselines, finite(findings.unprotected))
    summary = _summary(folder, config, ending, checkpoint, history, findings)
    write_summary(folder, summary)
    return summary


def write_summary(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """report.html and then summary.json, which is the last of all files."""
    rounds = [report.to_json() for report in folder.read_rounds(summary["rounds"])]
    others = (folder.read_json(path) for path in (folder.sites, folder.about_model, folder.privacy))
    html = page(summary, rounds, *others)
    write_atomically(folder.report, html.encode())
    folder.write_json(folder.summary, summary)


def _checkpoint(folder: RunFolder) -> Checkpoint | None:
    try:
        return Checkpoint.read(folder.checkpoint)
    except Refused:
        return None


def _frozen(folder: RunFolder, checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    names = checkpoint.frozen_names
    return dict(zip(names, folder.read_held(names), strict=True)) if names else {}


def _about_model(checkpoint: Checkpoint, findings: Findings) -> dict[str, Any]:
    about = {
        "schema": 1,
        "rounds": checkpoint.state.round,
        "task": checkpoint.config.task,
        "task_args": checkpoint.config.task_args,
        "arrays": _entries(dict(zip(checkpoint.array_names, checkpoint.state.params, strict=True))),
        **checkpoint.design.to_json(),
        "config_sha256": checkpoint.config.sha256(),
    }
    if findings.coefficients is not None:
        about["coefficients"] = finite(findings.coefficients.rows)
        about["coefficients_note"] = findings.coefficients.note
    return about


def _about_held(checkpoint: Checkpoint, frozen: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The model's arrays that did not travel: the frozen ones are in its file, the personal ones at the clients."""
    about: dict[str, Any] = {}
    if frozen:
        about["frozen"] = {"arrays": _entries(frozen), "sha256": params_sha256(tuple(frozen), tuple(frozen.values()))}
    if checkpoint.personal_names:
        about["personal"] = list(checkpoint.personal_names)
    return about


def _entries(arrays: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    return [{"name": n, "dtype": array.dtype.str, "shape": list(array.shape)} for n, array in arrays.items()]


def _summary(
    folder: RunFolder,
    config: RunConfig,
    ending: Ending,
    checkpoint: Checkpoint | None,
    history: list[RoundReport],
    findings: Findings,
) -> dict[str, Any]:
    rounds_s = sum(report.seconds.get("total", 0.0) for report in history)
    startup_s = checkpoint.startup_s if checkpoint else 0.0
    secret = any(report.good is None for report in history)
    privacy = privacy_json(folder, config, len(history), checkpoint) if checkpoint else None
    if privacy is not None:
        folder.write_json(folder.privacy, privacy)
    return {
        "schema": 1,
        "status": ending.status,
        "stop_reason": ending.stop_reason,
        "error": None if ending.error is None else one_line(ending.error),
        "rounds": checkpoint.state.round if checkpoint else 0,
        "clients": checkpoint.clients if checkpoint else 0,
        "client_updates": _sum(report.good for report in history),
        "dropped": None if secret else sum(len(report.dropped) for report in history),
        "metrics_on": checkpoint.metrics_on if checkpoint else None,
        "metrics": _last_metrics(history),
        "baselines": finite(findings.baselines),
        "bytes_up": _sum(report.bytes_up for report in history),
        "bytes_down": _sum(report.bytes_down for report in history),
        "payload_up": _sum(report.payload_up for report in history),
        "payload_down": _sum(report.payload_down for report in history),
        "seconds": {"startup": startup_s, "rounds": rounds_s, "total": startup_s + rounds_s},
        "params_sha256": params_sha256(checkpoint.array_names, checkpoint.state.params) if checkpoint else None,
        "privacy": claimed(privacy),
        "resumed_from": checkpoint.resumed_from if checkpoint else None,
        "config": config.values(),
        "versions": versions(),
        "out": str(folder.path),
    }


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum; None where one of the values is secret."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _last_metrics(history: list[RoundReport]) -> Metrics | None:
    """The metrics of the final model; None where it was not evaluated."""
    return history[-1].to_json()["metrics"] if history else None


def versions() -> dict[str, str | None]:
    """The versions of this app and of what its numbers depend on; None for what is not installed."""
    found: dict[str, str | None] = {"app": __version__, "python": platform.python_version()}
    for package in ("flwr", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
