"""How figures are printed: what was run, and spreads instead of single numbers."""

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median


def heading(title: str) -> None:
    """What is measured, the command line, and what it ran on."""
    module = Path(sys.argv[0]).stem
    print(title)
    print(f"$ python -m benchmarks.{' '.join([module, *sys.argv[1:]])}")
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    packages = ", ".join(f"{name} {version(name)}" for name in ("flwr", "numpy"))
    print(f"Python {platform.python_version()}, {packages}, {os.cpu_count()} cores, load before {load}")
    print()


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median and, of several values, the least and the greatest."""
    middle = format(median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below, repeat by repeat: what was measured side by side is compared, not what was measured apart."""
    return [a / b for a, b in zip(above, below, strict=True)]
