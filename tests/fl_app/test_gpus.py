"""Which GPUs the workers of a simulation get, and what is refused. Without a GPU at hand, Ray is told of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fl_app.errors import Refused
from fl_app.gpus import check_gpus
from fl_app.profiles import GPUS_EACH, PROFILE_FILE, Profile

PROJECT = Path(__file__).parents[2]


def simulation(**federation: float) -> Profile:
    return Profile("simulation", {"address": ":local:"}, {k.replace("_", "-"): v for k, v in federation.items()})


def there_are(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(("each", "gpus"), [(0.0, 0), (0.25, 1), (1, 1), (2, 2), (1, 8)])
def test_workers_may_have_the_gpus_that_are_there(monkeypatch: pytest.MonkeyPatch, each: float, gpus: int) -> None:
    there_are(monkeypatch, gpus)
    check_gpus(simulation(client_resources_num_gpus=each), "auto")
    check_gpus(simulation(), "cuda:1")


@pytest.mark.parametrize(("each", "gpus"), [(0.25, 0), (1, 0), (2, 1)])
def test_gpus_that_are_not_there_are_refused_before_the_start(
    monkeypatch: pytest.MonkeyPatch, each: float, gpus: int
) -> None:
    there_are(monkeypatch, gpus)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    refused = f"there are not so many GPUs: {GPUS_EACH} = {each:g} in profile simulation: PyTorch sees {gpus} here: "
    with pytest.raises(Refused, match=refused):
        check_gpus(simulation(client_resources_num_gpus=each), "auto")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(Refused, match="PyTorch is built without CUDA"):
        check_gpus(simulation(client_resources_num_gpus=each), "auto")


@pytest.mark.parametrize(
    ("each", "device", "seen"), [(0.5, "cuda:0", True), (0.5, "cuda:1", False), (2, "cuda:1", True)]
)
def test_a_worker_with_gpus_of_its_own_counts_them_from_zero(
    monkeypatch: pytest.MonkeyPatch, each: float, device: str, seen: bool
) -> None:
    there_are(monkeypatch, 8)
    if seen:
        check_gpus(simulation(client_resources_num_gpus=each), device)
        return
    with pytest.raises(Refused, match=f"device={device}: .* from cuda:0 on: use device=auto"):
        check_gpus(simulation(client_resources_num_gpus=each), device)


NET = """
import os, sys
from pathlib import Path
from torch import nn

class Net(nn.Linear):
    def forward(self, x):
        if self.training and "default_worker" in sys.argv[0]:  # Ray's
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
            Path(FOLDER, f"{x.device.type} sees {seen} in {os.getpid()}").touch()
        return super().forward(x)

def make(features, outputs):
    return Net(features, outputs)
"""


@pytest.mark.flower
@pytest.mark.parametrize(("each", "sees"), [(None, "all"), (0.5, "0")])
def test_workers_share_one_gpu_by_its_parts_and_without_any_of_their_own_see_all(
    tmp_path: Path, each: float | None, sees: str
) -> None:
    federation = ["num-supernodes = 2", "client-resources-num-cpus = 1"]
    federation += ["init-args-num-cpus = 2"]  # a worker for each node, however few cores there are
    if each is not None:
        federation += [f"{GPUS_EACH} = {each}"] + ([] if torch.cuda.is_available() else ["init-args-num-gpus = 1"])
    profile = ['[superlink.simulation]\naddress = ":local:"', "[federation.simulation]", *federation]
    (tmp_path / PROFILE_FILE).write_text("\n".join(profile))
    (tmp_path / "net.py").write_text(NET.replace("FOLDER", repr(str(tmp_path / "seen"))))
    (tmp_path / "seen").mkdir()
    words = ["task=torch", "task-args=model=net:make", "data=digits", "rounds=2", "baselines=false", "num-clients=4"]
    command = [sys.executable, "-m", "fl_app.cli", "run", "simulation", "--out", "out"]
    command += [word for each_word in words for word in ("-c", each_word)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = [path.name.rsplit(" in ", 1) for path in (tmp_path / "seen").iterdir()]
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    assert {what for what, _ in seen} == {f"{kind} sees {sees}"}
    assert len({pid for _, pid in seen}) == 2
