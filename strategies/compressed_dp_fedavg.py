"""Federated averaging with differential privacy for clients, and fewer bytes in both directions."""

from strategies.aggregation import FixedDivisor
from strategies.base import Basics, ComposedStrategy
from strategies.client_privacy import CohortSampling, central_protection, cohort_sampler
from strategies.compression import Rotation, downlink, uplink
from strategies.optimizers import ServerOptimizerName, optimizer_named
from strategies.protection import Promise
from strategies.transform import chain
from strategies.transforms.clipping import Clip
from strategies.transforms.noise import NoiseOnSum
from strategies.work import Delta


class CompressedDPFedAvg(ComposedStrategy):
    """dp-fedavg with compressed updates, and compressed steps of the model on the way down.

    A client clips its update and compresses what is left. The server decodes, clips again what compression has
    lengthened, and adds noise to all coordinates of the sum. Messages of one round have the same length whatever they
    hold; with top-k positions depend on the update, so that their number is fixed.

    Args:
        target_epsilon: the run spends no more than this; 0 = as noise-multiplier has it
        noise_multiplier: standard deviation of the noise on the sum over clip-norm; 0 = what target-epsilon needs
        delta: the probability with which epsilon may fail; below one over the number of clients
        clip_norm: the largest L2 norm of a client's update
        sampling: of the cohort: poisson, fixed (its size does not vary), or none (no privacy is claimed for it)
        top_k: the share of an update's coordinates that is sent, the largest; 0 = all
        bits: of each number that is sent up: 1, 2, 4, 8, 16, or 32 = as it is
        rotation: spreads large coordinates before rounding: auto = for 4 bits and fewer, on, off
        down_bits: of each number that is sent down; 32 = all of the model in every round
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
        sampling: CohortSampling = "poisson",
        top_k: float = 0.0,
        bits: int = 8,
        rotation: Rotation = "auto",
        down_bits: int = 8,
        server_optimizer: ServerOptimizerName = "sgd",
        server_learning_rate: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        sampler = cohort_sampler(sampling, basics)
        protection = central_protection(
            basics,
            sampler,
            Promise(target_epsilon, noise_multiplier or basics.noise_multiplier, delta),
            mechanism="Gaussian noise on the sum of clipped and compressed updates, added by the server",
            clip_norm=clip_norm,
            what="sum of updates",
        )
        codec = uplink(top_k, bits, rotation, private=True)
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(Clip(clip_norm), NoiseOnSum(protection, clip_norm), codec),
            aggregator=FixedDivisor(sampler.cohort_size(basics.population)),
            server_optimizer=optimizer_named(server_optimizer, server_learning_rate, momentum),
            sampler=sampler,
            downlink=downlink(0.0, down_bits),
        )
