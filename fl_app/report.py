"""The end of a run in words."""

import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_app.console import WIDTH, short_number
from fl_app.privacy_words import as_bound
from strategies.stopping import LOWER_IS_BETTER

SHARES = frozenset({"accuracy", "auc"})

REASONS = {
    "rounds": "all rounds done",
    "converged": "converged",
    "target": "target reached",
    "patience": "no more improvement",
    "budget": "privacy budget spent",
    "too-few-clients": "too few clients",
    "error": "an error",
    "interrupted": "interrupted",
}


def closing_lines(summary: Mapping[str, Any], here: Path) -> list[str]:
    """What a person wants to know once a run is over: how it ended, how good the model is, where everything is."""
    rounds = summary["rounds"]
    ending = f"{summary['status']} after {rounds} round{'' if rounds == 1 else 's'}"
    lines = [f"{ending} in {summary['seconds']['total']:.1f} s: {REASONS[summary['stop_reason']]}"]
    metrics = {name: value for name, value in (summary["metrics"] or {}).items() if value is not None}
    if metrics:
        where = "server's" if summary["metrics_on"] == "server" else "clients'"
        if count := (summary["baselines"] or {}).get("test_rows"):
            where = f"{where} {count}"
        text = "  ".join(f"{name} {short_number(value)}" for name, value in metrics.items())
        noise = ", with noise" if summary.get("config", {}).get("noisy-metrics") else ""
        lines += textwrap.wrap(f"{text}  ({where} test rows{noise})", WIDTH)
    sentences = [*_noise(summary), *comparison(summary), *_privacy(summary)]
    lines += [line for sentence in sentences for line in textwrap.wrap(sentence, WIDTH)]
    out = Path(summary["out"])
    lines.append(f"results in {_near(out, here)}; report.html shows them")
    if summary["status"] != "completed" and summary["params_sha256"]:  # there is a checkpoint
        lines.append(f"go on with: fl-app run --resume {shlex.quote(_near(out, here))}")
    return lines


def _noise(summary: Mapping[str, Any]) -> list[str]:
    """How far the first metric can be believed, where it was released with noise."""
    noise = (summary.get("privacy") or {}).get("metrics")
    main = next(iter(summary["metrics"] or {}), None)
    if not noise or main is None:
        return []
    if noise["stddev"] is not None:
        return [f"the noise in {main} has a standard deviation of {short_number(noise['stddev'][main])}"]
    spread = short_number(noise["stddev_times_rows"][main])
    return [f"the noise in {main} has a standard deviation of {spread} / n, where each client has n test rows"]


def _near(path: Path, here: Path) -> str:
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _privacy(summary: Mapping[str, Any]) -> list[str]:
    """What was spent, and a warning where delta says little."""
    privacy = summary.get("privacy")
    if not privacy:
        return []
    unit, delta = {"client": "client", "record": "row of a client"}[privacy["unit"]], privacy["delta"]
    spent = "no bound is known" if privacy["epsilon"] is None else f"epsilon {as_bound(privacy['epsilon'])}"
    if "planned_rounds" in privacy:
        spent += f" of all {privacy['planned_rounds']} planned rounds"
    said = [f"privacy of every {unit}: {spent} at delta {delta:g} ({privacy['accountant']}); see privacy.json"]
    if privacy["unit"] == "client" and summary["clients"] and delta > 1 / summary["clients"]:
        said.append(
            f"warning: delta is above one over the number of clients, {1 / summary['clients']:.2g}: it would allow to "
            "give one client's rows away"
        )
    if (noise := privacy.get("noise_to_updates") or 0.0) > 1:
        said.append(
            f"warning: the noise of all rounds is {short_number(noise)} times as long as all updates together can be: "
            "the model can hardly have learned anything. Take more clients, fewer parameters or a larger epsilon; of a "
            "few clients with many rows, strategy=record-dp-fedavg protects the rows"
        )
    return said


def comparison(summary: Mapping[str, Any]) -> list[str]:
    """What federating was worth, by the first metric: training alone, on the rows of all and on one's own; pooling."""
    baselines, metrics = summary["baselines"] or {}, summary["metrics"] or {}
    main = next(iter(metrics), None)
    if not baselines or main is None or metrics[main] is None:
        return []
    said, points = [], " points" if main in SHARES else ""
    if baselines.get("local_mean"):
        alone = {name: baselines[f"local_{name}"][main] for name in ("mean", "worst", "best")}
        gains = {name: _change(main, value, metrics[main]) for name, value in alone.items()}
        said.append(
            f"a client alone reaches {main} {short_number(alone['mean'])} on the same rows "
            f"({short_number(alone['worst'])} to {short_number(alone['best'])}): "
            f"federating gained {gains['mean']}{points} on average, "
            f"{gains['best']} to {gains['worst']}"
        )
    if own := baselines.get("own_rows"):
        said.append(
            f"on their own test rows clients gain {_signed(main, own['gain'])}{points}: "
            f"{own['better']} better, {own['same']} the same, {own['worse']} worse"
        )
    if baselines.get("majority") is not None and main == "accuracy":
        said.append(f"saying the most frequent class of everybody would reach {short_number(baselines['majority'])}")
    if baselines.get("pooled"):
        pooled = baselines["pooled"][main]
        said.append(f"all rows in one place would reach {short_number(pooled)}")
    return said


def _change(metric: str, before: float, after: float) -> str:
    """From one value to another, up being better; of shares in percentage points."""
    return _signed(metric, before - after if metric in LOWER_IS_BETTER else after - before)


def _signed(metric: str, gain: float) -> str:
    return f"{100 * gain:+.1f}" if metric in SHARES else f"{'+' if gain >= 0 else '-'}{short_number(abs(gain))}"
