"""What the run protects and what it does not, in words."""

import math
from collections.abc import Sequence

from fl_app.page.charts import Chart, Curve
from fl_app.page.facts import Facts, mapping, number, whole
from fl_app.page.markup import Child, Html, el
from fl_app.page.words import shorten, significant

_UNITS = {"client": "one client, with all of its rows", "record": "one row of a client"}
_STRONG, _MODERATE = 1.0, 10.0  # the tiers of "How to DP-fy ML", arXiv:2303.00654, section 5.2


def privacy_section(summary: Facts, rounds: Sequence[Facts]) -> Html:
    """What was spent where there is a mechanism; otherwise what is open and who must be trusted."""
    privacy = mapping(summary.get("privacy"))
    words = _spent(privacy) if privacy else _unprotected()
    curve = _curve(rounds)
    text = el("div", [el("p", paragraph) for paragraph in words], class_="prose")
    body = el("div", curve, text, class_="charts") if curve else text
    return el("section", el("h2", "Privacy" if privacy else "What this run does not protect"), body)


def _unprotected() -> list[Child]:
    return [
        [
            "Rows never left their clients. But ",
            el("b", "no differential privacy was in force"),
            ", and what did leave is computed from rows and can reveal them.",
        ],
        "A gradient of one row is that row, up to scale; an update from few rows can often be turned back into them. "
        "The statistics that scale the features are sums over the rows of a client. The finished model can tell "
        "whether a row was among those it learned from.",
        [
            el("b", "Who must be trusted: "),
            "whoever runs the server or can read its memory and the messages to it; in a simulation, every process on "
            "the machine; and everyone who receives the model, which includes the clients.",
        ],
    ]


def _spent(privacy: Facts) -> list[Child]:
    epsilon, delta = number(privacy.get("epsilon")), number(privacy.get("delta"))
    unit = str(privacy.get("unit"))
    protected = _UNITS.get(unit, shorten(unit))
    if epsilon is None:
        return [
            [
                "A mechanism was in force, but ",
                el("b", "no finite bound on what was spent is known"),
                ": take the run as unprotected.",
            ]
        ]
    at = f" at delta {significant(delta)}" if delta is not None else ""
    counter = (
        f", as counted by the accountant {shorten(privacy.get('accountant'))}" if privacy.get("accountant") else ""
    )
    return [
        [
            "Differential privacy protected ",
            el("b", protected),
            ". Spent: ",
            el("b", f"epsilon {significant(epsilon)}"),
            f"{at}{counter}.",
        ],
        [_odds(epsilon, delta, unit)],
        [_strength(epsilon), " The file privacy.json says what is not covered and who must still be trusted."],
    ]


def _odds(epsilon: float, delta: float | None, unit: str) -> str:
    factor = significant(math.exp(epsilon)) if epsilon < 15 else "more than a million"
    exception = f", but for a chance of {significant(delta)}" if delta is not None else ""
    what = {"client": "the data of one client", "record": "one row"}.get(unit, "one unit")
    return (
        f"In words: leaving out {what} (or exchanging it, as privacy.json defines it) makes nothing that the run could "
        f"have given out more than {factor} times as likely or unlikely{exception}."
    )


def _strength(epsilon: float) -> str:
    if epsilon <= _STRONG:
        return "An epsilon of at most 1 is a strong promise."
    if epsilon <= _MODERATE:
        return "An epsilon between 1 and 10 is a moderate promise."
    return "An epsilon above 10 promises little by itself."


def _curve(rounds: Sequence[Facts]) -> Html | None:
    found = ((whole(line.get("round")), number(line.get("epsilon"))) for line in rounds)
    points = tuple((round_, value) for round_, value in found if round_ is not None and value is not None)
    if not points:
        return None
    curve = Curve("spent, up to and with each round", "epsilon", "epsilon", points)
    return Chart("Epsilon", "epsilon", [curve], significant, limits=(0.0, None), remarks=["lower is better"]).figure()
