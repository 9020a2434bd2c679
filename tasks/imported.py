"""Functions of a user's own, named as `module:function`."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def imported(path: str, purpose: str) -> Callable[..., Any]:
    """The function of that name. Raises ValueError, naming what it is for, where there is none."""
    module, _, attribute = path.partition(":")
    if not module or not attribute:  # nothing is imported for half a name
        raise ValueError(f"{purpose}={path}: expected module:function")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a module of somebody else's may raise anything
        what = f"{purpose}={path}: expected module:function ({type(error).__name__}: {error})"
        raise ValueError(what) from error
    if not callable(found):
        raise ValueError(f"{purpose}={path}: it is a {type(found).__name__}, expected a function")
    checked: Callable[..., Any] = found
    return checked
