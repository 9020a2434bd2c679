"""Federated averaging with differential privacy for clients and a clip norm that finds itself."""

from math import sqrt

from strategies.aggregation import FixedDivisor
from strategies.base import Basics, ComposedStrategy
from strategies.client_privacy import CohortSampling, central_protection, cohort_sampler
from strategies.optimizers import ServerOptimizerName, optimizer_named
from strategies.protection import Promise
from strategies.transform import chain
from strategies.transforms.clipping import AdaptiveClip
from strategies.transforms.noise import NoiseOnSum
from strategies.work import Delta


class DPFedAvgAdaptive(ComposedStrategy):
    """Central differential privacy for clients with adaptive clipping (Andrew et al. 2021, arXiv:1905.03871).

    As dp-fedavg, but the clip norm follows a quantile of the norms of the clients' updates, which is estimated under
    the same noise. To be preferred where nobody knows how long updates are.

    Args:
        target_epsilon: the run spends no more than this; 0 = as noise-multiplier has it
        noise_multiplier: standard deviation of the noise over the sensitivity of the sum; 0 = what target-epsilon needs
        delta: the probability with which epsilon may fail; below one over the number of clients
        initial_clip_norm: the clip norm of the first round; a constant, for nothing of the data may choose it
        quantile: the share of clients whose updates are to be within the clip norm
        clip_learning_rate: how fast the clip norm follows
        bit_share: of the squared sensitivity, what the bit of a client takes that tells whether it was within
        sampling: of the cohort: poisson, fixed (its size does not vary), or none (no privacy is claimed for it)
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
        initial_clip_norm: float = 0.1,
        quantile: float = 0.5,
        clip_learning_rate: float = 0.2,
        bit_share: float = 0.01,
        sampling: CohortSampling = "poisson",
        server_optimizer: ServerOptimizerName = "sgd",
        server_learning_rate: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        if not 0 < bit_share < 1:
            raise ValueError(f"bit-share={bit_share:g}: expected above 0 and below 1, such as 0.01")
        sampler = cohort_sampler(sampling, basics)
        expected = sampler.cohort_size(basics.population)
        bit_scale = 2 * sqrt(bit_share / (1 - bit_share))
        protection = central_protection(
            basics,
            sampler,
            Promise(target_epsilon, noise_multiplier or basics.noise_multiplier, delta),
            mechanism="Gaussian noise on the sum of updates clipped to an adaptive norm, and of bits that tell which"
            " were within it, added by the server",
            clip_norm=None,
            what="sum of updates and of clipping bits",
        )
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(
                AdaptiveClip(initial_clip_norm, quantile, clip_learning_rate, bit_scale, expected),
                NoiseOnSum(protection, sqrt(1 + bit_scale**2 / 4)),
            ),
            aggregator=FixedDivisor(expected),
            server_optimizer=optimizer_named(server_optimizer, server_learning_rate, momentum),
            sampler=sampler,
        )
