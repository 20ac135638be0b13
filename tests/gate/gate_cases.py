"""Made-up holdouts for the gate's tests: days share an effect, as real ones do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from treadle.gate.case import Case, Predictions, Span
from treadle.gate.metrics import class_codes

CLASSES = ("ash", "birch", "cedar")
START = datetime(2024, 3, 1, tzinfo=UTC)


def case(
    task: str = "binary",
    *,
    days: int = 28,
    a_day: int = 60,
    champion_noise: float | None = 1.0,
    challenger_noise: float = 1.0,
    seed: int = 0,
    **more: Any,
) -> Case:
    """A case where each model sees the truth through noise of its own; less noise is a better model."""
    rng = np.random.default_rng(seed)
    blocks = np.repeat(np.arange(days), a_day)
    truth = rng.normal(0, 1, len(blocks)) + 0.3 * rng.normal(0, 1, days)[blocks]
    labels, classes, shown = _labels(task, truth, rng)
    challenger = shown(challenger_noise, np.random.default_rng([seed, 1]))
    champion = None if champion_noise is None else shown(champion_noise, np.random.default_rng([seed, 2]))
    given: dict[str, Any] = {
        "champion": None if champion is None else Predictions(champion, classes),
        "baseline": Predictions(_baseline(task, labels), classes) if champion is None else None,
        **more,
    }
    span = Span(START, START + timedelta(days=days))
    return Case(
        task=task,
        labels=labels,
        blocks=blocks,
        span=span,
        challenger=Predictions(challenger, classes),
        **given,
    )


def _labels(task: str, truth: np.ndarray, rng: np.random.Generator) -> Any:
    if task == "regression":
        labels = truth + rng.normal(0, 0.3, len(truth))
        return labels, (), lambda noise, own: truth + own.normal(0, noise * 0.3, len(truth))
    if task == "binary":
        labels = (rng.random(len(truth)) < 1 / (1 + np.exp(-2 * truth))).astype(float)
        return labels, (), lambda noise, own: 1 / (1 + np.exp(-2 * truth - own.normal(0, noise, len(truth))))
    scores = np.stack([truth, -truth, rng.normal(0, 1, len(truth))], axis=1)
    labels = np.array(CLASSES, dtype=object)[(scores + rng.gumbel(0, 0.5, scores.shape)).argmax(axis=1)]

    def shown(noise: float, own: np.random.Generator) -> np.ndarray:
        raised = np.exp(2 * scores + own.normal(0, noise, scores.shape))
        return raised / raised.sum(axis=1, keepdims=True)

    return labels, CLASSES, shown


def _baseline(task: str, labels: np.ndarray) -> np.ndarray:
    if task == "multiclass":
        counts = np.bincount(class_codes(labels, CLASSES), minlength=3)
        return np.tile(counts / counts.sum(), (len(labels), 1))
    return np.full(len(labels), labels.mean())
