"""Names in a run config -> objects, built from "key=value key=value" by the signature of their constructors.

A constructor's keyword-only parameters are its arguments: their names (kebab-case in the string), types and defaults
come from the signature, what they mean from the `Args:` section of the class docstring. Any name with a colon is the
`module:Attr` of an object outside the registry.
"""

import inspect
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fl_app.errors import Refused, suggestion
from strategies import STOPS, STRATEGIES
from strategies.base import ComposedStrategy
from strategies.stopping import StopRule
from tasks import DATA, PARTITIONS, TASKS
from tasks.base import Task
from tasks.data.base import Dataset, Partitioner

REGISTRIES: Mapping[str, Mapping[str, str]] = {
    "task": TASKS,
    "strategy": STRATEGIES,
    "data": DATA,
    "partition": PARTITIONS,
    "stop": STOPS,
}


BASES: Mapping[str, type] = {
    "task": Task,
    "strategy": ComposedStrategy,
    "data": Dataset,
    "partition": Partitioner,
    "stop": StopRule,
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a registered object. `default` is None where it has to be given."""

    name: str
    type: str
    default: Any
    doc: str
    required: bool
    hint: Any


def resolve(kind: str, name: str) -> type:
    """The class behind a name. Raises Refused with the near match."""
    registry = REGISTRIES[kind]
    target = name if ":" in name else registry.get(name)
    if target is None:
        raise Refused(f"unknown {kind} {name!r}", f"{kind}={name}", suggestion(name, registry))
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise Refused(f"cannot import {target!r}", f"{kind}={name}", f"expected module:Attr ({error})") from error
    base = BASES[kind]
    if not (isinstance(found, type) and issubclass(found, base)):
        raise Refused(f"{target!r} is no {kind}", f"{kind}={name}", f"expected a subclass of {base.__name__}")
    if missing := getattr(found, "__abstractmethods__", None):
        raise Refused(f"{target!r} is incomplete", f"{kind}={name}", f"define {', '.join(sorted(missing))}")
    return found


def arguments(cls: type) -> tuple[Argument, ...]:
    """The keyword-only parameters of the constructor."""
    hints = get_type_hints(inspect.getattr_static(cls, "__init__"))
    docs = _argument_docs(inspect.getdoc(cls) or "")
    return tuple(
        Argument(
            name=parameter.name.replace("_", "-"),
            type=_type_name(hints.get(parameter.name, str)),
            default=None if parameter.default is parameter.empty else parameter.default,
            doc=docs.get(parameter.name, ""),
            required=parameter.default is parameter.empty,
            hint=hints.get(parameter.name, str),
        )
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    )


def summary_line(cls: type) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def build(kind: str, name: str, text: str, *positional: Any) -> Any:
    """Build the object `name` of a registry from its argument string.

    Raises Refused for an unknown name or argument (with the near match), a missing one, a value of the wrong type,
    and what the constructor itself refuses.
    """
    cls = resolve(kind, name)
    known = {argument.name: argument for argument in arguments(cls)}
    key = f"{kind}-args"
    values = {}
    for argument, value in _split(text, key).items():
        if argument not in known:
            remedy = suggestion(argument, known) if known else f"{name} takes no arguments"
            raise Refused(f"unknown argument {argument!r} of {name}", f"{key}={text!r}", remedy)
        values[argument.replace("-", "_")] = _convert(known[argument], value, f"{key}={text!r}")
    missing = [a.name for a in known.values() if a.required and a.name.replace("-", "_") not in values]
    if missing:
        raise Refused(f"{name} needs {missing[0]!r}", f"{key}={text!r}", f'add {key}="{missing[0]}=..."')
    try:
        inspect.signature(cls).bind(*positional, **values)
    except TypeError as error:
        raise Refused(f"{name} cannot be built", f"{kind}={name}", f"its constructor does not fit: {error}") from error
    try:
        return cls(*positional, **values)
    except ValueError as error:
        raise Refused(f"{name} refuses its arguments", f"{key}={text!r}", str(error)) from error


def _split(text: str, key: str) -> dict[str, str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Refused("unbalanced quotes", f"{key}={text!r}", 'write "key=value key=value"') from error
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise Refused(f"{word!r} is no key=value", f"{key}={text!r}", 'write "key=value key=value"')
        if name in pairs:
            raise Refused(f"{name!r} is given twice", f"{key}={text!r}", "give it once")
        pairs[name] = value
    return pairs


def _convert(argument: Argument, value: str, where: str) -> Any:
    try:
        return TypeAdapter(argument.hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        expected = argument.type
        raise Refused(f"{argument.name}={value}", where, f"expected {expected}") from error


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _argument_docs(doc: str) -> dict[str, str]:
    """{parameter: text} from the `Args:` section; continuation lines are indented further."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section.group(1).splitlines() if section else ():
        if match := re.match(r"    (\w+): (.*)", line):
            name = match.group(1)
            found[name] = match.group(2)
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found
