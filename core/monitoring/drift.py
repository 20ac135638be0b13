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
_MOST_BINS = 4_000
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

    A column drifted when its distance is above `threshold`: what windows redrawn from the reference stay
    within, and never below `LEAST_DISTANCE`. Two distances are looked at, each at alpha / 2, and the more
    telling one is reported: that of the whole distribution, and that of missing against known values, which
    the noise of the rest would else hide. A column that runs with the calendar (a month, a running number)
    differs from its past in every window, so it drifts only where values went missing.

    Args:
        reference: Of the champion; with fewer than `FEWEST_BLOCKS` blocks nothing is called drifted.
        window: At least one row.
        alpha: How often, at most, an unchanged column may be called drifted.
        resamples: How many windows are redrawn.
    """
    placed = [
        bins.place(window.x[:, j], window.unseen.get(bins.name)) for j, bins in enumerate(reference.columns)
    ]
    draws = _Draws(reference, window.times_us, alpha, resamples)
    usual_gaps = reference.missing
    found = []
    for j, (bins, moved) in enumerate(zip(reference.columns, draws.compare(placed, reference), strict=True)):
        found.append(
            ColumnDrift(
                name=bins.name,
                distance=moved.distance,
                threshold=moved.threshold,
                drifted=moved.drifted and can_calibrate(reference),
                calendar=bool(reference.calendar[j]),
                reference_mean=_tidy(float(reference.means[j])),
                reference_missing=round(float(usual_gaps[j]), 6),
                missing=round(float((placed[j] == bins.size - 1).mean()), 6),
                new_categories=window.new_categories.get(bins.name, ()),
                **_moments(bins, window.x[:, j]),
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
    placed = reference.prediction.place(flat)
    [moved] = draws.compare([placed], reference, of_predictions=True)
    return ColumnDrift(
        name=reference.prediction.name,
        distance=moved.distance,
        threshold=moved.threshold,
        drifted=moved.drifted and can_calibrate(reference),
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


@dataclass(frozen=True, slots=True)
class _Moved:
    """The more telling of a column's two distances, its threshold, and whether it drifted."""

    distance: float
    threshold: float
    drifted: bool


class _Draws:
    """Redraws of one reference for windows with these times, shared by all columns."""

    def __init__(self, reference: Reference, times_us: Ints, alpha: float, resamples: int) -> None:
        # Two looks at each column: its whole distribution, and how much is missing.
        self.rows, self.level, self.resamples = max(len(times_us), 1), 1 - alpha / 2, resamples
        blocks, self.index = np.unique(times_us // reference.block_us, return_inverse=True)
        self.blocks = max(len(blocks), 1)
        self.windows, self.references = redraws(
            len(reference.blocks), self.blocks, resamples=resamples, seed=_SEED
        )
        self.drawn_rows = np.asarray(self.windows @ reference.rows.astype(np.float64), dtype=np.float64)

    def compare(
        self, placed: Sequence[Ints], reference: Reference, *, of_predictions: bool = False
    ) -> list[_Moved]:
        """Each column of the window beside the reference's.

        Args:
            placed: (n,) bins of the window's rows, for each column.
            reference: What the redraws are of.
            of_predictions: Whether the only column is the predictions.
        """
        counts = (reference.prediction_counts,) if of_predictions else reference.counts
        cuts = (reference.prediction,) if of_predictions else reference.columns
        calendar = [False] if of_predictions else reference.calendar.tolist()
        outages = self._outages(cuts, placed, counts, reference.rows)
        moved: list[_Moved] = []
        for group in _groups(counts):
            # One product for many columns: with busy threads each small product costs 15 ms.
            joined = np.hstack([counts[j] for j in group])
            ends = np.cumsum([counts[j].shape[1] for j in group])[:-1]
            drawn = np.split(shares(self.windows, joined, self.drawn_rows), ends, axis=1)
            usual_rows = np.asarray(self.references @ reference.rows.astype(np.float64), dtype=np.float64)
            usual = np.split(shares(self.references, joined, usual_rows), ends, axis=1)
            for j, window, whole in zip(group, drawn, usual, strict=True):
                least = LEAST_DISTANCE, float(outages[j])
                moved.append(self._column(cuts[j], placed[j], counts[j], window, whole, calendar[j], least))
        return moved

    def _outages(
        self, cuts: Sequence[Bins], placed: Sequence[Ints], counts: Sequence[Ints], rows: Ints
    ) -> Floats:
        """(k,) how far missing values may move, were the window's blocks and the reference's of one kind.

        A reference that never had a gap can't show how a gap looks when redrawn; the window's own blocks can.
        One bad day in a week may be chance; some gaps on each day are not.
        """
        here = [
            np.bincount(self.index[p == c.size - 1], minlength=self.blocks)
            for p, c in zip(placed, cuts, strict=True)
        ]
        gaps = np.vstack([np.column_stack([matrix[:, -1] for matrix in counts]), np.column_stack(here)])
        all_rows = np.concatenate([rows, np.bincount(self.index, minlength=self.blocks)]).astype(np.float64)
        windows, references = redraws(
            len(all_rows), self.blocks, resamples=self.resamples, seed=_SEED, reference_draws=len(rows), run=1
        )
        left = shares(windows, gaps, np.maximum(windows @ all_rows, 1.0))
        right = shares(references, gaps, np.maximum(references @ all_rows, 1.0))
        spread = distance(np.stack([1 - left, left], axis=-1), np.stack([1 - right, right], axis=-1))
        return np.asarray(np.quantile(spread, self.level, axis=0), dtype=np.float64)

    def _column(
        self,
        bins: Bins,
        placed: Ints,
        counts: Ints,
        drawn: Floats,
        usual: Floats,
        is_calendar: bool,
        least: tuple[float, float],
    ) -> _Moved:
        # Each column's noise starts anew: a column added or dropped leaves the others' thresholds alone.
        drawn = thinned(drawn, self.drawn_rows, self.rows, np.random.default_rng(_SEED))
        here = np.bincount(placed, minlength=bins.size) / self.rows
        there = counts.sum(axis=0) / max(int(counts.sum()), 1)
        whole = self._moved(here, there, drawn, usual, least[0])
        missing = [_missing_only(each) for each in (here, there, drawn, usual)]
        gaps = self._moved(missing[0], missing[1], missing[2], missing[3], max(least))
        if is_calendar:
            return _Moved(whole.distance, whole.threshold, gaps.drifted)
        return max(whole, gaps, key=lambda moved: moved.distance / moved.threshold)

    def _moved(self, here: Floats, there: Floats, drawn: Floats, usual: Floats, least: float) -> _Moved:
        threshold = max(float(np.quantile(distance(drawn, usual), self.level)), least)
        far = round(float(distance(here, there)), 6)
        threshold = round(threshold, 6)
        return _Moved(far, threshold, far > threshold)


def _groups(counts: Sequence[Ints]) -> list[list[int]]:
    """Positions of columns in groups of at most `_MOST_BINS` bins, which bounds the memory of redraws."""
    groups: list[list[int]] = []
    size = _MOST_BINS
    for j, matrix in enumerate(counts):
        if size + matrix.shape[1] > _MOST_BINS:
            groups.append([])
            size = 0
        groups[-1].append(j)
        size += matrix.shape[1]
    return groups


def _missing_only(histogram: Floats) -> Floats:
    """(..., 2) known, missing."""
    missing = histogram[..., -1]
    return np.stack([1 - missing, missing], axis=-1)


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
