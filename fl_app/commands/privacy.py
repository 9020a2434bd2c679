"""The commands about privacy: what a guarantee costs in noise, what a run kept of it, what a site has spent."""

import json
import math
import textwrap
from pathlib import Path
from typing import Annotated, cast

import typer

from fl_app.commands import words
from fl_app.console import WIDTH
from fl_app.errors import Refused
from fl_app.privacy_words import as_bound, explained
from fl_app.run_folder import RunFolder
from fl_app.site_ledger import costs_of
from privacy import accounting
from privacy.accounting import Relation, Release, Sampling, SamplingKind, Spent, Unit

privacy = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="What privacy costs, and what a run kept of it."
)

KINDS = ("poisson", "fixed", "none")
UNITS = {"client": "clients", "record": "records"}


@privacy.command()
def calibrate(
    epsilon: Annotated[float, typer.Option(help="the epsilon that all rounds together may cost")],
    delta: Annotated[float, typer.Option(help="the delta that goes with it, well below 1 over the population")],
    rounds: Annotated[int, typer.Option(help="rounds, each of which releases one noisy sum")],
    sampling: Annotated[str, typer.Option(help="poisson, fixed (size, without replacement) or none (everyone)")],
    rate: Annotated[float, typer.Option(help="the probability of taking part in a round")] = 1.0,
    population: Annotated[int | None, typer.Option(help="how many there are; fixed sampling needs it")] = None,
    unit: Annotated[str, typer.Option(help="whom it protects: client or record")] = "client",
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Find the least noise that keeps an epsilon: the noise multiplier for poisson, fixed or no sampling.

    The relation is replace-one for fixed sampling, whose cohorts leave no place empty, and add-remove otherwise.
    """
    if unit not in UNITS:
        raise Refused(f"unit {unit!r}", "--unit", "expected client or record")
    if rounds < 1:
        raise Refused(f"{rounds} rounds", "--rounds", "expected 1 or more")
    drawn = _sampling(sampling, rate, population)
    relation: Relation = "replace-one" if drawn.kind == "fixed" else "add-remove"
    try:
        noise = accounting.calibrate(epsilon, delta, relation, drawn, rounds)
    except ValueError as error:
        what, *remedy = str(error).split(": ", 1)
        raise Refused(what, f"--epsilon {epsilon} --delta {delta}", *remedy or ["choose another"]) from error
    release = Release("sum", noise, drawn, rounds)
    cost = accounting.spent([release], relation, delta)
    if as_json:
        print(json.dumps({**_numbers(noise, cost), "unit": unit, "relation": relation}, indent=2))
        return
    for line in _lines(release, cost, delta, relation, cast(Unit, unit)):
        print(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


@privacy.command()
def explain(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a run that promised privacy")],
    as_json: Annotated[bool, typer.Option("--json", show_default=False, help="privacy.json as it is")] = False,
    debug: words.Debug = False,
) -> None:
    """Say in plain words what a run promised: whom it protects, how strongly, whom to trust, what is not covered."""
    run = RunFolder(folder.expanduser())
    promise = run.read_json(run.privacy)
    if promise is None:
        remedy = "name the folder of a run whose strategy promises privacy, such as dp-fedavg"
        raise Refused("no privacy.json that can be read", str(run.path), remedy)
    if as_json:
        print(json.dumps(promise, indent=2))
        return
    try:
        parts = explained(promise)
    except (KeyError, TypeError) as error:
        raise Refused("no privacy.json of this version", str(run.privacy), f"it lacks {error}") from error
    for part in parts:
        print(part.title)
        for text in part.texts:
            mark = "  - " if part.listed else "  "
            after = " " * len(mark)
            print(textwrap.fill(text, WIDTH, initial_indent=mark, subsequent_indent=after, break_on_hyphens=False))


@privacy.command("spent")
def spent_at_site(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="the state folder of a site's node")],
    delta: Annotated[float, typer.Option(help="the delta at which epsilon is told")] = 1e-5,
    as_json: words.Json = False,
    debug: words.Debug = False,
) -> None:
    """Add up what the rows of a site have cost over all runs, from the ledgers that its node keeps."""
    try:
        costs = [cost.to_json() for cost in costs_of(state.expanduser(), delta)]
    except ValueError as error:
        what, *remedy = str(error).split(": ", 1)
        raise Refused(what, str(state), *remedy or ["restore it from a copy"]) from error
    if as_json:
        print(json.dumps({"delta": delta, "clients": costs}, indent=2))
        return
    if not costs:
        print(f"no run that promised privacy has used rows of {state}")
    for cost in costs:
        epsilon = "unbounded" if cost["epsilon"] is None else as_bound(cost["epsilon"])
        runs = f"{cost['runs']} run{'' if cost['runs'] == 1 else 's'}"
        whom = f"one {cost['unit']} ({cost['relation']})"
        line = f"{cost['client']}: epsilon {epsilon} at delta {delta:g} for {whom}, {runs}"
        print(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def _sampling(kind: str, rate: float, population: int | None) -> Sampling:
    """Raises Refused."""
    if kind not in KINDS:
        raise Refused(f"sampling {kind!r}", "--sampling", f"expected {', '.join(KINDS)}")
    if not 0.0 < rate <= 1.0:
        raise Refused(f"a rate of {rate}", "--rate", "expected above 0 and at most 1")
    if kind == "none" and rate != 1.0:
        raise Refused(f"a rate of {rate} without sampling", "--sampling none", "leave --rate out: everyone takes part")
    if kind != "fixed":
        if population is not None:
            raise Refused(f"a population of {population}", f"--sampling {kind}", "leave --population out")
        return Sampling(cast(SamplingKind, kind), rate)
    if population is None:
        raise Refused("fixed sampling of how many?", "--sampling fixed", "add --population N; it draws round(rate N)")
    size = round(rate * population)
    if size < 1:
        raise Refused(f"{rate:g} of {population} is nobody", "--rate and --population", "give a larger rate")
    return Sampling("fixed", size=size, population=population)


def _numbers(noise: float, cost: Spent) -> dict[str, float | None]:
    """Numbers that are no numbers are null."""
    found = {"noise_multiplier": noise, "epsilon_pld": cost.pld, "epsilon_rdp": cost.rdp}
    return {name: None if value is None or math.isinf(value) else value for name, value in found.items()}


def _lines(release: Release, cost: Spent, delta: float, relation: Relation, unit: Unit) -> list[str]:
    change = f"one {unit} joins or leaves" if relation == "add-remove" else f"one {unit} is replaced by another"
    by = {"privacy loss distributions (PLD)": cost.pld, "Renyi divergences (RDP)": cost.rdp}
    known = [f"epsilon by {name}: {as_bound(value)}" for name, value in by.items() if value is not None]
    return [
        f"noise multiplier {release.noise_multiplier:g}: in each of {release.count} rounds the noise added to the sum"
        f" over the {UNITS[unit]} has this standard deviation, times the norm to which one {unit}'s contribution is"
        f" clipped; {_drawn(release.sampling)}",
        *known,
        f"Both are upper bounds, at delta {delta:g}, and the smaller holds ({cost.accountant.upper()})."
        if len(known) == 2
        else f"An upper bound, at delta {delta:g}; PLD cannot be computed here.",
        f"They bound how far what the run releases can differ when {change} ({relation}).",
    ]


def _drawn(sampling: Sampling) -> str:
    if sampling.kind == "fixed":
        return f"{sampling.size} of {sampling.population} take part in each"
    return "everyone takes part" if sampling.kind == "none" else f"each takes part with probability {sampling.rate:g}"
