"""How good the predictions of a window were, once labels are known, beside what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from treadle import spec
from treadle.monitoring.profile import Floats, Ints
from treadle.records import Quality
from treadle.words import percents

_METRIC = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "rmse"}


@dataclass(frozen=True, slots=True)
class Expected:
    """The champion's mean loss where it was judged, and over how many blocks of time that was."""

    loss: str
    value: float
    blocks: int


@dataclass(frozen=True, slots=True)
class Answered:
    """Rows whose labels should be known by now, with what was predicted for them.

    Attributes:
        labels: (n,) float, or object for several classes.
        known: (n,) whether the label was known by the clock.
        predictions: (n,) or (n, classes); NaN where nothing was predicted.
        by_champion: (n,) whether it was the present champion that predicted.
        times_us: (n,) event times.
    """

    labels: NDArray[np.object_] | Floats
    known: NDArray[np.bool_]
    predictions: Floats
    by_champion: NDArray[np.bool_]
    times_us: Ints

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """(n,) whether there is a prediction."""
        flat = self.predictions if self.predictions.ndim == 1 else self.predictions.sum(axis=1)
        return np.asarray(~np.isnan(flat), dtype=np.bool_)


def judge_quality(
    answered: Answered,
    *,
    task: str,
    loss: str,
    classes: Sequence[str],
    block: timedelta,
    expected: Expected | None,
    limits: spec.Quality,
) -> Quality:
    """The window's loss and its main metric, and whether the champion does worse than when it was judged.

    `decayed` asks whether the loss of the champion's own predictions lies above what was expected by more
    than `limits.margin`: a one-sided t test by block, which counts in that the expectation too was measured
    on few blocks. Predictions of an earlier champion enter `value` but not the test.

    Args:
        answered: The rows of the window.
        task: Of the champion.
        loss: As `treadle.gate.metrics` names it.
        classes: The champion's.
        block: Within which losses move together.
        expected: None where the champion's loss was never measured: nothing is called decayed then.
        limits: The loop's.
    """
    from treadle.gate.metrics import metric, row_losses
    from treadle.gate.stats import block_ids

    rows = len(answered.known)
    use = answered.known & answered.predicted
    labelled = int(use.sum())
    coverage = round(labelled / rows, 6) if rows else 0.0
    seen = Quality(
        loss=loss,
        value=None,
        expected=_digits(expected.value) if expected else None,
        labelled=labelled,
        rows=rows,
        coverage=coverage,
        words="no labels are known yet",
    )
    if not labelled:
        return seen
    labels, predictions = answered.labels[use], answered.predictions[use]
    losses = row_losses(task, loss, labels, predictions, classes)
    main = _digits(float(metric(_METRIC[task], task, labels, predictions, classes)))
    value = _digits(float(losses.mean()))
    metrics = {} if main is None else {_METRIC[task]: main}
    seen = seen.model_copy(update={"value": value, "metrics": metrics})
    own = answered.by_champion[use]
    why_not = _unjudged(expected, loss, coverage, limits, int(own.sum()), rows)
    blocks = block_ids(answered.times_us[use][own], block)
    if not why_not and len(np.unique(blocks)) < 2:
        why_not = "the labels lie within one block of time, which can't tell decay from chance"
    if why_not or expected is None:
        return seen.model_copy(update={"words": f"{loss} {value}; {why_not}"})
    p = _p_worse(losses[own], blocks, expected, limits.margin)
    decayed = p <= limits.alpha
    words = f"{loss} {value} against {_digits(expected.value)} expected (p {p:.3g}, margin {limits.margin:g})"
    return seen.model_copy(update={"p": _digits(p), "decayed": decayed, "words": words})


def _unjudged(
    expected: Expected | None, loss: str, coverage: float, limits: spec.Quality, own: int, rows: int
) -> str:
    """Why the window can't be judged; empty when it can."""
    if expected is None:
        return "not judged: the champion's expected loss is not known"
    if expected.loss != loss:
        return f"not judged: the champion was judged by {expected.loss}"
    if coverage < limits.min_coverage:
        known, wanted = percents(coverage, limits.min_coverage)
        return f"not judged: labels known of {known} of the rows, {wanted} are wanted"
    if own < limits.min_coverage * rows:
        return "not judged: most of these rows were answered by an earlier champion"
    return ""


def _p_worse(losses: Floats, blocks: Ints, expected: Expected, margin: float) -> float:
    """One-sided p against the mean loss being at most the expected one plus the margin."""
    from scipy import stats
    from treadle.gate.stats import clustered_t

    here = clustered_t(losses, blocks)
    # The expectation is a mean over blocks like these: their number tells its share of the doubt.
    se = here.se * float(np.sqrt(1 + here.blocks / max(expected.blocks, 1)))
    above = here.mean - expected.value - margin
    if se == 0:
        return 0.0 if above > 0 else 1.0
    return float(stats.t.sf(above / se, here.blocks - 1))


def in_words(drifted: bool, quality: Quality | None) -> str:
    """Input drift and decay told apart.

    Args:
        drifted: Whether the inputs moved.
        quality: None where nothing was measured.
    """
    judged = quality is not None and quality.p is not None
    if not judged:
        return (
            "inputs moved; quality is not known yet" if drifted else "inputs hold; quality is not known yet"
        )
    decayed = quality is not None and quality.decayed
    return {
        (False, False): "inputs hold, quality holds",
        (True, False): "inputs moved, quality holds",
        (False, True): "inputs hold, quality decayed: what the inputs mean has changed, or the labels have",
        (True, True): "inputs moved and quality decayed",
    }[(drifted, decayed)]


def _digits(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
