"""Federated averaging in which every client makes its own update private."""

from privacy.accounting import Sampling
from strategies.aggregation import WeightedMean
from strategies.base import Basics, ComposedStrategy
from strategies.optimizers import ServerOptimizerName, optimizer_named
from strategies.protection import Promise, Protection
from strategies.transform import chain
from strategies.transforms.clipping import Clip
from strategies.transforms.noise import LocalNoise
from strategies.work import Delta

TRUST = (
    "Nobody but the client's own node, which clips and adds the noise before anything leaves it.",
    "The code that runs there, which is what the coordinator sent unless the site pins it.",
    "The machine's randomness: noise comes from the operating system.",
)


class LocalDPFedAvg(ComposedStrategy):
    """Federated averaging with local differential privacy: every client noises its own update.

    Nothing that a client sends over the whole run tells much of its rows, not even to the server. The noise is that of
    the Gaussian mechanism, exact at any epsilon (Balle & Wang 2018, arXiv:1805.06530), for a client that takes part in
    every round. A useful model takes thousands of clients, or an epsilon that promises little.

    Args:
        target_epsilon: a client spends no more than this over the run; 0 = as noise-multiplier has it
        noise_multiplier: standard deviation of a client's noise over clip-norm; 0 = what target-epsilon needs
        delta: the probability with which epsilon may fail
        clip_norm: the largest L2 norm of a client's update
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
        protection = Protection(
            unit="client",
            relation="replace-one",
            mechanism="Gaussian noise on every clipped update, added by the client itself",
            promise=Promise(target_epsilon, noise_multiplier or basics.noise_multiplier, delta),
            clip_norm=clip_norm,
            sampling=Sampling("none"),
            rounds=basics.rounds,
            means=basics.private_means,
            metrics=basics.metrics,
            by_clients=True,
            what="update of one client",
            trust=TRUST,
        )
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(Clip(clip_norm), LocalNoise(protection, clip_norm)),
            aggregator=WeightedMean(),
            server_optimizer=optimizer_named(server_optimizer, server_learning_rate, momentum),
        )
