"""How far a window moved from its model's training data: inputs, predictions, and what the model looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from treadle.monitoring.profile import (
    Bins,
    Floats,
    Ints,
    Reference,
    SchemaLike,
    attribution_sums,
    flat_predictions,
)
from treadle.monitoring.resample import FEWEST_BLOCKS, RESAMPLES, distance, redraws, shares, thinned
from treadle.records import ColumnDrift

if TYPE_CHECKING:
    import pyarrow as pa

# A Jensen-Shannon distance below this is of no consequence, however sure: it is what one row in a thousand
# that moves to an empty bin makes.
LEAST_DISTANCE = 0.03
_MOST_NEW_CATEGORIES = 20
_SEED = 20130101


@dataclass(frozen=True, slots=True)
class Window:
    """The rows of a window as a model sees them.

    Attributes:
        x: (n, k) encoded.
        times_us: (n,) event times, microseconds since 1970 in UTC.
        unseen: By category column, (n,) whether the row's level was never seen in training.
        new_categories: By category column, the levels never seen, sorted; at most 20.
    """

    x: Floats
    times_us: Ints
    unseen: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    new_categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttributionDrift:
    """Total variation of the contribution shares, what redrawn references show of it, and who moved most."""

    distance: float
    floor: float
    movers: tuple[str, ...]


def encode_window(schema: Any, table: pa.Table) -> Window:
    """A table with `event_time` and the schema's columns, encoded; unseen levels are told from missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    x = np.asarray(schema.encode(table), dtype=np.float64)
    times = table["event_time"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    unseen, new = {}, {}
    for j, feature in enumerate(schema.features):
        if feature.kind != "category":
            continue
        column = table[feature.name]
        mask = np.isnan(x[:, j]) & pc.is_valid(column).to_numpy().astype(np.bool_)
        if mask.any():
            unseen[feature.name] = mask
            levels = sorted({str(level) for level in column.filter(pa.array(mask)).unique().to_pylist()})
            new[feature.name] = tuple(levels[:_MOST_NEW_CATEGORIES])
    return Window(x, times, unseen, new)


def can_calibrate(reference: Reference) -> bool:
    """Whether the reference has blocks enough to tell what is usual."""
    return len(reference.blocks) >= FEWEST_BLOCKS


def column_drift(
    reference: Reference, window: Window, *, alpha: float, resamples: int = RESAMPLES
) -> tuple[ColumnDrift, ...]:
    """Each column of the window beside the reference, in the schema's order.

    A column drifted when its distance is above `threshold`: what 1 - alpha of windows redrawn from the
    reference stay within, and never below `LEAST_DISTANCE`. A column that runs with the calendar (a month, a
    running number) differs from its past in every window, so it drifts only where values went missing.

    Args:
        reference: Of the champion; with fewer than `FEWEST_BLOCKS` blocks nothing is called drifted.
        window: At least one row.
        alpha: How often, at most, an unchanged column may be called drifted.
        resamples: How many windows are redrawn.
    """
    draws = _Draws(reference, window.times_us, alpha, resamples)
    found = []
    for j, bins in enumerate(reference.columns):
        values = window.x[:, j]
        placed = bins.place(values, window.unseen.get(bins.name))
        is_calendar = bool(reference.calendar[j])
        far, threshold = draws.compare(placed, reference.counts[j])
        drifted = far > threshold
        if is_calendar:
            gone = np.column_stack([reference.rows - reference.counts[j][:, -1], reference.counts[j][:, -1]])
            missing, usual = draws.compare((placed == bins.size - 1).astype(np.int64), gone)
            drifted = missing > usual
        found.append(
            ColumnDrift(
                name=bins.name,
                distance=far,
                threshold=threshold,
                drifted=drifted and can_calibrate(reference),
                calendar=is_calendar,
                reference_mean=_tidy(float(reference.means[j])),
                reference_missing=round(float(reference.missing[j]), 6),
                missing=round(float((placed == bins.size - 1).mean()), 6),
                new_categories=window.new_categories.get(bins.name, ()),
                **_moments(bins, values),
            )
        )
    return tuple(found)


def share_drifted(columns: Sequence[ColumnDrift]) -> float:
    """The share of columns that drifted, among those that can."""
    judged = [column for column in columns if column.drifted or not column.calendar]
    return round(sum(column.drifted for column in judged) / len(judged), 6) if judged else 0.0


def prediction_drift(
    reference: Reference, predictions: Floats, times_us: Ints, *, alpha: float, resamples: int = RESAMPLES
) -> ColumnDrift:
    """The predictions of a window beside those on the training data.

    Args:
        reference: Of the model that predicted.
        predictions: (n,) or (n, classes); of several classes the likeliest counts.
        times_us: (n,) event times.
        alpha: As in `column_drift`.
        resamples: As in `column_drift`.
    """
    draws = _Draws(reference, times_us, alpha, resamples)
    flat = flat_predictions(predictions)
    far, threshold = draws.compare(reference.prediction.place(flat), reference.prediction_counts)
    return ColumnDrift(
        name=reference.prediction.name,
        distance=far,
        threshold=threshold,
        drifted=far > threshold and can_calibrate(reference),
        missing=round(float(np.isnan(flat).mean()), 6),
        **_moments(reference.prediction, flat),
    )


def attribution_drift(
    reference: Reference,
    schema: SchemaLike,
    contributions: Floats,
    times_us: Ints,
    *,
    alpha: float,
    resamples: int = RESAMPLES,
) -> AttributionDrift | None:
    """How the model's attention moved between features; None where the reference has no contributions.

    Args:
        reference: Of the model that contributes.
        schema: Its inputs.
        contributions: (m, k) of a sample of the window's rows.
        times_us: (m,) their event times.
        alpha: The floor is what 1 - alpha of redrawn references stay within.
        resamples: How many are drawn.
    """
    usual = _of_total(reference.attribution.sum(axis=0))
    sums = attribution_sums(contributions, times_us, reference.block_us, len(reference.columns))
    now = _of_total(sums.sum(axis=0))
    if usual is None or now is None:
        return None
    windows, references = redraws(len(reference.attribution), len(sums), resamples=resamples, seed=_SEED)
    left, right = windows @ reference.attribution, references @ reference.attribution
    totals = (
        np.maximum(left.sum(axis=1, keepdims=True), 1e-300),
        np.maximum(right.sum(axis=1, keepdims=True), 1e-300),
    )
    noise = np.abs(left / totals[0] - right / totals[1]).sum(axis=1) / 2
    order = np.argsort(-np.abs(now - usual), kind="stable")[:3]
    movers = tuple(
        f"{schema.features[j].name} {usual[j]:.3f} -> {now[j]:.3f}" for j in order if now[j] != usual[j]
    )
    return AttributionDrift(
        distance=round(float(np.abs(now - usual).sum() / 2), 6),
        floor=round(float(np.quantile(noise, 1 - alpha)), 6),
        movers=movers,
    )


class _Draws:
    """Redraws of one reference for windows with these times, shared by all columns."""

    def __init__(self, reference: Reference, times_us: Ints, alpha: float, resamples: int) -> None:
        window_blocks = len(np.unique(times_us // reference.block_us))
        self.rows, self.alpha = len(times_us), alpha
        self.windows, self.references = redraws(
            len(reference.blocks), max(window_blocks, 1), resamples=resamples, seed=_SEED
        )
        self.drawn_rows = np.asarray(self.windows @ reference.rows.astype(np.float64), dtype=np.float64)

    def compare(self, placed: Ints, counts: Ints) -> tuple[float, float]:
        """The distance of a window's column from the reference's, and the threshold for it."""
        here = np.bincount(placed, minlength=counts.shape[1]) / max(len(placed), 1)
        usual = counts.sum(axis=0) / max(int(counts.sum()), 1)
        # Each column's noise starts anew: a column added or dropped leaves the others' thresholds alone.
        noise = np.random.default_rng(_SEED)
        redrawn = thinned(shares(self.windows, counts), self.drawn_rows, self.rows, noise)
        spread = distance(redrawn, shares(self.references, counts))
        threshold = max(float(np.quantile(spread, 1 - self.alpha)), LEAST_DISTANCE)
        return round(float(distance(here, usual)), 6), round(threshold, 6)


def _of_total(sums: Floats) -> Floats | None:
    total = float(sums.sum())
    return sums / total if total > 0 else None


def _moments(bins: Bins, values: Floats) -> dict[str, float | None]:
    known = values[np.isfinite(values)]
    if bins.edges is None or not len(known):
        return {}
    return {
        "mean": _tidy(float(known.mean())),
        "low": _tidy(float(known.min())),
        "high": _tidy(float(known.max())),
    }


def _tidy(value: float) -> float | None:
    """Nine digits, so that the order of a sum does not show; None for what is no number."""
    return float(f"{value:.9g}") if np.isfinite(value) else None
