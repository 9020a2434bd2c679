"""How clients that may not show each other their rows come to one design.

Each describes its training rows: columns, categories, moments. The server compares the descriptions, leaves out who
does not fit, and makes the design of the rest. The same descriptions give the same design, in whatever order they come.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np

from tasks.data.design import OTHER, Design, Missing, Standardize, Term
from tasks.data.moments import Moments
from tasks.data.table import Columns, Feature, Kind, Table
from tasks.suggest import suggestion, unknown

K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Hashable)

LONGEST_NAME = 200
LARGEST = 1e30
"""Beyond this a value is a mistake, or a code for 'missing'; its square still fits."""

RARE = 5
"""A category that fewer rows of a client have is not told: it counts as `other`."""

MANY, FEW = 15, 10
"""So many categories, each in fewer rows than that on average, are what identifiers, dates and free text have."""


def tells_persons(categories: int, rows: int) -> bool:
    """Whether a column of so many categories may tell persons apart rather than kinds of them."""
    return categories >= MANY and rows < FEW * categories


@dataclass(frozen=True, slots=True)
class Rules:
    """What a run says of its preprocessing. positive: the class with index 1; empty for the order of the classes."""

    standardize: Standardize
    missing: Missing = "error"
    positive: str = ""
    min_examples: int = 20

    @property
    def need_moments(self) -> bool:
        """Whether means are needed, to scale or to fill."""
        return self.standardize == "global" or self.missing != "error"

    @property
    def scale_label(self) -> bool:
        """Whether a label that is a number is scaled; the scale is common, also where the columns have local ones."""
        return self.standardize != "none"


@dataclass(frozen=True, slots=True)
class Description:
    """What one client tells of its training rows before round 1.

    columns: all names and kinds and the label's classes, but only categories that RARE rows have. missing: the columns
    with missing cells. label: the moments (1,) of a label that is a number. A client with fewer than min-examples rows
    tells no category, no gap and no moments: the mean and variance of two rows are the two rows.
    """

    columns: Columns
    num_examples: int
    missing: tuple[str, ...] = ()
    moments: Moments | None = None
    label: Moments | None = None


def check_rows(table: Table, rules: Rules) -> None:
    """Refuse (ValueError, naming the column) gaps under missing="error", huge values, labels that are no finite number,
    and names as `check_names`."""
    gaps = np.isnan(table.x).any(axis=0)
    if rules.missing == "error" and gaps.any():
        column = table.columns.names[int(gaps.argmax())]
        raise ValueError(
            f"column {column!r} has missing cells: fill them, or add missing=mean or missing=indicator to data-args"
        )
    with np.errstate(invalid="ignore"):
        huge = (np.abs(table.x) > LARGEST).any(axis=0)
    if huge.any():
        column = table.columns.names[int(huge.argmax())]
        raise ValueError(f"column {column!r} has a value beyond {LARGEST:g}: correct it, or leave the cell empty")
    if not table.columns.classes:
        _check_label(table)
    check_names(table.columns)


def _check_label(table: Table) -> None:
    wrong = ~(np.abs(table.y) <= LARGEST)
    if wrong.any():
        value = "missing" if np.isnan(worst := table.y[wrong.argmax()]) else f"{worst:g}"
        many = f"; {wrong.sum()} rows are like that" if wrong.sum() > 1 else ""
        raise ValueError(
            f"label {table.columns.label!r} is {value} in row {int(wrong.argmax())}{many}: expected a number of at "
            f"most {LARGEST:g}: correct it, or remove the row"
        )


def check_names(columns: Columns) -> None:
    """Refuse names that could not be shown or told apart (ValueError): of columns, classes and categories."""
    named = [("the table", "column", (*columns.names, columns.label))]
    named += [
        (f"column {feature.name!r}", "category", feature.levels) for feature in columns.features if feature.levels
    ]
    for where, what, names in (*named, (f"label {columns.label!r}", "class", columns.classes)):
        for name in names:
            if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
                why = f"a name that is empty, over {LONGEST_NAME} characters or not printable"
                raise ValueError(f"{where} has the {what} {name[:60]!r}, {why}: rename it")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{where} has the {what} {twice!r} twice: rename one")


def describe(train: Table, rules: Rules) -> Description:
    """Raises ValueError for rows that no model can use, naming the column."""
    check_rows(train, rules)
    gaps = np.isnan(train.x).any(axis=0)
    telling = len(train) >= rules.min_examples
    features = tuple(
        replace(feature, levels=_frequent(feature, train.x[:, index]) if telling else ()) if feature.levels else feature
        for index, feature in enumerate(train.columns.features)
    )
    return Description(
        columns=replace(train.columns, features=features),
        num_examples=len(train),
        missing=tuple(np.array(train.columns.names)[gaps].tolist()) if telling else (),
        moments=_moments(train, rules) if telling and rules.need_moments else None,
        label=Moments.of(train.y[:, None]) if telling and rules.scale_label and not train.columns.classes else None,
    )


def _frequent(feature: Feature, codes: np.ndarray) -> tuple[str, ...]:
    if feature.kind != "category":
        return ()
    counts = np.bincount(codes[~np.isnan(codes)].astype(np.int64), minlength=len(feature.levels))
    return tuple(level for level, count in zip(feature.levels, counts, strict=True) if count >= RARE)


def _moments(train: Table, rules: Rules) -> Moments:
    """Of the numbers that are known in min-examples rows."""
    numbers = np.array([feature.kind in ("number", "boolean") for feature in train.columns.features])
    moments = Moments.of(train.x if numbers.all() else np.where(numbers, train.x, 0.0))
    return moments.where(numbers & (moments.n >= rules.min_examples))


# ------------------------------------------------------------------------------------------- who goes with whom


@dataclass(frozen=True)
class Common:
    """What most clients have: the kinds of the columns, in the first such client's order, and how values are spelled.

    label_kind: whether the label is numbers, classes that are numbers, or other classes. pair: the classes of most
    clients, where these are two and words. spelling: a client may write a value in more than one way.
    """

    label: str
    kinds: Mapping[str, Kind]
    label_kind: str
    pair: frozenset[str]
    spelling: Mapping[tuple[str, str], frozenset[str]]  # (column, value in small letters) -> as it is written

    @classmethod
    def of(cls, all_columns: Sequence[Columns]) -> "Common":
        """Of the columns of all clients, in the order of the clients. Raises ValueError for none."""
        if not all_columns:
            raise ValueError("no client has described its columns")
        label, names = _most((columns.label, frozenset(columns.names)) for columns in all_columns)
        alike = [columns for columns in all_columns if (columns.label, frozenset(columns.names)) == (label, names)]
        kinds: dict[str, Kind] = {}
        for name, votes in _votes((f.name, f.kind) for columns in alike for f in columns.features).items():
            known = [kind for kind in votes if kind != "empty"]
            kinds[name] = _most(known) if known else "empty"
        held = [frozenset(columns.classes) for columns in alike if len(columns.classes) > 1]
        usual = _most(held) if held else frozenset()
        pair = usual if len(usual) == 2 and not _all_numbers(usual) else frozenset()
        spellings = _votes(item for columns in alike for item in _spellings(columns).items())
        spelling = {key: _most(ways) for key, ways in spellings.items()}
        return cls(label, kinds, _most(_label_kind(columns) for columns in alike), pair, spelling)

    def clash(self, theirs: Columns) -> str | None:
        """Why a client's columns do not go with the others', in words; None where they do."""
        if theirs.label != self.label:
            return f"its label is {theirs.label!r}, that of the others {self.label!r}: give both the same label"
        for feature in theirs.features:
            if feature.name not in self.kinds:
                near = suggestion(feature.name, set(self.kinds) - set(theirs.names))
                return f"its column {feature.name!r} is none of the others': {near}rename or drop it"
            kind = self.kinds[feature.name]
            if feature.kind != kind and "empty" not in (feature.kind, kind):
                return f"its column {feature.name!r} is a {feature.kind}, that of the others a {kind}: write it alike"
        if absent := sorted(set(self.kinds) - set(theirs.names)):
            return f"it has no column {absent[0]!r}, which the others have: add it, or let all drop it"
        return self._clash_of_classes(theirs) or self._clash_of_spelling(theirs)

    def _clash_of_classes(self, theirs: Columns) -> str | None:
        classes = frozenset(theirs.classes)
        other = _label_kind(theirs) != self.label_kind
        if not other and (len(classes) != 2 or not self.pair or classes & self.pair or _all_numbers(classes)):
            return None
        ours = _listed(sorted(self.pair)) if self.pair else self.label_kind
        return f"its label {theirs.label!r} is {_listed(theirs.classes)}, that of the others {ours}: write it alike"

    def _clash_of_spelling(self, theirs: Columns) -> str | None:
        for column, value in _values(theirs):
            usual = self.spelling.get((column, value.casefold()))
            if usual and value not in usual:
                where = f"the label {column!r}" if column == self.label else f"column {column!r}"
                return f"in {where} it writes {value!r} where others write {_listed(sorted(usual))}: write it alike"
        return None


def sort_out(descriptions: Mapping[str, Description]) -> tuple[dict[str, Description], dict[str, str]]:
    """Those whose columns go with those of most, and why the others' do not, by client."""
    clients = sorted(descriptions)
    common = Common.of([descriptions[client].columns for client in clients])
    verdicts = {columns: common.clash(columns) for columns in {d.columns for d in descriptions.values()}}
    refused = {client: why for client in clients if (why := verdicts[descriptions[client].columns])}
    return {client: descriptions[client] for client in clients if client not in refused}, refused


def _most(values: Iterable[T]) -> T:
    """The most frequent value; of equals the one that came first."""
    return Counter(values).most_common(1)[0][0]


def _votes(pairs: Iterable[tuple[K, T]]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def _values(columns: Columns) -> Iterator[tuple[str, str]]:
    """Every category and class, with its column."""
    for feature in columns.features:
        yield from ((feature.name, level) for level in feature.levels)
    yield from ((columns.label, name) for name in columns.classes)


def _spellings(columns: Columns) -> dict[tuple[str, str], frozenset[str]]:
    """How one client writes each value."""
    ways = _votes(((column, value.casefold()), value) for column, value in _values(columns))
    return {key: frozenset(values) for key, values in ways.items()}


def _label_kind(columns: Columns) -> str:
    if not columns.classes:
        return "a number"
    return "whole numbers" if _all_numbers(columns.classes) else "words"


def _listed(classes: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in classes[:5]) + (" ..." if len(classes) > 5 else "") or "a number"


def _all_numbers(classes: Iterable[str]) -> bool:
    try:
        return all(float(name) == float(name) for name in classes)
    except ValueError:
        return False


@lru_cache(maxsize=16)  # the clients of a node mostly have the same columns
def misfit(design: Design, columns: Columns) -> str | None:
    """Why a client's columns do not go with a design, in words; None where they do."""
    if why := Common.of([design.raw_columns]).clash(columns):
        return why
    others = [name for name in columns.classes if name not in design.classes]
    return f"its label has the class {others[0]!r}, which the model has not learned" if others else None


# ---------------------------------------------------------------------------------------------------- the design


def agree(descriptions: Mapping[str, Description], rules: Rules) -> Design:
    """The design of clients whose columns go together.

    Raises ValueError where there is none: no statistics to scale or to fill with, or a `positive` that is no class.
    A label that is a number is scaled as a column would be.
    """
    ordered = [descriptions[client] for client in sorted(descriptions)]
    distinct = list(dict.fromkeys(description.columns for description in ordered))
    kinds = Common.of([description.columns for description in ordered]).kinds
    moments = _merged(ordered, tuple(kinds))
    scales = moments.scale()
    gaps = {name for description in ordered for name in description.missing}
    levels = _levels(distinct)
    terms = []
    for index, (name, kind) in enumerate(kinds.items()):
        indicator = rules.missing == "indicator" and name in gaps
        if kind == "category" or kind == "empty":
            terms.append(Term(name, "category", categories=tuple(sorted(levels[name])), indicator=indicator))
        elif not rules.need_moments:
            terms.append(Term(name, kind))
        elif not moments.n[index]:
            raise ValueError(_nothing_known(name, rules))
        else:
            terms.append(Term(name, kind, float(moments.mean[index]), float(scales[index]), indicator=indicator))
    if rules.need_moments and not moments.vary().any() and not any(term.categories or term.indicator for term in terms):
        raise ValueError("every column has one value in all rows: there is nothing to learn from")
    label, classes = ordered[0].columns.label, _classes(distinct, rules)
    shift, scale = _label_scaling(ordered, rules) if rules.scale_label and not classes else (None, None)
    return Design(tuple(terms), label, classes, rules.standardize, rules.missing, shift, scale)


def _label_scaling(descriptions: Sequence[Description], rules: Rules) -> tuple[float, float]:
    parts = [description.label for description in descriptions if description.label is not None]
    if not parts:
        raise ValueError(
            f"no client has min-examples={rules.min_examples} training rows, so that the label "
            f"{descriptions[0].columns.label!r} cannot be scaled: lower min-examples, use fewer clients, or set "
            "standardize=none"
        )
    merged = Moments.merge(parts)
    return float(merged.mean[0]), float(merged.scale()[0])


def _merged(descriptions: Sequence[Description], names: tuple[str, ...]) -> Moments:
    """The moments of all, in the order of these columns."""
    parts = [Moments(np.zeros(len(names), dtype=np.int64), *(np.zeros(len(names)) for _ in range(3)))]
    for description in descriptions:
        if description.moments is not None:
            moments = description.moments
            if description.columns.names != names:
                place = {name: index for index, name in enumerate(description.columns.names)}
                order = [place[name] for name in names]
                moments = Moments(*(array[order] for array in moments.to_arrays()))
            parts.append(moments)
    return Moments.merge(parts)


def _nothing_known(column: str, rules: Rules) -> str:
    remedy = "drop the column, lower min-examples, or use fewer clients"
    if rules.missing == "error":
        remedy = "lower min-examples, use fewer clients, or set standardize=local"
    return f"no client has min-examples={rules.min_examples} training rows with a value in column {column!r}: {remedy}"


def _levels(distinct: Iterable[Columns]) -> dict[str, set[str]]:
    """The union of the categories of each column; one that is called `other` is part of that."""
    union: dict[str, set[str]] = {}
    for columns in distinct:
        for feature in columns.features:
            union.setdefault(feature.name, set()).update(set(feature.levels) - {OTHER})
    return union


def _classes(distinct: Iterable[Columns], rules: Rules) -> tuple[str, ...]:
    """Where all clients count them alike, their order; else sorted, numbers by size. `positive` comes second of two."""
    held = {columns.classes for columns in distinct}
    classes = held.pop() if len(held) == 1 else _sorted({name for some in held for name in some})
    if not rules.positive:
        return classes
    if rules.positive not in classes:
        raise ValueError(f"positive={rules.positive}: {unknown('class', rules.positive, classes)}")
    if len(classes) != 2:
        raise ValueError(f"positive={rules.positive}: the label has {len(classes)} classes, {_listed(classes)}, not 2")
    return (*(name for name in classes if name != rules.positive), rules.positive)


def _sorted(classes: set[str]) -> tuple[str, ...]:
    return tuple(sorted(sorted(classes), key=float) if _all_numbers(classes) else sorted(classes))
