"""Rounds as TensorBoard scalars, in the folder `tensorboard` of a run's results."""

import json
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fl_app.config import RunConfig
from fl_app.sinks.opened import scalars


class TensorBoardSink:
    """TensorBoard event files in `tensorboard/` of the run's folder; needs neither TensorFlow nor torch."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        writer = import_module("tensorboard.summary.writer.event_file_writer")
        self._event = import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary = import_module("tensorboard.compat.proto.summary_pb2").Summary
        text_pb = import_module("tensorboard.plugins.text.summary_v2").text_pb
        self._writer = writer.EventFileWriter(str(folder / "tensorboard"))
        if not config.resume:
            about = "\n".join(f"    {key} = {json.dumps(value)}" for key, value in config.values().items())
            self._write(0, text_pb("config", about))

    def round(self, line: Mapping[str, Any]) -> None:
        """Each number of the line at the step of its round."""
        values = {name: value for name, value in scalars(line).items() if name != "round"}
        value = self._summary.Value
        self._write(line["round"], self._summary(value=[value(tag=k, simple_value=v) for k, v in values.items()]))

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, step: int, summary: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()
