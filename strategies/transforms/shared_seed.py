"""Random words that the server and all clients of a round share.

The server announces a seed. Both halves expand it with Philox, whose raw output numpy keeps the same from version to
version and from machine to machine (NEP 19), which it does not promise of the distributions drawn from it. A seed of
the run drives it: for nothing that has to be secret.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from strategies.transform import Public, Round
from strategies.update import InvalidUpdate


def announced(name: str, round: Round) -> Public:
    """A seed for this round, by its name. Flower carries integers of 64 bits with a sign."""
    return {name: round.seed >> 1}


def shared_words(name: str, round: Round, count: int) -> NDArray[np.uint64]:
    """`count` uint64, independent between rounds and names. Raises InvalidUpdate("decode") without a seed."""
    seed = round.public.get(name)
    if type(seed) is not int:
        raise InvalidUpdate("decode", f"{name}: expected a whole number from the server, got {seed!r}")
    key = hashlib.sha256(f"{name}/{seed}".encode()).digest()[:16]
    words: NDArray[np.uint64] = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return words
