"""Sinks get every line of a run; none of them can fail it, and one that cannot work is refused before the start."""

import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import Serve

from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.sinks.opened import check_sinks, open_sinks, scalars


class Remembering:
    """Keeps what it gets."""

    seen: ClassVar[list[Any]] = []

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.seen.append((folder, config.rounds))

    def round(self, line: Mapping[str, Any]) -> None:
        self.seen.append(line["round"])

    def close(self, summary: Mapping[str, Any] | None) -> None:
        self.seen.append(summary and summary["status"])


class Unreachable(Remembering):
    """Cannot be opened."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        raise ConnectionError("no server")


class Failing(Remembering):
    """Fails from round 2 on."""

    def round(self, line: Mapping[str, Any]) -> None:
        if line["round"] > 1:
            raise OSError("disk full")

    def close(self, summary: Mapping[str, Any] | None) -> None:
        raise OSError("must not be called")


class FailingAtTheEnd(Remembering):
    """Cannot be closed."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        raise OSError("disk full")


class NoSink:
    """Lacks what a sink has."""


REMEMBERING, UNREACHABLE = f"{__name__}:Remembering", f"{__name__}:Unreachable"
FAILING, FAILING_AT_THE_END = f"{__name__}:Failing", f"{__name__}:FailingAtTheEnd"


@pytest.fixture
def seen() -> list[Any]:
    Remembering.seen.clear()
    return Remembering.seen


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What Flower's logger is told, whether or not it passes that on."""
    messages: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Listening()
    logging.getLogger("flwr").addHandler(handler)
    yield messages
    logging.getLogger("flwr").removeHandler(handler)


def test_a_sink_gets_every_line_as_it_comes_and_then_the_summary(
    tmp_path: Path, serve: Serve, seen: list[Any], small_config: Any
) -> None:
    sinks = open_sinks(REMEMBERING, tmp_path, small_config(rounds=3))
    run = serve(rounds=3, on_line=sinks.round)
    sinks.close(run.summary)
    assert seen == [(tmp_path, 3), 1, 2, 3, "completed"]
    sinks.close(None)
    assert len(seen) == 5


def test_a_run_that_was_broken_off_has_no_summary(tmp_path: Path, seen: list[Any], small_config: Any) -> None:
    open_sinks(REMEMBERING, tmp_path, small_config()).close(None)
    assert seen[-1] is None


def test_a_sink_that_fails_is_logged_once_and_switched_off_and_the_others_go_on(
    tmp_path: Path, serve: Serve, seen: list[Any], small_config: Any, told: list[str]
) -> None:
    names = f"{UNREACHABLE} {FAILING} {FAILING_AT_THE_END} {REMEMBERING}"
    sinks = open_sinks(names, tmp_path, small_config(rounds=3))
    run = serve(rounds=3, on_line=sinks.round)
    sinks.close(run.summary)
    assert run.summary["status"] == "completed"
    assert [entry for entry in seen if isinstance(entry, int)] == [1, 1, 2, 2, 3, 3]  # of the two that last
    assert seen[-1] == "completed"
    assert [line for line in told if line.startswith("sink ")] == [
        f"sink {UNREACHABLE} is switched off, the run goes on: ConnectionError: no server",
        f"sink {FAILING} is switched off, the run goes on: OSError: disk full",
        f"sink {FAILING_AT_THE_END} is switched off, the run goes on: OSError: disk full",
    ]


def test_no_sinks_are_nothing_to_open(tmp_path: Path, small_config: Any) -> None:
    check_sinks("")
    open_sinks("", tmp_path, small_config()).round({"round": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("tensorbord", "unknown sink 'tensorbord': sink=tensorbord: did you mean 'tensorboard'"),
        (f"{REMEMBERING} {REMEMBERING}", "is given twice"),
        (f"{__name__}:NoSink", "is no sink: .*: expected a subclass of Sink"),
        (f"{__name__}:Nothing", "cannot import"),
    ],
)
def test_a_sink_that_does_not_exist_is_refused(names: str, complaint: str) -> None:
    with pytest.raises(Refused, match=complaint):
        check_sinks(names)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Refused) as refusal:
        check_sinks(name)
    assert str(refusal.value) == f"sinks={name}: package {name} is not installed: pip install 'fl-app[{name}]'"


def test_numbers_of_a_line_are_found_by_their_path() -> None:
    line = {
        "round": 2,
        "metrics": {"accuracy": 0.5, "auc": None},
        "train_metrics": None,
        "dropped": [{"client": "03", "reason": "raised"}],
        "seconds": {"total": 1},
    }
    assert scalars(line) == {"round": 2.0, "metrics/accuracy": 0.5, "dropped": 1.0, "seconds/total": 1.0}


def test_tensorboard_reads_back_what_was_written(tmp_path: Path, serve: Serve, small_config: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines: list[Mapping[str, Any]] = []
    sinks = open_sinks("tensorboard", tmp_path, small_config(rounds=2))

    def keep(line: Mapping[str, Any]) -> None:
        lines.append(line)
        sinks.round(line)
        assert len(read()) == len(lines)  # on the disk at once: a dashboard follows the run

    def read() -> list[Any]:
        found = EventAccumulator(str(tmp_path / "tensorboard"))
        found.Reload()
        assert found.Tags()["tensors"] == ["config"]
        for name in ("good", "dropped", "bytes_up", "payload_up", "params_change", "seconds/total"):
            assert len(found.Scalars(name)) == len(found.Scalars("metrics/accuracy"))
        return list(found.Scalars("metrics/accuracy"))

    sinks.close(serve(rounds=2, evaluate_every=1, on_line=keep).summary)
    assert [(event.step, event.value) for event in read()] == [
        (line["round"], pytest.approx(line["metrics"]["accuracy"], rel=1e-6)) for line in lines
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of MLflow's store
def test_mlflow_reads_back_what_was_written_and_a_resumed_run_goes_on_in_the_same_place(
    tmp_path: Path, serve: Serve, small_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lines: list[Mapping[str, Any]] = []
    sinks = open_sinks("mlflow", tmp_path, small_config(rounds=2))
    sinks.close(serve(rounds=2, evaluate_every=1, on_line=lambda line: (lines.append(line), sinks.round(line))).summary)
    later = open_sinks("mlflow", tmp_path, small_config(rounds=3, resume=True))
    later.round({**lines[-1], "round": 3})
    later.close({"status": "stopped", "stop_reason": "interrupted", "params_sha256": "0f"})

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("fl-app").experiment_id])
    found = client.get_metric_history(run.info.run_id, "metrics/accuracy")
    assert [(metric.step, metric.value) for metric in found] == [
        *((line["round"], line["metrics"]["accuracy"]) for line in lines),
        (3, lines[-1]["metrics"]["accuracy"]),
    ]
    assert run.data.params["rounds"] == "2"
    assert run.info.status == "KILLED"
    assert (run.data.tags["stop_reason"], run.data.tags["params_sha256"]) == ("interrupted", "0f")
    assert {path.name for path in tmp_path.iterdir()} - {"run"} == {"mlflow.db", "mlflow-run.txt"}
