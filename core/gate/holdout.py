"""The rows that models are judged on: read, put into one order, and proven to be the same for every model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from treadle.gate.case import Span
from treadle.gate.metrics import class_codes
from treadle.gate.slices import Grouping
from treadle.words import counted

if TYPE_CHECKING:
    import pyarrow as pa
    from treadle.records import Candidate, FeatureSet
    from treadle.store import Store

Array = np.ndarray[Any, Any]

NO_VALUE = "(none)"


@dataclass(frozen=True, slots=True)
class HoldoutRows:
    """The labelled rows of a stretch of time, in order of row id.

    Attributes:
        ids: Row ids, ascending.
        times_us: (n,) int64 microseconds since the epoch.
        labels: (n,) float64, or for multiclass class names.
        table: The features, one row for each id.
        unlabelled: How many more rows have no label, not yet or never; they are in no other field.
        digest: sha256 over row ids, times and labels: equal for two models judged on the same rows.
    """

    ids: list[str]
    times_us: Array
    labels: Array
    table: pa.Table
    unlabelled: int
    digest: str


def read_holdout(store: Store, features: FeatureSet, span: Span, task: str) -> HoldoutRows:
    """The labelled rows of `span` from a feature set.

    Raises:
        BlobLost: A partition is missing or altered; featurize makes it again.
    """
    import pyarrow as pa
    from treadle.data.tables import read_partitions

    everything = read_partitions(store, features.partitions, start=span.start, end=span.end)
    if not everything.num_columns:
        nothing = np.empty(0)
        return HoldoutRows([], nothing, nothing, everything, 0, _digest([], nothing, nothing))
    rows = everything.filter(pa.array(is_known(everything.column("label")))).sort_by("row_id")
    unlabelled = everything.num_rows - rows.num_rows
    ids = [str(row_id) for row_id in rows.column("row_id").to_pylist()]
    times_us = rows.column("event_time").cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    labels = labels_of(rows.column("label"), task)
    return HoldoutRows(ids, times_us, labels, rows, unlabelled, _digest(ids, times_us, labels))


def is_known(column: pa.ChunkedArray[Any]) -> Array:
    """(n,) bool: where a column has a value that is not NaN."""
    return np.array([value is not None and value == value for value in column.to_pylist()], dtype=bool)


def labels_of(column: pa.ChunkedArray[Any], task: str) -> Array:
    """(n,) labels without nulls as the metrics take them: float64, or for multiclass class names."""
    import pyarrow as pa

    if task == "multiclass":
        return np.array(column.cast(pa.string()).to_pylist(), dtype=object)
    numbers: Array = column.cast(pa.float64()).to_numpy()
    return numbers


def _digest(ids: Sequence[str], times_us: Array, labels: Array) -> str:
    found = hashlib.sha256("\n".join(ids).encode())
    found.update(np.ascontiguousarray(times_us, dtype="<i8").tobytes())
    if labels.dtype == object:
        found.update(json.dumps(list(labels)).encode())
    else:
        found.update(np.ascontiguousarray(labels + 0.0, dtype="<f8").tobytes())  # -0.0 is 0.0
    return found.hexdigest()


def difference_of(challenger: HoldoutRows, champion: HoldoutRows) -> str:
    """Why two holdouts are not the same, in words; empty when they are."""
    if challenger.digest == champion.digest:
        return ""
    mine, theirs = set(challenger.ids), set(champion.ids)
    if mine != theirs:
        only_mine, only_theirs = len(mine - theirs), len(theirs - mine)
        return (
            f"its files make other labelled rows of the same data: only the challenger's {only_mine:,}, "
            f"only its own {only_theirs:,}, shared {len(mine & theirs):,}"
        )
    if challenger.ids == champion.ids and np.array_equal(challenger.times_us, champion.times_us):
        changed = int((challenger.labels != champion.labels).sum())
        labels = counted(len(challenger.ids), "label")
        return f"the label's definition changed: {changed:,} of {labels} {'differs' if changed == 1 else 'differ'}"
    return "its files give the same rows other times"


def grouping(rows: HoldoutRows, column: str) -> Grouping:
    """How a column parts the rows; rows without a value, or with NaN, are a group of their own."""
    import pyarrow as pa

    values = rows.table.column(column)
    known, texts = is_known(values), values.cast(pa.string()).to_pylist()
    texts = [text if there else NO_VALUE for text, there in zip(texts, known, strict=True)]
    names, codes = np.unique(np.array(texts, dtype=object).astype(str), return_inverse=True)
    return Grouping(codes.reshape(-1), tuple(str(name) for name in names))


def training_labels(store: Store, candidate: Candidate, features: FeatureSet) -> Array:
    """(n,) the known labels of the rows that a candidate could learn from."""
    import pyarrow as pa
    from treadle.data.tables import read_partitions

    start: datetime | None = candidate.trained_from
    end = candidate.trained_through
    rows = read_partitions(store, features.partitions, columns=["event_time", "label"], start=start, end=end)
    if not rows.num_columns:
        return np.empty(0)
    labels = rows.column("label")
    return labels_of(labels.filter(pa.array(is_known(labels))), candidate.task)


def baseline_values(task: str, loss: str, labels: Array, classes: Sequence[str], rows: int) -> Array:
    """What knowing only the training labels predicts for each of `rows` rows.

    Binary and multiclass: how frequent each class was. Regression: the labels' mean, or their median where
    the loss is the absolute error.

    Args:
        task: binary, multiclass or regression.
        loss: What the prediction has to be good at.
        labels: (m,) training labels, at least one.
        classes: For multiclass, the order of the columns.
        rows: How many rows to predict.
    """
    if task == "multiclass":
        counts = np.bincount(class_codes(labels, classes) + 1, minlength=len(classes) + 1)[1:]
        return np.tile(counts / max(1, counts.sum()), (rows, 1))
    middle = np.median(labels) if loss == "absolute_error" else np.mean(labels)
    return np.full(rows, float(middle))
