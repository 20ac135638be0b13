"""Whether a column alone tells the label, by its values or by where it is missing.

A row's label is guessed by the mean label of the rows of other folds whose value lies in the same bin. What
that tells is the column's strength: an AUC for classes, a share of the variance for numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treadle.data.built import ROW_ID
from treadle.loop import Loop
from treadle.records import CheckResult
from treadle.spec import Task

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE = 20_000
MIN_ROWS = 100  # on fewer, any column may seem to tell the label: it is said, and stops nothing
BINS = 64
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of n rows, ready to ask columns about.

    Attributes:
        task: What the label is.
        targets: (n,) float64 each: the label, or for several classes each of them against the rest.
        folds: (n,) numbers below `FOLDS`, by row id.
    """

    task: Task
    targets: list[Any]
    folds: Any

    def strengths(self, bins: Any) -> list[float]:
        """How well a row's bin, of shape (n,), tells each target."""
        return [_strength(bins, target, self.folds, self.task) for target in self.targets]


def labels_of(rows: pa.Table, label: str, task: Task) -> Labels:
    """The labels of rows that all have one; at least one row, with its id."""
    import numpy as np

    folds = np.array([int(str(row_id)[-4:], 16) for row_id in rows.column(ROW_ID).to_pylist()]) % FOLDS
    return Labels(task, targets_of(rows.column(label), task), folds)


def limits_of(loop: Loop) -> tuple[float, float, str]:
    """From which strength on a column blocks, from which on it is said, and what strength is called."""
    block, warn = loop.data.leakage.block_auc, loop.data.leakage.warn_auc
    if loop.train.task != "regression":
        return block, warn, "AUC"
    # A share of variance is harder to come by than the same figure of AUC: the way to 1 is cut to a third.
    return 1 - (1 - block) / 3, 1 - (1 - warn) / 3, "share of variance"


def telling_columns(
    loop: Loop, table: str, rows: pa.Table, labels: Labels, columns: Sequence[str], origin: Mapping[str, str]
) -> Iterator[CheckResult]:
    """A result for each column that tells the label too well; one that passed where there is none.

    Args:
        loop: Its `data.leakage` has the limits and what is let pass.
        table: Where the columns come from, for the record.
        rows: n rows, as `labels` has them.
        labels: Of the rows.
        columns: Which to ask.
        origin: How a column is called in words, where its name does not say enough.
    """
    block, warn, measure = limits_of(loop)
    best, best_column = 0.0, ""
    quiet = True
    for column in columns:
        codes, missing = _bins(rows.column(column))
        for name, bins in (("leakage.alone", codes), ("leakage.missing", missing)):
            if bins is None:
                continue
            strengths = labels.strengths(bins)
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
                table=table,
                column=column,
                status="failed" if blocks else "warned",
                blocking=blocks,
                observed=f"{measure} {strength:.3f} on {rows.num_rows:,} rows (limit {block:.3g})",
                evidence=f"{origin.get(column, repr(column))} alone tells the label by {what}: does it come from"
                f" the outcome? Drop it, or allow {column!r} by name with a reason under data.leakage.allow.",
            )
            yield let_pass(loop, result)
    if quiet and columns:
        observed = f"strongest alone: {best_column}, {measure} {best:.3f} on {rows.num_rows:,} rows"
        yield CheckResult(name="leakage.alone", table=table, status="passed", observed=observed)


def let_pass(loop: Loop, result: CheckResult) -> CheckResult:
    """The result, or a warning with the loop's reason where the loop lets this column pass."""
    reason = loop.data.leakage.allow.get(result.column or "")
    if reason is None or result.status == "passed":
        return result
    evidence = f"{result.evidence} Allowed by the loop: {reason}"
    return result.model_copy(update={"status": "warned", "blocking": False, "evidence": evidence})


def targets_of(label: Any, task: Task) -> list[Any]:
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


def _strength(bins: Any, target: Any, folds: Any, task: Task) -> float:
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
