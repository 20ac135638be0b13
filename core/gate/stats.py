"""Tests that know that rows near in time move together: everything is counted by blocks of time.

On the flights a day's weather moves all its losses: the variance of a mean by day is 7 to 37 times what
independent rows would give, and a test that takes rows as independent promotes one equal challenger in three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ALL_FLIPS_UP_TO = 13
SOME_FLIPS = 9_999


@dataclass(frozen=True, slots=True)
class BlockTest:
    """What blocks of time say about a mean.

    Attributes:
        mean: Over all rows, so that a block counts by its rows.
        low: One-sided lower bound at alpha; `low` to `high` covers 1 - 2 alpha.
        high: One-sided upper bound at alpha.
        p_less: One-sided p against the true mean being at or above `bound`: small says that it lies below.
        blocks: How many there were.
        se: The mean's standard error, by block.
    """

    mean: float
    low: float
    high: float
    p_less: float
    blocks: int
    se: float


def block_ids(times_us: Array, block: timedelta) -> Array:
    """(n,) int64: the block of each instant, counted in UTC from the epoch; a block of 1d is a UTC day.

    Args:
        times_us: (n,) int64 microseconds since the epoch.
        block: The length of a block.
    """
    return np.asarray(times_us, dtype=np.int64) // (block // timedelta(microseconds=1))


def _block_sums(values: Array, blocks: Array) -> tuple[Array, Array]:
    """(G,) sums and (G,) numbers of rows, by block in ascending order."""
    codes = np.unique(blocks, return_inverse=True)[1].reshape(-1)
    return np.bincount(codes, weights=values), np.bincount(codes).astype(float)


def clustered_t(values: Array, blocks: Array, alpha: float = 0.05, *, bound: float = 0.0) -> BlockTest:
    """A one-sided t test of the mean with standard errors clustered by block and G - 1 degrees of freedom.

    Args:
        values: (n,), such as the challenger's loss minus the champion's.
        blocks: (n,) int, at least two different.
        alpha: The one-sided level of `low` and `high`.
        bound: What `p_less` tests against.

    Raises:
        ValueError: Fewer than two blocks.
    """
    from scipy import stats

    sums, rows = _block_sums(values, blocks)
    count = len(sums)
    if count < 2:
        raise ValueError(f"a test by blocks needs at least two of them; here: {count}")
    mean = sums.sum() / rows.sum()
    spread = sums - rows * mean
    se = float(np.sqrt(count / (count - 1) * (spread**2).sum()) / rows.sum())
    reach = float(stats.t.ppf(1 - alpha, count - 1)) * se
    certain = 0.0 if mean < bound else 1.0
    p = float(stats.t.cdf((mean - bound) / se, count - 1)) if se > 0 else certain
    return BlockTest(float(mean), float(mean - reach), float(mean + reach), p, count, se)


def sign_flip(
    values: Array, blocks: Array, alpha: float = 0.05, *, bound: float = 0.0, seed: int = 0
) -> BlockTest:
    """A one-sided randomization test: under the null each block's sum is as likely to have the other sign.

    Flipping a set of blocks raises the mean exactly when that set's own mean lies below the bound. So p is
    the share of sets whose mean lies at or above it, and the means' quantiles are the interval. All sets are
    tried where blocks are few, else 9,999 drawn by `seed`.

    Args:
        values: As for `clustered_t`.
        blocks: As for `clustered_t`.
        alpha: As for `clustered_t`.
        bound: As for `clustered_t`.
        seed: Draws the sets where there are too many to try all.
    """
    sums, rows = _block_sums(values, blocks)
    se = clustered_t(values, blocks, alpha).se
    count = len(sums)
    if count <= ALL_FLIPS_UP_TO:
        numbers = np.arange(1, 2**count, dtype=np.int64)
        chosen = ((numbers[:, None] >> np.arange(count)) & 1).astype(float)
    else:
        chosen = np.random.default_rng(seed).integers(0, 2, (SOME_FLIPS, count)).astype(float)
        chosen = chosen[chosen.any(axis=1)]
    means = np.sort((chosen @ sums) / (chosen @ rows))
    total = len(means) + 1  # the set of no blocks leaves everything as it was, and always counts
    slack = 1e-12 * max(1e-300, float(np.abs(means).max()))  # equal means that were summed in another order
    p = (1 + int((means >= bound - slack).sum())) / total
    allowed = int(np.floor(alpha * total + 1e-9)) - 1  # how many means may lie at or above the bound
    high = means[len(means) - 1 - allowed] if allowed >= 0 else np.inf
    low = means[allowed] if allowed >= 0 else -np.inf
    return BlockTest(float(sums.sum() / rows.sum()), float(low), float(high), p, count, se)


def block_test(kind: str, values: Array, blocks: Array, alpha: float, *, bound: float = 0.0) -> BlockTest:
    """The test that a loop's `gate.test` names: `t` or `sign_flip`."""
    test = sign_flip if kind == "sign_flip" else clustered_t
    return test(values, blocks, alpha, bound=bound)


def detectable(se: float, blocks: int, alpha: float, power: float = 0.8) -> float:
    """The least true change of the mean that such a test shows in `power` of trials: a plan, not a proof."""
    from scipy import stats

    return float(stats.t.ppf(1 - alpha, blocks - 1) + stats.t.ppf(power, blocks - 1)) * se


def resample_weights(n_blocks: int, n_times: int, seed: int) -> Array:
    """(n_times, n_blocks) float: how often each block is drawn when n_blocks are drawn with replacement."""
    even = np.full(n_blocks, 1 / n_blocks)
    return np.random.default_rng(seed).multinomial(n_blocks, even, size=n_times).astype(float)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p values for having looked at all of them (Holm), in the order given, at most 1.

    A hypothesis is rejected at a level when its corrected value is at most that level; the chance of one
    false rejection among all stays below the level, whatever the dependence.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]
