"""The profile of a model's training data that later windows are compared with: counts by block of time.

Every column is cut into bins once, and each block of time (a day) keeps how many of its rows fell into each
bin. So any window can be redrawn from the reference's own blocks, which is what calibrates the thresholds in
`drift.py`. No row is kept.

    numbers      below the range | quantile bins, or one for each of few values | above the range | missing
    categories   the 50 commonest levels | other known levels | levels never seen | missing
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FORMAT = 1
QUANTILES = 20
MOST_LEVELS = 50
PREDICTION = "prediction"
_DAY = timedelta(days=1)
_ROWS_A_PSEUDO_BLOCK = 50


class FeatureLike(Protocol):
    """What a profile needs to know of a feature."""

    @property
    def name(self) -> str:
        """The column's name."""
        ...

    @property
    def kind(self) -> str:
        """`number`, `boolean` or `category`."""
        ...

    @property
    def categories(self) -> Sequence[str]:
        """The levels that training saw, in the order of their codes."""
        ...


class SchemaLike(Protocol):
    """What a profile needs to know of a model's inputs, in the order of their columns."""

    @property
    def features(self) -> Sequence[FeatureLike]:
        """The inputs."""
        ...


@dataclass(frozen=True, slots=True)
class Bins:
    """How one column is cut: `edges` for numbers; for categories `codes`, levels with their own bin."""

    name: str
    kind: str
    edges: Floats | None = None
    codes: Ints | None = None
    levels: int = 0

    @property
    def size(self) -> int:
        """How many bins there are, the one for missing values last."""
        if self.edges is not None:
            return len(self.edges) + 2
        return (0 if self.codes is None else len(self.codes)) + 3

    def place(self, values: Floats, unseen: NDArray[np.bool_] | None = None) -> Ints:
        """The bin of each value.

        Args:
            values: (n,) encoded values; missing and never seen are NaN.
            unseen: (n,) for categories, which of the NaN are levels that training never saw.
        """
        missing = np.isnan(values)
        filled = np.where(missing, 0.0, values)
        if self.edges is not None:
            placed = np.searchsorted(self.edges, filled, side="right").astype(np.int64)
            # The last edge is the highest value seen: it belongs to the range, what is above it does not.
            placed[filled == self.edges[-1]] = len(self.edges) - 1
        else:
            codes = self.codes if self.codes is not None else np.empty(0, dtype=np.int64)
            bin_of_code = np.full(max(self.levels, 1), len(codes), dtype=np.int64)
            bin_of_code[codes] = np.arange(len(codes))
            placed = bin_of_code[np.clip(filled.astype(np.int64), 0, max(self.levels - 1, 0))]
        placed[missing] = self.size - 1
        if unseen is not None and self.edges is None:
            placed[unseen & missing] = self.size - 2
        return placed


@dataclass(frozen=True, slots=True)
class Reference:
    """A candidate's training data in counts.

    Attributes:
        columns: How each feature is cut, in the schema's order.
        prediction: How the predictions are cut; for several classes, by the likeliest class.
        blocks: (b,) the blocks' numbers since 1970, ascending.
        rows: (b,) rows in each block.
        counts: One (b, bins) matrix for each column.
        prediction_counts: (b, bins).
        means, lows, highs: (k,) of the values that are not missing; NaN where all are, and for categories.
        calendar: (k,) whether the column runs with the calendar, as a month or a running number does.
        attribution: (c, k) sums of |contribution| over blocks of sampled rows; (0, k) where there are none.
        block_us: The length of a block in microseconds.
    """

    columns: tuple[Bins, ...]
    prediction: Bins
    blocks: Ints
    rows: Ints
    counts: tuple[Ints, ...]
    prediction_counts: Ints
    means: Floats
    lows: Floats
    highs: Floats
    calendar: NDArray[np.bool_]
    attribution: Floats
    block_us: int

    @classmethod
    def load(cls, data: bytes) -> Reference:
        """The reference that `build_reference` made.

        Raises:
            ValueError: The bytes are of another format.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            meta = json.loads(arrays["meta"].tobytes())
            if meta["format"] != FORMAT:
                raise ValueError(f"this reference has format {meta['format']}; this treadle reads {FORMAT}")
            bins = tuple(_bins_from(part, arrays[f"bins_{i:05d}"]) for i, part in enumerate(meta["bins"]))
            sizes = [part.size for part in bins]
            pieces = np.split(arrays["counts"].astype(np.int64), np.cumsum(sizes)[:-1], axis=1)
            return cls(
                columns=bins[:-1],
                prediction=bins[-1],
                blocks=arrays["blocks"],
                rows=arrays["rows"],
                counts=tuple(pieces[:-1]),
                prediction_counts=pieces[-1],
                means=arrays["means"],
                lows=arrays["lows"],
                highs=arrays["highs"],
                calendar=arrays["calendar"],
                attribution=arrays["attribution"],
                block_us=meta["block_us"],
            )

    @property
    def missing(self) -> Floats:
        """(k,) the share of missing values in each column."""
        total = max(int(self.rows.sum()), 1)
        return np.array([counts[:, -1].sum() / total for counts in self.counts], dtype=np.float64)


def build_reference(
    schema: SchemaLike,
    x: Floats,
    times_us: Ints,
    predictions: Floats,
    contributions: Floats | None,
    block: timedelta = _DAY,
    *,
    contribution_times_us: Ints | None = None,
) -> bytes:
    """The profile of the rows that a model was trained on, as npz bytes that are the same for the same input.

    Args:
        schema: The model's inputs; k features.
        x: (n, k) encoded rows, in any order.
        times_us: (n,) event times in microseconds since 1970, UTC.
        predictions: (n,) or, for several classes, (n, classes).
        contributions: (m, k) what each feature added to a sample of the rows; None where the model has none.
        block: The stretch of time within which rows move together.
        contribution_times_us: (m,) event times of the sampled rows; without them, the rows' noise counts as
            independent from row to row.

    Raises:
        ValueError: Shapes that do not fit, or no rows.
    """
    _check_shapes(schema, x, times_us, predictions, contributions)
    block_us = int(block / timedelta(microseconds=1))
    blocks, index, rows = np.unique(times_us // block_us, return_inverse=True, return_counts=True)
    columns, counts = [], []
    means, lows, highs = (np.full(x.shape[1], np.nan) for _ in range(3))
    calendar = np.zeros(x.shape[1], dtype=np.bool_)
    for j, feature in enumerate(schema.features):
        values = np.ascontiguousarray(x[:, j], dtype=np.float64)
        bins = _cut(feature, values)
        matrix = block_counts(bins.place(values), index, len(blocks), bins.size)
        columns.append(bins)
        counts.append(matrix)
        known = np.isfinite(values)
        if bins.edges is not None and known.any():
            means[j], lows[j], highs[j] = values[known].mean(), values[known].min(), values[known].max()
            calendar[j] = _numbers_run(values[known], index[known], len(blocks))
        elif bins.codes is not None:
            calendar[j] = _levels_run(matrix[:, :-2])
    flat = flat_predictions(predictions)
    if predictions.ndim == 2:
        classes = predictions.shape[1]
        by_class = Bins(PREDICTION, "category", codes=np.arange(classes, dtype=np.int64), levels=classes)
    prediction = _cut_numbers(PREDICTION, "number", flat) if predictions.ndim == 1 else by_class
    counts.append(block_counts(prediction.place(flat), index, len(blocks), prediction.size))
    everything = [*columns, prediction]
    arrays: dict[str, NDArray[Any]] = {
        "blocks": blocks.astype(np.int64),
        "rows": rows.astype(np.int64),
        "counts": np.hstack(counts).astype(np.int32),
        "means": means,
        "lows": lows,
        "highs": highs,
        "calendar": calendar,
        "attribution": attribution_sums(contributions, contribution_times_us, block_us, x.shape[1]),
    }
    for i, bins in enumerate(everything):
        arrays[f"bins_{i:05d}"] = bins.edges if bins.edges is not None else _codes(bins)
    meta = {
        "format": FORMAT,
        "block_us": block_us,
        "bins": [{"name": b.name, "kind": b.kind, "levels": b.levels} for b in everything],
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), dtype=np.uint8)
    return _npz(arrays)


def flat_predictions(predictions: Floats) -> Floats:
    """(n,) predictions as they are; (n, classes) as the likeliest class's number, NaN where there is none."""
    if predictions.ndim == 1:
        return np.asarray(predictions, dtype=np.float64)
    gone = np.isnan(predictions.sum(axis=1))
    likeliest: Floats = np.where(gone[:, None], 0.0, predictions).argmax(axis=1).astype(np.float64)
    likeliest[gone] = np.nan
    return likeliest


def block_counts(placed: Ints, index: Ints, blocks: int, size: int) -> Ints:
    """(blocks, size) how many rows of each block fell into each bin.

    Args:
        placed: (n,) bins, below `size`.
        index: (n,) positions of the rows' blocks, below `blocks`.
        blocks: How many blocks there are.
        size: How many bins there are.
    """
    return np.bincount(index * size + placed, minlength=blocks * size).reshape(blocks, size).astype(np.int64)


def attribution_sums(
    contributions: Floats | None, times_us: Ints | None, block_us: int, features: int
) -> Floats:
    """(c, features) sums of |contribution| over the rows of each block, blocks in order of time."""
    if contributions is None or not len(contributions):
        return np.zeros((0, features))
    size = np.abs(np.asarray(contributions, dtype=np.float64))
    if times_us is None:
        index = np.arange(len(size)) // _ROWS_A_PSEUDO_BLOCK
    else:
        index = np.unique(times_us // block_us, return_inverse=True)[1]
    sums = np.zeros((int(index.max()) + 1, features))
    np.add.at(sums, index, size)
    return sums


def _check_shapes(
    schema: SchemaLike, x: Floats, times_us: Ints, predictions: Floats, contributions: Floats | None
) -> None:
    wanted = len(schema.features)
    if x.ndim != 2 or x.shape[1] != wanted:
        raise ValueError(f"x has shape {x.shape}; the schema has {wanted} features")
    if not len(x):
        raise ValueError("there are no rows to make a reference of")
    if times_us.shape != (len(x),) or len(predictions) != len(x):
        raise ValueError(
            f"{len(x)} rows need as many times ({times_us.shape}) and predictions ({predictions.shape})"
        )
    if contributions is not None and (contributions.ndim != 2 or contributions.shape[1] != wanted):
        raise ValueError(f"contributions have shape {contributions.shape}; the schema has {wanted} features")


def _cut(feature: FeatureLike, values: Floats) -> Bins:
    if feature.kind != "category":
        return _cut_numbers(feature.name, feature.kind, values)
    levels = len(feature.categories)
    known = values[~np.isnan(values)].astype(np.int64)
    counts = np.bincount(known, minlength=levels)
    # Commonest first; equal counts keep the order of the codes.
    codes = np.sort(np.argsort(-counts, kind="stable")[:MOST_LEVELS])
    return Bins(feature.name, feature.kind, codes=codes.astype(np.int64), levels=levels)


def _cut_numbers(name: str, kind: str, values: Floats) -> Bins:
    known = values[np.isfinite(values)]
    distinct = np.unique(known) if len(known) else np.zeros(1)
    if len(distinct) == 1:
        # Twice the one edge, so that below, at and above it are three bins.
        return Bins(name, kind, edges=np.repeat(distinct, 2))
    if len(distinct) <= QUANTILES:
        edges = np.concatenate([distinct[:1], (distinct[1:] + distinct[:-1]) / 2, distinct[-1:]])
        return Bins(name, kind, edges=np.unique(edges))
    cuts = np.quantile(known, np.linspace(0, 1, QUANTILES + 1), method="inverted_cdf")
    return Bins(name, kind, edges=np.unique(cuts))


def _numbers_run(values: Floats, index: Ints, blocks: int) -> bool:
    """Whether a column hardly varies within blocks, and from block to block goes on in one direction."""
    rows = np.bincount(index, minlength=blocks)
    if (rows > 0).sum() < 10 or values.var() == 0:
        return False
    sums = np.bincount(index, weights=values, minlength=blocks)
    means = sums[rows > 0] / rows[rows > 0]
    between = float((rows[rows > 0] * (means - values.mean()) ** 2).sum() / len(values))
    if between < 0.95 * float(values.var()):
        return False
    steps = np.diff(means)
    directions = np.sign(steps[np.abs(steps) > 1e-9 * max(float(np.abs(means).max()), 1e-300)])
    return bool((np.diff(directions) != 0).sum() <= 0.1 * len(means)) and len(np.unique(values)) > 2


def _levels_run(counts: Ints) -> bool:
    """Whether nearly each block has one level only, and the levels follow each other in long runs."""
    rows = counts.sum(axis=1)
    kept = counts[rows > 0]
    if len(kept) < 10 or counts.shape[1] < 3 or float(kept.max(axis=1).sum()) < 0.95 * float(rows.sum()):
        return False
    main = kept.argmax(axis=1)
    changes = int((np.diff(main) != 0).sum())
    return len(np.unique(main)) > 2 and changes <= 0.1 * len(main)


def _codes(bins: Bins) -> Ints:
    return bins.codes if bins.codes is not None else np.empty(0, dtype=np.int64)


def _bins_from(part: dict[str, Any], array: NDArray[Any]) -> Bins:
    if part["kind"] == "category":
        return Bins(part["name"], part["kind"], codes=array.astype(np.int64), levels=part["levels"])
    return Bins(part["name"], part["kind"], edges=array.astype(np.float64))


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """As `np.savez_compressed`, with no time of writing in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
            archive.writestr(info, member.getvalue(), compresslevel=6)
    return buffer.getvalue()
