"""The design: from raw rows to the numbers that a model learns from, agreed once by all clients and then frozen.

A number is scaled, (x - mean) / scale. A category becomes one 0/1 column for each of its categories but the first, the
reference, and one for `other`: what is rare, or was not seen when the design was agreed. Where cells may be missing, a
missing number becomes the mean over all clients, a missing category `other`; with missing="indicator" a 0/1 column says
where cells were missing. A label that is a number is scaled like a column, by all clients' mean and scale.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tasks.base import Rows, Schema
from tasks.data.moments import Moments
from tasks.data.table import Columns, Feature, Table

Array = NDArray[Any]
Standardize = Literal["global", "local", "none", "declared", "private"]
Missing = Literal["error", "mean", "indicator"]
TermKind = Literal["number", "boolean", "category"]

OTHER = "other"


@dataclass(frozen=True, slots=True)
class Term:
    """What becomes of one raw column.

    mean, scale: of a number or boolean over the training rows of all clients that sent statistics, or as they were
    declared; None where none were needed. categories: of a category, the first being the reference. indicator: whether
    a column says where cells are missing.
    """

    name: str
    kind: TermKind
    mean: float | None = None
    scale: float | None = None
    categories: tuple[str, ...] = ()
    indicator: bool = False

    @property
    def width(self) -> int:
        """How many columns it becomes."""
        return (len(self.categories) if self.kind == "category" else 1) + self.indicator

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that it becomes."""
        if self.kind != "category":
            values = [self.name]
        elif self.categories:
            values = [f"{self.name}={category}" for category in (*self.categories[1:], OTHER)]
        else:  # nothing but rare values: nothing to learn from
            values = []
        return (*values, f"{self.name} is missing") if self.indicator else tuple(values)


@dataclass(frozen=True, slots=True)
class Design:
    """All terms, in the order of the model's columns. Hashable: a key for what was computed with it.

    label_mean, label_scale: what a label that is a number is shifted and divided by; None where it is not.
    """

    terms: tuple[Term, ...]
    label: str
    classes: tuple[str, ...]
    standardize: Standardize = "none"
    missing: Missing = "error"
    label_mean: float | None = None
    label_scale: float | None = None

    def __post_init__(self) -> None:
        names = [column for term in self.terms for column in term.columns]
        if not names:
            raise ValueError("no column is left to learn from: all are categories whose values are rare")
        if len(names) != len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two columns would be called {twice!r}: rename one of those that begin so")
        for term in self.terms:
            known = term.mean is not None and term.scale is not None
            if known and not (np.isfinite(term.mean) and np.isfinite(term.scale) and term.scale > 0):  # type: ignore[arg-type, operator]
                raise ValueError(f"column {term.name!r}: mean and scale must be finite and scale above 0")
            if term.kind != "category" and not known and (self.common_scaling or self.missing != "error"):
                raise ValueError(f"column {term.name!r} is to be scaled or filled, and has no mean and scale")

        self._check_label()

    def _check_label(self) -> None:
        mean, scale = self.label_mean, self.label_scale
        if mean is None and scale is None:
            return
        if self.classes or mean is None or scale is None:
            raise ValueError(f"label {self.label!r} has a mean and a scale where it is a number, both or neither")
        if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0):
            raise ValueError(f"label {self.label!r}: mean and scale must be finite and scale above 0")

    @property
    def common_scaling(self) -> bool:
        """Whether all clients scale alike: by what their rows have in common, or by what was declared."""
        return self.standardize in ("global", "declared", "private")

    @property
    def schema(self) -> Schema:
        """What the model sees."""
        names = tuple(name for term in self.terms for name in term.columns)
        if self.label_mean is None or self.label_scale is None:
            return Schema(names, self.label, self.classes)
        return Schema(names, self.label, self.classes, self.label_mean, self.label_scale)

    @property
    def raw_columns(self) -> Columns:
        """The columns that a client has to have."""
        features = (Feature(term.name, term.kind, term.categories) for term in self.terms)
        return Columns(tuple(features), self.label, self.classes)

    @property
    def numbers(self) -> Array:
        """The places of the model's columns that are scaled: (k,), in the order of the terms."""
        return np.array([place for place, term in self._places() if term.kind != "category"], dtype=np.intp)

    def scaling(self) -> tuple[Array, Array] | None:
        """What each column of the model was shifted and divided by: (d,) each; None where every client has its own."""
        if self.standardize == "local":
            return None
        shift, scale = np.zeros(len(self.schema.features)), np.ones(len(self.schema.features))
        if self.common_scaling:
            for position, term in self._places():
                if term.kind != "category":
                    shift[position], scale[position] = term.mean, term.scale
        return shift, scale

    def prepare(self, train: Table, test: Table) -> tuple[Rows, Rows]:
        """One client's rows. Raises ValueError for columns, classes or missing cells that the design does not allow."""
        x_train, x_test = self.encode(train), self.encode(test)
        if self.standardize == "local":
            moments = Moments.of(x_train)
            numbers = np.zeros(x_train.shape[1], dtype=np.bool_)
            numbers[self.numbers] = True
            shift, scale = np.where(numbers, moments.mean, 0.0), np.where(numbers, moments.scale(), 1.0)
            x_train, x_test = (x_train - shift) / scale, (x_test - shift) / scale
        return Rows(x_train, self.targets(train)), Rows(x_test, self.targets(test))

    def rows(self, table: Table) -> Rows:
        """Rows with their labels, scaled with everybody's statistics."""
        return Rows(self.encode(table), self.targets(table))

    def encode(self, table: Table) -> Array:
        """The model's columns for raw rows: (n, d). The raw columns are found by name; others are not looked at.

        With standardize="local" they are not yet scaled. Raises ValueError, naming the column, for one that is absent,
        of another kind, or has missing cells under missing="error".
        """
        index = {name: position for position, name in enumerate(table.columns.names)}
        if absent := [term.name for term in self.terms if term.name not in index]:
            raise ValueError(f"column {absent[0]!r} is absent: the columns are {', '.join(index) or 'none'}")
        raw = table.x[:, [index[term.name] for term in self.terms]]
        features = [table.columns.features[index[term.name]] for term in self.terms]
        gaps = np.isnan(raw)
        if self.missing == "error" and gaps.any():
            worst = self.terms[int(gaps.sum(axis=0).argmax())].name
            raise ValueError(
                f"column {worst!r} has {int(gaps[:, gaps.sum(axis=0).argmax()].sum())} missing cells: fill them, or "
                "add missing=mean or missing=indicator to data-args"
            )
        result = np.zeros((len(table), sum(term.width for term in self.terms)))
        self._encode_numbers(raw, gaps, features, result)
        position = 0
        for column, (term, feature) in enumerate(zip(self.terms, features, strict=True)):
            if term.kind == "category":
                _encode_category(term, feature, raw[:, column], result[:, position : position + term.width])
            position += term.width
            if term.indicator:
                result[:, position - 1] = gaps[:, column]
        return result

    def targets(self, table: Table) -> Array:
        """The labels as the model counts them: class indices, or numbers, scaled. Raises ValueError for an unknown
        class."""
        if table.columns.classes == self.classes:
            if self.label_mean is None or self.label_scale is None:
                return table.y
            scaled: Array = (table.y - self.label_mean) / self.label_scale
            return scaled
        if not table.columns.classes or not self.classes:
            sides = ("numbers", "classes") if self.classes else ("classes", "numbers")
            raise ValueError(f"label {self.label!r} holds {sides[0]} here and {sides[1]} in the model")
        place = {name: index for index, name in enumerate(self.classes)}
        held = [table.columns.classes[index] for index in np.unique(table.y)]
        if unknown := [name for name in held if name not in place]:
            raise ValueError(f"label {self.label!r} has the class {unknown[0]!r}, not one of {', '.join(self.classes)}")
        lookup = np.array([place.get(name, -1) for name in table.columns.classes], dtype=np.int64)
        targets: Array = lookup[table.y]
        return targets

    def _places(self) -> Iterator[tuple[int, Term]]:
        """The first column of each term."""
        position = 0
        for term in self.terms:
            if term.width:
                yield position, term
            position += term.width

    def _encode_numbers(self, raw: Array, gaps: Array, features: Sequence[Feature], result: Array) -> None:
        """All numbers and booleans at once: gaps filled with the mean, then scaled."""
        columns = [index for index, term in enumerate(self.terms) if term.kind != "category"]
        for index in columns:
            if features[index].kind not in (self.terms[index].kind, "empty"):
                raise ValueError(_other_kind(self.terms[index], features[index]))
        numbers = [self.terms[index] for index in columns]
        mean = np.array([0.0 if term.mean is None else term.mean for term in numbers])
        values = np.where(gaps[:, columns], mean, raw[:, columns])
        if self.common_scaling:
            values = (values - mean) / np.array([term.scale for term in numbers])
        result[:, self.numbers] = values

    # ------------------------------------------------------------------------------------------ as it is kept

    def to_json(self) -> dict[str, Any]:
        """As it stands in files and messages; `features` is what model.json calls so."""
        scaled = {} if self.label_mean is None else {"label_mean": self.label_mean, "label_scale": self.label_scale}
        return {
            "features": [_plain(term) for term in self.terms],
            "label": self.label,
            "classes": list(self.classes),
            "standardize": self.standardize,
            "missing": self.missing,
            **scaled,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Design":
        """The inverse of `to_json`; other keys are left to others.

        Raises ValueError, KeyError or TypeError for what is no design.
        """
        standardize, missing = content["standardize"], content["missing"]
        if standardize not in get_args(Standardize) or missing not in get_args(Missing):
            raise ValueError(f"standardize={standardize!r} and missing={missing!r} are none of this version's")
        terms = tuple(_term(**feature) for feature in content["features"])
        scaled = (_number_or_none(content, "label_mean"), _number_or_none(content, "label_scale"))
        return cls(terms, _text(content["label"]), _texts(content["classes"]), standardize, missing, *scaled)


def _encode_category(term: Term, feature: Feature, codes: Array, result: Array) -> None:
    """0/1 columns for the categories after the first, then `other`."""
    if feature.kind not in ("category", "empty"):
        raise ValueError(_other_kind(term, feature))
    if not term.categories:
        return
    other = len(term.categories) - 1
    place = {name: index - 1 for index, name in enumerate(term.categories)}
    known = np.flatnonzero(~np.isnan(codes))
    lookup = np.array([place.get(level, other) for level in feature.levels], dtype=np.int64)
    columns = np.full(len(codes), -1 if term.indicator else other)  # a missing cell
    columns[known] = lookup[codes[known].astype(np.int64)]
    rows = np.flatnonzero(columns >= 0)
    result[rows, columns[rows]] = 1.0


def _other_kind(term: Term, feature: Feature) -> str:
    return f"column {term.name!r} is a {feature.kind} here and a {term.kind} in the model: write it alike"


def _plain(term: Term) -> dict[str, Any]:
    absent = ("mean", "scale") if term.kind == "category" else ("categories",)
    return {name: value for name, value in asdict(term).items() if name not in absent and value is not False}


def _term(name: str, kind: str, **others: Any) -> Term:
    if kind not in get_args(TermKind):
        raise ValueError(f"column {name!r} is of the unknown kind {kind!r}")
    if type(others.get("indicator", False)) is not bool:
        raise TypeError(f"column {name!r}: expected true or false as its indicator, got {others['indicator']!r}")
    if any(type(others.get(key)) not in (int, float, type(None)) for key in ("mean", "scale")):
        raise TypeError(f"column {name!r}: expected numbers as its mean and scale")
    others["categories"] = _texts(others.get("categories", []))
    return Term(_text(name), kind, **others)  # type: ignore[arg-type]


def _number_or_none(content: Mapping[str, Any], key: str) -> float | None:
    value = content.get(key)
    if type(value) not in (int, float, type(None)):
        raise TypeError(f"{key}: expected a number, got {value!r}")
    return None if value is None else float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a name, got {value!r}")
    return value


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of names, got {values!r}")
    return tuple(_text(value) for value in values)
