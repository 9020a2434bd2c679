"""How long a CSV file takes to load: many rows of numbers, numbers beside text, and many columns.

The files are generated with a fixed seed in a temporary folder, which is not timed. Numbers have six significant
digits, as measured data have, or with --digits 17 all of a double's. A cell in twenty of the mixed file is missing.
One load of each is timed in this process; peak memory is what the process had at most up to then.
"""

import argparse
import resource
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from benchmarks.figures import heading
from tasks.data.csv_file import read_csv

CITIES = ("Bergen", "Lyon", "Porto", "Turku", "Graz", "Cork, County Cork")
CASES = {"numbers": (1.0, 50, 0), "mixed": (1.0, 45, 5), "wide": (0.0005, 5000, 0)}


def main() -> None:
    """Generate, load and print."""
    options = _options()
    heading(f"Loading a CSV file: cells of {options.digits} digits")
    print(f"{'case':10}{'rows':>10}{'columns':>9}{'MB':>8}{'seconds':>9}{'peak MB':>9}")
    for name, (share, numbers, texts) in CASES.items():
        rows = max(1, round(options.rows * share))
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{name}.csv"
            write(path, rows, numbers, texts, options.digits)
            began = perf_counter()
            loaded = read_csv(path)
            seconds = perf_counter() - began
            assert (len(loaded), len(loaded.columns)) == (rows, numbers + texts)
            size = path.stat().st_size / 1e6
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"{name:10}{rows:10}{numbers + texts:9}{size:8.0f}{seconds:9.2f}{peak:9.0f}", flush=True)


def write(path: Path, rows: int, numbers: int, texts: int, digits: int) -> None:
    """A file of standard normal numbers and of towns, one of which has to be quoted; missing cells beside towns."""
    rng = np.random.default_rng(0)
    header = [f"x{index}" for index in range(numbers)] + [f"town{index}" for index in range(texts)]
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(header) + "\n")
        for begin in range(0, rows, 10_000):
            file.writelines(_lines(rng, min(10_000, rows - begin), numbers, texts, digits))


def _lines(rng: np.random.Generator, rows: int, numbers: int, texts: int, digits: int) -> Iterator[str]:
    form = ",".join([f"%.{digits}g"] * numbers)
    quoted = [f'"{city}"' if "," in city else city for city in CITIES]
    x, towns = rng.standard_normal((rows, numbers)), rng.integers(len(CITIES), size=(rows, texts))
    missing = rng.integers(20, size=(rows, numbers)) == 0
    for row, gaps, places in zip(x.tolist(), missing, towns.tolist(), strict=True):
        if not texts:
            yield form % tuple(row) + "\n"
            continue
        cells = ["" if gap else f"{cell:.{digits}g}" for cell, gap in zip(row, gaps, strict=True)]
        yield ",".join([*cells, *(quoted[place] for place in places)]) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds to load a CSV file.")
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="rows of the long files; the wide one has 1 in 2000"
    )
    parser.add_argument("--digits", type=int, default=6, help="significant digits of a number")
    return parser.parse_args()


if __name__ == "__main__":
    main()
