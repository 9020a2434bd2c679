"""Tables written down as rows of Python values, and read back as such: what the data tests compare with."""

import numpy as np

from tasks.data.table import Columns, Feature, Table


def table(rows, kinds, *, label="y", classes=("no", "yes"), y=None):
    """Rows as dicts of name -> number, bool, str or None (missing); kinds: name -> kind. Levels stand as they come."""
    features, columns = [], []
    for name, kind in kinds.items():
        cells = [row[name] for row in rows]
        levels = tuple(dict.fromkeys(cell for cell in cells if cell is not None)) if kind == "category" else ()
        features.append(Feature(name, kind, levels))
        columns.append([np.nan if c is None else levels.index(c) if kind == "category" else float(c) for c in cells])
    x = np.array(columns, dtype=np.float64).T.reshape(len(rows), len(kinds))
    y = np.arange(len(rows)) % max(1, len(classes)) if y is None else np.array(y)
    return Table(x, y, Columns(tuple(features), label, classes))


def cells(table, name):
    """The cells of a column: float, str, or None where missing."""
    feature = table.columns.features[table.columns.names.index(name)]
    values = [None if np.isnan(value) else value for value in table.column(name).tolist()]
    return [feature.levels[int(v)] if v is not None and feature.kind == "category" else v for v in values]


KINDS = {"age": "number", "time": "number", "smoker": "boolean", "site": "category", "stage": "category"}
SITES, STAGES = ["Århus", "Bern", "Köln, Süd", "Oslo"], ["1", "2", "3"]


def random_rows(rng, num_rows, *, missing=0.2):
    """Rows of KINDS: numbers, timestamps, booleans and categories, of which a share of cells is missing."""
    rows = [
        {
            "age": rng.normal(50, 10),
            "time": 1.7e9 + rng.integers(0, 60),
            "smoker": bool(rng.integers(2)),
            "site": str(rng.choice(SITES, p=[0.6, 0.3, 0.08, 0.02])),
            "stage": str(rng.choice(STAGES)),
        }
        for _ in range(num_rows)
    ]
    return [{name: None if rng.random() < missing else cell for name, cell in row.items()} for row in rows]
