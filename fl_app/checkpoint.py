"""The state of a run after a round, in one file, to disk and back.

A safetensors file whose metadata hold everything that is no array, so that the two can never be out of step. Nothing
is pickled. Randomness needs no entry: every draw is derived from (seed, round, client).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.run_folder import write_beside
from fl_app.tensors import tensor_bytes
from strategies.base import ServerState
from tasks.data.design import Design

FORMAT = 2
OWNER_ONLY = 0o600
"""It may hold what nobody else should know: where clients keep state, who was drawn in secret, and when last."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on, and all that its results need to be written.

    `startup_s` is the time from the start of the ServerApp to round 1. `frozen_names` and `personal_names` are those of
    the task: these arrays do not change, so they lie beside the checkpoint (`RunFolder.held`).
    """

    config: RunConfig
    job: str
    state: ServerState
    design: Design
    array_names: tuple[str, ...]
    clients: int
    metrics_on: str | None
    startup_s: float
    resumed_from: int | None
    frozen_names: tuple[str, ...] = ()
    personal_names: tuple[str, ...] = ()

    def prepare(self, path: Path) -> Path:
        """Write it beside `path`, on the disk when this returns; `commit` gives it the name."""
        arrays = {f"params.{i}": array for i, array in enumerate(self.state.params)}
        arrays |= {f"optimizer.{i}": array for i, array in enumerate(self.state.optimizer)}
        arrays |= {f"sent.{i}": array for i, array in enumerate(self.state.sent)}
        arrays |= {f"pipeline.{i}": array for i, array in enumerate(self.state.pipeline)}
        about = {
            "format": FORMAT,
            "config": self.config.values(),
            "job": self.job,
            "round": self.state.round,
            "used_rounds": self.state.used_rounds,
            "asked_rounds": self.state.asked_rounds,
            "design": self.design.to_json(),
            "array_names": self.array_names,
            "clients": self.clients,
            "metrics_on": self.metrics_on,
            "startup_s": self.startup_s,
            "resumed_from": self.resumed_from,
            "frozen_names": self.frozen_names,
            "personal_names": self.personal_names,
        }
        return write_beside(path, tensor_bytes(arrays, {"fl-app": json.dumps(about)}), OWNER_ONLY)

    @staticmethod
    def commit(prepared: Path, path: Path) -> None:
        """Put a prepared checkpoint in place of the one before."""
        prepared.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Raises Refused for a file that is missing, truncated, or no checkpoint of this version."""
        if not path.is_file():
            raise Refused("no checkpoint", str(path), "name the folder of a run that completed a round")
        try:
            with safe_open(path, framework="np") as file:
                about = json.loads((file.metadata() or {})["fl-app"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            return cls._from(about, arrays)
        except (SafetensorError, OSError) as error:
            raise Refused("damaged checkpoint", str(path), f"start a new run ({error})") from error
        except Refused as error:
            raise Refused("its configuration is none of this version's", str(path), str(error)) from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Refused("no checkpoint of this version", str(path), "name the folder of an fl-app run") from error

    @classmethod
    def _from(cls, about: dict[str, Any], arrays: dict[str, Any]) -> "Checkpoint":
        if about["format"] != FORMAT:
            raise KeyError(f"format {about['format']}")
        return cls(
            config=RunConfig.parse(about["config"]),
            job=about["job"],
            state=ServerState(
                about["round"],
                _numbered(arrays, "params"),
                _numbered(arrays, "optimizer"),
                about["used_rounds"],
                _numbered(arrays, "pipeline"),
                _numbered(arrays, "sent"),
                about.get("asked_rounds", {}),
            ),
            design=Design.from_json(about["design"]),
            array_names=tuple(about["array_names"]),
            clients=about["clients"],
            metrics_on=about["metrics_on"],
            startup_s=about["startup_s"],
            resumed_from=about["resumed_from"],
            frozen_names=tuple(about.get("frozen_names", ())),
            personal_names=tuple(about.get("personal_names", ())),
        )


def _numbered(arrays: dict[str, Any], group: str) -> tuple[Any, ...]:
    count = sum(name.startswith(f"{group}.") for name in arrays)
    return tuple(arrays[f"{group}.{i}"] for i in range(count))
