"""Leaks: what a row of the labelled table holds that could not be known when the prediction is due.

Three nets, as each misses what another catches. The times at which values became known are compared with the
time of prediction, which finds every leak that is declared truthfully. A column that alone nearly decides the
label, by its values or by where it is missing, is suspect whatever is declared. Rows of the holdout that
stand in the training data too make a model look better than it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from treadle.data.built import ROW_ID, BuiltTable, as_microseconds, microseconds
from treadle.data.tables import CutPartition
from treadle.loop import Loop
from treadle.records import CheckResult

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE = 20_000
MIN_ROWS = 100  # on fewer, any column may seem to tell the label: it is said, and stops nothing
BINS = 64
FOLDS = 5
_SHOWN = 20


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
        found += _telling_columns(loop, built, parts)
        found += _shared_rows(built, parts, boundary)
    return found


def _let_pass(loop: Loop, result: CheckResult) -> CheckResult:
    """The result, or a warning with the loop's reason where the loop lets this column pass."""
    reason = loop.data.leakage.allow.get(result.column or "")
    if reason is None or result.status != "failed":
        return result
    evidence = f"{result.evidence} Allowed by the loop: {reason}"
    return result.model_copy(update={"status": "warned", "blocking": False, "evidence": evidence})


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
            yield _let_pass(loop, result)
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
    for part in parts:
        before: Any = pc.less(part.rows.column(label_time), part.rows.column(event_time))
        early += sum(before.fill_null(False).to_pylist())
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
            ids = part.rows.column(ROW_ID).filter(pa.array(wrong)).slice(0, _SHOWN - len(sample))
            sample += [str(row) for row in ids.to_pylist()]
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


def _telling_columns(loop: Loop, built: BuiltTable, parts: Sequence[CutPartition]) -> Iterator[CheckResult]:
    """Columns that alone nearly decide the label, by their values or by where they are missing."""
    import numpy as np

    rows = labelled_sample(built, parts)
    folds = np.array([int(str(row_id)[-4:], 16) for row_id in rows.column(ROW_ID).to_pylist()]) % FOLDS
    targets = _targets(rows.column(built.label or ""), loop.train.task)
    block, warn = loop.data.leakage.block_auc, loop.data.leakage.warn_auc
    measure = "AUC"
    if loop.train.task == "regression":
        # A share of variance is harder to come by than the same figure of AUC: the way to 1 is cut to a
        # third.
        block, warn, measure = 1 - (1 - block) / 3, 1 - (1 - warn) / 3, "share of variance"
    best, best_column = 0.0, ""
    quiet = True
    for column in value_columns(built):
        codes, missing = _bins(rows.column(column))
        for name, bins in (("leakage.alone", codes), ("leakage.missing", missing)):
            if bins is None:
                continue
            strengths = [_strength(bins, target, folds, loop.train.task) for target in targets]
            strength = max(strengths)
            if strength > best:
                best, best_column = strength, column
            if strength < warn:
                continue
            quiet = False
            # Of several classes one may honestly be told by one column; all of them are told by a leak.
            blocks = sum(strengths) / len(strengths) >= block and rows.num_rows >= MIN_ROWS
            what = "its values" if name == "leakage.alone" else "where it is missing"
            result = CheckResult(
                name=name,
                table=built.name,
                column=column,
                status="failed" if blocks else "warned",
                blocking=blocks,
                observed=f"{measure} {strength:.3f} on {rows.num_rows:,} rows (limit {block:.3g})",
                evidence=f"{column!r} alone tells the label by {what}: does it come from the outcome? Drop"
                " it, or allow it by name with a reason under data.leakage.allow.",
            )
            yield _let_pass(loop, result)
    if quiet:
        observed = f"strongest alone: {best_column}, {measure} {best:.3f} on {rows.num_rows:,} rows"
        yield CheckResult(name="leakage.alone", table=built.name, status="passed", observed=observed)


def _targets(label: Any, task: Literal["binary", "multiclass", "regression"]) -> list[Any]:
    """The label as float64 arrays: itself, or for several classes each of them against the rest."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if task != "multiclass":
        return [label.cast(pa.float64()).to_numpy()]
    classes = sorted(value for value in pc.unique(label).to_pylist())
    return [pc.equal(label, value).cast(pa.int8()).to_numpy().astype(np.float64) for value in classes]


def _bins(column: Any) -> tuple[Any, Any]:
    """A column's bin numbers, 0 for missing; and 1 where missing, or None if that is nowhere or always."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    missing = None if valid.all() or not valid.any() else (~valid).astype(np.int64)
    if not valid.any():
        return None, None
    if pa.types.is_string(column.type) or pa.types.is_boolean(column.type):
        codes = column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return codes.astype(np.int64) + 1, missing
    values = column.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy()
    levels = np.unique(values[valid])
    edges = levels
    if len(levels) > BINS:
        edges = np.unique(np.quantile(values[valid], np.linspace(0, 1, BINS + 1)[1:-1], method="lower"))
    return np.where(valid, np.searchsorted(edges, values, side="right") + 1, 0), missing


def _strength(
    bins: Any, target: Any, folds: Any, task: Literal["binary", "multiclass", "regression"]
) -> float:
    """How well the mean target of a row's bin, taken from the other folds, tells the row's own target.

    AUC for classes, share of variance told for numbers; 0 to 1.
    """
    import numpy as np

    overall = float(target.mean())
    count = int(bins.max()) + 1
    cells = bins * FOLDS + folds
    rows = np.bincount(cells, minlength=count * FOLDS).reshape(count, FOLDS)
    sums = np.bincount(cells, weights=target, minlength=count * FOLDS).reshape(count, FOLDS)
    # One row of the overall mean stands for a bin that the other folds don't have.
    means = (sums.sum(1, keepdims=True) - sums + overall) / (rows.sum(1, keepdims=True) - rows + 1)
    if task == "regression":
        spread = float(((target - overall) ** 2).sum())
        return 1 - float(((target - means[bins, folds]) ** 2).sum()) / spread if spread else 0.0
    return _auc(means.ravel(), rows.ravel(), sums.ravel())


def _auc(scores: Any, rows: Any, positives: Any) -> float:
    """AUC of scores that whole cells of rows share; ties count half."""
    import numpy as np

    values, place = np.unique(scores, return_inverse=True)
    wins = np.bincount(place, weights=positives, minlength=len(values))
    losses = np.bincount(place, weights=rows - positives, minlength=len(values))
    if not wins.sum() or not losses.sum():
        return 0.5
    below = np.cumsum(losses) - losses
    return float((wins * (below + losses / 2)).sum() / (wins.sum() * losses.sum()))


def _shared_rows(
    built: BuiltTable, parts: Sequence[CutPartition], boundary: datetime
) -> Iterator[CheckResult]:
    """Whether rows of the holdout have an entity and values that stand in an earlier row too.

    A row of the same entity and time on both sides can't be: its id holds the time, and equal ids are refused
    before.
    """
    import numpy as np
    import pyarrow as pa

    before, after, ids = [], [], []
    boundary_us = as_microseconds(boundary)
    for part in parts:
        late = microseconds(part.rows, built.event_time) >= boundary_us
        before.append(part.content[~late])
        after.append(part.content[late])
        if late.any():
            ids.append(part.rows.column(ROW_ID).filter(pa.array(late)).to_numpy())
    holdout = np.concatenate(after) if after else np.array([], np.uint64)
    shared = np.isin(holdout, np.concatenate(before)) if len(holdout) else np.array([], bool)
    count = int(shared.sum())
    if not count:
        observed = f"none of the {len(holdout):,} rows of the holdout"
        yield CheckResult(name="leakage.shared_rows", table=built.name, status="passed", observed=observed)
        return
    sample = np.concatenate(ids)[shared][:_SHOWN]
    yield CheckResult(
        name="leakage.shared_rows",
        table=built.name,
        status="warned",
        blocking=False,
        observed=f"{count:,} of {len(holdout):,} rows of the holdout ({count / len(holdout):.1%})",
        evidence="They have the entity and all values of an earlier row; a model may know them by heart."
        " Leave repeated rows out of the table.",
        sample=tuple(str(row) for row in sample),
    )
