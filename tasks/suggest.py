"""The near match for a wrong name."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """One line for an unknown name: what it is, the near match if there is one, and every name that is known."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {word!r}: {hint}known are {', '.join(names) or 'none'}"
