"""What a site demands of a run, whatever the run says: policy.toml, named in the node's config.

    node config: policy="policy.toml"

It is read anew for every message. A run that asks for more is declined: the clause is named in the log of the site, and
the server is told no more than that. A policy that cannot be read declines everything. docs/policy.md says what it is
worth: the code that reads it is what the coordinator sent.
"""

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fl_app import registry
from fl_app.assembly import build_strategy
from fl_app.config import RunConfig
from fl_app.errors import Refused, one_line, suggestion
from fl_app.site_ledger import SiteLedgers, cost, cost_of
from privacy.accounting import Relation, Release, Unit, spent, within
from strategies.base import ComposedStrategy
from strategies.protection import Protection
from strategies.transform import ANY_NUMBER_OF_EXAMPLES
from strategies.wire import Order
from tasks.base import ObjectPath

Ask = Literal["enrol", "means", "train", "evaluate", "survey"]
"""What a message asks of a node."""

USUAL_DELTA = 1e-5
IMPORTED_AT_SITES = ("task", "strategy", "data", "partition", "stop")

Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Groups = dict[tuple[Unit, Relation], list[Release]]


class Declined(Exception):
    """A run that a site does not take part in. `clause` and `detail` are for the site alone."""

    def __init__(self, clause: str, detail: str) -> None:
        super().__init__(one_line(f"{clause}: {detail}"))
        self.clause, self.detail = clause, one_line(detail)


class _Section(BaseModel):
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        validate_by_name=False,
        validate_by_alias=True,
    )


class PrivacyDemands(_Section):
    """Of the promise that a run makes. Any of them demands that it makes one."""

    required: bool = False
    units: list[Unit] | None = None
    max_epsilon: Epsilon | None = None
    max_delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_total_epsilon: Epsilon | None = None
    noise_by_client: bool = False

    @property
    def delta(self) -> float:
        """At which epsilon is meant."""
        return USUAL_DELTA if self.max_delta is None else self.max_delta

    @property
    def first_demand(self) -> str | None:
        """The first key that demands a promise."""
        demands = {
            "required": self.required,
            "units": self.units is not None,
            "max-epsilon": self.max_epsilon is not None,
            "max-delta": self.max_delta is not None,
            "max-total-epsilon": self.max_total_epsilon is not None,
            "noise-by-client": self.noise_by_client,
        }
        return next((key for key, demanded in demands.items() if demanded), None)

    @model_validator(mode="after")
    def _consistent(self) -> "PrivacyDemands":
        if "required" in self.model_fields_set and not self.required and self.first_demand:
            raise ValueError(f"required = false, and yet {self.first_demand} demands privacy: leave one of them out")
        return self


class Allowed(_Section):
    """What a run may name. None: all that is built in, and what `modules` hold."""

    tasks: list[str] | None = None
    strategies: list[str] | None = None
    modules: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _known(self) -> "Allowed":
        for kind, names in (("task", self.tasks), ("strategy", self.strategies)):
            for name in names or ():
                built_in = name in registry.REGISTRIES[kind]  # which is looked up faster than what is installed
                if not built_in and ":" not in name and name not in registry.names(kind):
                    raise ValueError(f"unknown {kind} {name!r}: {suggestion(name, registry.names(kind))}")
        for module in self.modules:
            if not all(part.isidentifier() for part in module.split(".")):
                raise ValueError(f"{module!r} is no module: write it as in an import, such as my_models")
        return self


class Released(_Section):
    """What may leave the site besides the updates of its model, or whether several may be added up."""

    counts: bool = False
    statistics: bool = False
    metrics: bool = False
    survey: bool = False
    folding: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "Released":
        for key, needed in (("statistics", "counts"), ("metrics", "counts"), ("survey", "metrics")):
            if getattr(self, key) and not getattr(self, needed):
                what = "numbers of rows" if needed == "counts" else "metrics of the client"
                raise ValueError(f"{key} = true tells {what}: set {needed} = true too, or {key} = false")
        return self


class Cohort(_Section):
    """Who has to be there besides."""

    minimum: Annotated[int, Field(ge=1)] = 1


class Policy(_Section):
    """A site's demands. Every key may be left out."""

    privacy: PrivacyDemands = Field(default_factory=PrivacyDemands)
    allow: Allowed = Field(default_factory=Allowed)
    release: Released = Field(default_factory=Released)
    cohort: Cohort = Field(default_factory=Cohort)

    @classmethod
    def of(cls, path: Path) -> "Policy":
        """Of a file. Raises Refused, naming the key and for an unknown one the near match."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise Refused("the policy cannot be read", str(path), f"{error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Refused("the policy is no valid TOML", str(path), str(error)) from error
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise _refusal(error, path) from error

    def check_run(self, config: RunConfig, ask: Ask, *, metrics: bool = False) -> ComposedStrategy:
        """The run's strategy, if the site takes part. Raises Declined. `metrics`: the message asks for them.

        What the run names is compared before any of it is imported. What its rounds cost is for `check_spending`.
        """
        self.check_names(config)
        strategy = build_strategy(config)
        self._check_promise(strategy.protection)
        protection = strategy.protection
        if protection is None:
            self._check_release(config, strategy, ask, metrics)
        elif not protection.by_clients:
            self._check_noise_of_server(protection, ask)
        if config.min_clients < self.cohort.minimum:
            raise Declined("cohort.minimum", f"min-clients={config.min_clients}, demanded {self.cohort.minimum}")
        return strategy

    def check_spending(
        self, ledgers: SiteLedgers, client: str, protection: Protection, at_hand: tuple[int, Release] | None
    ) -> None:
        """Whether a client may spend a round and its release on top of all that its ledgers hold; None where it is not
        known yet what a round costs. Raises Declined.
        """
        demands = self.privacy
        if demands.max_epsilon is None and demands.max_total_epsilon is None:
            return
        try:
            charged, books = ledgers.in_run(client), ledgers.of(client)
        except (OSError, ValueError) as error:
            raise Declined("privacy", f"the ledgers cannot be read: {error}") from error
        books.pop(ledgers.path(client), None)
        if at_hand is not None:
            charged.append(at_hand)
        groups: Groups = {(protection.unit, protection.relation): cost(protection.unit, charged)}
        if demands.max_epsilon is not None:
            _check_epsilon("privacy.max-epsilon", groups, demands.max_epsilon, demands.delta)
        if demands.max_total_epsilon is not None:
            for book in books.values():
                groups.setdefault((book.terms.unit, book.terms.relation), []).extend(cost_of(book))
            _check_epsilon("privacy.max-total-epsilon", groups, demands.max_total_epsilon, demands.delta)

    # ------------------------------------------------------------------------------------------------ the clauses

    def check_names(self, config: RunConfig) -> None:
        """Whether the site has what the run names, and may import it. Raises Declined."""
        listed = {"task": self.allow.tasks, "strategy": self.allow.strategies}
        clauses = {"task": "allow.tasks", "strategy": "allow.strategies"}
        for kind in IMPORTED_AT_SITES:
            name, names = str(getattr(config, kind)), listed.get(kind)
            if names is not None and name not in names:
                raise Declined(clauses[kind], f"{kind}={name}, allowed {', '.join(names) or 'none'}")
            if names is None and name not in registry.REGISTRIES[kind]:
                self._check_module(f"{kind}={name}", name)
        for kind in IMPORTED_AT_SITES:
            self._check_arguments(kind, str(getattr(config, kind)), str(getattr(config, f"{kind}_args")))

    def _check_arguments(self, kind: str, name: str, text: str) -> None:
        """The arguments that name something to be imported."""
        given = registry.given(kind, text)
        for argument in registry.arguments(registry.resolve(kind, name)) if given else ():
            value = given.get(argument.name, "")
            if argument.hint is ObjectPath and ":" in value:
                self._check_module(f"{kind}-args {argument.name}={value}", value)

    def _check_module(self, what: str, name: str) -> None:
        module, colon, _ = name.partition(":")
        if not colon:
            raise Declined("allow.modules", f"{what} is not built in: name it module:Attr, and allow the module")
        if not any(module == own or module.startswith(f"{own}.") for own in self.allow.modules):
            raise Declined("allow.modules", f"{what}, allowed {', '.join(self.allow.modules) or 'none'}")

    def _check_promise(self, protection: Protection | None) -> None:
        demands = self.privacy
        if protection is None:
            if demands.first_demand is not None:
                raise Declined(f"privacy.{demands.first_demand}", "the run promises no privacy")
            return
        promise = protection.promise
        if demands.units is not None and protection.unit not in demands.units:
            raise Declined("privacy.units", f"it protects a {protection.unit}, demanded {' or '.join(demands.units)}")
        if demands.noise_by_client and not protection.by_clients:
            raise Declined("privacy.noise-by-client", "the server adds the noise")
        asks_delta = demands.max_delta is not None or demands.max_epsilon is not None
        if asks_delta and promise.delta > demands.delta:
            raise Declined("privacy.max-delta", f"delta={promise.delta:g}, at most {demands.delta:g}")
        if demands.max_epsilon is not None and not promise.target_epsilon:
            raise Declined("privacy.max-epsilon", "it sets no target-epsilon")
        if demands.max_epsilon is not None and promise.target_epsilon > demands.max_epsilon:
            what = f"target-epsilon={promise.target_epsilon:g}, at most {demands.max_epsilon:g}"
            raise Declined("privacy.max-epsilon", what)

    def _check_release(self, config: RunConfig, strategy: ComposedStrategy, ask: Ask, metrics: bool) -> None:
        """Of a run that promises no privacy; one that does is told none of this (fl_app/eligibility.py)."""
        may = self.release
        if not may.statistics and not declares_columns(config):
            what = f"standardize={config.standardize}: means and categories come from the rows, unless a schema="
            raise Declined("release.statistics", f"{what} declares them")
        if not may.counts and strategy.pipeline.max_weight(ANY_NUMBER_OF_EXAMPLES) > 1:
            raise Declined(
                "release.counts", "clients weigh as many rows as they have: weighting=uniform needs no counts"
            )
        if not may.metrics and (ask == "evaluate" or metrics):
            raise Declined("release.metrics", f"it asks for metrics with {ask}")
        if not may.survey and ask == "survey":
            raise Declined("release.survey", "it asks for metrics of this client alone, or for its Hessian")

    def _check_noise_of_server(self, protection: Protection, ask: Ask) -> None:
        """What the client would send as it is, beside clipped updates, for the server to add the noise."""
        if protection.means and not self.release.statistics:
            raise Declined(
                "release.statistics", "the noise on the means of the features is added by the server, not here"
            )
        if ask == "evaluate" and protection.metrics and not self.release.metrics:
            raise Declined("release.metrics", "the noise on these metrics is added by the server, not here")

    # ------------------------------------------------------------------------------------------------- for people

    def demands(self) -> dict[str, Any]:
        """The keys that are set or denied, as `section.key`; for `fl-app check`."""
        found = {
            f"{section}.{key}": value
            for section, keys in self.model_dump(by_alias=True).items()
            for key, value in keys.items()
        }
        return {key: value for key, value in found.items() if value is not None and value != []}


def declares_columns(config: RunConfig) -> bool:
    """Whether the columns of an unprotected run are declared: then nobody is asked for statistics of rows."""
    return config.standardize == "declared" or bool(config.schema_)


def policy_of(node_config: Mapping[str, Any]) -> Policy | None:
    """The policy that the node's config names; None where it names none. Raises Declined for one that is broken."""
    named = str(node_config.get("policy", ""))
    if not named:
        return None
    try:
        return Policy.of(Path(named).expanduser())
    except Refused as error:
        raise Declined("policy", f"nothing is allowed before it is mended: {error}") from error


def asked_policy(
    config: RunConfig, node_config: Mapping[str, Any], ask: Ask, ledgers: SiteLedgers | None, metrics: bool = False
) -> Policy | None:
    """The policy of a node, which has nothing against a message of this run; None where there is none.

    `ledgers` are those of the site, if it keeps any. A site without a policy allows all that is built in; what else a
    run names is not imported there. Raises Declined.
    """
    policy = policy_of(node_config)
    if policy is not None:
        check_asked(policy, config, node_config, ask, ledgers, metrics)
    elif "data" in node_config:
        Policy().check_names(config)
    return policy


def check_asked(
    policy: Policy,
    config: RunConfig,
    node_config: Mapping[str, Any],
    ask: Ask,
    ledgers: SiteLedgers | None,
    metrics: bool = False,
) -> ComposedStrategy:
    """The strategy of a run that a message belongs to. Raises Declined.

    Of the costs of a run only what is known before its first round.
    """
    strategy = policy.check_run(config, ask, metrics=metrics)
    protection = strategy.protection
    if protection is not None and ledgers is None and policy.privacy.max_total_epsilon is not None:
        raise Declined("privacy.max-total-epsilon", "the node has no file of its own, so it keeps no ledgers")
    if protection is not None and ledgers is not None and ask == "enrol":
        at_hand = (1, protection.announced({})) if protection.by_clients else None
        policy.check_spending(ledgers, str(node_config["client"]), protection, at_hand)
    return strategy


def charge(policy: Policy | None, ledgers: SiteLedgers, order: Order, protection: Protection, release: Release) -> None:
    """Enter a release into the ledgers of an order's clients, unless one of them would spend more than the run promised
    or the policy allows.

    Raises Declined, with nothing entered. Messages that come at once are charged one after the other.
    """
    with ledgers.locked():
        for client in order.clients:
            _check_kept(ledgers, client, protection, (order.round, release))
            if policy is not None:
                policy.check_spending(ledgers, client, protection, (order.round, release))
        for client in order.clients:
            ledgers.enter(client, order.round, protection, release)


def _check_kept(ledgers: SiteLedgers, client: str, protection: Protection, at_hand: tuple[int, Release]) -> None:
    """Hold a run to its own target where clients add the noise: such a promise trusts nobody else to count.

    Raises Declined, and ValueError for a ledger that is damaged.
    """
    promise = protection.promise
    if not (protection.by_clients and promise.target_epsilon):
        return
    charged = [*ledgers.in_run(client), at_hand]
    if not within(promise.target_epsilon, cost(protection.unit, charged), protection.relation, promise.delta):
        what = f"this round is beyond target-epsilon={promise.target_epsilon:g} at delta {promise.delta:g}"
        raise Declined("promise", f"{what}, which the run promised to keep to")


# ------------------------------------------------------------------------------------------------------- what it costs


def _check_epsilon(clause: str, groups: Groups, most: float, delta: float) -> None:
    """What protects different units, or in different relations, is added up, each at its part of delta."""
    spending = {key: releases for key, releases in groups.items() if releases}
    parts = (spent(all_, relation, delta / len(spending)).epsilon for (_, relation), all_ in spending.items())
    total = math.fsum(parts)
    if total > most:
        raise Declined(
            clause, f"with this round epsilon {total:.4g} would be spent, at most {most:g} at delta {delta:g}"
        )


# ------------------------------------------------------------------------------------------------------ a broken file


def _refusal(error: ValidationError, path: Path) -> Refused:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if isinstance(part, str)]
    where = f"{'.'.join(place)} in {path}" if place else str(path)
    if first["type"] == "extra_forbidden":
        return Refused(f"unknown key {place[-1]!r}", where, suggestion(place[-1], _known_keys(place[:-1])))
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "value_error":
        what, _, remedy = message.partition(": ")
        return Refused(what, where, remedy)
    return Refused(f"{'.'.join(place)} = {first['input']!r}", where, message[0].lower() + message[1:])


def _known_keys(place: Iterable[str]) -> Iterator[str]:
    model: Any = Policy
    for name in place:
        model = model.model_fields[name].annotation
    for name in model.model_fields:
        yield name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says to a run: `fl-app check` shows it."""

    clause: str = ""
    detail: str = ""


def verdicts(
    policy: Policy, config: RunConfig, node_config: Mapping[str, Any], ledgers: SiteLedgers | None
) -> dict[Ask, Verdict]:
    """What each message of such a run would be told, if it could be sent. An empty clause: it is allowed."""
    found: dict[Ask, Verdict] = {}
    asks: tuple[Ask, ...] = ("enrol", "train", "evaluate", "survey")  # what goes for training goes for the means
    for ask in asks:
        try:
            protection = check_asked(policy, config, node_config, ask, ledgers).protection
        except Declined as declined:
            found[ask] = Verdict(declined.clause, declined.detail)
        else:
            measures = protection is None or (ask == "evaluate" and protection.metrics is not None)
            if measures or ask in ("enrol", "train"):  # a promise allows no other measuring
                found[ask] = Verdict()
    return found
