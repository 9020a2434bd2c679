"""One more exchange after the last round: how good the model is at each client, and how curved the loss is there.

It asks for what a round does not need: metric sums of each client by itself, for the table of the report, and the sum
of the clients' Hessians, for standard errors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

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

PIPELINE: Pipeline = chain(ByExamples(2**30))


@dataclass(frozen=True, slots=True)
class Survey:
    """What the clients answered.

    curvature: the mean over `examples` training rows of objective, gradient and Hessian, as `Curvature` returns them;
    None where none was asked for or no client gave one. metric_sums: by client, of those that answered one by one.
    """

    clients: tuple[str, ...]
    examples: int
    curvature: Arrays | None
    metric_sums: Mapping[str, Mapping[str, Fraction]]


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
) -> Survey:
    """Ask every client of the roster. Who does not answer, or not well, is left out.

    `config` goes to the nodes as in a round. `fold`: nodes may add up their clients' answers, which then say nothing
    of one client.
    """
    weight = sum(PIPELINE.max_weight(roster[client].num_examples) for client in roster.clients)
    scale = FixedPoint.for_weight(weight)
    opened = OpenRound(roster, roster.clients, Round(0, 0, scale), PIPELINE)
    order = wire.Order(
        round=0,
        clients=(),
        used_rounds=(),
        fraction_bits=scale.fraction_bits,
        timeout_s=float(timeout_s),
        fold=fold,
        public={},
    )
    template = Curvature().returns(params) if curvature else ()
    asked = ConfigRecord({**config, "curvature": curvature})
    messages = opened.ask_survey(wire.params_record(params), asked, order, template)
    fold_of, sums = WeightedMean().start(scale), {}
    for update in opened.admit(Exchange(grid, messages, timeout_s), metrics, template):
        with opened.dropping(update):
            fold_of.add(replace(update, metric_sums={}))
            if len(update.clients) == 1:
                sums[update.clients[0]] = update.metric_sums
    total = fold_of.total()
    mean = WeightedMean().finish(total, scale) if curvature and total.clients else None
    return Survey(total.clients, total.num_examples, mean, sums)
