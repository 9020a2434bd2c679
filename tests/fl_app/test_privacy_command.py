"""`fl-app privacy calibrate`: the least noise that keeps an epsilon, for a script and for a person."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import contents

from privacy.accounting import Release, Sampling, spent

Call = Callable[..., Any]

POISSON = "--epsilon 2 --delta 1e-5 --rounds 50 --sampling poisson --rate 0.1"
FIXED = "--epsilon 2 --delta 1e-5 --rounds 20 --sampling fixed --rate 0.1 --population 96"
NONE = "--epsilon 2 --delta 1e-5 --rounds 20 --sampling none"


@pytest.fixture
def calibrate(fl_app: Call, caller: Path) -> Call:
    """calibrate("--epsilon 1 ...", "--json"), which writes nothing."""

    def call(line: str, *words: str) -> Any:
        outcome = fl_app("privacy", "calibrate", *line.split(), *words)
        assert contents(caller) == {}
        return outcome

    return call


@pytest.mark.parametrize(
    ("line", "relation", "sampling", "rounds"),
    [
        (POISSON, "add-remove", Sampling("poisson", 0.1), 50),
        (FIXED, "replace-one", Sampling("fixed", size=10, population=96), 20),
        (NONE, "add-remove", Sampling("none"), 20),
    ],
    ids=["poisson", "fixed", "none"],
)
@pytest.mark.parametrize("unit", ["client", "record"])
def test_with_json_stdout_is_the_noise_and_what_it_costs_by_either_accountant(
    line: str, relation: Any, sampling: Sampling, rounds: int, unit: str, calibrate: Call
) -> None:
    outcome = calibrate(line, "--unit", unit, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    cost = spent([Release("sum", found["noise_multiplier"], sampling, rounds)], relation, 1e-5)
    assert found == {
        "noise_multiplier": found["noise_multiplier"],
        "epsilon_pld": cost.pld,
        "epsilon_rdp": cost.rdp,
        "unit": unit,
        "relation": relation,
    }
    assert list(found) == ["noise_multiplier", "epsilon_pld", "epsilon_rdp", "unit", "relation"]
    assert 1.999 < found["epsilon_pld"] <= 2 < found["epsilon_rdp"]


def test_the_unit_is_the_client_unless_said_otherwise(calibrate: Call) -> None:
    assert json.loads(calibrate(NONE, "--json").out)["unit"] == "client"


def test_where_loss_distributions_cannot_be_computed_their_epsilon_is_null(calibrate: Call) -> None:
    line = "--epsilon 1 --delta 1e-15 --rounds 5 --sampling poisson --rate 0.1"
    found = json.loads(calibrate(line, "--json").out)
    assert found["epsilon_pld"] is None
    assert 0.999 < found["epsilon_rdp"] <= 1
    assert "PLD cannot be computed here" in calibrate(line).out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (POISSON, ["each takes part with probability 0.1", "one client joins or leaves (add-remove)"]),
        (FIXED, ["10 of 96 take part in each", "one client is replaced by another (replace-one)"]),
        (NONE, ["everyone takes part", "one client joins or leaves (add-remove)"]),
    ],
    ids=["poisson", "fixed", "none"],
)
def test_a_person_is_told_in_words_what_the_number_means(line: str, words: list[str], calibrate: Call) -> None:
    outcome = calibrate(line)
    assert (outcome.status, outcome.err) == (0, "")
    assert all(len(shown) <= 80 for shown in outcome.out.splitlines())
    noise = json.loads(calibrate(line, "--json").out)["noise_multiplier"]
    text = " ".join(outcome.out.split())
    for expected in (
        f"noise multiplier {noise:g}: in each of",
        "the norm to which one client's contribution is clipped",
        "epsilon by privacy loss distributions (PLD): 2 ",
        "epsilon by Renyi divergences (RDP): ",
        "at delta 1e-05",
        *words,
    ):
        assert expected in text


def test_a_person_who_protects_records_reads_of_records(calibrate: Call) -> None:
    text = calibrate(POISSON, "--unit", "record").out
    assert "over the records" in " ".join(text.split())
    assert "client" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--sampling uniform", "expected poisson, fixed, none"),
        ("--sampling none", "leave --rate out"),
        ("--sampling fixed", "add --population N"),
        ("--sampling fixed --population 3", "is nobody"),
        ("--population 30", "leave --population out"),
        ("--rate 0", "above 0"),
        ("--rate 1.5", "at most 1"),
        ("--rate nan", "above 0"),
        ("--rounds 0", "1 or more"),
        ("--epsilon 0", "epsilon above 0"),
        ("--epsilon nan", "epsilon above 0"),
        ("--epsilon inf", "epsilon above 0"),
        ("--delta 0", "between 0 and 1"),
        ("--delta 1", "between 0 and 1"),
        ("--unit node", "client or record"),
        ("--epsilon 1e-9 --delta 1e-13", "fewer rounds, a lower sampling rate, or a larger epsilon or delta"),
        ("--epsilon much", "is not a valid float"),
        ("--bogus", "no such option"),
    ],
)
@pytest.mark.parametrize("json_too", [[], ["--json"]], ids=["", "json"])
def test_what_cannot_be_calibrated_is_one_line(change: str, words: str, json_too: list[str], calibrate: Call) -> None:
    assert words.lower() in calibrate(f"{POISSON} {change}", *json_too).refusal().lower()


def test_a_missing_option_is_named(calibrate: Call) -> None:
    assert "--delta" in calibrate("--epsilon 1 --rounds 5 --sampling none").refusal()


def test_no_command_of_privacy_shows_the_help_and_calls_nothing_an_error(fl_app: Call) -> None:
    outcome = fl_app("privacy")
    assert outcome.status == 2
    assert "calibrate" in outcome.out + outcome.err
    assert "error:" not in outcome.err


def test_help_is_no_error(fl_app: Call) -> None:
    for words in (["privacy", "--help"], ["privacy", "calibrate", "--help"]):
        outcome = fl_app(*words)
        assert (outcome.status, outcome.err) == (0, "")
        assert "Usage: " in outcome.out
