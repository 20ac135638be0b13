"""Leaks: what a row holds that could not be known when the prediction is due.

Four nets, as each misses what another catches. The times at which values became known are compared with the
time of prediction, which finds every leak that is declared truthfully. A column that alone nearly decides the
label, by its values or by where it is missing, is suspect whatever is declared, and so is one whose values are
made of the labels themselves. Rows of the holdout that stand in the training data too make a model look better
than it is. The columns of views are asked once they are joined, in featurize; all others in prepare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from treadle.data.built import ROW_ID, BuiltTable, as_microseconds, microseconds
from treadle.data.feast_store import Plan
from treadle.data.findings import rows_in_words
from treadle.data.lookahead import ROWS, looking_ahead
from treadle.data.tables import CutPartition, read_heads, read_partitions
from treadle.data.telling import SAMPLE, labels_of, let_pass, targets_of, telling_columns
from treadle.loop import Loop
from treadle.records import CheckResult, Partition
from treadle.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 20
_MOST = 10  # rows without a label are read as well, up to so many times the rows wanted


def check_leakage(
    loop: Loop, built: BuiltTable, parts: Sequence[CutPartition], boundary: datetime
) -> list[CheckResult]:
    """What the leakage checks say about the labelled table, or about when a view's values became known.

    Args:
        loop: Its `data.leakage` has the limits and what is let pass.
        built: The table.
        parts: Its partitions as of the snapshot.
        boundary: Where the holdout begins.
    """
    found = list(_known_times(loop, built, parts))
    if built.label:
        rows = labelled_sample(built, parts)
        labels = labels_of(rows, built.label, loop.train.task)
        columns = value_columns(built)
        found += telling_columns(loop, built.name, rows, labels, columns, {})
        newest = _newest(built, parts)
        targets = targets_of(newest.column(built.label), loop.train.task)
        found += looking_ahead(loop, built.name, newest, targets, columns, {})
        found += _shared_rows(built, parts, boundary)
    return found


def value_columns(built: BuiltTable) -> list[str]:
    """The columns that a model could learn from: all but entity, label and the times that the loop names."""
    named = {built.entity, built.label, built.label_known_at, *built.row_times, *built.value_times.values()}
    return [column.name for column in built.columns if column.name not in named]


def _known_times(loop: Loop, built: BuiltTable, parts: Sequence[CutPartition]) -> Iterator[CheckResult]:
    """Whether every column says when it became known, and that is no later than its use."""
    used_at = built.event_time if built.label else built.known_at or built.event_time
    known = {name: built.value_times.get(name, built.known_at) for name in value_columns(built)}
    passed = True
    if built.label and built.label_known_at:
        early = _early_labels(built, parts)
        if early is not None:
            yield early
    for column, time in known.items():
        result = None
        if time is None:
            result = CheckResult(
                name="leakage.undeclared",
                table=built.name,
                column=column,
                status="failed",
                observed="no known_at",
                evidence=f"Nothing says when {column!r} became known. Give"
                f" data.tables.{built.name}.known_at, or known_at_of: {{{column}: <time column>}}.",
            )
        elif time != used_at:
            result = _late_values(built, parts, column, time, used_at)
        if result is not None:
            passed = False
            yield let_pass(loop, result)
    if passed:
        yield CheckResult(
            name="leakage.known_at",
            table=built.name,
            status="passed",
            observed=f"{len(known)} columns, each known by {used_at}",
        )


def _early_labels(built: BuiltTable, parts: Sequence[CutPartition]) -> CheckResult | None:
    """Labels that were known before the question was asked: nearly always a wrong column of time."""
    import pyarrow.compute as pc

    label_time, event_time = built.label_known_at or "", built.event_time or ""
    early = 0
    sample: list[str] = []
    for part in parts:
        before: Any = pc.less(part.rows.column(label_time), part.rows.column(event_time))
        rows = part.rows.filter(before.fill_null(False))
        early += rows.num_rows
        sample += rows_in_words(rows.slice(0, _SHOWN - len(sample)), built.entity, event_time)
    if not early:
        return None
    return CheckResult(
        name="leakage.label_time",
        table=built.name,
        column=built.label,
        status="failed",
        observed=f"{early:,} labels known before {built.event_time}",
        evidence=f"a label is known after the question is asked: is {built.label_known_at!r} the right column, and"
        f" {built.event_time!r} the time of the question?",
        sample=tuple(sample),
    )


def _late_values(
    built: BuiltTable, parts: Sequence[CutPartition], column: str, time: str, used_at: str
) -> CheckResult | None:
    import pyarrow as pa

    late, total = 0, 0
    sample: list[str] = []
    for part in parts:
        moments, due = microseconds(part.rows, time), microseconds(part.rows, used_at)
        present = part.rows.column(column).is_valid().to_numpy()
        never = moments == moments.dtype.type(-(2**63))
        wrong = present & ((moments > due) | never)
        total += int(present.sum())
        late += int(wrong.sum())
        if wrong.any() and len(sample) < _SHOWN:
            rows = part.rows.filter(pa.array(wrong)).slice(0, _SHOWN - len(sample))
            sample += rows_in_words(rows, built.entity, built.event_time)
    if not late:
        return None
    return CheckResult(
        name="leakage.known_at",
        table=built.name,
        column=column,
        status="failed",
        observed=f"{late:,} of {total:,} values ({late / total:.1%}) known after {used_at}, or never",
        evidence=f"{column!r} becomes known at {time!r}, which is later than {used_at!r}. Drop it, or"
        " allow it by name with a reason under data.leakage.allow.",
        sample=tuple(sample),
    )


def labelled_sample(built: BuiltTable, parts: Sequence[CutPartition], rows: int = SAMPLE) -> pa.Table:
    """About `rows` labelled rows of all partitions: those with the least row ids, which are hashes."""
    import math

    import pyarrow as pa
    import pyarrow.compute as pc

    label = built.label or ""
    labelled = [part.rows.filter(pc.is_valid(part.rows.column(label))) for part in parts]
    total = sum(table.num_rows for table in labelled)
    share = min(1.0, rows / total) if total else 1.0
    return pa.concat_tables(
        [table.slice(0, math.ceil(table.num_rows * share)) for table in labelled],
        promote_options="permissive",
    )


def _newest(built: BuiltTable, parts: Sequence[CutPartition]) -> pa.Table:
    """The labelled rows of the newest partitions, about as many as `looking_ahead` asks for."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: list[pa.Table] = []
    for part in reversed(parts):
        found.append(part.rows.filter(pc.is_valid(part.rows.column(built.label or ""))))
        if sum(rows.num_rows for rows in found) >= ROWS:
            break
    return pa.concat_tables(found, promote_options="permissive")


def check_features(
    loop: Loop, store: Store, plan: Plan, partitions: Sequence[Partition], labelled_rows: int
) -> list[CheckResult]:
    """What the leakage checks say about the columns that views joined; the labelled table's own are checked before.

    Args:
        loop: Its `data.leakage` has the limits and what is let pass.
        store: Where the partitions are.
        plan: The views.
        partitions: Those of the feature set.
        labelled_rows: How many of its rows have a label.
    """
    import pyarrow.compute as pc

    columns = [view.feature(field) for view in plan.views for field in view.fields]
    if not columns or not labelled_rows:
        return []
    share = min(1.0, SAMPLE / labelled_rows)
    rows = read_heads(store, partitions, [ROW_ID, "label", *columns], share)
    rows = rows.filter(pc.is_valid(rows.column("label")))
    if not rows.num_rows:
        return []
    labels = labels_of(rows, "label", loop.train.task)
    newest = _newest_rows(store, partitions, ["label", *columns])
    targets = targets_of(newest.column("label"), loop.train.task)
    found: list[CheckResult] = []
    for view in plan.views:
        origin = {
            view.feature(field): f"{field.name!r} of the view {view.name!r} (table {view.table!r})"
            for field in view.fields
        }
        found += telling_columns(loop, view.name, rows, labels, list(origin), origin)
        found += looking_ahead(loop, view.name, newest, targets, list(origin), origin)
    return found


def _newest_rows(store: Store, partitions: Sequence[Partition], columns: Sequence[str]) -> pa.Table:
    """The labelled rows of the newest stretch of time that has about as many as `looking_ahead` asks for."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: list[pa.Table] = []
    read = 0
    for part in sorted(partitions, key=lambda part: part.start, reverse=True):
        # A partition may be all of history: then only its end is kept.
        start = part.end - (part.end - part.start) * min(1.0, ROWS / max(part.rows, 1))
        rows = read_partitions(store, [part], columns=columns, start=max(start, part.start))
        read += rows.num_rows
        found.append(rows.filter(pc.is_valid(rows.column("label"))))
        if sum(rows.num_rows for rows in found) >= ROWS or read >= _MOST * ROWS:
            break
    return pa.concat_tables(found, promote_options="permissive")


def _shared_rows(
    built: BuiltTable, parts: Sequence[CutPartition], boundary: datetime
) -> Iterator[CheckResult]:
    """Whether rows of the holdout have an entity and values that stand in an earlier row too.

    A row of the same entity and time on both sides can't be: its id holds the time, and equal ids are refused
    before.
    """
    import numpy as np
    import pyarrow as pa

    before, after, rows = [], [], []
    boundary_us = as_microseconds(boundary)
    for part in parts:
        late = microseconds(part.rows, built.event_time) >= boundary_us
        before.append(part.content[~late])
        after.append(part.content[late])
        if late.any():
            rows.append(part.rows.select([built.entity, built.event_time]).filter(pa.array(late)))
    holdout = np.concatenate(after) if after else np.array([], np.uint64)
    shared = np.isin(holdout, np.concatenate(before)) if len(holdout) else np.array([], bool)
    count = int(shared.sum())
    if not count:
        observed = f"none of the {len(holdout):,} rows of the holdout"
        yield CheckResult(name="leakage.shared_rows", table=built.name, status="passed", observed=observed)
        return
    found = pa.concat_tables(rows).take(np.flatnonzero(shared)[:_SHOWN])
    yield CheckResult(
        name="leakage.shared_rows",
        table=built.name,
        status="warned",
        blocking=False,
        observed=f"{count:,} of {len(holdout):,} rows of the holdout ({count / len(holdout):.1%})",
        evidence="They have the entity and all values of an earlier row; a model may know them by heart."
        " Leave repeated rows out of the table.",
        sample=rows_in_words(found, built.entity, built.event_time),
    )
