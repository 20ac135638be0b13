"""When there will be enough labelled rows to learn from: told by the labels that are known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from treadle import spec
from treadle.loop import Loop
from treadle.models.rows import MIN_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def when_enough(loop: Loop, table: pa.Table, as_of: datetime) -> str:
    """A sentence on where in time the known labels lie, and at which `as_of` enough of them can be learned from.

    Args:
        loop: Says how long delay, holdout, window and the newest rows of early stopping or a search are.
        table: `event_time`, `label` and `label_known_at` of every row of the feature set.
        as_of: Where there are too few.
    """
    known = table.filter(table["label"].is_valid()) if table.num_columns else table
    if not known.num_rows:
        return "No label is known at all."
    times, since = _microseconds(known["event_time"]), _microseconds(known["label_known_at"])
    many = "label that is known is of a row" if known.num_rows == 1 else "labels that are known are of rows"
    found = f"The {known.num_rows:,} {many} from {_minute(int(times.min()))} to {_minute(int(times.max()))}"
    days = usable_days(loop, times, since)
    later = [day for day in days if day > as_of]
    if later:
        return f"{found}: by them a later as_of has enough, {later[0]:%Y-%m-%d} or after."
    if days:
        return f"{found}: by them {days[-1]:%Y-%m-%d} was the last as_of with enough."
    return f"{found}: with these settings no as_of has {MIN_ROWS} of them to learn from."


def newest_of(loop: Loop) -> timedelta | None:
    """How long the newest rows are that no fit sees: those of early stopping, else of a search; None without both."""
    stopping, tune = loop.train.early_stopping, loop.train.tune
    if stopping is not None:
        return stopping.newest
    return (tune.newest or spec.EarlyStopping().newest) if tune is not None else None


def usable_days(loop: Loop, times_us: Any, known_us: Any) -> list[datetime]:
    """The midnights in UTC, within the loop's history, at which `MIN_ROWS` of the labels can be learned from.

    Args:
        loop: As above.
        times_us: (n,) event times of labelled rows, in microseconds since 1970.
        known_us: (n,) when each label became known.
    """
    import numpy as np

    data = loop.data
    kept = _length(data.label_delay + data.holdout)
    newest = _length(newest_of(loop) or timedelta(0))
    # A row can be fitted on from the first of these as_ofs on, and up to the second.
    from_us = np.maximum(times_us + kept + newest, known_us)
    until_us, last = np.full(len(times_us), np.iinfo(np.int64).max), from_us.max()
    if data.window != "all":
        until_us = np.maximum(times_us + kept + _length(data.window), from_us)
        last = until_us.max()
    days = np.arange(from_us.min() // _DAY_US, last // _DAY_US + 2) * _DAY_US
    enough = _between(days, from_us, until_us) >= MIN_ROWS
    if newest:
        stop_from = np.maximum(times_us + kept, known_us)
        enough &= _between(days, stop_from, np.maximum(times_us + kept + newest, stop_from)) >= 1
    if loop.history.to is not None:
        enough &= days <= _length(loop.history.to - _EPOCH)
    return [_EPOCH + timedelta(microseconds=int(day)) for day in days[enough]]


def _between(moments: Any, from_us: Any, until_us: Any) -> Any:
    """How many rows count at each moment: those with `from` < moment <= `until`."""
    import numpy as np

    begun = np.searchsorted(np.sort(from_us), moments, side="left")
    return begun - np.searchsorted(np.sort(until_us), moments, side="left")


def _length(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def _minute(moment_us: int) -> str:
    return f"{datetime.fromtimestamp(moment_us // 1_000_000, UTC):%Y-%m-%d %H:%M}"


def _microseconds(column: Any) -> Any:
    import pyarrow as pa

    return column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
