"""Seeded draws: every random choice about data is a pure function of (seed, purpose, client)."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, purpose: str, client: str = "") -> np.random.Generator:
    """A generator of its own for every (seed, purpose, client): any process may draw for any client in any order."""
    digest = sha256(f"{purpose}\0{client}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:16], "little")])


def apportion(total: int, shares: Iterable[float]) -> NDArray[np.int64]:
    """Whole numbers that sum to `total` and are nearest to total * share / sum(shares): largest remainders first.

    Equal remainders go to the earlier share. At least one share must be above 0, unless `total` is 0.
    """
    weights = np.fromiter(shares, np.float64)
    quotas = total * weights / weights.sum() if total else np.zeros(len(weights))
    counts = np.floor(quotas).astype(np.int64)
    order = np.argsort(counts - quotas, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def stratified_split(
    strata: NDArray[Any], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices (train, test), both ascending: `fraction` of the rows to test on, from each stratum in proportion.

    The test gets round(fraction * n) rows, but never all of them: one row at least is left to train on.
    """
    num_rows = len(strata)
    num_test = max(0, min(round(fraction * num_rows), num_rows - 1))
    _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    in_test = np.zeros(num_rows, dtype=np.bool_)
    for index, count in enumerate(apportion(num_test, sizes)):
        members = np.flatnonzero(stratum == index)
        in_test[rng.permutation(members)[:count]] = True
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)
