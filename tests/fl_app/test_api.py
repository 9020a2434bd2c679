"""`fl_app.run` and `fl_app.compare`: the command line from Python, with the same files and the same refusals."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import fl_app as package
from fl_app.errors import Refused
from fl_app.tensors import params_sha256

PROJECT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "engine": "inline",
    "data": "synthetic",
    "data_args": {"features": 3, "examples": 30, "label-skew": 0.5},
    "num_clients": 4,
    "rounds": 3,
    "batch_size": 8,
}
Call = Callable[..., Any]


def test_a_result_holds_what_the_files_of_the_run_hold(caller: Path) -> None:
    result = package.run(**SMALL, out="r")
    assert result.out == caller / "r"
    assert result.summary == json.loads((caller / "r/summary.json").read_text())
    assert result.sites == json.loads((caller / "r/sites.json").read_text())
    assert result.model == json.loads((caller / "r/model.json").read_text())
    assert result.rounds == [json.loads(line) for line in (caller / "r/rounds.jsonl").read_text().splitlines()]
    saved = load_file(caller / "r/model.safetensors")
    assert set(saved) == set(result.params)
    assert all((saved[name] == array).all() for name, array in result.params.items())
    digest = params_sha256(list(result.params), tuple(result.params.values()))
    assert digest == result.summary["params_sha256"]
    assert (result.status, result.metrics) == ("completed", result.summary["metrics"])
    assert result.baselines == result.summary["baselines"]
    assert repr(result).startswith("<Result: completed after 3 rounds, accuracy 0.")


def test_a_run_from_python_equals_that_of_the_command_line_to_the_bit(caller: Path, fl_app_run: Call) -> None:
    told = json.loads(fl_app_run("--json", partition="iid", learning_rate=1, strategy_args="momentum=0.5").out)
    result = package.run({"strategy-args": {"momentum": 0.5}, "learning-rate": 0.3}, **SMALL, learning_rate=1, nodes=3)
    assert result.summary["params_sha256"] == told["params_sha256"]
    assert result.summary["config"]["learning-rate"] == 1.0


def test_values_may_be_mappings_paths_and_numpy_numbers(caller: Path) -> None:
    result = package.run({"l2": np.float64(0.5), "seed": np.int64(3)}, **SMALL, out=Path("there"))
    config = result.summary["config"]
    assert (config["l2"], config["seed"], config["out"]) == (0.5, 3, str(caller / "there"))
    assert config["data-args"] == "features=3 examples=30 label-skew=0.5"


def test_arguments_with_blanks_keep_them(caller: Path) -> None:
    folder = caller / "my data"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.csv").write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(40)))
    result = package.run(engine="inline", data="csv", data_args={"path": folder, "label": "y"}, rounds=2)
    assert result.summary["clients"] == 2


def test_every_round_is_told_as_it_comes(caller: Path) -> None:
    lines: list[Any] = []
    result = package.run(**SMALL, on_round=lines.append)
    assert lines == result.rounds


def test_a_run_goes_on_in_its_folder(caller: Path) -> None:
    first = package.run(**SMALL, out="r")
    again = package.run(resume=first.out, rounds=5, engine="inline")
    straight = package.run(**{**SMALL, "rounds": 5})
    assert again.summary["resumed_from"] == 3
    assert again.summary["params_sha256"] == straight.summary["params_sha256"]
    with pytest.raises(Refused, match="takes all but rounds from its folder"):
        package.run(resume=first.out, l2=0.5, engine="inline")


def test_a_run_that_fails_is_a_result(caller: Path) -> None:
    result = package.run(**SMALL, learning_rate=1e300)
    assert result.status == "failed"
    assert "0 of 4 clients gave a good update" in result.summary["error"]
    assert result.rounds == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"roudns": 3}, "did you mean 'rounds'"),
        ({"rounds": "3"}, "rounds='3'"),
        ({"rounds": 3.5}, "rounds=3.5"),
        ({"l2": True}, "l2=True"),
        ({"rounds": None}, "give a text or a number"),
        ({"rounds": [3]}, "give a text or a number"),
        ({"task": {"a": 1}}, "give a text or a number"),
        ({"strategy_args": {"momentm": 0.5}}, "did you mean 'momentum'"),
        ({"strategy": "fedavgg"}, "did you mean 'fedavg'"),
        ({"engine": "spark"}, "expected flower or inline"),
        ({"nodes": 0}, "at least 1"),
        ({"profile": "deployment"}, "a deployment runs on its own machines"),
        ({"profile": "simulatoin"}, "did you mean 'simulation'"),
        ({"profile": "deployment", "profiles": "nowhere"}, "fl-app deploy init writes one"),
        ({"resume": "nowhere", "config": None}, "nowhere"),
        ({"config": {"resume": True}}, "give the folder of the run"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused_before_the_start(keys: dict[str, Any], said: str, caller: Path) -> None:
    settings = {"engine": "inline"} if "resume" in keys else SMALL
    with pytest.raises(Refused, match=re.escape(said)):
        package.run(**{**settings, **keys})
    assert list(caller.iterdir()) == []


def test_a_run_works_in_any_thread(caller: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(package.run(**SMALL)))
    thread.start()
    thread.join()
    assert results[0].status == "completed"


def test_configurations_are_compared_and_each_run_is_told(caller: Path) -> None:
    ended: list[tuple[str, str]] = []
    found = package.compare(
        {"plain": {}, "strong": {"l2": 1}},
        **SMALL,
        seeds=2,
        out="c",
        on_end=lambda name, summary: ended.append((name, summary["status"])),
    )
    assert found == json.loads((caller / "c/comparison.json").read_text())
    assert ended == [(name, "completed") for name in ("plain", "plain", "strong", "strong")]
    alone = package.run(**SMALL, l2=1, seed=1)
    assert found["configurations"][1]["runs"][1]["params_sha256"] == alone.summary["params_sha256"]


def test_configurations_in_a_list_are_named_by_their_keys(caller: Path) -> None:
    found = package.compare([{}, {"strategy_args": {"momentum": 0.5}}], **SMALL, seeds=1)
    assert [c["name"] for c in found["configurations"]] == ["", "strategy-args=momentum=0.5"]
    with pytest.raises(Refused, match="two configurations are the same"):
        package.compare([{"l2": 1}, {"l2": 1.0}], **SMALL)


def test_a_result_can_be_read_later_and_an_unfinished_one_is_refused(caller: Path) -> None:
    result = package.run(**SMALL, out="r")
    assert package.Result.read("r").summary == result.summary
    with pytest.raises(Refused, match="no finished run"):
        package.Result.read(caller)


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, fl_app; print(*(name for name in sys.modules if name.split('.')[0] in {'numpy', 'flwr'}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    with pytest.raises(AttributeError, match="has no attribute 'ruhn'"):
        package.ruhn  # noqa: B018


def test_the_examples_of_the_document_run(caller: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (PROJECT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)  # noqa: S102 - our own document
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("completed 0.9")
    assert printed[2:5] == ["6", "7", "8"]
