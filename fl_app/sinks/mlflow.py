"""Rounds as metrics of an MLflow run, on a tracking server or in a file of the run's folder."""

import os
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fl_app.config import RunConfig
from fl_app.sinks.opened import scalars

EXPERIMENT = "fl-app"
# MLflow itself reports its use to its makers, and retries for minutes, which the run would wait for.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
STATUS = {"completed": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MLflowSink:
    """An MLflow run: in `mlflow.db` (SQLite) of the run's folder, or where MLFLOW_TRACKING_URI says.

    The experiment is MLFLOW_EXPERIMENT_NAME, by default fl-app. A resumed run goes on in the same MLflow run.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        tracking = import_module("mlflow.tracking")
        self._entities = import_module("mlflow.entities")
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        self._client = tracking.MlflowClient(tracking_uri=place)
        remembered = folder / "mlflow-run.txt"
        if config.resume and remembered.exists():
            self._run: str = remembered.read_text(encoding="utf-8").strip()
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(self._experiment(folder), run_name=folder.name).info.run_id
        remembered.write_text(self._run + "\n", encoding="utf-8")
        params = [self._entities.Param(key, str(value)) for key, value in config.values().items()]
        self._client.log_batch(self._run, params=params)

    def round(self, line: Mapping[str, Any]) -> None:
        """Each number of the line at the step of its round."""
        now_ms = int(time.time() * 1000)
        values = {name: value for name, value in scalars(line).items() if name != "round"}
        metrics = [self._entities.Metric(name, value, now_ms, line["round"]) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """The end of the run as the status, with why and the hash of the params as tags."""
        ending = summary or {"status": "stopped"}
        for name in ("stop_reason", "params_sha256"):
            if ending.get(name):
                self._client.set_tag(self._run, name, ending[name])
        self._client.set_terminated(self._run, STATUS[ending["status"]])

    def _experiment(self, folder: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        own = None if os.environ.get("MLFLOW_TRACKING_URI") else (folder / "mlflow-artifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=own))
