"""Federated averaging with differential privacy for single rows."""

from math import ceil

from privacy.accounting import Sampling
from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import ServerOptimizerName, optimizer_named
from strategies.protection import Promise, Protection
from strategies.transform import chain
from strategies.transforms.clipping import check_clip_norm
from strategies.work import PrivateDelta

TRUST = (
    "The client that holds the row, and nobody else: it clips and adds the noise before anything leaves it.",
    "The code that runs there, which is what the coordinator sent unless the site pins it.",
    "The machine's randomness: noise and batches come from the operating system.",
)

NOT_COVERED = (
    "Which floating-point numbers the noise of a step can be: they are no exact Gaussian, which who sees what a single"
    " step has given could use (arXiv:2107.10138).",
)


class RecordDPFedAvg(ComposedStrategy):
    """Federated averaging whose clients train by DP-SGD, so that single rows are protected (arXiv:1607.00133).

    For a few data owners with many rows each, such as hospitals with patients. Everything that a client sends over the
    run tells little of any one of its rows; that the client takes part is no secret. A step takes every row with
    probability batch-size / min-examples, the same at every client, so all clients spend the same: what one with
    min-examples rows and the usual batches would.

    Args:
        target_epsilon: a client spends no more than this over the run; 0 = as noise-multiplier has it
        noise_multiplier: standard deviation of the noise on a step's sum over clip-norm; 0 = what target-epsilon needs
        delta: the probability with which epsilon may fail; below one over the number of a client's rows
        clip_norm: the largest L2 norm of the gradient of one row
        server_optimizer: sgd, adam, yogi or adagrad
        server_learning_rate: of the server's steps; 0 = the optimizer's usual one
        momentum: of server-optimizer=sgd
    """

    def __init__(
        self,
        basics: Basics,
        *,
        target_epsilon: float = 0.0,
        noise_multiplier: float = 0.0,
        delta: float = 1e-5,
        clip_norm: float = 1.0,
        server_optimizer: ServerOptimizerName = "sgd",
        server_learning_rate: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        check_clip_norm(clip_norm)
        rate = min(1.0, basics.batch_size / basics.min_examples) if basics.batch_size else 1.0
        steps = basics.local_steps or basics.local_epochs * ceil(1 / rate)
        protection = Protection(
            unit="record",
            relation="add-remove",
            mechanism="DP-SGD: Gaussian noise on the sum of clipped gradients of single rows in every local step, added"
            " by the client",
            promise=Promise(target_epsilon, noise_multiplier or basics.noise_multiplier, delta),
            clip_norm=clip_norm,
            sampling=Sampling("poisson", rate),
            rounds=basics.rounds,
            means=basics.private_means,
            metrics=basics.metrics,
            by_clients=True,
            per_round=steps,
            what="gradient sum of a local step",
            trust=TRUST,
            not_covered=NOT_COVERED,
        )
        super().__init__(
            basics,
            work=PrivateDelta(protection=protection, rate=rate, steps=steps),
            pipeline=chain(),
            aggregator=WeightedMean(),
            server_optimizer=optimizer_named(server_optimizer, server_learning_rate, momentum),
        )
