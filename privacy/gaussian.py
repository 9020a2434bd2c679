"""Gaussian noise: the exact discrete sampler for noise of the whole federation, floats for noise inside a client.

The discrete sampler is that of Canonne, Kamath and Steinke (2020), arXiv:2004.00010, vectorised; it decides
every event of probability exp(-gamma), gamma rational, exactly.
"""

from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.entropy import Entropy

MAX_SIGMA = 2**52  # exact as a float; a proposal overflows an int64 only 2^11 sigma away, with probability exp(-2047)
BLOCK = 2**15  # proposals at a time: their arrays stay in the cache of a core

# A comparison in floats is trusted when its two sides differ by more than this. Its absolute error, as R, exp(-gamma)
# and gamma exp(-gamma) are at most 1: 2^-53 + 2^-64 for R from its first word; 6 roundings of 2^-53 for gamma; 2^-54
# for the subtraction; and what `np.exp` is off, under 4 units in the last place (2^-51) in every libm and in NumPy's
# own kernels. Together below 2^-49. At most one comparison in 2^39 goes on to exact arithmetic.
MARGIN = 2.0**-40


def discrete_gaussian(sigma: int, size: int, entropy: Entropy) -> NDArray[np.int64]:
    """`size` independent samples of the discrete Gaussian: P(x) in proportion to exp(-x^2 / (2 sigma^2)), x integer.

    Exact, if the words of `entropy` are uniform: floats decide only what their errors cannot change (Algorithm 3 of
    arXiv:2004.00010, with t = sigma, which its proof allows). `sigma` is in units of the grid, from 1 to 2^52; the
    standard deviation never exceeds it, and falls short of it by less than one part in 10^6. How long a call takes
    depends on the values drawn: who can time it learns a little about them (arXiv:2112.05307). ValueError for another
    sigma or a negative size.
    """
    if not 1 <= sigma <= MAX_SIGMA or sigma != int(sigma):
        raise ValueError(f"sigma is {sigma}: expected an integer from 1 to 2^52. Scale it to the grid and round it up.")
    scale = int(sigma)
    samples = np.empty(size, np.int64)
    filled = 0
    while filled < size:
        proposals = min(BLOCK, 9 * (size - filled) // 4 + 64)  # about 48 of 100 become samples
        accepted = _gaussian_of_laplace(scale, _discrete_laplace(scale, proposals, entropy), entropy)[: size - filled]
        samples[filled : filled + accepted.size] = accepted
        filled += accepted.size
    return samples


def _gaussian_of_laplace(sigma: int, y: NDArray[np.int64], entropy: Entropy) -> NDArray[np.int64]:
    """Those of `y`, of the discrete Laplace distribution of scale sigma, that Algorithm 3 accepts."""
    distance = np.abs(y) - sigma
    gamma = distance / sigma
    gamma *= gamma
    gamma *= 0.5
    accepted = _bernoulli_exp(gamma, lambda i: Fraction(int(distance[i]), sigma) ** 2 / 2, y.size, entropy)
    return y[accepted]


def _discrete_laplace(scale: int, proposals: int, entropy: Entropy) -> NDArray[np.int64]:
    """Independent samples with P(y) in proportion to exp(-|y| / scale): Algorithm 2 with t = scale and s = 1.

    Some 63 of 100 proposals survive; how many do tells nothing about their values.
    """
    drawn = _uniform_below(scale, proposals, entropy)
    u = drawn[_bernoulli_exp(drawn / scale, lambda i: Fraction(int(drawn[i]), scale), drawn.size, entropy)]
    y = _geometric(u.size, entropy)
    y *= scale
    y += u
    negative = _coins(y.size, entropy)
    once = y > 0
    once |= ~negative  # zero has one sign: -0 is rejected, else 0 would come twice as often
    np.negative(y, out=y, where=negative)
    return y[once]


def _geometric(count: int, entropy: Entropy) -> NDArray[np.int64]:
    """`count` independent samples with P(v >= k) = exp(-k): how many of Bernoulli(exp(-1)) succeed before one fails."""
    failures = np.empty(0, np.int64)  # where they stand in one sequence of trials
    trials = 0
    while failures.size < count:
        more = 8 * (count - failures.size) // 5 + 64  # 63 of 100 fail
        failed = ~_bernoulli_exp(1.0, lambda _: Fraction(1), more, entropy)
        failures = np.concatenate((failures, trials + np.flatnonzero(failed)))
        trials += more
    runs = np.diff(failures[:count], prepend=-1)
    runs -= 1
    return runs


def _bernoulli_exp(
    gamma: NDArray[np.float64] | float, exact: Callable[[int], Fraction], count: int, entropy: Entropy
) -> NDArray[np.bool_]:
    """`count` independent events of probability exp(-gamma) each, for rational gamma >= 0 (as Algorithm 1).

    Event i is R < exp(-gamma) for a uniform real R, of which words are drawn until it is decided. `gamma` holds
    floats of at most 6 roundings; `exact(i)` is the true value of element i.
    """
    words = entropy.words(count)
    difference = words * 2.0**-64
    difference -= np.exp(np.negative(gamma))
    success = difference < 0
    for i in np.flatnonzero(np.abs(difference, out=difference) <= MARGIN).tolist():
        success[i] = _is_below_exp(int(words[i]), exact(i), entropy)
    return success


def _is_below_exp(word: int, gamma: Fraction, entropy: Entropy) -> bool:
    """Whether R < exp(-gamma) for the uniform real R in [0, 1) that begins with this word.

    Draws further words until R and exp(-gamma) are told apart, which happens with probability 1: the exponential of
    a rational number other than 0 is irrational.
    """
    if gamma == 0:
        return True
    bits = 64
    while True:
        context = Context(prec=bits // 3 + 10)
        quotient = context.divide(Decimal(gamma.numerator), Decimal(gamma.denominator))
        exponential = Fraction(context.exp(context.minus(quotient)))
        # Half a unit in the last of `prec` digits for the exponential, correctly rounded; and one of the quotient,
        # which moves the exponential by less than half of it, as gamma exp(-gamma) < 0.37.
        error = Fraction(1, 10 ** (context.prec - 1))
        if Fraction(word + 1, 2**bits) <= exponential - error:
            return True
        if Fraction(word, 2**bits) >= exponential + error:
            return False
        word = (word << 64) | int(entropy.words(1)[0])
        bits += 64


def _uniform_below(bound: int, proposals: int, entropy: Entropy) -> NDArray[np.int64]:
    """Independent uniform integers from 0 to bound - 1 (bound at most 2^52): nearly as many as proposals.

    Each integer owns equally many words; those that are left over, one in 2^12 at most, are rejected.
    """
    share = (2**64 - 1) // bound
    u = (entropy.words(proposals) // np.uint64(share)).view(np.int64)
    left_over = u >= bound
    return u[~left_over] if left_over.any() else u


def _coins(count: int, entropy: Entropy) -> NDArray[np.bool_]:
    """`count` fair coins: the single bits of words."""
    octets = entropy.words(-(-count // 64)).view(np.uint8)
    return np.unpackbits(octets, count=count).view(np.bool_)


def normal(size: int, entropy: Entropy) -> NDArray[np.float64]:
    """`size` independent standard normal floats, by Box and Muller, out to 9.49 standard deviations.

    Floats are not the real Gaussian: which of them can occur betrays what they were added to, if the exact sum is
    seen (arXiv:2107.10138). This is accepted only for noise inside a client (DP-SGD), where nobody sees that sum but
    a model after further steps in floats: an obstacle, not a proof, and a low one after a single step. What is
    released with a guarantee of its own takes `discrete_gaussian`. ValueError for a negative size.
    """
    samples = np.empty(size)
    for start in range(0, size, 2 * BLOCK):
        block = samples[start : start + 2 * BLOCK]
        half = (block.size + 1) // 2
        words = entropy.words(2 * half)
        radius = words[:half] * 2.0**-64
        radius += 2.0**-65  # never the logarithm of 0
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        # With t = tan(angle / 2): cos = 2 / (1 + t^2) - 1 and sin = 2t / (1 + t^2), as a tangent costs a fifth of both.
        tangent = np.tan(words[half:] * (np.pi * 2.0**-64))
        share = tangent * tangent
        share += 1.0
        np.divide(2.0, share, out=share)
        np.multiply(radius, share - 1.0, out=block[:half])
        tangent *= share
        tangent *= radius
        block[half:] = tangent[: block.size - half]
    return samples
