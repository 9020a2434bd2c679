"""Federated averaging with differential privacy for clients."""

from strategies.aggregation import FixedDivisor
from strategies.base import Basics, ComposedStrategy
from strategies.client_privacy import CohortSampling, central_protection, cohort_sampler
from strategies.optimizers import ServerOptimizerName, optimizer_named
from strategies.protection import Promise
from strategies.transform import chain
from strategies.transforms.clipping import Clip
from strategies.transforms.noise import NoiseOnSum
from strategies.transforms.weighting import BoundedWeights
from strategies.work import Delta


class DPFedAvg(ComposedStrategy):
    """Federated averaging with central differential privacy for clients (McMahan et al. 2018, arXiv:1710.06963).

    A client's update is clipped; the server adds Gaussian noise to the sum and divides by the expected size of the
    cohort. Neither the model nor anything else that is released tells much of whether a client took part, with all of
    its rows: epsilon says how much. It takes hundreds of clients for a useful model.

    Args:
        target_epsilon: the run spends no more than this; 0 = as noise-multiplier has it
        noise_multiplier: standard deviation of the noise on the sum over clip-norm; 0 = what target-epsilon needs
        delta: the probability with which epsilon may fail; below one over the number of clients
        clip_norm: the largest L2 norm of a client's update
        sampling: of the cohort: poisson, fixed (its size does not vary), or none (no privacy is claimed for it)
        max_examples: weigh clients by their rows, up to so many; 0 = all clients count the same
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
        max_examples: int = 0,
        server_optimizer: ServerOptimizerName = "sgd",
        server_learning_rate: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        sampler = cohort_sampler(sampling, basics)
        protection = central_protection(
            basics,
            sampler,
            Promise(target_epsilon, noise_multiplier or basics.noise_multiplier, delta),
            mechanism="Gaussian noise on the sum of clipped updates, added by the server",
            clip_norm=clip_norm,
            what="sum of updates",
        )
        weights = [BoundedWeights(max_examples)] if max_examples else []
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(Clip(clip_norm), *weights, NoiseOnSum(protection, clip_norm)),
            aggregator=FixedDivisor(sampler.cohort_size(basics.population)),
            server_optimizer=optimizer_named(server_optimizer, server_learning_rate, momentum),
            sampler=sampler,
        )
