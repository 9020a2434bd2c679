"""Federated learning with differential privacy for clients that needs no secret sampling."""

from privacy.accounting import Sampling
from strategies.aggregation import FixedDivisor
from strategies.base import Basics, ComposedStrategy
from strategies.client_privacy import CENTRAL_TRUST
from strategies.optimizers import ServerOptimizerName, optimizer_named
from strategies.protection import Promise, Protection
from strategies.sampling import Spaced
from strategies.transform import chain
from strategies.transforms.clipping import Clip
from strategies.transforms.correlated_noise import CorrelatedNoiseOnSum, best_bands
from strategies.transforms.weighting import BoundedWeights
from strategies.work import Delta


class DPFTRL(ComposedStrategy):
    """Central differential privacy for clients by correlated noise (Kairouz et al. 2021, arXiv:2103.00039).

    Noise of one round is taken back in part in later ones: a banded square-root matrix factorisation (Kalinin & Lampert
    2024, arXiv:2405.13763). Nothing is claimed for who takes part being random or secret, so this is what a deployment
    can promise that does not decide who is online. It is enforced that a client takes part once in so many rounds at
    most as there are cohorts in the population. A resumed run begins a new matrix, and pays for it.

    Args:
        target_epsilon: the run spends no more than this; 0 = as noise-multiplier has it
        noise_multiplier: standard deviation of the noise over what a client moves in one stretch of rounds; 0 = what
            target-epsilon needs
        delta: the probability with which epsilon may fail; below one over the number of clients
        clip_norm: the largest L2 norm of a client's update
        bands: over how many rounds noise is correlated; 0 = as is best for the number of rounds, 16 at most
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
        bands: int = 0,
        max_examples: int = 0,
        server_optimizer: ServerOptimizerName = "sgd",
        server_learning_rate: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        sampler = Spaced(basics.clients_per_round or basics.population, basics.population)
        separation = sampler.separation if basics.population else max(1, bands)
        if not 0 <= bands <= separation:
            raise ValueError(
                f"bands={bands}: expected 0 to {separation}, the rounds from one use of a client to the next"
            )
        protection = Protection(
            unit="client",
            relation="add-remove",
            mechanism="correlated Gaussian noise (banded matrix factorisation) on the sums of clipped updates, added by"
            " the server",
            promise=Promise(target_epsilon, noise_multiplier or basics.noise_multiplier, delta),
            clip_norm=clip_norm,
            sampling=Sampling("none"),
            rounds=basics.rounds,
            means=basics.private_means,
            metrics=basics.metrics,
            every=separation,
            what=f"sums of updates of {separation} rounds",
            trust=CENTRAL_TRUST,
        )
        weights = [BoundedWeights(max_examples)] if max_examples else []
        noise = CorrelatedNoiseOnSum(protection, clip_norm, bands or best_bands(basics.rounds, separation))
        super().__init__(
            basics,
            work=Delta(),
            pipeline=chain(Clip(clip_norm), *weights, noise),
            aggregator=FixedDivisor(sampler.cohort_size(basics.population)),
            server_optimizer=optimizer_named(server_optimizer, server_learning_rate, momentum),
            sampler=sampler,
        )
