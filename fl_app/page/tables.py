"""Tables that scroll in a box of their own where the window is narrow."""

from collections.abc import Sequence
from dataclasses import dataclass

from fl_app.page.markup import Child, Html, el


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; `style` is `n` for numbers, which stand at the right, or `p` for drawings."""

    name: str
    style: str | None = None


def table(name: str, columns: Sequence[Column], rows: Sequence[Sequence[Child]]) -> Html:
    """A table whose first column names its rows. `name` stands above it."""
    head = el("tr", [el("th", column.name, scope="col", class_=column.style) for column in columns])
    body = [el("tr", _cells(columns, row)) for row in rows]
    inner = el("table", el("thead", head), el("tbody", body), aria_label=name)
    box = el("div", inner, class_="scroll", tabindex="0", role="region", aria_label=name)
    return el("figure", el("figcaption", name, class_="note"), box, class_="table")


def _cells(columns: Sequence[Column], row: Sequence[Child]) -> list[Html]:
    first, *rest = zip(columns, row, strict=True)
    return [
        el("th", first[1], scope="row", class_=first[0].style),
        *(el("td", cell, class_=column.style) for column, cell in rest),
    ]
