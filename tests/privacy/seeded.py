"""Entropy that repeats, for statistics that must come out the same every time."""

import numpy as np

from privacy.entropy import Entropy


class SeededEntropy(Entropy):
    """The words of a PCG64 generator."""

    def __init__(self, seed):
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def words(self, count):
        """The next words of the generator."""
        return self._rng.integers(0, 2**64, count, dtype=np.uint64)


class ScriptedEntropy(Entropy):
    """Exactly the words it was given, in order; `left` are those nobody asked for yet."""

    def __init__(self, words):
        self.left = list(words)

    def words(self, count):
        """The next words of the script."""
        if count > len(self.left):
            raise AssertionError(f"{count} words asked for, {len(self.left)} left in the script")
        taken, self.left = self.left[:count], self.left[count:]
        return np.array(taken, np.uint64)
