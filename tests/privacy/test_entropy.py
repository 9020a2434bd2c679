"""The words of the system are uniform, never come twice and hear of no seed."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from seeded import SeededEntropy

from privacy.entropy import SYSTEM, Entropy, SystemEntropy

PROJECT = Path(__file__).parents[2]


def suspicious(words):
    """Whether bits or bytes are too uneven: good words look so with probability below 1e-9."""
    octets = words.view(np.uint8)
    bits = 8 * octets.size
    off_balance = abs(int(np.unpackbits(octets).sum()) - bits / 2) > 6.5 * bits**0.5 / 2  # 1e-10
    expected = octets.size / 256
    statistic = ((np.bincount(octets, minlength=256) - expected) ** 2 / expected).sum()
    return bool(off_balance or statistic > chi2.isf(1e-10, 255))


def test_the_words_are_as_many_as_asked_for_and_of_64_bits():
    for count in (0, 1, 7, 100_000):
        words = SYSTEM.words(count)
        assert words.dtype == np.uint64
        assert words.shape == (count,)


def test_a_million_words_are_even_in_their_bits_and_bytes():
    assert not suspicious(SYSTEM.words(1_000_000))


def test_uneven_words_are_noticed():
    words = SeededEntropy(1).words(1_000_000)
    assert not suspicious(words)
    assert suspicious(words | np.uint64(1))  # a bit that sticks
    assert suspicious(np.where(words >> np.uint64(56) == 255, np.uint64(0), words))  # a byte that never comes
    assert suspicious((words >> np.uint64(1)) + (words >> np.uint64(2)))  # not uniform


def test_no_word_comes_twice():
    words = np.concatenate([SYSTEM.words(1000) for _ in range(100)] + [SystemEntropy().words(1000)])
    assert np.unique(words).size == words.size


def test_seeding_every_other_generator_repeats_nothing():
    def after_seeding():
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002
        torch.manual_seed(7)
        return SYSTEM.words(100)

    assert not set(after_seeding().tolist()) & set(after_seeding().tolist())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_processes_that_fork_share_no_words():
    program = """
import os
from privacy.entropy import SYSTEM
SYSTEM.words(100)  # whatever it might keep, the child would inherit
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, SYSTEM.words(100).tobytes())
    os._exit(0)
os.wait()
print(SYSTEM.words(100).tobytes().hex())
print(os.read(reading, 800).hex())
"""
    environment = {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    parent, child = (np.frombuffer(bytes.fromhex(line), np.uint64) for line in done.stdout.split())
    assert parent.size == child.size == 100
    assert not set(parent.tolist()) & set(child.tolist())


def test_a_source_must_say_how_it_draws():
    with pytest.raises(TypeError, match="words"):
        Entropy()
