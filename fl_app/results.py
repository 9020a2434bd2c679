"""What a run leaves behind: the model and the summary, written from the checkpoint and rounds.jsonl alone.

So the ServerApp that came to its end and the command line that found it dead write the same files.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np

from fl_app import __version__
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.errors import Refused, one_line
from fl_app.run_folder import RunFolder, write_atomically
from fl_app.tensors import tensor_bytes
from strategies.history import Metrics, RoundReport
from strategies.update import Arrays

Status = Literal["completed", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended. `stop_reason`: rounds, converged, target, patience, too-few-clients, error, interrupted."""

    status: Status
    stop_reason: str
    error: str | None = None


def finish(folder: RunFolder, config: RunConfig, ending: Ending) -> dict[str, Any]:
    """Write model.safetensors, model.json and, last, summary.json; return the summary.

    Without a readable checkpoint there is no model and the summary says so.
    """
    checkpoint = _checkpoint(folder)
    history = folder.read_rounds(checkpoint.state.round) if checkpoint else []
    if checkpoint:
        config = checkpoint.config
        names = checkpoint.array_names
        write_atomically(folder.model, tensor_bytes(dict(zip(names, checkpoint.state.params, strict=True))))
        folder.write_json(folder.about_model, _about_model(checkpoint))
    summary = _summary(folder, config, ending, checkpoint, history)
    folder.write_json(folder.summary, summary)
    return summary


def params_sha256(names: Sequence[str], params: Arrays) -> str:
    """sha256 over the arrays in model order of name NUL dtype NUL shape NUL (shape as JSON) and the elements.

    Elements are C-ordered and little-endian; so the hash can be recomputed from model.safetensors and the `arrays` of
    model.json, on any machine.
    """
    digest = hashlib.sha256()
    for name, array in zip(names, params, strict=True):
        little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        digest.update(f"{name}\0{little.dtype.str}\0{json.dumps(list(array.shape))}\0".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def _checkpoint(folder: RunFolder) -> Checkpoint | None:
    try:
        return Checkpoint.read(folder.checkpoint)
    except Refused:
        return None


def _about_model(checkpoint: Checkpoint) -> dict[str, Any]:
    mean, scale = checkpoint.statistics or ((None,) * len(checkpoint.schema.features),) * 2
    return {
        "schema": 1,
        "task": checkpoint.config.task,
        "arrays": [
            {"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}
            for name, array in zip(checkpoint.array_names, checkpoint.state.params, strict=True)
        ],
        "features": [
            {"name": name, "kind": "number", "mean": m, "scale": s}
            for name, m, s in zip(checkpoint.schema.features, mean, scale, strict=True)
        ],
        "label": checkpoint.schema.label,
        "classes": list(checkpoint.schema.classes),
        "config_sha256": checkpoint.config.sha256(),
    }


def _summary(
    folder: RunFolder, config: RunConfig, ending: Ending, checkpoint: Checkpoint | None, history: list[RoundReport]
) -> dict[str, Any]:
    rounds_s = sum(report.seconds.get("total", 0.0) for report in history)
    startup_s = checkpoint.startup_s if checkpoint else 0.0
    return {
        "schema": 1,
        "status": ending.status,
        "stop_reason": ending.stop_reason,
        "error": None if ending.error is None else one_line(ending.error),
        "rounds": checkpoint.state.round if checkpoint else 0,
        "clients": checkpoint.clients if checkpoint else 0,
        "client_updates": sum(report.good for report in history),
        "dropped": sum(len(report.dropped) for report in history),
        "metrics_on": checkpoint.metrics_on if checkpoint else None,
        "metrics": _last_metrics(history),
        "baselines": None,
        "bytes_up": sum(report.bytes_up for report in history),
        "bytes_down": sum(report.bytes_down for report in history),
        "payload_up": sum(report.payload_up for report in history),
        "payload_down": sum(report.payload_down for report in history),
        "seconds": {"startup": startup_s, "rounds": rounds_s, "total": startup_s + rounds_s},
        "params_sha256": params_sha256(checkpoint.array_names, checkpoint.state.params) if checkpoint else None,
        "privacy": None,
        "resumed_from": checkpoint.resumed_from if checkpoint else None,
        "config": config.values(),
        "versions": {"app": __version__, **_versions()},
        "out": str(folder.path),
    }


def _last_metrics(history: list[RoundReport]) -> Metrics | None:
    """Those of the final model; None where it was not evaluated."""
    return history[-1].to_json()["metrics"] if history else None


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("flwr", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
