"""How much each feature moved a prediction, for models that tell nothing of it: what is lost without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from treadle import spec

if TYPE_CHECKING:
    from treadle.models.predictor import Floats
    from treadle.models.schema import InputSchema

_LEAST_PROBABILITY = 1e-9


def typical_values(schema: InputSchema, x: Floats) -> tuple[float | None, ...]:
    """Each feature's mean, for booleans and categories the commonest value; None where all are missing."""
    import numpy as np

    typical: list[float | None] = []
    for position, feature in enumerate(schema.features):
        known = x[:, position][~np.isnan(x[:, position])]
        if not len(known):
            typical.append(None)
        elif feature.kind == "number":
            typical.append(float(known.mean()))
        else:
            values, counts = np.unique(known, return_counts=True)
            typical.append(float(values[counts.argmax()]))
    return tuple(typical)


def ablated(
    predict: Callable[[Floats], Floats], task: spec.Task, typical: Sequence[float | None], x: Floats
) -> Floats:
    """(n, k): what each prediction loses when a feature is set to its typical value in training.

    In log-odds for binary, log-probabilities for multiclass. For a linear model this is exactly the
    coefficient times the deviation from the mean; others' interactions are left out.

    Args:
        predict: The model.
        task: What it predicts.
        typical: k values, as `typical_values` gives them.
        x: (n, k) encoded rows.
    """
    import numpy as np

    score = _score(task, predict(x))
    result = np.empty((len(x), len(typical)))
    for position, value in enumerate(typical):
        without = x.copy()
        without[:, position] = np.nan if value is None else value
        moved = score - _score(task, predict(without))
        result[:, position] = np.abs(moved).sum(axis=1) if moved.ndim == 2 else moved
    return result


def _score(task: spec.Task, predictions: Floats) -> Floats:
    import numpy as np

    if task == "regression":
        return predictions
    logs: Floats = np.log(np.clip(predictions, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY))
    if task == "multiclass":
        return logs
    return logs - np.log(np.clip(1 - predictions, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY))
