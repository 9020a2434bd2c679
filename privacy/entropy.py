"""Where randomness comes from that must not be foreseen: the operating system, never the seed of a run."""

import os
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray


class Entropy(ABC):
    """A source of independent, uniformly distributed 64-bit words. Tests inject one of their own."""

    @abstractmethod
    def words(self, count: int) -> NDArray[np.uint64]:
        """`count` words that no earlier call has given."""


class SystemEntropy(Entropy):
    """The keystream of ChaCha20 (RFC 8439) under a fresh 256-bit key of the operating system for every call.

    Nothing is kept between calls: processes that fork, and threads, share nothing.
    """

    def words(self, count: int) -> NDArray[np.uint64]:
        """64-bit words of the keystream."""
        key, nonce = os.urandom(32), bytes(16)  # a key is used once, so its nonce may be constant
        stream: Any = Cipher(ChaCha20(key, nonce), mode=None).encryptor()
        return np.frombuffer(stream.update(bytes(8 * count)), np.uint64)


SYSTEM = SystemEntropy()
