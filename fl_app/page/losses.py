"""Whom the run lost: clients whose updates were not used, and rounds that had to be tried twice."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from fl_app.page.facts import Facts, mappings, whole
from fl_app.page.markup import Html, el
from fl_app.page.tables import Column, table
from fl_app.page.words import count, counted, ranges, shorten

MOST_DROPPED = 50

DROP_REASONS = {
    "raised": "its training raised an error",
    "timeout": "no answer in time",
    "late": "enough others had answered",
    "non-finite": "its update was not finite",
    "shape": "its arrays had the wrong shape",
    "dtype": "its arrays had the wrong type",
    "keys": "its update had the wrong parts",
    "metrics": "its metrics were impossible",
    "weight": "its weight was out of bounds",
    "declined": "it declined to take part",
    "decode": "its update could not be read",
    "memory": "it ran out of memory",
}


def dropped_section(summary: Facts, rounds: Sequence[Facts]) -> Html:
    """Whose updates were not used, why and when."""
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    when: dict[str, list[int]] = defaultdict(list)
    for line in rounds:
        for drop in mappings(line.get("dropped")):
            client = str(drop.get("client"))
            reasons[client][str(drop.get("reason"))] += 1
            when[client].append(whole(line.get("round")) or 0)
    named = sum(len(found) for found in when.values())
    unnamed = max(0, (whole(summary.get("dropped")) or 0) - named)
    listed = sorted(when, key=lambda client: (-len(when[client]), client))
    body = _dropped_table(listed[:MOST_DROPPED], reasons, when) if listed else None
    words = [_dropped_words(named, len(listed), unnamed), _retried(rounds), _online(rounds)]
    return el("section", el("h2", "Dropped clients"), el("p", " ".join(filter(None, words))), body, _held_down(rounds))


def _dropped_table(listed: Sequence[str], reasons: dict[str, Counter[str]], when: dict[str, list[int]]) -> Html:
    columns = [Column("Client"), Column("Times", "n"), Column("Why", "t"), Column("In rounds", "t")]
    rows = [[shorten(c), count(len(when[c])), _why(reasons[c]), ranges(when[c])] for c in listed]
    return table("Dropped clients, the most frequent first", columns, rows)


def _held_down(rounds: Sequence[Facts]) -> Html | None:
    """Whose good updates the strategy did without, or shortened, as it does with those unlike the others; or None."""
    left_out, clipped = (_named(rounds, key) for key in ("left_out", "clipped"))
    clients = sorted({*left_out, *clipped}, key=lambda client: (-len(left_out[client] + clipped[client]), client))
    if not clients:
        return None
    rows = [[shorten(c), ranges(left_out[c]), ranges(clipped[c])] for c in clients[:MOST_DROPPED]]
    columns = [Column("Client"), Column("Left out in rounds", "t"), Column("Clipped again in rounds", "t")]
    return table("Updates that the strategy left out, or clipped, the most frequent first", columns, rows)


def _named(rounds: Sequence[Facts], key: str) -> dict[str, list[int]]:
    """The rounds in which a line names each client under this key."""
    found: dict[str, list[int]] = defaultdict(list)
    for line in rounds:
        names = line.get(key)
        for name in names if isinstance(names, list) else ():
            found[str(name)].append(whole(line.get("round")) or 0)
    return found


def _why(reasons: Counter[str]) -> str:
    several = len(reasons) > 1
    words = [(DROP_REASONS.get(reason, shorten(reason, 40)), times) for reason, times in reasons.most_common(6)]
    return "; ".join(f"{word} ({count(times)})" if several else word for word, times in words)


def _retried(rounds: Sequence[Facts]) -> str:
    """Which rounds had too few good updates at first."""
    again = [whole(line.get("round")) or 0 for line in rounds if (whole(line.get("attempts")) or 1) > 1]
    if not again:
        return ""
    return f"Tried once more, as too few updates were good: {'round' if len(again) == 1 else 'rounds'} {ranges(again)}."


def _online(rounds: Sequence[Facts]) -> str:
    """How many could be asked, where that changed: nodes come and go."""
    seen = [online for line in rounds if (online := whole(line.get("online"))) is not None]
    if len(set(seen)) < 2:
        return ""
    return f"From {count(min(seen))} to {counted(max(seen), 'client')} could be asked."


def _dropped_words(named: int, clients: int, unnamed: int) -> str:
    if not named and not unnamed:
        return "None: in the completed rounds every update that came was used."
    told = (
        f"{counted(named, 'update')} of {counted(clients, 'client')} not used; the run went on without."
        if named
        else ""
    )
    if clients > MOST_DROPPED:
        told += f" The {MOST_DROPPED} most frequent of them follow; all are in rounds.jsonl."
    if unnamed:
        told += f" {counted(unnamed, 'more update' if named else 'update')} not used, whose clients are not named."
    return told.strip()
