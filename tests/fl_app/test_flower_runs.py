"""The real thing: `fl-app run` and `flwr run` on a SuperLink with Ray, their exit codes, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from runs import run

from fl_app.kept_process import descendants
from fl_app.profiles import flower_config, load_profile
from fl_app.superlink import LocalSuperLink, flower_environment

pytestmark = pytest.mark.flower

PROJECT = Path(__file__).parents[2]
KEYS = {"rounds": 6, "batch-size": 16, "local-epochs": 2}


def command(*words, **keys):
    pairs = [word for key, value in {**KEYS, **keys}.items() for word in ("-c", f"{key}={value}")]
    return [sys.executable, "-m", "fl_app.cli", "run", *words, *pairs]


def environment(root=PROJECT):
    return {**os.environ, "PYTHONPATH": str(root)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What installing the project's wheel leaves in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=PROJECT, capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def left(pids):
    """Those of the processes that are still alive a moment later."""
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [pid for pid in pids if alive(pid)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The same run on the inline engine: what every run below must end in, to the bit."""
    return run(tmp_path_factory.mktemp("inline") / "out", rounds=6)[0]


def test_an_installed_wheel_in_an_empty_folder_runs_like_the_inline_engine_to_the_bit(
    tmp_path, installed, uninterrupted
):
    where = [sys.executable, "-P", "-c", "import fl_app; print(fl_app.__file__)"]
    used = subprocess.run(where, cwd=tmp_path, env=environment(installed), capture_output=True, text=True, check=True)
    assert Path(used.stdout.strip()).is_relative_to(installed)
    words = [*command("--json")]
    words.insert(1, "-P")
    done = subprocess.run(words, cwd=tmp_path, env=environment(installed), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["params_sha256"] == uninterrupted["params_sha256"]
    assert summary["metrics"] == uninterrupted["metrics"]
    folder = Path(summary["out"])
    assert folder.parent == tmp_path / "runs"
    assert folder.name.endswith("-logistic-fedavg")
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert "round 6/6  10 of 10 clients  accuracy" in done.stderr
    assert "\x1b" not in done.stderr  # no terminal, no control codes
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_a_run_that_fails_exits_1_and_says_why_in_one_line(tmp_path):
    done = subprocess.run(
        command("--out", "out", **{"learning-rate": 1e300}),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the run failed: ")
    assert "0 of 10 clients gave a good update" in done.stderr.splitlines()[-1]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["status"], summary["stop_reason"]) == ("failed", "too-few-clients")


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_that_is_terminated_or_killed_leaves_no_process_and_resumes_to_the_same_model(
    tmp_path, blow, uninterrupted
):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("--out", "out"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    rounds = out / "rounds.jsonl"
    while not rounds.exists() or len(rounds.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    family = [p.pid for p in descendants(process.pid)]
    process.send_signal(blow)
    process.communicate(timeout=30)
    assert len(family) > 5
    assert left(family) == []
    done = len(rounds.read_text().splitlines())
    assert 3 <= done < 6, "the run was over before the blow fell"
    if blow == signal.SIGTERM:
        assert process.returncode == 143
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["status"], summary["stop_reason"]) == ("stopped", "interrupted")
        assert summary["rounds"] >= 3
        assert (out / "model.safetensors").exists()
    else:
        assert process.returncode == -signal.SIGKILL
    resumed = subprocess.run(
        [sys.executable, "-m", "fl_app.cli", "run", "--resume", "out", "--engine", "inline", "--nodes", "5", "--json"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)
    assert summary["resumed_from"] in (done - 1, done)
    assert summary["params_sha256"] == uninterrupted["params_sha256"]


def test_plain_flwr_run_works_and_flower_knows_how_it_ended(tmp_path, uninterrupted):
    config = tmp_path / "config.toml"

    def flwr_run(out, **keys):
        pairs = {**KEYS, **keys, "out": f'"{tmp_path / out}"'}
        config.write_text("".join(f"{key} = {value}\n" for key, value in pairs.items()))
        words = ["run", ".", "simulation", "--stream", "--run-config", str(config)]
        return subprocess.run([*flwr, *words], cwd=PROJECT, env=env, capture_output=True, text=True, check=True)

    with LocalSuperLink() as superlink:
        superlink.wait_until_ready()
        env = flower_environment(superlink.home)
        flwr = [sys.executable, "-c", "from flwr.cli.app import app; app()"]
        profile = load_profile("simulation", PROJECT)
        (superlink.home / "config.toml").write_text(flower_config(profile, superlink.address))
        good = flwr_run("good")
        flwr_run("bad", **{"learning-rate": 1e300})
        listing = subprocess.run(
            [*flwr, "list", "simulation", "--format", "json"], env=env, capture_output=True, text=True, check=True
        )
    summary = json.loads((tmp_path / "good" / "summary.json").read_text())
    assert summary["params_sha256"] == uninterrupted["params_sha256"]
    assert "round 6/6  10 of 10 clients" in good.stdout + good.stderr
    states = [entry["status"] for entry in json.loads(listing.stdout)["runs"]]
    assert sorted(states) == ["finished:completed", "finished:failed"]
    assert json.loads((tmp_path / "bad" / "summary.json").read_text())["status"] == "failed"
