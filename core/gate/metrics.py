"""Losses by row, and metrics of many rows: one table for binary, multiclass and regression.

| task | losses (lower is better) | metrics |
| --- | --- | --- |
| binary | log_loss, brier | roc_auc, average_precision, accuracy |
| multiclass | log_loss, brier | roc_auc (mean of one class against the rest), accuracy |
| regression | squared_error, absolute_error | rmse, mae, r2 |

A loss is also a metric: the mean over rows. Labels are 0 or 1 for binary, class names for multiclass, and
numbers for regression. Predictions are (n,) probabilities of the positive class, (n, n_classes)
probabilities, or (n,) numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from treadle.errors import UserError
from treadle.gate.auc import concordance, roc_auc

Array = np.ndarray[Any, Any]

LOSSES: dict[str, tuple[str, ...]] = {
    "binary": ("log_loss", "brier"),
    "multiclass": ("log_loss", "brier"),
    "regression": ("squared_error", "absolute_error"),
}
METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "accuracy"),
    "multiclass": ("roc_auc", "accuracy"),
    "regression": ("rmse", "mae", "r2"),
}
HIGHER_IS_BETTER: dict[str, bool] = {
    "roc_auc": True,
    "average_precision": True,
    "accuracy": True,
    "r2": True,
    "rmse": False,
    "mae": False,
    "log_loss": False,
    "brier": False,
    "squared_error": False,
    "absolute_error": False,
}
LEAST_PROBABILITY = 1e-7
"""So a certain and wrong prediction costs 16.1 nats; single precision knows nothing nearer to 1."""


def default_loss(task: str) -> str:
    """The loss that a task is judged by unless the loop names another."""
    return LOSSES[task][0]


def names_for(task: str) -> tuple[str, ...]:
    """All names that `metric` knows for a task: its metrics, then its losses."""
    return METRICS[task] + LOSSES[task]


def row_losses(task: str, loss: str, labels: Array, predictions: Array, classes: Sequence[str] = ()) -> Array:
    """Each row's loss.

    Args:
        task: binary, multiclass or regression.
        loss: One of `LOSSES[task]`; log_loss is in nats, brier for multiclass sums over classes.
        labels: (n,), none missing.
        predictions: (n,), for multiclass (n, n_classes).
        classes: For multiclass, what the columns of `predictions` mean; any other label had probability 0.

    Raises:
        UserError: The task has no such loss.
    """
    if loss not in LOSSES[task]:
        raise UserError(
            f"gate.loss: {loss!r} is no loss for a {task} task; choose one of {', '.join(LOSSES[task])}"
        )
    predictions = np.asarray(predictions, dtype=float)
    if task == "multiclass":
        return _multiclass_losses(loss, labels, predictions, classes)
    labels = np.asarray(labels, dtype=float)
    if loss == "log_loss":
        return _surprise(np.where(labels == 1, predictions, 1 - predictions))
    away: Array = np.abs(predictions - labels)
    return away if loss == "absolute_error" else np.square(away)


def _surprise(probability: Array) -> Array:
    surprise: Array = -np.log(np.clip(probability, LEAST_PROBABILITY, 1.0))
    return surprise


def _multiclass_losses(loss: str, labels: Array, predictions: Array, classes: Sequence[str]) -> Array:
    codes = class_codes(labels, classes)
    rows = np.arange(len(codes))
    right = np.where(codes >= 0, predictions[rows, codes], 0.0)
    if loss == "log_loss":
        return _surprise(right)
    # sum over classes of (p - y)^2; a label outside of the classes still adds its own 1
    brier: Array = np.square(predictions).sum(axis=1) - 2 * right + 1
    return brier


def class_codes(labels: Array, classes: Sequence[str]) -> Array:
    """(n,) position of each label in `classes`; -1 where it is none of them."""
    known = {name: position for position, name in enumerate(classes)}
    found, inverse = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    return np.array([known.get(str(name), -1) for name in found], dtype=np.int64)[inverse.reshape(-1)]


def metric(name: str, task: str, labels: Array, predictions: Array, classes: Sequence[str] = ()) -> float:
    """One number for many rows; NaN where it has no meaning (an area with one class, r2 of equal labels).

    Args:
        name: One of `names_for(task)`.
        task: binary, multiclass or regression.
        labels: As for `row_losses`.
        predictions: As for `row_losses`.
        classes: As for `row_losses`.

    Raises:
        UserError: The task has no such metric.
    """
    one_block = np.zeros(len(labels), dtype=np.int64)
    return float(metric_resampled(name, task, labels, predictions, one_block, np.ones((1, 1)), classes)[0])


def metric_resampled(
    name: str,
    task: str,
    labels: Array,
    predictions: Array,
    blocks: Array,
    weights: Array,
    classes: Sequence[str] = (),
) -> Array:
    """The metric on each resample of the blocks, as if their rows stood there as often as they were drawn.

    Args:
        name: One of `names_for(task)`.
        task: binary, multiclass or regression.
        labels: (n,), n at least 1.
        predictions: (n,), for multiclass (n, n_classes).
        blocks: (n,) int.
        weights: (n_times, G): how often each block was drawn, blocks in ascending order.
        classes: For multiclass, what the columns of `predictions` mean.

    Returns:
        (n_times,); NaN where the metric is not defined for a draw.
    """
    check_metric(name, task)
    if name == "roc_auc":
        return _roc_auc_resampled(task, labels, predictions, blocks, weights, classes)
    if name == "average_precision":
        return _average_precision(np.asarray(labels) == 1, predictions, blocks, weights)
    if name == "r2":
        return _r2(np.asarray(labels, dtype=float), predictions, blocks, weights)
    values, last = _row_values(name, task, labels, predictions, classes)
    return last(_sums(values, blocks, weights) / _sums(np.ones(len(values)), blocks, weights))


def check_metric(name: str, task: str) -> None:
    """Nothing, where a task has such a metric.

    Raises:
        UserError: It has not.
    """
    if name not in names_for(task):
        known = ", ".join(names_for(task))
        raise UserError(f"{name!r} is no metric for a {task} task; choose from {known}")


def _row_values(
    name: str, task: str, labels: Array, predictions: Array, classes: Sequence[str]
) -> tuple[Array, Callable[[Array], Array]]:
    """Values whose mean over rows, put through a last function, is the metric."""
    if name == "accuracy":
        if task == "multiclass":
            right = np.argmax(predictions, axis=1) == class_codes(labels, classes)
        else:
            right = (np.asarray(predictions) >= 0.5) == (np.asarray(labels) == 1)
        return right.astype(float), np.asarray
    if name == "rmse":
        return row_losses(task, "squared_error", labels, predictions), np.sqrt
    if name == "mae":
        return row_losses(task, "absolute_error", labels, predictions), np.asarray
    return row_losses(task, name, labels, predictions, classes), np.asarray


def _sums(values: Array, blocks: Array, weights: Array) -> Array:
    """(n_times,) sum of values over the drawn blocks."""
    codes = np.unique(blocks, return_inverse=True)[1].reshape(-1)
    return weights @ np.bincount(codes, weights=values, minlength=weights.shape[1])


def _roc_auc_resampled(
    task: str, labels: Array, predictions: Array, blocks: Array, weights: Array, classes: Sequence[str]
) -> Array:
    if task == "binary":
        return concordance(np.asarray(labels) == 1, predictions, blocks).resampled(weights)
    codes = class_codes(labels, classes)
    areas = np.array(
        [
            concordance(codes == position, predictions[:, position], blocks).resampled(weights)
            for position in range(len(classes))
        ]
    )
    defined = ~np.isnan(areas)
    count = defined.sum(axis=0)
    total = np.where(defined, areas, 0.0).sum(axis=0)
    means: Array = np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)
    return means


def _average_precision(positive: Array, scores: Array, blocks: Array, weights: Array) -> Array:
    order = np.argsort(-np.asarray(scores), kind="stable")
    codes = np.unique(blocks, return_inverse=True)[1].reshape(-1)[order]
    positive, ranked = positive[order], np.asarray(scores)[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal scores are one threshold
    results = np.empty(len(weights))
    for time, weight in enumerate(weights):
        rows = weight[codes]
        hits, taken = np.cumsum(rows * positive)[ends], np.cumsum(rows)[ends]
        precision = np.divide(hits, taken, out=np.zeros(len(ends)), where=taken > 0)
        total = hits[-1]
        results[time] = np.sum(np.diff(hits, prepend=0.0) * precision) / total if total > 0 else np.nan
    return results


def _r2(labels: Array, predictions: Array, blocks: Array, weights: Array) -> Array:
    centred = labels - labels.mean()  # keeps the sums of squares well conditioned
    rows = _sums(np.ones(len(labels)), blocks, weights)
    mean = _sums(centred, blocks, weights) / rows
    total = _sums(centred**2, blocks, weights) - rows * mean**2
    left = _sums((labels - predictions) ** 2, blocks, weights)
    share: Array = np.divide(left, total, out=np.full(len(weights), np.nan), where=total > 1e-12 * rows)
    return 1 - share


__all__ = [
    "HIGHER_IS_BETTER",
    "LEAST_PROBABILITY",
    "LOSSES",
    "METRICS",
    "check_metric",
    "class_codes",
    "default_loss",
    "metric",
    "metric_resampled",
    "names_for",
    "roc_auc",
    "row_losses",
]
