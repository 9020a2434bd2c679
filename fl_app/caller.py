"""The folder from which a simulation was started: a run may import what it names as `module:Attr` from there.

The variable is set by `fl-app run` for a simulation on this machine, and for the processes that Flower starts for one.
A deployed node never has it: there a name finds what is installed, and nothing else.
"""

import os
import sys
from pathlib import Path

CALLER = "FL_APP_CALLER"


def set_caller(folder: Path) -> None:
    """Let this process import from a folder what a run names."""
    os.environ[CALLER] = str(folder)


def reach_caller() -> None:
    """Add the caller's folder to what can be imported: last, so that it shadows nothing that is installed."""
    folder = os.environ.get(CALLER)
    if folder and folder not in sys.path:
        sys.path.append(folder)
