"""What a challenger must not break while its loss wins: guard metrics, floors, budgets, and good sense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from treadle.gate.metrics import HIGHER_IS_BETTER, metric, metric_resampled
from treadle.gate.stats import resample_weights
from treadle.gate.words import number, number_apart, percent, signed, signed_apart
from treadle.records import Criterion

if TYPE_CHECKING:
    from treadle.gate.case import Case, Predictions
    from treadle.spec import Gate

Array = np.ndarray[Any, Any]

RESAMPLES = 10_000
SLOW_RESAMPLES = 1_000
"""For average_precision, which has to look at every row in every resample."""
SUSPICIOUS_METRIC = {"binary": "roc_auc", "multiclass": "roc_auc", "regression": "r2"}


ALMOST_PERFECT = 0.999


def value(name: str, case: Case, of: Predictions) -> float:
    """A metric of one model on the holdout; NaN where it has no meaning."""
    return metric(name, case.task, case.labels, of.values, of.classes)


def guard_criterion(name: str, worst: float, case: Case, champion: Predictions, gate: Gate) -> Criterion:
    """Whether a metric's change, challenger minus champion, surely stays within what is allowed.

    The change's one-sided bound over resampled blocks must not pass `worst`: where higher is better the lower
    bound must not lie below it, and for rmse, mae and losses the upper bound must not lie above it.
    """
    higher = HIGHER_IS_BETTER[name]
    times = SLOW_RESAMPLES if name == "average_precision" else RESAMPLES
    weights = resample_weights(len(np.unique(case.blocks)), times, seed=0)
    drawn = [
        metric_resampled(name, case.task, case.labels, of.values, case.blocks, weights, of.classes)
        for of in (case.challenger, champion)
    ]
    changes = drawn[0] - drawn[1]
    changes = changes[~np.isnan(changes)]
    change = value(name, case, case.challenger) - value(name, case, champion)
    if np.isnan(change) or not len(changes):
        words = f"The change of {name} can't be computed on this holdout, so that it can't be guarded."
        return Criterion(name=f"guard:{name}", status="failed", allowed=worst, words=words)
    bound = float(np.quantile(changes, gate.alpha if higher else 1 - gate.alpha))
    passed = bound >= worst if higher else bound <= worst
    side, most = ("above", "at least") if higher else ("below", "at most")
    surely = f"{side} {signed_apart(bound, worst)} at {percent(1 - gate.alpha)} confidence"
    words = f"{name} changes by {signed(change)}, {surely}; {most} {signed(worst)} is asked of that bound."
    return Criterion(
        name=f"guard:{name}",
        status="passed" if passed else "failed",
        observed=bound,
        allowed=worst,
        words=words,
    )


def floor_criterion(name: str, worst: float, case: Case) -> Criterion:
    """Whether the challenger's own value is at least what is asked; at most, where lower is better."""
    observed = value(name, case, case.challenger)
    side = "at least" if HIGHER_IS_BETTER[name] else "at most"
    if np.isnan(observed):
        words = f"{name} can't be computed on this holdout; {side} {number(worst)} is asked."
        return Criterion(name=f"floor:{name}", status="failed", allowed=worst, words=words)
    passed = observed >= worst if HIGHER_IS_BETTER[name] else observed <= worst
    return Criterion(
        name=f"floor:{name}",
        status="passed" if passed else "failed",
        observed=observed,
        allowed=worst,
        words=f"{name} is {number_apart(observed, worst)}; {side} {number(worst)} is asked.",
    )


def suspicion(case: Case, champion: Predictions, gate: Gate) -> Criterion | None:
    """A held criterion where the challenger is better than one believes without asking; None otherwise.

    Measured in roc_auc, for regression in r2 (the share of the labels' variance): both run up to 1.
    """
    name = SUSPICIOUS_METRIC[case.task]
    gain = value(name, case, case.challenger) - value(name, case, champion)
    if not gain > gate.suspicious:
        return None
    words = (
        f"{name} rises by {number_apart(gain, gate.suspicious)}, more than {number(gate.suspicious)}: "
        "so much at once is more often a leak of the label into the features than progress."
    )
    return Criterion(name="suspicious", status="held", observed=gain, allowed=gate.suspicious, words=words)


def too_good(case: Case) -> Criterion | None:
    """A first champion that hardly errs is held: there is no champion yet to be suspiciously better than."""
    name = SUSPICIOUS_METRIC[case.task]
    seen = value(name, case, case.challenger)
    if not seen >= ALMOST_PERFECT:
        return None
    words = (
        f"{name} is {number(seen)}: so good a first model is more often a leak of the label "
        "into the features than skill."
    )
    return Criterion(name="suspicious", status="held", observed=seen, allowed=ALMOST_PERFECT, words=words)


def budget_criteria(gate: Gate, latency_ms: float | None, size_mb: float | None) -> list[Criterion]:
    """Whether the model is quick and small enough. The latency measured never repeats: it is in no record."""
    criteria = []
    if gate.latency_ms is not None and latency_ms is not None:
        passed = latency_ms <= gate.latency_ms
        keeps = "keeps" if passed else "exceeds"
        words = f"One row's prediction {keeps} the budget of {number(gate.latency_ms)} ms."
        status = "passed" if passed else "failed"
        criteria.append(Criterion(name="latency", status=status, allowed=gate.latency_ms, words=words))
    if gate.size_mb is not None and size_mb is not None:
        passed = size_mb <= gate.size_mb
        size = number_apart(size_mb, gate.size_mb)
        words = f"The model's files have {size} MB; the budget is {number(gate.size_mb)} MB."
        status = "passed" if passed else "failed"
        criteria.append(
            Criterion(name="size", status=status, observed=size_mb, allowed=gate.size_mb, words=words)
        )
    return criteria


def unusable(case_task: str, of: Predictions, rows: int) -> str:
    """What is wrong with predictions, in words; empty when nothing is."""
    values = np.asarray(of.values)
    expected: Sequence[int] = (rows, len(of.classes)) if case_task == "multiclass" else (rows,)
    if values.shape != tuple(expected):
        return f"they have the shape {values.shape}, not {tuple(expected)}"
    bad = ~np.isfinite(values)
    if bad.any():
        count = int(bad.reshape(rows, -1).any(axis=1).sum())
        return f"{count:,} of {rows:,} {'is' if count == 1 else 'are'} missing or not finite"
    if case_task == "regression":
        return ""
    outside = (values < -1e-6) | (values > 1 + 1e-6)
    if case_task == "multiclass":
        outside = outside.any(axis=1) | (np.abs(values.sum(axis=1) - 1) > 1e-3)
    count = int(outside.sum())
    return (
        f"{count:,} of {rows:,} {'is no probability' if count == 1 else 'are no probabilities'}"
        if count
        else ""
    )
