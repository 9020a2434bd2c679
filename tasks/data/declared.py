"""What is known of columns before any row is read: names, kinds, ranges, categories, classes, as a file declares them.

A run that promises privacy can learn none of this from the rows without paying for it, so it has to be said:

    {"label": "outcome", "classes": ["no", "yes"],
     "features": [{"name": "age", "range": [18, 100]},
                  {"name": "systolic", "mean": 125, "scale": 18},
                  {"name": "smoker", "kind": "boolean"},
                  {"name": "ward", "categories": ["icu", "surgery", "medicine"]}]}

A number has a range, or a mean and a standard deviation that are known from elsewhere. A range stands for the uniform
distribution over it. A label that is a number has `label_range`, or `label_mean` and `label_scale`, and no classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, sqrt
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.data.design import Design, Missing, Standardize, Term
from tasks.data.table import Columns

Range = tuple[float, float]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Feature(_Strict):
    name: Name
    kind: Literal["number", "boolean", "category"] | None = None
    range: Range | None = None
    mean: float | None = None
    scale: float | None = None
    categories: tuple[Name, ...] = ()

    def term(self) -> Term:
        kind = self.kind or ("category" if self.categories else "number")
        if kind == "category":
            if not self.categories or self.range or self.mean is not None or self.scale is not None:
                raise ValueError(f"column {self.name!r}: a category needs its categories, and nothing else")
            return Term(self.name, "category", categories=self.categories)
        if self.categories:
            raise ValueError(f"column {self.name!r} is a {kind}: categories belong to a category")
        known = (0.0, 1.0) if kind == "boolean" and self.range is None and self.mean is None else self.range
        return Term(self.name, kind, *_scaling(f"column {self.name!r}", known, self.mean, self.scale))


class _Declaration(_Strict):
    label: Name
    classes: tuple[Name, ...] = ()
    label_range: Range | None = None
    label_mean: float | None = None
    label_scale: float | None = None
    features: tuple[_Feature, ...] = Field(min_length=1)


def read_declaration(path: Path) -> Design:
    """The design that a file declares. Raises ValueError, naming the place, for a file that is none."""
    try:
        found = _Declaration.model_validate_json(path.read_bytes(), strict=False)
    except OSError as error:
        raise ValueError(f"{error.strerror}: name a JSON file that declares the columns") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where + ': ' if where else ''}{first['msg'][0].lower()}{first['msg'][1:]}") from error
    scaling: tuple[float | None, float | None] = (None, None)
    if found.classes:
        if len(found.classes) < 2 or found.label_range or found.label_mean is not None:
            raise ValueError(f"label {found.label!r}: expected two classes or more, or none and a label_range")
    else:
        scaling = _scaling(f"label {found.label!r}", found.label_range, found.label_mean, found.label_scale)
    terms = tuple(feature.term() for feature in found.features)
    return Design(terms, found.label, found.classes, "declared", "error", *scaling)


def declare(
    columns: Columns, scaling: Mapping[str, tuple[float, float]], label: tuple[float, float] | None = None
) -> Design:
    """The design of numbers with a mean and a scale each. label: those of a label that is a number."""
    terms = tuple(Term(name, "number", *scaling[name]) for name in columns.names)
    return Design(terms, columns.label, columns.classes, "declared", "error", *(label or (None, None)))


def uniform(low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of the uniform distribution over a range. Raises ValueError for an empty one."""
    if not (isfinite(low) and isfinite(high) and low < high):
        raise ValueError(f"the range {low:g} to {high:g} is empty: expected the lower bound first")
    return (low + high) / 2, (high - low) / sqrt(12)


def as_asked(design: Design, standardize: Standardize, missing: Missing) -> Design:
    """A declared design with the run's scaling and filling; `global` is then the declared scaling too."""
    indicator = missing == "indicator"
    terms = tuple(
        Term(t.name, t.kind, t.mean, t.scale, t.categories, indicator=indicator) for t in design.terms
    )  # any column may turn out to have gaps
    scaled = "declared" if standardize == "global" else standardize
    label = (design.label_mean, design.label_scale) if standardize != "none" else (None, None)
    return Design(terms, design.label, design.classes, scaled, missing, *label)


def in_ranges(design: Design) -> Design:
    """A declared design with numbers in units of half their range, so that they lie within [-1, 1]: what means with
    noise are computed from. Where a mean and a scale were declared, the range is the uniform one that has them."""
    return _rescaled(design, [(0.0, sqrt(3))] * len(design.numbers))


def centred(design: Design, means: Sequence[float]) -> Design:
    """A design `in_ranges` with its numbers moved to these means, which are in its units; a third of half the range is
    then one."""
    return _rescaled(design, [(mean, 1 / 3) for mean in means])


def _rescaled(design: Design, changes: Sequence[tuple[float, float]]) -> Design:
    """With each number's mean moved by so many scales, and its scale multiplied."""
    rest = iter(changes)
    return replace(design, terms=tuple(t if t.kind == "category" else _changed(t, *next(rest)) for t in design.terms))


def _changed(term: Term, moved: float, factor: float) -> Term:
    if term.mean is None or term.scale is None:
        raise ValueError(f"column {term.name!r} has no declared range")
    return replace(term, mean=term.mean + moved * term.scale, scale=term.scale * factor)


def _scaling(what: str, known: Range | None, mean: float | None, scale: float | None) -> tuple[float, float]:
    if (mean is None) != (scale is None) or (known is None) == (mean is None):
        raise ValueError(f"{what}: give either a range, or a mean and a scale")
    if known is not None:
        try:
            return uniform(*known)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
    assert mean is not None and scale is not None  # noqa: S101, PT018  (for the type checker)
    if not (isfinite(mean) and isfinite(scale) and scale > 0):
        raise ValueError(f"{what}: expected a finite mean and a scale above 0")
    return mean, scale
