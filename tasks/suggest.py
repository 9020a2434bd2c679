"""The near match for a wrong name."""

from collections.abc import Iterable
from difflib import get_close_matches

NAMED = 12  # of the columns of a file


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """One line for an unknown name: what it is, the near match if there is one, and every name that is known."""
    names = sorted(known)
    return f"unknown {kind} {word!r}: {suggestion(word, names)}known are {', '.join(names) or 'none'}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """`did you mean 'age'? ` with a blank behind it; empty where nothing is near, whatever its capitals."""
    folded = {name.casefold(): name for name in sorted(known)}
    near = get_close_matches(word.casefold(), folded, n=1)
    return f"did you mean {folded[near[0]]!r}? " if near else ""


def instead_of(word: str, columns: Iterable[str]) -> str:
    """A remedy for a column that is not there: the near match, and the columns that are, at most NAMED of them."""
    there = list(columns)
    listed = ", ".join(there[:NAMED]) + (f" and {len(there) - NAMED} more" if len(there) > NAMED else "")
    return f"{suggestion(word, there)}the columns are {listed}"
