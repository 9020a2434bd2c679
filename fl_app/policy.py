"""What a site demands of a run, whatever the run says: policy.toml, named in the node's config.

    node config: policy="policy.toml"

The file is read again for every message. A run that asks for more than the policy allows is declined: the log of the
site names the clause, and the server learns only that the site declined. A policy that cannot be read declines every
run. The code that enforces it is part of what the coordinator sent: docs/policy.md says what the policy is worth then.
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
    """The site does not take part in a run, or does not do what a message asks.

    `clause` names the key of the policy, `detail` what was asked; both stay at the site.
    """

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
    """Section [privacy]: what a run has to promise. Any key that is set demands that it makes a promise at all."""

    required: bool = False
    units: list[Unit] | None = None
    max_epsilon: Epsilon | None = None
    max_delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_total_epsilon: Epsilon | None = None
    noise_by_client: bool = False

    @property
    def delta(self) -> float:
        """The delta at which the epsilons of this section are meant."""
        return USUAL_DELTA if self.max_delta is None else self.max_delta

    @property
    def first_demand(self) -> str | None:
        """The first key that demands a promise of privacy; None where no key does."""
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
    """Section [allow]: which tasks and strategies a run may name.

    Where a list is None, all that is built in and whatever the Python modules in `modules` define.
    """

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
    """Section [release]: what may leave the site besides updates of the model.

    `folding`: updates may leave added up, where the node hosts several clients.
    """

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
    """Section [cohort]: how many clients have to take part in a round (`minimum`)."""

    minimum: Annotated[int, Field(ge=1)] = 1


class Policy(_Section):
    """A site's demands. Every key may be left out."""

    privacy: PrivacyDemands = Field(default_factory=PrivacyDemands)
    allow: Allowed = Field(default_factory=Allowed)
    release: Released = Field(default_factory=Released)
    cohort: Cohort = Field(default_factory=Cohort)

    @classmethod
    def of(cls, path: Path) -> "Policy":
        """Read a policy.toml. Raises Refused, naming the key that is wrong, and for an unknown key the nearest one."""
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
        """Check a run against every clause but those on spent privacy (`check_spending`), and return its strategy.

        `metrics`: whether the message asks for metrics. The names in the run are compared with the policy before
        anything that they name is imported. Raises Declined.
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
        """Check that a client's epsilons stay within the limits with one more release, on top of all in its ledgers.

        `at_hand` is the round and its release; None, at enrolment, where it is not known yet what a round costs. Raises
        Declined.
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
        """Check that everything the run names is built in, or listed in [allow]. Raises Declined."""
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
        """Check the arguments that name a Python object, which building the task or strategy would import."""
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
        """Check [release]. Only for a run that promises no privacy: with a promise none of this leaves the site."""
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
        """Every key with its value, by `section.key`, without those left open; `fl-app check` shows them."""
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


def checked_policy(
    config: RunConfig, node_config: Mapping[str, Any], ask: Ask, ledgers: SiteLedgers | None, metrics: bool = False
) -> Policy | None:
    """Check a message of a run against the node's policy, and return that policy; None where the node has none.

    `ask` is what the message asks for, `ledgers` are those of the site, if it keeps any. A site without a policy allows
    everything that is built in, and imports nothing else that a run names. Raises Declined.
    """
    policy = policy_of(node_config)
    if policy is not None:
        check_message(policy, config, node_config, ask, ledgers, metrics)
    elif "data" in node_config:
        Policy().check_names(config)
    return policy


def check_message(
    policy: Policy,
    config: RunConfig,
    node_config: Mapping[str, Any],
    ask: Ask,
    ledgers: SiteLedgers | None,
    metrics: bool = False,
) -> ComposedStrategy:
    """Check a message of a run against a policy, and return the run's strategy. Raises Declined.

    Of what the run will cost, only the part that is known before its first round is checked here; `charge` checks each
    release.
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
    """Enter a release into the ledgers of all clients of an order, or of none where one of them would spend more than
    the run promised or the policy allows.

    Raises Declined where it does. A lock keeps two messages at once from being checked against the same ledgers.
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
    """Raise Declined where all releases together exceed epsilon `most` at `delta`.

    Releases that protect different units, or under different neighbouring relations, cannot be composed with one
    another: delta is shared out between these groups, and their epsilons are added up.
    """
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
    """What a policy says to one kind of message of a run. An empty clause: it is allowed."""

    clause: str = ""
    detail: str = ""


def verdicts(
    policy: Policy, config: RunConfig, node_config: Mapping[str, Any], ledgers: SiteLedgers | None
) -> dict[Ask, Verdict]:
    """The verdict on each kind of message that such a run would send; `fl-app check` shows them."""
    found: dict[Ask, Verdict] = {}
    asks: tuple[Ask, ...] = ("enrol", "train", "evaluate", "survey")  # "means" is judged as "train" is
    for ask in asks:
        try:
            protection = check_message(policy, config, node_config, ask, ledgers).protection
        except Declined as declined:
            found[ask] = Verdict(declined.clause, declined.detail)
        else:
            measures = protection is None or (ask == "evaluate" and protection.metrics is not None)
            if measures or ask in ("enrol", "train"):  # under a promise of privacy no other message measures
                found[ask] = Verdict()
    return found
