"""The command line: exit statuses, one line for every error, JSON alone on stdout, and nothing written when refused."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import contents

import fl_app.cli
from fl_app import __version__
from fl_app.checkpoint import Checkpoint
from fl_app.config import RunConfig
from fl_app.console import Progress
from fl_app.registry import REGISTRIES
from fl_app.run_folder import RunFolder

PROJECT = Path(__file__).parents[2]
Call = Callable[..., Any]


# ------------------------------------------------------------------------------------------------------ a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only an administrator can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)  # noqa: S607


def test_a_full_disk_ends_the_run_in_one_line_and_the_last_checkpoint_goes_on(
    fl_app: Call, fl_app_run: Call, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(fl_app_run("--json", "--out", "whole", rounds=6).out)
    filler, show = small_disk / "filler", Progress.round

    def fill(progress: Progress, line: Any) -> None:
        show(progress, line)
        if line["round"] == 3:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    monkeypatch.setattr(Progress, "round", fill)
    out = small_disk / "out"
    ended = fl_app_run("--json", "--out", out, rounds=6)
    assert (ended.status, ended.out) == (1, "")
    *_, last = ended.err.splitlines()
    assert last == "error: the disk is full: fl-app: make room; a run goes on with fl-app run --resume DIR"
    assert Checkpoint.read(out / "checkpoint.safetensors").state.round == 3
    assert not list(out.glob(".*.writing"))
    filler.unlink()
    resumed = json.loads(fl_app("run", "--engine", "inline", "--json", "--resume", out).out)
    assert (resumed["resumed_from"], resumed["params_sha256"]) == (3, whole["params_sha256"])


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["-c", "roudns=3"], "did you mean 'rounds'"),
        (["-c", "task=logistik"], "did you mean 'logistic'"),
        (["-c", "strategy=fedavgg"], "did you mean 'fedavg'"),
        (["-c", "data=digit"], "did you mean 'digits'"),
        (["-c", "partition=dirichelt"], "did you mean 'dirichlet'"),
        (["-c", "stop=convergd"], "did you mean 'converged'"),
        (["-c", "solver=newtn"], "did you mean 'newton'"),
        (["-c", "lr-schedule=cosin"], "did you mean 'cosine'"),
        (["-c", "strategy-args=momentm=0.9"], "did you mean 'momentum'"),
        (["-c", "data=synthetic", "-c", "data-args=exampels=9"], "did you mean 'examples'"),
        (["-c", "partition=dirichlet", "-c", "partition-args=alfa=1"], "did you mean 'alpha'"),
        (["-c", "stop=target", "-c", "stop-args=valeu=1"], "did you mean 'value'"),
        (["-c", "task-args=a=1"], "takes no arguments"),
        (["-c", "standardize=globall"], "'global', 'local', 'none', 'declared' or 'private'"),
        (["simulatoin"], "did you mean 'simulation'"),
        (["--engin", "inline"], "did you mean '--engine'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_name_is_one_line_with_the_near_match_and_nothing_is_written(
    words: list[str], near: str, fl_app: Call, caller: Path
) -> None:
    assert near.lower() in fl_app("run", *words).refusal().lower()
    assert contents(caller) == {}


@pytest.mark.parametrize(
    "words",
    [
        ["-c", "rounds=0"],
        ["-c", "rounds=many"],
        ["-c", "rounds"],
        ["-c", "=3"],
        ["-c", "rounds=3", "-c", "rounds=4"],
        ["-c", "resume=true"],
        ["-c", "min-clients=11"],
        ["-c", "num-clients=600"],
        ["-c", "local-epochs=0"],
        ["-c", "l1=0.1", "-c", "solver=newton"],
        ["-c", "l1=0.1", "-c", "strategy=fednewton"],
        ["-c", "strategy-args=momentum=fast"],
        ["-c", "strategy-args=weighting=rows"],
        ["-c", "strategy-args=max-weight=0"],
        ["-c", "strategy-args=momentum=0.9 momentum=0.8"],
        ["-c", "strategy-args=momentum='0.9"],
        ["-c", "stop=target"],
        ["-c", "partition=by-column"],
        ["-c", "partition=by-column", "-c", "partition-args=column=site"],
        ["-c", "lr-schedule=step every=0"],
        ["-c", "task=no_such_module:Task"],
        ["-c", "out=a", "--out", "b"],
        ["--engine", "spark"],
        ["--nodes", "0"],
        ["--nodes", "two"],
        ["deployment", "--nodes", "3"],
        ["--resume", "nowhere"],
        ["--resume", "nowhere", "--out", "there"],
        ["one", "two"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("json_too", [[], ["--json"]], ids=["", "json"])
def test_what_cannot_be_run_is_one_line_and_nothing_is_written(
    words: list[str], json_too: list[str], fl_app: Call, caller: Path
) -> None:
    fl_app("run", *words, *json_too).refusal()
    assert contents(caller) == {}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("task", "json:JSONDecoder"),
        ("task", "tasks.data.partition:Iid"),
        ("strategy", "tasks.data.partition:Iid"),
        ("data", "tasks.data.partition:Iid"),
        ("partition", "tasks.data.bundled:Digits"),
        ("stop", "tasks.data.partition:Iid"),
        ("task", ":Task"),
    ],
)
def test_an_object_of_another_kind_is_refused_before_the_start(key: str, name: str, fl_app: Call, caller: Path) -> None:
    assert f"{key}={name}" in fl_app("run", "--engine", "inline", "-c", f"{key}={name}").refusal()
    assert contents(caller) == {}


def test_initial_params_that_cannot_be_read_are_refused_before_the_start(fl_app_run: Call, caller: Path) -> None:
    assert "init=" in fl_app_run(init="nowhere.safetensors").refusal()
    assert contents(caller) == {}


def test_a_device_that_the_task_cannot_use_is_refused_before_the_start(fl_app_run: Call, caller: Path) -> None:
    assert "device=cuda: logistic cannot use it: expected auto or cpu" in fl_app_run(device="cuda").refusal()
    assert contents(caller) == {}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"data": "synthetic", "partition": "dirichlet"}, "born divided: leave partition out"),
        ({"stop": "target", "stop_args": "value=0.9", "test_fraction": 0.0}, "keep some rows for tests"),
        ({"stop": "target", "stop_args": "value=0.9 metric=acuracy"}, "did you mean 'accuracy'"),
        ({"data": "synthetic", "stop": "target", "stop_args": "value=0.9 metric=auc"}, "unknown metric 'auc'"),
        (
            {"data": "breast-cancer", "data_args": "", "standardize": "global", "min_examples": 10**6},
            "standardize=local",
        ),
        ({"task": "tasks.base:Task"}, "is incomplete: task=tasks.base:Task: define check_config, initial_arrays"),
        ({"data": "breast_cancer"}, "did you mean 'breast-cancer'"),
        ({"rounds": 10**30}, "should be less than 9223372036854775808"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_the_start(fl_app_run: Call, caller: Path, keys: Any, words: str) -> None:
    assert words in fl_app_run(**keys).refusal()
    assert contents(caller) == {}


def test_a_folder_in_use_is_refused(fl_app: Call, fl_app_run: Call, caller: Path) -> None:
    fl_app_run("--out", "out", rounds=2)
    resume = ("run", "--engine", "inline", "--resume", "out", "-c", "rounds=5")
    with RunFolder(caller / "out").locked():
        outcome = fl_app(*resume)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.splitlines()[-1].startswith("error: another run is using the folder: ")
    assert fl_app(*resume).status == 0


def test_an_empty_folder_name_is_refused(fl_app_run: Call, caller: Path) -> None:
    for option in ("--out", "--resume"):
        assert f'no folder: {option} ""' in fl_app_run(option, "").refusal()
    assert contents(caller) == {}


def test_a_deployment_does_not_run_inline(fl_app: Call) -> None:
    assert "a deployment runs on its own machines" in fl_app("run", "deployment", "--engine", "inline").refusal()


def test_the_version_can_be_asked_for(fl_app: Call) -> None:
    assert fl_app("--version").out == f"fl-app {__version__}\n"


@pytest.mark.parametrize("words", [["runn"], ["--bogus"], ["list", "--bogus"], ["list", "extra"]], ids=" ".join)
def test_an_unknown_command_or_option_is_a_usage_error(words: list[str], fl_app: Call) -> None:
    fl_app(*words).refusal()


def test_no_command_shows_the_help_and_calls_nothing_an_error(fl_app: Call) -> None:
    outcome = fl_app()
    assert outcome.status == 2
    assert "Usage: " in outcome.out + outcome.err
    assert "error:" not in outcome.err


def test_a_traceback_comes_only_with_debug(fl_app: Call) -> None:
    assert "Traceback" not in fl_app("run", "-c", "rounds=0").err
    debugged = fl_app("run", "-c", "rounds=0", "--debug")
    assert debugged.status == 2
    assert "Traceback" in debugged.err
    assert debugged.err.splitlines()[-1].startswith("error: ")


def test_warnings_of_an_inline_run_hold_no_control_codes_where_there_is_no_terminal(caller: Path) -> None:
    words = ["run", "--engine", "inline", "-c", "rounds=1", "-c", "learning-rate=1e9"]  # every client is dropped
    command, environment = [sys.executable, "-m", "fl_app.cli", *words], {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=caller, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "WARNING" in done.stderr
    assert "\x1b" not in done.stderr


def test_help_is_no_error(fl_app: Call) -> None:
    for words in (["--help"], ["run", "--help"], ["list", "--help"]):
        outcome = fl_app(*words)
        assert (outcome.status, outcome.err) == (0, "")
        assert "Usage: " in outcome.out


def test_help_names_defaults_and_what_is_required_in_plain_brackets(fl_app: Call) -> None:
    text = fl_app("predict", "--help").out
    assert "[required]" in text
    assert "[default: auto]" in text
    assert "\\" not in text


def test_a_misspelt_command_is_told_the_right_one_once(fl_app: Call) -> None:
    assert fl_app("rum").refusal().count("Did you mean 'run'?") == 1


# ---------------------------------------------------------------------------------------------- where results go


def test_a_folder_that_holds_a_run_is_not_touched(fl_app_run: Call, caller: Path) -> None:
    (caller / "old").mkdir()
    (caller / "old/summary.json").write_text("{}")
    before = contents(caller)
    for attempt in (fl_app_run("--out", "old"), fl_app_run(out="old")):
        assert "summary.json exists" in attempt.refusal()
    assert contents(caller) == before


def test_an_output_folder_may_exist_if_no_run_has_been_there(fl_app_run: Call, caller: Path) -> None:
    (caller / "mine").mkdir()
    (caller / "mine/notes.txt").write_text("keep")
    assert fl_app_run("--out", "mine", rounds=1).status == 0
    assert (caller / "mine/notes.txt").read_text() == "keep"
    assert (caller / "mine/summary.json").exists()


@pytest.mark.parametrize("out", ["file", "file/below", "file/below/deeper"])
def test_an_output_folder_that_cannot_be_made_is_refused(out: str, fl_app_run: Call, caller: Path) -> None:
    (caller / "file").write_text("in the way")
    before = contents(caller)
    assert f"--out {caller / out}" in fl_app_run("--out", out).refusal()
    assert contents(caller) == before


def test_results_go_to_a_folder_of_their_own_below_the_caller(fl_app_run: Call, caller: Path) -> None:
    for _ in range(2):
        assert fl_app_run(rounds=1).status == 0
    folders = sorted(path.name for path in (caller / "runs").iterdir())
    assert len(folders) == 2
    assert all("-logistic-fedavg" in name for name in folders)
    assert [path.name for path in caller.iterdir()] == ["runs"]


# --------------------------------------------------------------------------------------------------------- output


def test_with_json_stdout_is_the_summary_and_nothing_else(caller: Path) -> None:
    """In a process of its own, where nothing but the process decides what goes to which stream."""
    settings = ["data=synthetic", "data-args=features=3 examples=30", "num-clients=4", "rounds=3"]
    pairs = [word for setting in settings for word in ("-c", setting)]
    command = [sys.executable, "-m", "fl_app.cli", "run", "--engine", "inline", "--json", "--out", "r", *pairs]
    environment = {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=caller, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads((caller / "r/summary.json").read_text())
    assert sum(line.startswith("round ") for line in done.stderr.splitlines()) == 3
    assert "results in r" in done.stderr


def test_without_json_a_person_is_told_the_end_on_stdout(fl_app_run: Call) -> None:
    outcome = fl_app_run("--out", "r", rounds=2)
    assert outcome.status == 0
    assert "completed after 2 rounds" in outcome.out
    assert "results in r" in outcome.out
    assert "round 1/2" in outcome.err


def test_a_run_that_fails_exits_1_and_says_why_in_one_line(fl_app_run: Call, caller: Path) -> None:
    outcome = fl_app_run("--json", "--out", "r", learning_rate=1e300)
    assert outcome.status == 1
    summary = json.loads(outcome.out)
    assert summary == json.loads((caller / "r/summary.json").read_text())
    assert (summary["status"], summary["stop_reason"]) == ("failed", "too-few-clients")
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: the run failed: {caller / 'r'}: {summary['error']}"]


def test_a_stop_rule_that_fires_is_a_completed_run(fl_app_run: Call) -> None:
    outcome = fl_app_run("--json", rounds=50, stop="target", stop_args="value=0.0")
    summary = json.loads(outcome.out)
    assert outcome.status == 0
    assert (summary["status"], summary["stop_reason"], summary["rounds"]) == ("completed", "target", 1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_status_and_keeps_the_rounds_so_far(
    number: signal.Signals, status: int, fl_app_run: Call, caller: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Progress(fl_app.cli.Progress):
        def round(self, line: Any) -> None:
            super().round(line)
            if line["round"] == 2:
                signal.raise_signal(number)

    monkeypatch.setattr(fl_app.cli, "Progress", Progress)
    outcome = fl_app_run("--json", "--out", "r", rounds=50)
    assert outcome.status == status
    summary = json.loads(outcome.out)
    assert (summary["status"], summary["stop_reason"], summary["rounds"]) == ("stopped", "interrupted", 2)
    assert (caller / "r/model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_c_splits_at_the_first_equals_sign_and_takes_the_value_literally(fl_app_run: Call) -> None:
    outcome = fl_app_run("--json", rounds=1, strategy_args='weighting="uniform" momentum=0.5')
    assert json.loads(outcome.out)["config"]["strategy-args"] == 'weighting="uniform" momentum=0.5'


def test_the_summary_tells_every_key_of_the_configuration(fl_app_run: Call, caller: Path) -> None:
    config = json.loads(fl_app_run("--json", "--out", "r", rounds=2).out)["config"]
    expected = {"rounds": 2, "num-clients": 4, "out": str(caller / "r")}
    assert list(config) == list(RunConfig().values())
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("nodes", [1, 3])
def test_nodes_overrides_the_profile(nodes: int, fl_app_run: Call, caller: Path) -> None:
    summary = json.loads(fl_app_run("--json", "--nodes", nodes, rounds=1).out)
    # What goes down is the params once a node and round, and once more a node to evaluate.
    one = json.loads(fl_app_run("--json", "--nodes", 1, rounds=1).out)
    assert summary["bytes_down"] >= nodes * one["bytes_down"] * 0.8
    assert summary["params_sha256"] == one["params_sha256"]


# ----------------------------------------------------------------------------------------------------------- list


def test_list_has_every_registered_object_with_every_argument(fl_app: Call) -> None:
    outcome = fl_app("list", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    listing = json.loads(outcome.out)
    kinds = ("tasks", "strategies", "data", "partitions", "stops", "sinks")
    groups = dict(zip(kinds, REGISTRIES.values(), strict=True))
    assert {group: [entry["name"] for entry in entries] for group, entries in listing.items()} == {
        group: list(names) for group, names in groups.items()
    }
    for entry in (entry for entries in listing.values() for entry in entries):
        assert set(entry) == {"name", "doc", "args"}
        assert entry["doc"]
        for argument in entry["args"]:
            assert set(argument) == {"name", "type", "default", "doc"}
            assert argument["type"]
            assert argument["doc"]


def test_the_list_for_a_person_names_the_same(fl_app: Call) -> None:
    listing, text = json.loads(fl_app("list", "--json").out), " ".join(fl_app("list").out.split())  # however wrapped
    for group, entries in listing.items():
        assert f"{group}:" in text
        for entry in entries:
            assert " ".join(entry["doc"].split()) in text
            for argument in entry["args"]:
                assert " ".join(f"{argument['name']}: {argument['doc']}".split()) in text
    assert "value: the value to reach (from below; from above for a loss) (float, required)" in text


def test_arguments_that_are_listed_can_be_given(fl_app: Call, fl_app_run: Call) -> None:
    entries = {entry["name"]: entry for entry in json.loads(fl_app("list", "--json").out)["strategies"]}
    text = " ".join(f"{argument['name']}={argument['default']}" for argument in entries["fedavg"]["args"])
    written, silent = (json.loads(fl_app_run("--json", strategy_args=args).out) for args in (text, ""))
    assert written["params_sha256"] == silent["params_sha256"]
