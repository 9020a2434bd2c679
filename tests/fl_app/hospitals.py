"""CSV files of hospitals: numbers, truths, categories, gaps, and an outcome that depends on them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, str]

COLUMNS = ("age", "dose", "smoker", "stage", "outcome")
CLIENTS = ("bern", "aarhus", "oslo", "köln süd")
STAGES = ("I", "II", "III")
SCHEMA = {
    "label": "outcome",
    "classes": ["alive", "dead"],
    "features": [
        {"name": "age", "range": [0, 120]},
        {"name": "dose", "range": [-0.01, 0.01]},
        {"name": "smoker", "kind": "boolean"},
        {"name": "stage", "categories": ["I", "II", "III"]},
    ],
}
"""The columns as a run can declare them."""


def patients(num_rows: int, seed: int, *, shift: float = 0.0) -> list[Row]:
    """Rows as texts. The outcome is drawn from a logistic model of all columns."""
    rng = np.random.default_rng(seed)
    age, dose = rng.normal(60 + shift, 12, num_rows), rng.normal(1e-3, 4e-4, num_rows)
    smoker, stage = rng.integers(2, size=num_rows), rng.integers(3, size=num_rows)
    z = (age - 60) / 10 - 900 * (dose - 1e-3) + 0.8 * smoker + 0.5 * stage - 1
    outcome = rng.random(num_rows) < 1 / (1 + np.exp(-z))
    cells = zip(age, dose, smoker, stage, outcome, strict=True)
    return [
        {
            "age": f"{a:.2f}",
            "dose": f"{d:.6f}",
            "smoker": ("false", "true")[s],
            "stage": STAGES[g],
            "outcome": ("alive", "dead")[int(o)],
        }
        for a, d, s, g, o in cells
    ]


def with_gaps(rows: Sequence[Row], columns: Sequence[str], seed: int, share: float = 0.1) -> list[Row]:
    """The rows with some cells of the columns empty."""
    rng = np.random.default_rng(seed)
    return [{name: "" if name in columns and rng.random() < share else cell for name, cell in r.items()} for r in rows]


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> Path:
    """A file of these rows; cells are written as they stand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(columns), *(",".join(row[name] for name in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def hospitals(folder: Path, *, rows: int = 150) -> dict[str, list[Row]]:
    """A file for each of CLIENTS, whose patients differ in age; the rows by client."""
    made = {client: patients(rows + 10 * k, k, shift=3.0 * k) for k, client in enumerate(CLIENTS)}
    for client, own in made.items():
        write_csv(folder / f"{client}.csv", own)
    return made


def words(*, data_args: str, out: str | None = None, **keys: Any) -> list[str]:
    """The words of `fl-app run` for CSV files on the inline engine."""
    settings = {"data": "csv", "data-args": data_args} | {key.replace("_", "-"): value for key, value in keys.items()}
    pairs = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    return ["run", "--engine", "inline", *pairs, *([] if out is None else ["--out", out])]


def trained(
    fl_app: Callable[..., Any], out: str = "out", data_args: str = "path=data label=outcome", **keys: Any
) -> Path:
    """The folder of a finished run."""
    outcome = fl_app(*words(data_args=data_args, out=out, **{"rounds": 2, **keys}))
    assert outcome.status == 0, outcome.err
    return Path(out).resolve()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
