"""Windows redrawn from a reference's own blocks of time: what distances look like when nothing has changed.

Rows of one day move together, and so do neighbouring days. So whole blocks are drawn, in runs of neighbours
as long as the window where the reference has room for several of them: is this week as the weeks were that
the model learned from? Both sides are redrawn, the window and the reference, for both are samples.

Measured on the flights, odd weeks of 2013 against all even weeks, at alpha 0.01: runs call 3 % of columns
drifted, single days 20 % (weather lasts, and each weekday has its own timetable).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
FEWEST_BLOCKS = 5
_RUNS_IN_REFERENCE = 8


def redraws(
    blocks: int,
    window_blocks: int,
    *,
    resamples: int,
    seed: int,
    reference_draws: int | None = None,
    run: int | None = None,
) -> tuple[Floats, Floats]:
    """How often each block stands in each redrawn window and each redrawn reference.

    Args:
        blocks: How many there are to draw from, in order of time.
        window_blocks: How many a window has.
        resamples: How many of each are drawn.
        seed: The same seed draws the same.
        reference_draws: How many a reference has; left out, as many as there are.
        run: How many neighbours are drawn together; left out, as many as fit eight times, at most a window.

    Returns:
        Two (resamples, blocks) matrices of counts.
    """
    run = run or max(1, min(window_blocks, blocks // _RUNS_IN_REFERENCE))
    rng = np.random.default_rng(seed)
    return (
        _draw(rng, blocks, window_blocks, run, resamples),
        _draw(rng, blocks, reference_draws or blocks, run, resamples),
    )


def _draw(rng: np.random.Generator, blocks: int, wanted: int, run: int, resamples: int) -> Floats:
    starts = rng.integers(0, blocks, size=(resamples, -(-wanted // run)))
    # The last day is followed by the first, so that all blocks are drawn equally often.
    drawn = (starts[:, :, None] + np.arange(run)) % blocks
    drawn = drawn.reshape(resamples, -1)[:, :wanted]
    cells = (np.arange(resamples)[:, None] * blocks + drawn).ravel()
    return np.bincount(cells, minlength=resamples * blocks).reshape(resamples, blocks).astype(np.float64)


def thinned(histograms: Floats, drawn_rows: Floats, rows: int, rng: np.random.Generator) -> Floats:
    """Histograms of redrawn windows with the noise of a window that has only `rows` rows.

    Args:
        histograms: (r, bins) shares of rows.
        drawn_rows: (r,) rows in each redrawn window.
        rows: Rows in the real one. With as many as were drawn, or more, nothing is added.
        rng: Where the noise comes from.
    """
    more = 1.0 / rows - 1.0 / drawn_rows
    few = more > 0
    if not few.any():
        return histograms
    sizes = np.maximum(np.round(1.0 / more[few]), 1).astype(np.int64)
    noisy = histograms.copy()
    noisy[few] = (
        rng.multinomial(sizes, histograms[few] / histograms[few].sum(axis=1, keepdims=True)) / sizes[:, None]
    )
    return noisy


def shares(weights: Floats, counts: Ints, rows: Floats) -> Floats:
    """(r, bins) the share of rows in each bin of each redraw.

    Args:
        weights: (r, blocks) how often each block was drawn.
        counts: (blocks, bins) rows in each bin, for one column or several side by side.
        rows: (r,) rows in each redraw.
    """
    return np.asarray((weights @ counts.astype(np.float64)) / rows[:, None], dtype=np.float64)


def distance(left: Floats, right: Floats) -> Floats:
    """The Jensen-Shannon distance of histograms, by row: 0 equal, 1 nothing in common; empty bins do no harm.

    Args:
        left: (r, bins) or (bins,) shares that sum to 1.
        right: Shares of the same shape.
    """
    middle = (left + right) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        of_left = np.where(left > 0, left * np.log2(left / middle), 0.0).sum(axis=-1)
        of_right = np.where(right > 0, right * np.log2(right / middle), 0.0).sum(axis=-1)
    return np.asarray(np.sqrt(np.maximum((of_left + of_right) / 2, 0.0)), dtype=np.float64)
