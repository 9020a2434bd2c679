"""HTML in which escaping cannot be forgotten: text turns into markup in `el` and nowhere else."""

import html
import math
import unicodedata
from collections.abc import Iterable
from typing import TypeAlias


class Html(str):
    """Markup. Whatever is computed from one (`+`, an f-string, `join`) is plain text again, and so will be escaped."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child] | None"
Attribute = str | float | bool | None

_NEVER_CLOSED = frozenset({"meta"})
_DRAWN = frozenset({"circle", "line", "path", "polygon", "polyline", "rect"})  # SVG, where a tag can close itself


def el(tag: str, *children: Child, **attributes: Attribute) -> Html:
    """An element. Children that are not Html are escaped, and so is every attribute.

    `class_` is `class`, `data_round` is `data-round`. None and False leave an attribute out, True gives it no value; a
    float is a length and keeps one decimal.
    """
    opening = tag + "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _NEVER_CLOSED:
        return Html(f"<{opening}>")
    inner = _markup(children)
    if not inner and tag in _DRAWN:
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{inner}</{tag}>")


def _markup(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return html.escape(_printable(child))
    return "".join(_markup(c) for c in child)


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = length(value) if isinstance(value, float) else html.escape(_printable(str(value)))
    return f' {name}="{text}"'


def length(value: float) -> str:
    """A length or a place of a drawing, to a tenth of a unit: ``12``, ``12.5``."""
    if not math.isfinite(value):
        raise ValueError(f"a length must be finite, not {value}")
    return f"{round(value, 1) + 0.0:.10g}"  # no negative nought


def _printable(text: str) -> str:
    """Without what a file in UTF-8 or a reader's eye cannot bear: control characters, halves of surrogate pairs."""
    if text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in {"Cc", "Cs"} and c not in "\t\n" else c for c in text
    )
