"""Errors that are the user's to mend: refused before anything starts, one line each."""

from collections.abc import Iterable
from difflib import get_close_matches


class Refused(ValueError):
    """A configuration, command or file that a run cannot start from.

    Printed as `error: <what>: <where>: <remedy>`, exit status 2.
    """

    def __init__(self, what: str, where: str, remedy: str) -> None:
        super().__init__(one_line(f"{what}: {where}: {remedy}"))
        self.what, self.where, self.remedy = what, where, remedy


def one_line(text: str) -> str:
    """The text on one line, with control characters shown as escapes."""
    return "".join(c if c.isprintable() else " " if c == "\n" else repr(c)[1:-1] for c in text).strip()


def suggestion(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known one, and all of them where they are few."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    listing = f"known: {', '.join(names)}"
    if near:
        return f"did you mean {near[0]!r}?" + (f" ({listing})" if len(listing) < 100 else "")
    return listing
