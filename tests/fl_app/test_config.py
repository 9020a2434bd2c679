"""The run configuration: one list of keys, every value checked, every refusal one line that says what to do."""

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

import fl_app
from fl_app.config import KEYS, RunConfig, from_text
from fl_app.errors import Refused

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
DEFAULTS: dict[str, Any] = PROJECT["tool"]["flwr"]["app"]["config"]

COUNT, POSITIVE = [-1, -(2**70)], [0, -1]
PENALTY, RATE = [-1e-9, math.nan, math.inf], [0.0, -0.1, math.nan, math.inf]
OUT_OF_RANGE: dict[str, list[Any]] = {
    "num-clients": COUNT,
    "clients-per-round": COUNT,
    "over-selection": PENALTY,
    "rounds": POSITIVE,
    "seed": COUNT,
    "local-epochs": POSITIVE,
    "local-steps": COUNT,
    "finetune-epochs": COUNT,
    "batch-size": COUNT,
    "learning-rate": RATE,
    "l1": PENALTY,
    "l2": PENALTY,
    "standardize": ["", "Global", "globall"],
    "evaluate-every": COUNT,
    "noisy-metrics": [*PENALTY, 1e7],
    "min-clients": POSITIVE,
    "round-timeout-s": RATE,
    "enrol-timeout-s": RATE,
    "min-examples": POSITIVE,
    "test-fraction": [-0.1, 1.0, math.nan, math.inf],
    "threads": POSITIVE,
}

counts, positives = st.integers(0, 2**40), st.integers(1, 2**40)
penalties = st.floats(0, allow_nan=False, allow_infinity=False)
rates = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **{key: st.text() for key, default in DEFAULTS.items() if type(default) is str},
    **dict.fromkeys(("seed", "local-steps", "batch-size", "evaluate-every"), counts),
    **dict.fromkeys(("rounds", "local-epochs", "min-examples", "threads"), positives),
    "num-clients": st.sampled_from([0, 10, 1000]),
    "clients-per-round": st.sampled_from([0, 10]),
    "min-clients": st.integers(1, 10),
    **dict.fromkeys(("learning-rate", "round-timeout-s", "enrol-timeout-s"), rates),
    **dict.fromkeys(("l1", "l2"), penalties),
    "noisy-metrics": st.floats(0, 1e6),
    "standardize": st.sampled_from(["global", "local", "none", "declared", "private"]),
    "test-fraction": st.floats(0, 1, exclude_max=True),
    "resume": st.booleans(),
}
some_values = st.fixed_dictionaries({}, optional=VALUES)


def test_flower_knows_the_same_keys_with_the_same_defaults_of_the_same_types() -> None:
    ours = RunConfig().values()
    assert ours == DEFAULTS
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in DEFAULTS.items()}
    assert list(ours) == list(DEFAULTS)  # in the order in which a person reads them


def test_every_key_says_what_it_means() -> None:
    assert [key for key, field in KEYS.items() if not field.description] == []


def test_the_version_is_that_of_the_project() -> None:
    assert fl_app.__version__ == PROJECT["project"]["version"]


@given(some_values)
def test_a_configuration_is_its_values(values: dict[str, Any]) -> None:
    config = RunConfig.parse(values)
    assert config.values() == {**DEFAULTS, **values}
    assert RunConfig.parse(config.values()) == config
    assert hash(RunConfig.parse(config.values())) == hash(config)


@given(some_values)
def test_what_can_be_said_in_values_can_be_typed(values: dict[str, Any]) -> None:
    config = RunConfig.parse(values)
    assert RunConfig.parse_texts({key: str(value) for key, value in config.values().items()}) == config


@given(some_values, st.text())
def test_what_is_typed_goes_over_the_base(base: dict[str, Any], task: str) -> None:
    before = RunConfig.parse(base).values()
    assert RunConfig.parse_texts({"task": task}, before).values() == {**before, "task": task}


@pytest.mark.parametrize("text", ['"quoted"', "top-k=0.01 bits=8", "a=b=c", " ", "'", "$HOME", "true", "0"])
def test_texts_are_literal(text: str) -> None:
    assert RunConfig.parse_texts({"strategy-args": text}).strategy_args == text


def test_a_whole_number_will_do_for_a_float() -> None:
    for config in (RunConfig.parse({"l2": 1}), RunConfig.parse_texts({"l2": "1"})):
        assert config.l2 == 1.0
        assert type(config.l2) is float


@given(st.sampled_from([key for key in DEFAULTS if len(key) > 4]), st.data())
def test_an_unknown_key_is_refused_with_the_near_match(key: str, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(key) - 1))
    typo = key[:position] + key[position + 1 :]
    assume(typo not in KEYS)
    for attempt in (lambda: RunConfig.parse({typo: 1}), lambda: RunConfig.parse_texts({typo: "1"})):
        with pytest.raises(Refused, match=f"unknown key '{typo}'.*did you mean '{key}'"):
            attempt()


def test_keys_of_the_signature_are_no_keys_of_the_configuration() -> None:
    with pytest.raises(Refused, match="did you mean 'num-clients'"):
        RunConfig.parse({"num_clients": 5})


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_value_of_another_type_is_refused_by_name(key: str) -> None:
    default = DEFAULTS[key]
    wrong: list[Any] = [value for value in ("x", 3, 2.5, True, [], None) if type(value) is not type(default)]
    if type(default) is float:
        wrong.remove(3)
    for value in wrong:
        with pytest.raises(Refused, match=f"^{re.escape(f'{key}={value!r}')}: {key}: "):
            RunConfig.parse({key: value})


@pytest.mark.parametrize("key", [key for key, default in DEFAULTS.items() if type(default) in (int, float, bool)])
def test_a_text_of_another_type_is_refused_by_name(key: str) -> None:
    wrong = ["", "x", "1,5", "0x10", "1 2"] + (["1.5", "1e3"] if type(DEFAULTS[key]) is int else [])
    for text in wrong:
        with pytest.raises(Refused, match=f"^{key}={text}: -c {key}={text}: expected (a whole number|a number|true)"):
            from_text(key, text)


def test_the_table_of_bad_values_is_complete() -> None:
    bounded = [key for key, default in DEFAULTS.items() if type(default) in (int, float)]
    assert [key for key in bounded if key not in OUT_OF_RANGE] == []


@pytest.mark.parametrize("key", OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_name(key: str) -> None:
    for value in OUT_OF_RANGE[key]:
        start = f"^{re.escape(f'{key}={value!r}')}: {key}: "
        with pytest.raises(Refused, match=start):
            RunConfig.parse({key: value})
        with pytest.raises(Refused, match=start):
            RunConfig.parse_texts({key: str(value)})


@pytest.mark.parametrize(
    "values",
    [
        {"num-clients": 3, "min-clients": 4},
        {"clients-per-round": 3, "min-clients": 4},
        {"num-clients": 3, "clients-per-round": 4},
    ],
)
def test_keys_that_contradict_each_other_are_refused_and_both_are_named(values: dict[str, int]) -> None:
    with pytest.raises(Refused) as refusal:
        RunConfig.parse(values)
    assert all(f"{key}={value}" in str(refusal.value) for key, value in values.items())
    largest = max(values.values())
    RunConfig.parse(dict.fromkeys(values, largest))  # equal is possible


@given(st.sampled_from(sorted(DEFAULTS)) | st.text(), st.text())
def test_a_refusal_is_one_line_with_what_where_and_remedy_whatever_was_typed(key: str, text: str) -> None:
    refusal = ""
    try:
        RunConfig.parse_texts({key: text})
    except Refused as error:
        refusal = str(error)
    if refusal:
        assert len(refusal.splitlines()) == 1
        assert len(refusal.split(": ")) >= 3


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        RunConfig().rounds = 5  # type: ignore[misc]


def test_the_digest_covers_every_key_but_where_results_go() -> None:
    other = {str: "local", int: 7, float: 0.25}
    changes = {k: not value if isinstance(value, bool) else other[type(value)] for k, value in DEFAULTS.items()}
    needed = {"over-selection": {"clients-per-round": 7}}

    def digest(key: str, **change: Any) -> str:
        return RunConfig.parse({**needed.get(key, {}), **change}).sha256()

    changed = {key for key, value in changes.items() if digest(key, **{key: value}) != digest(key)}
    assert set(DEFAULTS) - changed == {"out", "resume", "sinks"}
