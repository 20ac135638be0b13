"""What checks found, in words: the rows that fail, the line of evidence, the refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from treadle.errors import DataRefused
from treadle.records import CheckResult

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa

_SHOWN = 5


def rows_in_words(rows: pa.Table, entity: str, time: str) -> tuple[str, ...]:
    """Each row as its entity and its time in UTC, such as `UA1545 at 2013-04-02 11:15`.

    Args:
        rows: In any order; few, as each becomes a text.
        entity: The column of entities.
        time: The column of times.
    """
    pairs = zip(rows.column(entity).to_pylist(), rows.column(time).to_pylist(), strict=True)
    return tuple(f"{name} at {_moment(at)}" for name, at in pairs)


def _moment(at: datetime | None) -> str:
    """A time to the minute, or as fine as it is."""
    if at is None:
        return "no time"
    whole = at.replace(tzinfo=None)
    fine = "microseconds" if whole.microsecond else "seconds" if whole.second else "minutes"
    return whole.isoformat(" ", timespec=fine)


def in_words(check: CheckResult) -> str:
    """One line of evidence."""
    where = check.table
    if check.column:
        # A feature's name begins with its view's.
        inside = check.column.startswith(f"{check.table}__")
        where = check.column if inside else f"{check.table}.{check.column}"
    status = "could not run" if check.status == "could_not_run" else check.status
    rows = f" Rows: {', '.join(check.sample[:_SHOWN])}." if check.sample else ""
    return f"{where}: {check.name} {status}: {check.observed}. {check.evidence}{rows}".rstrip()


def warnings_of(checks: Iterable[CheckResult]) -> list[str]:
    """What a record's checks found and did not stop, in words."""
    return [in_words(check) for check in checks if check.status != "passed"]


def stop_or_warn(checks: Iterable[CheckResult], stage: str, refused: str, say: Callable[[str], None]) -> None:
    """Says every warning; raises where a check that blocks failed or could not run.

    Args:
        checks: All results.
        stage: Who asked.
        refused: What can't be made, for the message.
        say: Takes one line.

    Raises:
        DataRefused: With a line of evidence for each check that stops.
    """
    checks = list(checks)
    stopping = [check for check in checks if check.blocking and check.status in {"failed", "could_not_run"}]
    for warning in warnings_of(check for check in checks if check not in stopping):
        say(f"{stage}: warning, {warning}")
    if stopping:
        raise DataRefused(
            f"{len(stopping)} of {len(checks)} data checks block {refused}:",
            [in_words(check) for check in stopping],
            [check.model_dump(mode="json") for check in checks],
        )
