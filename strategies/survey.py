"""One more exchange after the last round: how good the model is at each client, and how curved the loss is there.

It asks for what a round does not need: metric sums of each client by itself, for the table of the report, also of
other models than the common one (the client's own, or one trained a little further there), and the sum of the clients'
Hessians, for standard errors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from strategies import wire
from strategies.aggregation import WeightedMean
from strategies.exchange import Exchange
from strategies.history import MetricSpec
from strategies.roster import Roster
from strategies.rounds import OpenRound
from strategies.transform import Pipeline, Round, chain
from strategies.transforms.weighting import ByExamples
from strategies.update import Arrays, FixedPoint
from strategies.work import Curvature

COMMON = "common"
"""The kind of model that every survey measures: the one that the run ended with, at each client with its own part."""
WITHOUT_PERSONAL = "without-personal"
"""That model without the client's own part, which is as it began."""
FINETUNED = "finetuned"
"""That model after some more training on the client's rows."""

PIPELINE: Pipeline = chain(ByExamples(2**30))

NO_STATE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SumsByKind:
    """The metric sums of several kinds of models side by side, as `<kind>.<name>`."""

    metrics: MetricSpec
    kinds: tuple[str, ...] = (COMMON,)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of each kind."""
        return tuple(f"{kind}.{name}" for kind in self.kinds for name in self.metrics.metric_names)

    def join(self, sums: Mapping[str, Mapping[str, Fraction]]) -> dict[str, Fraction]:
        """From {kind: sums}."""
        return {f"{kind}.{name}": value for kind in self.kinds for name, value in sums[kind].items()}

    def split(self, sums: Mapping[str, Fraction]) -> dict[str, dict[str, Fraction]]:
        """The inverse of `join`."""
        return {kind: {name: sums[f"{kind}.{name}"] for name in self.metrics.metric_names} for kind in self.kinds}

    def check_sums(self, sums: Mapping[str, Fraction]) -> None:
        """As `metrics` does for each kind (ValueError)."""
        for own in self.split(sums).values():
            self.metrics.check_sums(own)

    def summarise(self, sums: Mapping[str, Fraction]) -> Mapping[str, float]:
        """The metrics of each kind, named in the same way."""
        means = {kind: self.metrics.summarise(own) for kind, own in self.split(sums).items()}
        return {f"{kind}.{name}": value for kind, own in means.items() for name, value in own.items()}


@dataclass(frozen=True, slots=True)
class Survey:
    """What the clients answered.

    curvature: the mean over `examples` training rows of objective, gradient and Hessian, as `Curvature` returns them;
    None where none was asked for or no client gave one. metric_sums: by client, of those that answered one by one, and
    by kind of model.
    """

    clients: tuple[str, ...]
    examples: int
    curvature: Arrays | None
    metric_sums: Mapping[str, Mapping[str, Mapping[str, Fraction]]]


def survey(
    grid: Grid,
    roster: Roster,
    params: Arrays,
    config: ConfigRecord,
    *,
    metrics: MetricSpec,
    curvature: bool,
    fold: bool,
    timeout_s: float,
    kinds: tuple[str, ...] = (COMMON,),
    used_rounds: Mapping[str, int] = NO_STATE,
) -> Survey:
    """Ask every client of the roster. Who does not answer, or not well, is left out.

    `config` goes to the nodes as in a round. `fold`: nodes may add up their clients' answers, which then say nothing
    of one client. `kinds` are those of models to be measured, `used_rounds` those of the last `ServerState`.
    """
    weight = sum(PIPELINE.max_weight(roster[client].num_examples) for client in roster.clients)
    scale = FixedPoint.for_weight(weight)
    opened = OpenRound(roster, roster.clients, Round(0, 0, scale), PIPELINE)
    order = wire.Order(
        round=0,
        clients=tuple(used_rounds),
        used_rounds=tuple(used_rounds.values()),
        fraction_bits=scale.fraction_bits,
        timeout_s=float(timeout_s),
        fold=fold,
        public={},
    )
    template = Curvature().returns(params) if curvature else ()
    asked = ConfigRecord({**config, "curvature": curvature, "kinds": list(kinds)})
    spec = SumsByKind(metrics, kinds)
    messages = opened.ask_survey(wire.params_record(params), asked, order, template)
    fold_of, sums = WeightedMean().start(scale), {}
    for update in opened.admit(Exchange(grid, messages, timeout_s), spec, template):
        with opened.dropping(update):
            fold_of.add(replace(update, metric_sums={}))
            if len(update.clients) == 1:
                sums[update.clients[0]] = spec.split(update.metric_sums)
    total = fold_of.total()
    mean = WeightedMean().finish(total, scale) if curvature and total.clients else None
    return Survey(total.clients, total.num_examples, mean, sums)
