"""The page as a whole."""

from collections.abc import Mapping, Sequence
from typing import Any

from fl_app.page.coefficients import coefficients_section
from fl_app.page.cost import communication, time_section
from fl_app.page.facts import Facts, mapping, mappings
from fl_app.page.headline import header, tiles, title
from fl_app.page.losses import dropped_section
from fl_app.page.markup import Html, el
from fl_app.page.privacy import privacy_section
from fl_app.page.settings import settings
from fl_app.page.sites import sites_section
from fl_app.page.style import CSS
from fl_app.page.training import training
from fl_app.page.words import shorten

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(
    summary: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    sites: Mapping[str, Any] | None,
    model: Mapping[str, Any] | None,
    privacy: Mapping[str, Any] | None = None,
) -> str:
    """One HTML file that tells a run to somebody who was not there.

    The arguments are the parsed summary.json, lines of rounds.jsonl, sites.json, model.json and privacy.json; whatever
    in them is null or absent is left out of the page. It has no script and asks for nothing from anywhere; text of the
    files is escaped where it is put in (`markup.el`).
    """
    lines = mappings(rounds)
    body = el(
        "body",
        header(summary, lines),
        el("main", tiles(summary), _sections(summary, lines, sites, model, privacy)),
        _footer(summary),
    )
    return whole_page(title(summary), body)


def whole_page(name: str, body: Html, css: str = "") -> str:
    """The file: a head with the style sheet, to which `css` is added, and the body."""
    return "<!DOCTYPE html>\n" + el("html", _head(name, css), body, lang="en") + "\n"


def _head(name: str, css: str) -> Html:
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", name),
        el("style", Html(CSS + css)),
    )


def _sections(
    summary: Facts, rounds: Sequence[Facts], sites: Facts | None, model: Facts | None, privacy: Facts | None
) -> list[Html | None]:
    return [
        training(summary, rounds),
        sites_section(sites),
        coefficients_section(model),
        communication(summary, rounds, model),
        time_section(summary, rounds),
        dropped_section(summary, rounds) if (rounds or summary.get("dropped")) and not _secret(rounds) else None,
        privacy_section(summary, rounds, privacy),
        settings(summary, model),
    ]


def _secret(rounds: Sequence[Facts]) -> bool:
    """Whether nobody may know who took part: the rounds then do not say how many updates were good."""
    return any("good" in line and line["good"] is None for line in rounds)


def _footer(summary: Facts) -> Html:
    version = mapping(summary.get("versions")).get("app")
    by = f"fl-app {shorten(version, 24)}" if version else "fl-app"
    return el("footer", el("p", f"Written by {by} from summary.json and rounds.jsonl, which hold the exact numbers."))
