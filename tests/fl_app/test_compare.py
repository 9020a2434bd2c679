"""`fl-app compare`: many runs in one start of the engine, each the same to the bit as if it had been run alone."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from test_page import Page

import fl_app.commands.compare
from fl_app import client_app, server_app
from fl_app.averages import table_lines
from fl_app.config import RunConfig
from fl_app.errors import Refused
from fl_app.inline import InlineGrid
from fl_app.page.comparison import comparison_page
from fl_app.variants import variant_config, variants_text

PROJECT = Path(__file__).parents[2]
Call = Callable[..., Any]

SMALL = {
    "data": "synthetic",
    "data-args": "features=3 examples=30 label-skew=0.5",
    "num-clients": 4,
    "rounds": 3,
    "batch-size": 8,
}


def pairs(**changes: Any) -> list[str]:
    settings = {**SMALL, **{key.replace("_", "-"): value for key, value in changes.items()}}
    return [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]


@pytest.fixture
def compare(fl_app: Call) -> Call:
    """compare("--config", "rounds=2", seed=4): `fl-app compare` on the inline engine with the small problem."""
    return lambda *words, **changes: fl_app("compare", "--engine", "inline", *pairs(**changes), *words)


def configured(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--config", text)]


# --------------------------------------------------------------------------------------------------------- results


def test_every_run_is_the_same_to_the_bit_as_alone(compare: Call, fl_app_run: Call, caller: Path) -> None:
    texts = {
        "": {},
        'strategy-args="momentum=0.9" rounds=4': {"strategy_args": "momentum=0.9", "rounds": 4},
        "data=breast-cancer data-args= num-clients=3 solver=lbfgs batch-size=0": {
            "data": "breast-cancer",
            "data_args": "",
            "num_clients": 3,
            "solver": "lbfgs",
            "batch_size": 0,
        },
    }
    found = json.loads(compare("--json", "--seeds", 2, "--out", "c", *configured(*texts), seed=5).out)
    assert [c["name"] for c in found["configurations"]] == list(texts)
    for configuration in found["configurations"]:
        assert [run["seed"] for run in configuration["runs"]] == [5, 6]
        for run in configuration["runs"]:
            alone = json.loads(fl_app_run("--json", seed=run["seed"], **texts[configuration["name"]]).out)
            for key in ("params_sha256", "metrics", "baselines", "rounds", "payload_up", "payload_down"):
                assert run[key] == alone[key], key


def test_every_run_leaves_a_folder_of_its_own_that_can_be_resumed(compare: Call, fl_app: Call, caller: Path) -> None:
    compare("--seeds", 1, "--out", "c", *configured("", "rounds=2 l2=0.5"))
    folders = [caller / "c/01-common/seed-0", caller / "c/02-rounds-2-l2-0.5/seed-0"]
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["config"]["out"] == summary["out"] == str(folder)
        assert summary["config"]["variants"] == ""
        assert {"report.html", "model.json", "rounds.jsonl", "sites.json"} <= {path.name for path in folder.iterdir()}
    resumed = fl_app("run", "--engine", "inline", "--resume", folders[1], "-c", "rounds=4", "--json")
    assert json.loads(resumed.out)["resumed_from"] == 2


def test_the_result_holds_mean_and_sample_deviation_of_the_runs(compare: Call, caller: Path) -> None:
    outcome = compare("--json", "--out", "c", *configured("l2=0.5"))
    found = json.loads(outcome.out)
    assert outcome.status == 0
    assert found == json.loads((caller / "c/comparison.json").read_text())
    assert set(found) == {"schema", "configurations", "config", "versions", "out"}
    assert (found["schema"], found["out"]) == (1, str(caller / "c"))
    (configuration,) = found["configurations"]
    assert configuration["overrides"] == {"l2": 0.5}
    assert found["config"] == RunConfig.parse({**SMALL, "out": str(caller / "c")}).values()
    accuracies = [run["metrics"]["accuracy"] for run in configuration["runs"]]
    assert len(accuracies) == 3
    assert configuration["mean"]["accuracy"] == pytest.approx(mean(accuracies))
    assert configuration["sd"]["accuracy"] == pytest.approx(stdev(accuracies))


def test_one_seed_has_a_mean_and_no_deviation(compare: Call) -> None:
    (configuration,) = json.loads(compare("--json", "--seeds", 1).out)["configurations"]
    assert configuration["name"] == ""
    assert configuration["mean"]["accuracy"] == configuration["runs"][0]["metrics"]["accuracy"]
    assert set(configuration["sd"].values()) == {None}


def test_a_run_that_fails_is_reported_and_the_others_go_on(compare: Call, caller: Path) -> None:
    outcome = compare("--json", "--seeds", 2, "--out", "c", *configured("", "learning-rate=1e300", "l2=0.5"))
    assert outcome.status == 1
    found = json.loads(outcome.out)
    assert [[run["status"] for run in c["runs"]] for c in found["configurations"]] == [
        ["completed"] * 2,
        ["failed"] * 2,
        ["completed"] * 2,
    ]
    assert found["configurations"][1]["mean"] == {}
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert errors[0].startswith('error: the run failed: configuration "learning-rate=1e300" with seed 0: ')
    assert "learning-rate=1e300" in (caller / "c/comparison.html").read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_comparison_with_its_status_and_keeps_the_runs_so_far(
    number: signal.Signals, status: int, compare: Call, caller: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watch(fl_app.commands.compare.Watch):
        def round(self, run: Any, line: Any) -> None:
            super().round(run, line)
            if run.config.seed == 1 and line["round"] == 2:
                signal.raise_signal(number)

    monkeypatch.setattr(fl_app.commands.compare, "Watch", Watch)
    outcome = compare("--json", "--out", "c")
    assert outcome.status == status
    (configuration,) = json.loads(outcome.out)["configurations"]
    assert [run["status"] for run in configuration["runs"]] == ["completed", "stopped", "not-run"]
    assert [run["rounds"] for run in configuration["runs"]] == [3, 2, None]
    assert configuration["mean"]["accuracy"] == configuration["runs"][0]["metrics"]["accuracy"]
    assert (caller / "c/comparison.html").exists()


def test_file_names_are_taken_from_the_callers_folder(compare: Call, caller: Path) -> None:
    rows = "x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(40))
    for name in ("a.csv", "b.csv"):
        (caller / name).write_text(rows)
    text = "data=csv data-args='path=b.csv label=y' num-clients=2 rounds=2 min-examples=5"
    found = json.loads(compare("--json", "--seeds", 1, *configured(text)).out)
    (configuration,) = found["configurations"]
    assert str(caller / "b.csv") in configuration["overrides"]["data-args"]
    assert configuration["runs"][0]["status"] == "completed"


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (configured("roudns=3"), 'configuration "roudns=3"'),
        (configured("", "rounds=many"), 'configuration "rounds=many"'),
        (configured("", "strategy=fedavgg"), "did you mean 'fedavg'"),
        (configured("strategy=fedavgg l2=1"), 'configuration "strategy=fedavgg l2=1"'),
        (configured("min-clients=11 num-clients=10"), "can never be reached"),
        (configured("l1=0.1 solver=newton"), 'configuration "l1=0.1 solver=newton"'),
        (configured("out=there"), "'out' cannot differ"),
        (configured("resume=true"), "'resume' cannot differ"),
        (configured("variants=[]"), "'variants' cannot differ"),
        (configured("seed=3"), "--seeds how many there are"),
        (configured("rounds=3", "rounds=3"), "is given twice"),
        (configured("rounds"), "is no KEY=VALUE"),
        (configured("strategy-args='"), "unbalanced quotes"),
        (["-c", "resume=true"], "starts from the beginning"),
        (["-c", "variants=[]"], "set by fl-app compare"),
        (["-c", "out=a", "--out", "b"], "two output folders"),
        (["--out", ""], "no folder"),
        (["--seeds", "0"], "0 seeds"),
        (["--engine", "spark"], "expected flower or inline"),
        (["deployment"], "a deployment runs on its own machines"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_one_line_and_nothing_is_written(
    words: list[str], said: str, compare: Call, caller: Path
) -> None:
    assert said in compare(*words).refusal()
    assert list(caller.iterdir()) == []


def test_a_folder_that_holds_a_comparison_is_not_touched(compare: Call, caller: Path) -> None:
    (caller / "c").mkdir()
    (caller / "c/comparison.json").write_text("{}")
    assert "comparison.json exists" in compare("--out", "c").refusal()
    assert [path.name for path in (caller / "c").iterdir()] == ["comparison.json"]


def test_a_run_does_not_take_variants(fl_app_run: Call, caller: Path) -> None:
    assert "use fl-app compare" in fl_app_run(variants='[{"rounds": 1}]').refusal()
    assert list(caller.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ variants


def test_server_and_nodes_build_the_same_configuration_of_a_variant() -> None:
    common = RunConfig.parse({**SMALL, "out": "/here"})
    own = common.model_copy(update={"out": "/here/01", "rounds": 7, "strategy_args": "momentum=0.5"})
    submitted = common.model_copy(update={"variants": variants_text(common, [common, own])})
    assert variant_config(submitted.values(), 1) == own
    assert variant_config(submitted.values(), 0) == common
    assert variant_config(common.values(), None) == common


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", "no json"])
def test_a_list_of_variants_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="variants"):
        variant_config({**SMALL, "variants": text}, 0)


def test_every_message_of_a_variant_says_which_it_is(tmp_path: Path) -> None:
    seen: list[tuple[str, Any]] = []

    class Listening(InlineGrid):
        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            seen.extend((m.metadata.message_type, dict(m.content["config"]).get("variant")) for m in messages)
            return super().push_messages(messages)

    common = RunConfig.parse({**SMALL, "out": str(tmp_path)})
    own = [common.model_copy(update={"out": str(tmp_path / name)}) for name in "ab"]
    submitted = common.model_copy(update={"variants": variants_text(common, own)})
    grid = Listening(client_app.app, submitted.values(), 2)
    server_app.serve(grid, own[1], variant=1)
    assert {kind for kind, _ in seen} >= {"query.enrol", "train"}
    assert {variant for _, variant in seen} == {1}


# -------------------------------------------------------------------------------------------------------- output


def test_the_table_has_at_most_80_columns_and_cuts_long_names(compare: Call) -> None:
    long = "learning-rate=0.05 l2=0.001 lr-schedule='step every=10 factor=0.5' local-epochs=3"
    outcome = compare("--seeds", 2, *configured("", long))
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert all(len(line) <= 80 for line in [*lines, *outcome.err.splitlines()])
    assert re.match(r"configuration +n +accuracy .*payload  seconds$", lines[0])
    assert re.match(r"\(as given\) +2 +0\.\d{3} ± 0\.\d{3} ", lines[1])
    assert re.match(r"learning-rate=.*\.\.\.  2 ", lines[2])
    assert sum(line.startswith("run ") for line in outcome.err.splitlines()) == 4


def made_up(name: str = "<script>alert(1)</script>", runs: int = 2, out: str = "/somewhere") -> dict[str, Any]:
    run = {
        "status": "completed",
        "metrics": {"accuracy": 0.9, "log_loss": None},
        "baselines": None,
        "rounds": 2,
        "seconds": {"startup": 1.0, "rounds": 2.0, "total": 3.0},
        "payload_up": 1000,
        "payload_down": 2000,
        "params_sha256": "ab" * 32,
        "error": None,
    }
    runs_ = [{"seed": seed, **run, "out": f"{out}/01/seed-{seed}"} for seed in range(runs)]
    return {
        "schema": 1,
        "configurations": [
            {"name": name, "overrides": {}, "runs": runs_, "mean": {"accuracy": 0.9}, "sd": {"accuracy": 0.0}},
            {"name": "failed", "overrides": {}, "runs": [], "mean": {}, "sd": {}},
        ],
        "config": RunConfig().values(),
        "versions": {"app": "1"},
        "out": out,
    }


def rounds(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    runs = [run for c in found["configurations"] for run in c["runs"]]
    return {
        run["out"]: [
            {"round": number, "metrics": {"accuracy": 0.5 + 0.1 * number + 0.01 * run["seed"]}, "train_metrics": None}
            for number in range(1, 3 + run["seed"])
        ]
        for run in runs
    }


def test_the_page_escapes_whatever_a_configuration_is_called() -> None:
    found = made_up()
    text = comparison_page(found, rounds(found))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    addresses = [v for _, found_ in Page(text).elements for k, v in found_.items() if k in ("href", "src")]
    assert set(addresses) == {"01/seed-0/report.html", "01/seed-1/report.html"}


def test_the_best_mean_is_told_with_the_number_of_seeds_for_which_it_is_ahead() -> None:
    found = made_up("one", runs=4)
    runs = found["configurations"][0]["runs"]
    for configuration, values in zip(found["configurations"], ([0.9, 0.7, 0.8, 0.5], [0.6, 0.7, 0.9]), strict=True):
        pairs = zip(runs, values, strict=False)  # the second configuration lacks the last seed
        configuration["runs"] = [{**run, "metrics": {"accuracy": value}} for run, value in pairs]
    found["configurations"][1]["mean"] = {"accuracy": 0.73}  # below the 0.9 of the first
    assert "It is ahead of all others for 1 of 3 seeds." in Page(comparison_page(found, {})).text()


def test_the_plot_has_a_line_and_an_area_for_each_configuration_as_far_as_all_seeds_go() -> None:
    found = made_up("one")
    text = comparison_page(found, rounds(found))
    assert text.count('class="line c0"') == 2  # the drawing and its key
    assert text.count("<polygon ") == 1
    assert re.findall(r'data-round="(\d+)"', text) == ["1", "2"]
    values = [float(value) for value in re.findall(r'data-value="([^"]+)"', text)]
    assert values == pytest.approx([0.605, 0.705])


def test_a_page_and_a_table_without_any_result_are_possible() -> None:
    found = made_up(runs=0)
    found["configurations"] = found["configurations"][1:]
    assert "nothing to compare" in comparison_page(found, {})
    assert table_lines(found)[1].split() == ["failed", "0"]


# -------------------------------------------------------------------------------------------------- on real Flower


@pytest.mark.flower
def test_on_flower_all_runs_share_one_superlink_and_equal_the_inline_engine_to_the_bit(tmp_path: Path) -> None:
    def command(out: str, *words: str) -> dict[str, Any]:
        texts = configured("", "strategy=fednewton rounds=2")
        line = [sys.executable, "-m", "fl_app.cli", "compare", "--json", "--seeds", "2", "--out", out, *words]
        done = subprocess.run(
            [*line, *pairs(), *texts],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert sum(row.startswith("run ") for row in done.stderr.splitlines()) == 4
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    inline, flower = command("inline", "--engine", "inline"), command("flower")

    def hashes(found: dict[str, Any]) -> list[str]:
        return [run["params_sha256"] for c in found["configurations"] for run in c["runs"]]

    assert hashes(flower) == hashes(inline)
    assert len(set(hashes(flower))) == 4
    log = (tmp_path / "flower/flower.log").read_text()
    assert log.count("Successfully started run") == 1
    assert not list((tmp_path / "flower").rglob("seed-*/flower.log"))
