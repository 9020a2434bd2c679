"""pyproject-flower.toml: what is read, what is refused, and what Flower gets."""

import tomllib
from pathlib import Path

import pytest
from flwr.cli.flower_config import parse_superlink_connection
from flwr.common.config import parse_config_args
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.supercore.utils import simulation_config_from_json

from fl_app.caller import CALLER
from fl_app.config import RunConfig
from fl_app.job import new_job
from fl_app.profiles import PROFILE_FILE, Profile, chosen_profile, federation_config, flower_config, load_profile

MINE = """
[superlink]
default = "mine"
[superlink.mine]
address = ":local:"
[federation.mine]
num-supernodes = 5
[superlink.clinic]
address = "10.0.0.1:8000"
root-certificates = "certs/ca.crt"
"""


def write(folder: Path, text: str) -> Path:
    (folder / PROFILE_FILE).write_text(text)
    return folder


def test_the_project_brings_a_simulation_and_a_deployment(tmp_path: Path) -> None:
    simulation = load_profile(None, tmp_path)
    assert (simulation.name, simulation.is_local) == ("simulation", True)
    assert simulation.federation == {"num-supernodes": 2, "client-resources-num-cpus": 1}
    deployment = load_profile("deployment", tmp_path)
    assert not deployment.is_local
    assert deployment.connection["root-certificates"] == str(tmp_path / "certs/ca.crt")


def test_the_callers_file_comes_first_and_the_projects_profiles_stay(tmp_path: Path) -> None:
    write(tmp_path, MINE)
    assert load_profile(None, tmp_path).federation == {"num-supernodes": 5}
    assert load_profile("simulation", tmp_path).federation["num-supernodes"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[superlink.x]\naddres = ':local:'", ["'addres'", "did you mean 'address'", PROFILE_FILE]),
        ("[superlink.x]\ninsecure = true", ["no address", "superlink.x"]),
        ("[superlink.x]\naddress = 8000", ["address = 8000", "type str"]),
        ("[superlink.x]\naddress = ':local:'\n[federation.x]\nnum-nodes = 2", ["'num-nodes'", "num-supernodes"]),
        (
            "[superlink.x]\naddress = ':local:'\n[federation.x]\nnum-supernodes = 2.0",
            ["2.0", "type int", "federation.x"],
        ),
        ("[superlink.x]\naddress = ':local:'\n[federation.x]\nnum-supernodes = true", ["True", "type int"]),
        (
            "[superlink.x]\naddress = ':local:'\n[federation.x]\nnum-supernodes = 0",
            ["num-supernodes = 0", "at least 1"],
        ),
        (
            "[superlink.x]\naddress = ':local:'\n[federation.x]\nclient-resources-num-gpus = 1.5",
            ["client-resources-num-gpus = 1.5", "a part of a GPU, such as 0.25, or a whole number"],
        ),
        ("[superlink.x]\naddress = ':local:'\n[federation]\nx = 1", ["federation.x", "no table"]),
        ("superlink = 1", ["superlink is no table"]),
        ("[superlink", ["no valid TOML", PROFILE_FILE]),
    ],
)
def test_a_bad_profile_is_refused_with_what_where_and_remedy(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=PROFILE_FILE) as refusal:
        load_profile("x", write(tmp_path, text))
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert "\n" not in str(refusal.value)


def test_an_unknown_profile_gets_the_near_match(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'simulation'"):
        load_profile("simulaton", tmp_path)


def test_the_number_of_nodes_can_be_overridden_in_a_simulation_only(tmp_path: Path) -> None:
    simulation = load_profile("simulation", tmp_path)
    assert simulation.with_num_supernodes(7).federation["num-supernodes"] == 7
    assert simulation.federation["num-supernodes"] == 2
    with pytest.raises(ValueError, match="at least 1"):
        simulation.with_num_supernodes(0)
    with pytest.raises(ValueError, match="deployment"):
        load_profile("deployment", tmp_path).with_num_supernodes(3)


def test_a_run_that_is_resumed_goes_on_where_it_was_unless_a_profile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CALLER, "")
    fed, elsewhere, run = (tmp_path / name for name in ("fed", "elsewhere", "run"))
    for folder in (fed, elsewhere, run):
        folder.mkdir()
    write(fed, "[superlink.deployment]\naddress = 'fl.example.org:8000'\n")
    config = RunConfig.parse({"data": "csv", "out": str(run)})
    new_job(config, chosen_profile("deployment", None, elsewhere, fed), "flower", elsewhere)
    resumed = chosen_profile(None, None, elsewhere, resume=run)
    assert (resumed.name, resumed.connection["address"]) == ("deployment", "fl.example.org:8000")
    assert chosen_profile("simulation", None, elsewhere, resume=run).is_local


def test_flower_reads_the_connection_that_is_rendered(tmp_path: Path) -> None:
    local = tomllib.loads(flower_config(load_profile("simulation", tmp_path), "127.0.0.1:1234"))
    assert local == {
        "superlink": {"default": "simulation", "simulation": {"address": "127.0.0.1:1234", "insecure": True}}
    }
    remote = tomllib.loads(flower_config(load_profile("deployment", tmp_path)))["superlink"]["deployment"]
    connection = parse_superlink_connection(remote, "deployment")
    assert (connection.address, connection.insecure) == ("127.0.0.1:8000", False)


@pytest.mark.parametrize(
    ("nodes", "cores_each", "cores", "ray_cores"),
    [(2, 1, 1, 1), (2, 1, 2, 2), (2, 1, 32, 2), (5, 1, 2, 2), (4, 2, 32, 8), (2, 4, 2, 4)],
)
def test_ray_gets_one_worker_a_node_and_no_more_than_fit(
    nodes: int, cores_each: int, cores: int, ray_cores: int
) -> None:
    federation = {"num-supernodes": nodes, "client-resources-num-cpus": cores_each}
    rendered = parse_config_args([federation_config(Profile("x", {"address": ":local:"}, federation), cores)])
    assert rendered == {**federation, "init-args-num-cpus": ray_cores}


def test_every_federation_key_reaches_flower_with_its_type() -> None:
    federation: dict[str, str | int | float | bool] = {
        "num-supernodes": 3,
        "client-resources-num-cpus": 2,
        "client-resources-num-gpus": 0.5,
        "backend": "ray",
        "verbose": True,
        "init-args-num-cpus": 4,
        "init-args-num-gpus": 1,
        "init-args-logging-level": "ERROR",
        "init-args-log-to-driver": False,
    }
    rendered = parse_config_args([federation_config(Profile("x", {"address": ":local:"}, federation))])
    assert rendered == federation
    flower = simulation_config_from_json({key.replace("-", "_"): value for key, value in rendered.items()})
    assert {field.name for field, _ in flower.ListFields()} >= {"num_supernodes", "backend", "verbose"}
    assert {field.name.replace("_", "-") for field in SimulationConfig.DESCRIPTOR.fields} == federation.keys()


def test_a_deployment_sets_no_federation_configuration(tmp_path: Path) -> None:
    assert federation_config(load_profile("deployment", tmp_path)) == ""
