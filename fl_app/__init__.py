"""Federated learning on Flower: the app, its command line and its run files."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_app.api import Result, compare, run

__all__ = ["Result", "__version__", "compare", "run"]

# The version of this code, wherever it runs: a node runs the bundle it was sent, not the package installed there.
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The Python interface, imported when it is asked for: a deployed node imports this package for every message."""
    if name in ("Result", "compare", "run"):
        from fl_app import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
