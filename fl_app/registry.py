"""From names in a run config to objects, built from "key=value key=value" by the signature of their constructors.

A constructor's keyword-only parameters are its arguments: their names (kebab-case in the string), types and defaults
come from the signature, what they mean from the `Args:` section of the class docstring.

A name is looked for in three places. One with a colon is the `module:Attr` of an object outside the registry. One of
the built-in registry is that, whatever is installed beside. Any other is an entry point that an installed
distribution declares in the group of its kind.
"""

import inspect
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fl_app.caller import reach_caller
from fl_app.errors import Refused, one_line, suggestion
from fl_app.sinks import SINKS, Sink
from strategies import STOPS, STRATEGIES
from strategies.base import ComposedStrategy
from strategies.stopping import StopRule
from tasks import DATA, PARTITIONS, TASKS
from tasks.base import ObjectPath, Task
from tasks.data.base import Dataset, Partitioner, PathText

REGISTRIES: Mapping[str, Mapping[str, str]] = {
    "task": TASKS,
    "strategy": STRATEGIES,
    "data": DATA,
    "partition": PARTITIONS,
    "stop": STOPS,
    "sink": SINKS,
}

ENTRY_POINT_GROUPS: Mapping[str, str] = {
    "task": "fl_app.tasks",
    "strategy": "fl_app.strategies",
    "data": "fl_app.data",
    "partition": "fl_app.partitions",
    "stop": "fl_app.stops",
    "sink": "fl_app.sinks",
}

BASES: Mapping[str, type] = {
    "task": Task,
    "strategy": ComposedStrategy,
    "data": Dataset,
    "partition": Partitioner,
    "stop": StopRule,
    "sink": Sink,
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


def names(kind: str) -> tuple[str, ...]:
    """Every name of a kind: the built-in ones first, then those of installed distributions in alphabetical order."""
    built_in = REGISTRIES[kind]
    return (*built_in, *sorted({entry.name for entry in _entries(kind)} - set(built_in)))


def resolve(kind: str, name: str) -> type:
    """The class behind a name. Raises Refused, for an unknown name with the near match."""
    where = f"{kind}={name}"
    if ":" in name:
        target = name
        reach_caller()
    else:
        target = REGISTRIES[kind].get(name) or _installed(kind, name)
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a module of somebody else's may raise anything
        remedy = f"expected module:Attr ({type(error).__name__}: {error})"
        raise Refused(f"cannot import {target!r}", where, remedy) from error
    base = BASES[kind]
    if not (isinstance(found, type) and issubclass(found, base)):
        raise Refused(f"{target!r} is no {kind}", where, f"expected a subclass of {base.__name__}")
    if missing := getattr(found, "__abstractmethods__", None):
        raise Refused(f"{target!r} is incomplete", where, f"define {', '.join(sorted(missing))}")
    return found


def _entries(kind: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINT_GROUPS[kind]))


def _installed(kind: str, name: str) -> str:
    """`module:Attr` of the one entry point of this name. Raises Refused where there is none, or more than one."""
    found = [entry for entry in _entries(kind) if entry.name == name]
    if not found:
        raise Refused(f"unknown {kind} {name!r}", f"{kind}={name}", suggestion(name, names(kind)))
    if len(found) > 1:
        owners = " and ".join(sorted(f"{_owner(entry)} ({entry.value})" for entry in found))
        remedy = "uninstall one, or give its module:Attr"
        raise Refused(f"{kind} {name!r} is declared by {owners}", f"{kind}={name}", remedy)
    return found[0].value


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def arguments(cls: type) -> tuple[Argument, ...]:
    """The keyword-only parameters of the constructor; where it passes others on (`**`), those of its base class too."""
    found: list[Argument] = []
    for owner in (base for base in cls.__mro__ if "__init__" in vars(base)):
        parameters = inspect.signature(owner).parameters.values()
        hints, docs = get_type_hints(vars(owner)["__init__"]), _argument_docs(inspect.getdoc(owner) or "")
        found += [
            _argument(parameter, hints.get(parameter.name, str), docs.get(parameter.name, ""))
            for parameter in parameters
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return tuple(found)


def _argument(parameter: inspect.Parameter, hint: Any, doc: str) -> Argument:
    required = parameter.default is parameter.empty
    return Argument(
        name=parameter.name.replace("_", "-"),
        type=_type_name(hint),
        default=None if required else parameter.default,
        doc=doc,
        required=required,
        hint=hint,
    )


def summary_line(cls: type) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def describe(kind: str, name: str) -> dict[str, Any]:
    """What `fl-app list` tells of a name: its doc and its arguments. Where it cannot be used, the doc says why."""
    try:
        cls = resolve(kind, name)
        args = [{"name": a.name, "type": a.type, "default": a.default, "doc": a.doc} for a in arguments(cls)]
    except Exception as error:  # of one distribution among many
        reason = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        return {"name": name, "doc": one_line(f"cannot be used: {reason}"), "args": []}
    return {"name": name, "doc": summary_line(cls), "args": args}


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


def given(kind: str, text: str) -> dict[str, str]:
    """The arguments of an argument string, as texts. Raises Refused where it cannot be taken apart."""
    return _split(text, f"{kind}-args")


def with_absolute_paths(kind: str, name: str, text: str, folder: Path) -> str:
    """The argument string, in which file names are taken from `folder`: every process of a run then means the same."""
    paths = {argument.name for argument in arguments(resolve(kind, name)) if argument.hint is PathText}
    pairs = given(kind, text)
    if not paths & set(pairs):
        return text
    for key in paths & set(pairs):
        if pairs[key]:
            pairs[key] = str(folder / Path(pairs[key]).expanduser())
    return shlex.join(f"{key}={value}" for key, value in pairs.items())


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
    if argument.hint is ObjectPath:
        reach_caller()
    try:
        return TypeAdapter(argument.hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        expected = argument.type
        raise Refused(f"{argument.name}={value}", where, f"expected {expected}") from error


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if hint is PathText:
        return "path"
    if hint is ObjectPath:
        return "module:name"
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
