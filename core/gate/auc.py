"""The area under the ROC curve, exactly, also under resampling of blocks of time.

The area counts concordant pairs, and a pair is one positive of some block with one negative of some block.
With U[i, j] the concordant pairs of block i's positives with block j's negatives, blocks drawn with weights w
have the area w'Uw / (w'P)(w'N): no row is looked at twice, however many resamples there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Concordance:
    """Concordant pairs by block.

    Attributes:
        pairs: (G, G): pairs of a positive of block i scored above a negative of block j; a tie counts half.
        positives: (G,): positives by block.
        negatives: (G,): negatives by block.
    """

    pairs: Array
    positives: Array
    negatives: Array

    def auc(self) -> float:
        """The area over all rows; NaN where there is only one class."""
        return float(self.resampled(np.ones((1, len(self.positives))))[0])

    def resampled(self, weights: Array) -> Array:
        """The area with blocks weighted.

        Args:
            weights: (n_times, G): how often each block was drawn.

        Returns:
            (n_times,); NaN where a draw holds only one class.
        """
        concordant = ((weights @ self.pairs) * weights).sum(axis=1)
        possible = (weights @ self.positives) * (weights @ self.negatives)
        unknown = np.full(len(weights), np.nan)
        areas: Array = np.divide(concordant, possible, out=unknown, where=possible > 0)
        return areas


def concordance(positive: Array, scores: Array, blocks: Array) -> Concordance:
    """The concordant pairs of every two blocks.

    Args:
        positive: (n,) bool: the rows of the positive class.
        scores: (n,): higher means more likely positive; no NaN.
        blocks: (n,) int: each row's block; any numbers.
    """
    codes = np.unique(blocks, return_inverse=True)[1].reshape(-1)
    count = int(codes.max()) + 1 if len(codes) else 0
    above, of_block = scores[positive], codes[positive]
    order = np.argsort(above, kind="stable")  # sorted questions make searchsorted walk memory in order
    above, of_block = above[order], of_block[order]
    pairs = np.zeros((count, count))
    below, below_codes = scores[~positive], codes[~positive]
    for block in range(count):
        negatives = np.sort(below[below_codes == block])
        # Sums of halves are exact in binary floating point.
        lower = np.searchsorted(negatives, above, side="left")
        not_higher = np.searchsorted(negatives, above, side="right")
        pairs[:, block] = np.bincount(of_block, weights=lower + not_higher, minlength=count) / 2
    return Concordance(
        pairs,
        np.bincount(codes[positive], minlength=count).astype(float),
        np.bincount(below_codes, minlength=count).astype(float),
    )


def roc_auc(positive: Array, scores: Array) -> float:
    """The area under the ROC curve, ties counting half; NaN where there is only one class."""
    return concordance(positive, scores, np.zeros(len(scores), dtype=np.int64)).auc()
