"""Configuration and versions, for those who want to do it again."""

from collections.abc import Iterable

from fl_app.page.facts import Facts, mapping
from fl_app.page.markup import Html, el
from fl_app.page.words import shorten

_LONGEST = 300


def settings(summary: Facts, model: Facts | None) -> Html:
    """All keys of the run, the versions and what the model is recognised by; closed until it is asked for."""
    groups = [
        ("Configuration", mapping(summary.get("config")).items()),
        ("Versions", mapping(summary.get("versions")).items()),
        ("Model", _model(summary, mapping(model))),
    ]
    lists = [el("div", el("h3", name), _pairs(pairs)) for name, items in groups if (pairs := list(items))]
    summary_line = el("summary", el("h2", "Configuration and versions"))
    return el("section", el("details", summary_line, el("div", lists, class_="settings")))


def _pairs(pairs: Iterable[tuple[str, object]]) -> Html:
    return el(
        "dl", [el("div", el("dt", shorten(key)), el("dd", _value(value))) for key, value in pairs], class_="pairs"
    )


def _value(value: object) -> str:
    if value is None or value == "":
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return str(value).lower()
    return shorten(value, _LONGEST)


def _model(summary: Facts, model: Facts) -> list[tuple[str, object]]:
    features, classes = model.get("features"), model.get("classes")
    found = [
        ("label", model.get("label")),
        ("classes", ", ".join(shorten(c, 40) for c in classes) if isinstance(classes, list) else None),
        ("features", len(features) if isinstance(features, list) else None),
        ("params_sha256", summary.get("params_sha256")),
        ("config_sha256", model.get("config_sha256")),
        ("resumed_from", summary.get("resumed_from")),
    ]
    return [(key, value) for key, value in found if value not in (None, "")]
