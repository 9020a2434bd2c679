"""What the run protects and what it does not, in words."""

from collections.abc import Sequence

from fl_app.page.charts import Chart, Curve
from fl_app.page.facts import Facts, mapping, number, whole
from fl_app.page.markup import Child, Html, el
from fl_app.page.words import shorten, significant
from fl_app.privacy_words import UNITS, Part, explained, odds, rounded_up, tier


def privacy_section(summary: Facts, rounds: Sequence[Facts], promise: Facts | None = None) -> Html:
    """What was spent where there is a mechanism; otherwise what is open and who must be trusted.

    `promise` is the parsed privacy.json, which says all of it.
    """
    privacy = mapping(summary.get("privacy"))
    words = _spent(privacy) if privacy else _unprotected(summary)
    words = words[:1] if privacy and promise else words
    curve = _curve(rounds)
    text = el("div", [el("p", paragraph) for paragraph in words], class_="prose")
    body = el("div", curve, text, class_="charts") if curve else text
    details = el("div", [_part(part) for part in explained(promise)], class_="charts") if privacy and promise else None
    return el("section", el("h2", "Privacy" if privacy else "What this run does not protect"), body, details)


def _part(part: Part) -> Html:
    """A heading with its sentences, or its list."""
    if part.listed:
        body: list[Html] = [el("ul", [el("li", text) for text in part.texts])]
    else:
        body = [el("p", " ".join(part.texts))]
    return el("div", el("h3", part.title), body, class_="prose")


def _unprotected(summary: Facts) -> list[Child]:
    opened = summary.get("metrics_on") == "server" or mapping(summary.get("baselines"))
    where = (
        "The server could read rows itself, as in a simulation; in a deployment rows never leave their clients. But "
        if opened
        else "Rows never left their clients. But "
    )
    return [
        [
            where,
            el("b", "no differential privacy was in force"),
            ", and what clients sent is computed from rows and can reveal them.",
        ],
        "Besides updates clients send what the run needs of this: once the names and kinds of their columns, their "
        "classes, the categories that are not rare among their rows, and the count, mean and variance of each number; "
        "their number of rows, how good the model is on their test rows, and for standard errors the curvature of "
        "their loss.",
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
    protected = UNITS.get(unit, shorten(unit))
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
    planned = whole(privacy.get("planned_rounds"))
    reach = f" by all {planned} planned rounds, since its stop rule reads results" if planned else ""
    return [
        [
            "Differential privacy protected ",
            el("b", protected),
            ". Spent: ",
            el("b", f"epsilon {significant(rounded_up(epsilon, 3))}"),
            f"{at}{reach}{counter}.",
        ],
        [odds(epsilon, delta)],
        [tier(epsilon)],
    ]


def _curve(rounds: Sequence[Facts]) -> Html | None:
    found = ((whole(line.get("round")), number(line.get("epsilon"))) for line in rounds)
    points = tuple((round_, value) for round_, value in found if round_ is not None and value is not None)
    if not points:
        return None
    curve = Curve("spent, up to and with each round", "epsilon", "epsilon", points)
    return Chart("Epsilon", "epsilon", [curve], significant, limits=(0.0, None), remarks=["lower is better"]).figure()
