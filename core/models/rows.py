"""From labelled rows to what a flavour learns from: the matrix, the labels, the newest rows apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from treadle.clock import format_duration, format_instant
from treadle.errors import DataRefused, SpecError, UserError
from treadle.models.schema import InputSchema
from treadle.words import lasting

if TYPE_CHECKING:
    import pyarrow as pa
    from treadle.loop import Loop
    from treadle.models.predictor import Floats, Ints
    from treadle.records import Column

MIN_ROWS = 30
_LARGEST = float(np.finfo(np.float32).max)
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled rows of the span, encoded; `newest` marks those kept out of fitting."""

    schema: InputSchema
    x: Floats
    y: Floats
    times_us: Ints
    newest: NDArray[np.bool_]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tail:
    """How long the newest rows are that fitting does not see, what for, and which field says so."""

    newest: timedelta
    purpose: str
    field: str


def prepare_rows(
    loop: Loop,
    table: pa.Table,
    columns: Sequence[Column],
    trained_through: datetime,
    hint: Callable[[], str] = str,
    *,
    tail: Tail | None = None,
) -> Rows:
    """A table's rows as a flavour takes them, the schema learned on those that fitting will see.

    Args:
        loop: Says the task and the early stopping.
        table: `event_time`, `label` without nulls, and the features; all before `trained_through`.
        columns: The features in the model's order.
        trained_through: Where the newest rows end.
        hint: What to say of when there are more rows, where they are too few.
        tail: The newest rows to mark; left out, those of early stopping.

    Raises:
        UserError: Too few rows to fit on, or none in the tail. SpecError: A tail that leaves too few.
        DataRefused: The labels have one class only, or are not of the task.
    """
    import pyarrow as pa

    y, classes = _labels(loop, table["label"])
    times_us = table["event_time"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    stopping = loop.train.early_stopping
    if tail is None and stopping is not None:
        tail = Tail(stopping.newest, "early stopping", "train.early_stopping.newest")
    newest = _newest(tail, times_us, trained_through)
    if tail is not None:
        _refuse_long_tail(loop, tail, times_us, newest, trained_through)
    _require_enough(y[~newest], newest, tail, hint)
    schema = InputSchema.learn(table.filter(pa.array(~newest)), columns)
    return Rows(schema, schema.encode(table), y, times_us, newest, classes)


def refuse_infinite(schema: InputSchema, x: Floats, named: Callable[[Sequence[int]], Sequence[str]]) -> None:
    """Nothing, where a model can compute with all numbers: the endpoint and `predict` refuse them likewise.

    Args:
        schema: What the columns are.
        x: (n, k) encoded rows.
        named: Gives some of the rows, by position, in words.

    Raises:
        DataRefused: Numbers that are infinite, or would be in 32 bits; names columns and rows.
    """
    findings = []
    for j, name in enumerate(schema.names):
        rows = np.flatnonzero(np.abs(x[:, j]) > _LARGEST)
        if len(rows):
            few = [int(row) for row in rows[:_SHOWN]]
            shown = [f"{x[row, j]:g} in {words}" for row, words in zip(few, named(few), strict=True)]
            more = f" and {len(rows) - len(few):,} more" if len(rows) > len(few) else ""
            findings.append(f"{name}: {', '.join(shown)}{more}")
    if findings:
        raise DataRefused(
            "features hold infinite numbers, or ones beyond 3.4e38; make them null in the SQL or hook:",
            findings,
        )


def _labels(loop: Loop, column: pa.ChunkedArray[Any]) -> tuple[Floats, tuple[str, ...]]:
    """(n,) labels as FitTask wants them, and the classes."""
    name = f"the label {loop.data.tables[loop.data.labelled].label!r}"
    task = loop.train.task
    y, classes = _classified(column) if task == "multiclass" else (_numbers(column, name, task), ())
    values = np.unique(y)
    if task == "binary":
        if not np.isin(values, (0.0, 1.0)).all():
            found = [f"{value:g}" for value in values[:5]]
            raise DataRefused(f"{name} must be 0 or 1 for the task binary; it holds:", found)
        classes = ("0", "1")
    if len(values) < 2:
        only = classes[int(values[0])] if classes else f"{values[0]:g}"
        raise DataRefused(f"{name} has one value only, so nothing can be learned:", [only])
    return y, classes


def _classified(column: pa.ChunkedArray[Any]) -> tuple[Floats, tuple[str, ...]]:
    import pyarrow as pa

    names = np.asarray(column.cast(pa.string()).to_pylist(), dtype=str)
    classes, codes = np.unique(names, return_inverse=True)
    return codes.astype(np.float64), tuple(str(each) for each in classes)


def _numbers(column: pa.ChunkedArray[Any], name: str, task: str) -> Floats:
    import pyarrow as pa

    try:
        y: Floats = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataRefused(f"{name} must be a number for the task {task}:", [str(error)]) from None
    if not np.isfinite(y).all():
        raise DataRefused(
            f"{name} holds numbers that are not finite; make them null:", [f"{y.min()} to {y.max()}"]
        )
    return y


def _newest(tail: Tail | None, times_us: Ints, trained_through: datetime) -> NDArray[np.bool_]:
    """(n,) which rows the tail takes: none without one."""
    if tail is None:
        return np.zeros(len(times_us), dtype=bool)
    since = trained_through - tail.newest
    newest: NDArray[np.bool_] = times_us >= np.datetime64(since.replace(tzinfo=None), "us").astype(np.int64)
    if not newest.any():
        raise UserError(
            f"{tail.purpose} needs rows from {format_instant(since)} to {format_instant(trained_through)}, "
            f"and none there has a label: lengthen {tail.field}, or see if data are missing"
        )
    return newest


def _refuse_long_tail(
    loop: Loop, tail: Tail, times_us: Ints, newest: NDArray[np.bool_], trained_through: datetime
) -> None:
    """Nothing, where enough rows are left to fit on, or a shorter tail would not help.

    Raises:
        SpecError: At the field that says how long the tail is, with the length that would leave enough.
    """
    left = int((~newest).sum())
    if left >= MIN_ROWS or len(times_us) <= MIN_ROWS:
        return
    first, last = _instant(int(times_us.min())), _instant(int(times_us.max()))
    most = _whole(trained_through - _instant(int(np.sort(times_us)[MIN_ROWS - 1])))
    if most <= trained_through - last:
        return
    usual = _whole(trained_through - (first + (last - first) * 0.8))
    problem = (
        f"the newest {format_duration(tail.newest)} are kept for {tail.purpose}, and the {len(times_us):,} labelled"
        f" rows span {lasting(last - first)}, {first:%Y-%m-%d} to {last:%Y-%m-%d}: {left or 'none'} of them"
        f" {'is' if left == 1 else 'are'} left to fit on, and at least {MIN_ROWS} are needed."
    )
    # The longest that leaves enough rows would leave hardly any time to learn from.
    such_as = format_duration(min(usual, most))
    fix = f"Set it to {such_as}, say, or choose a later as_of or a longer window."
    raise SpecError([loop.fault(tail.field, problem, fix)])


def _whole(length: timedelta) -> timedelta:
    """The longest time below a length that is a whole number of days; where that is none, of hours, or of seconds."""
    units = (timedelta(days=1), timedelta(hours=1), timedelta(seconds=1))
    shorter = length - timedelta(microseconds=1)
    return next((unit * (shorter // unit) for unit in units if shorter >= unit), timedelta(0))


def _instant(time_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)


def _require_enough(y: Floats, newest: NDArray[np.bool_], tail: Tail | None, hint: Callable[[], str]) -> None:
    """Raises where the rows to fit on are too few or of one class."""
    taken = f" beside the {int(newest.sum())} kept for {tail.purpose}" if tail else ""
    if len(y) < MIN_ROWS:
        raise UserError(
            f"only {len(y)} labelled rows{taken} to learn from, and at least {MIN_ROWS} are needed: choose a "
            f"later as_of, a longer window or a shorter holdout. {hint()}".rstrip()
        )
    if (y == y[0]).all():
        shorten = f"; shorten {tail.field} or look at the data" if tail else ""
        raise DataRefused(
            f"the {len(y)} rows to learn from{taken} all have the same label{shorten}:", [f"{y[0]:g}"]
        )
