"""Names and "key=value" strings become objects by the signature of their constructors, or one line that helps."""

import shlex
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.errors import Refused
from fl_app.registry import REGISTRIES, arguments, build, resolve, summary_line
from fl_app.sinks import Sink
from strategies.base import Basics, ComposedStrategy
from strategies.stopping import Rounds, StopRule
from tasks.base import Schema, Task
from tasks.data.base import Dataset, Partitioner

EVERY = [(kind, name) for kind, names in REGISTRIES.items() for name in names]
MISSPELT = [(kind, name) for kind, name in EVERY if name[:-1] not in REGISTRIES[kind]]  # fedavgm has a letter to spare
BASES = {
    "task": Task,
    "strategy": ComposedStrategy,
    "data": Dataset,
    "partition": Partitioner,
    "stop": StopRule,
    "sink": Sink,
}


class Thing(Rounds):
    """A thing for these tests.

    Args:
        whole_number: of things
        share: of all things,
            which is a long story
        switch: on or off
        colour: as seen
        name: any text
    """

    def __init__(
        self,
        *positional: Any,
        whole_number: int,
        share: float = 0.5,
        switch: bool = False,
        colour: Literal["red", "green"] = "red",
        name: str = "",
    ) -> None:
        if share < 0:
            raise ValueError(f"share={share}: expected 0 or more")
        self.positional = positional
        self.values = {
            "whole-number": whole_number,
            "share": share,
            "switch": switch,
            "colour": colour,
            "name": name,
        }


class Plain(Rounds):
    """Takes nothing."""


NO_CLASS = 3
THING, PLAIN = f"{__name__}:Thing", f"{__name__}:Plain"


@given(
    st.fixed_dictionaries(
        {"whole-number": st.integers(-(10**9), 10**9)},
        optional={
            "share": st.floats(0, allow_infinity=False),
            "switch": st.booleans(),
            "colour": st.sampled_from(["red", "green"]),
            "name": st.text(),
        },
    ),
    st.randoms(),
)
def test_what_is_written_in_words_is_what_the_constructor_gets(values: dict[str, Any], random: Any) -> None:
    words = [shlex.quote(f"{name}={value}") for name, value in values.items()]
    random.shuffle(words)
    thing = build("stop", THING, " ".join(words), "first", 2)
    defaults = {"share": 0.5, "switch": False, "colour": "red", "name": ""}
    assert thing.values == {**defaults, **values}
    assert [type(v) for v in thing.values.values()] == [int, float, bool, str, str]
    assert thing.positional == ("first", 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [("name='two words'", "two words"), ('name="two words"', "two words"), ("name=a=b", "a=b"), ("name=", "")],
)
def test_quotes_hold_words_together_and_the_first_equals_sign_divides(text: str, value: str) -> None:
    assert build("stop", THING, f"whole-number=1 {text}").values["name"] == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("whole-nmber=3", "unknown argument 'whole-nmber' of .*did you mean 'whole-number'"),
        ("whole_number=3", "unknown argument 'whole_number' of .*did you mean 'whole-number'"),
        ("whole-number=x", "whole-number=x: .*expected int"),
        ("whole-number=1.5", "whole-number=1.5: .*expected int"),
        ("whole-number=", "whole-number=: .*expected int"),
        ("whole-number=1 share=half", "share=half: .*expected float"),
        ("whole-number=1 switch=perhaps", "switch=perhaps: .*expected bool"),
        ("whole-number=1 colour=blue", r"colour=blue: .*expected red\|green"),
        ("whole-number=1 whole-number=2", "'whole-number' is given twice"),
        ("", "needs 'whole-number': .*add stop-args="),
        ("whole-number", "'whole-number' is no key=value"),
        ("whole-number=1 =3", "'=3' is no key=value"),
        ("name='open whole-number=1", "unbalanced quotes"),
        ("whole-number=1 share=-1", "refuses its arguments: .*share=-1.0: expected 0 or more"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line_that_quotes_it(text: str, complaint: str) -> None:
    with pytest.raises(Refused, match=complaint) as refusal:
        build("stop", THING, text)
    assert "stop-args=" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_an_object_without_arguments_says_so() -> None:
    assert isinstance(build("stop", PLAIN, ""), Plain)
    with pytest.raises(Refused, match="takes no arguments"):
        build("stop", PLAIN, "a=1")


@pytest.mark.parametrize(("kind", "name"), MISSPELT)
def test_a_name_with_a_letter_missing_finds_its_near_match(kind: str, name: str) -> None:
    with pytest.raises(Refused, match=f"unknown {kind} '{name[:-1]}': {kind}={name[:-1]}: did you mean '{name}'"):
        resolve(kind, name[:-1])


@pytest.mark.parametrize(
    "name",
    [
        "no_such_module:Thing",
        f"{__name__}:NoSuchThing",
        f"{__name__}:NO_CLASS",
        f"{__name__}:",
        ":Thing",
        "..relative:Thing",
        ":",
        f"{__name__}:Thing:More",
    ],
)
def test_a_module_or_attribute_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="expected") as refusal:
        resolve("task", name)
    assert f"task={name}" in str(refusal.value)


def test_a_constructor_that_wants_something_else_is_refused() -> None:
    with pytest.raises(Refused):
        build("stop", PLAIN, "", Schema(("a",), "b", ("c", "d")))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_registered_object_is_one_of_its_kind_and_documented(kind: str, name: str) -> None:
    cls = resolve(kind, name)
    assert issubclass(cls, BASES[kind])
    assert summary_line(cls).endswith(".")
    for argument in arguments(cls):
        assert argument.doc, f"{name}: {argument.name} has no doc"
        assert "_" not in argument.name
        assert argument.required == (argument.default is None)


def net(features: int, outputs: int) -> object:
    """A model of somebody's own."""
    from torch import nn

    return nn.Linear(features, outputs)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name in EVERY if kind != "sink"])
def test_the_defaults_of_every_registered_object_can_be_written_out(kind: str, name: str) -> None:
    schema = Schema(tuple(f"p{i}" for i in range(16)), "c", () if name == "linear" else ("d", "e"))
    positional = {"task": [schema], "strategy": [Basics()]}.get(kind, [])
    required = {"column": "site", "value": 0.9, "factory": "my_data:make", "label": "c", "model": f"{__name__}:net"}
    stated = {"target-epsilon": 3.0}  # a promise has to be stated, in one of two ways
    known = arguments(resolve(kind, name))
    text = " ".join(f"{a.name}={required[a.name] if a.required else stated.get(a.name, a.default)}" for a in known)
    assert isinstance(build(kind, name, text, *positional), BASES[kind])


def test_args_of_a_docstring_may_go_on_over_lines() -> None:
    docs = {argument.name: argument.doc for argument in arguments(Thing)}
    assert docs["share"] == "of all things, which is a long story"
    assert docs["name"] == "any text"


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    ("kind", "name", "argument", "positional"),
    [
        ("strategy", "fedavg", "server-learning-rate", [Basics()]),
        ("strategy", "fedavg", "momentum", [Basics()]),
        ("strategy", "fedsgd", "momentum", [Basics()]),
        ("stop", "converged", "tolerance", []),
        ("stop", "patience", "min-delta", []),
        ("stop", "target", "value", []),
        ("partition", "dirichlet", "alpha", []),
        ("data", "synthetic", "separation", []),
    ],
)
def test_a_number_that_is_not_finite_is_no_argument(
    kind: str, name: str, argument: str, positional: list[Any], value: str
) -> None:
    with pytest.raises(Refused, match=argument):
        build(kind, name, f"{argument}={value}", *positional)
