"""How many labels of a stretch of time have arrived, as they were known at an `as_of`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from treadle.clock import format_instant
from treadle.errors import UserError
from treadle.loop import Loop
from treadle.words import counted, moment


@dataclass(frozen=True, slots=True)
class LabelCoverage:
    """The rows of the labelled table with `start` <= event time < `end`, and how many of them have a label.

    Attributes:
        start: Inclusive.
        end: Exclusive.
        rows: Those that were known.
        labelled: Those of them whose label was known, too.
        last_rows: The rows of the stretch's last block of time (`gate.block`).
        last_labelled: Those of them with a label.
    """

    start: datetime
    end: datetime
    rows: int
    labelled: int
    last_rows: int
    last_labelled: int

    @property
    def share(self) -> float:
        """The share of rows with a label, of all or of the last block, whichever is less; 0 where there are none."""
        if not self.rows or not self.last_rows:
            return 0.0
        return min(self.labelled / self.rows, self.last_labelled / self.last_rows)

    def __str__(self) -> str:
        stretch = f"{moment(self.start)} to {moment(self.end)}"
        if not self.rows:
            return f"no rows from {stretch}"
        last = f"; {self.last_labelled:,} of {self.last_rows:,} in its last block" if self.last_rows else ""
        nothing = "" if self.last_rows else "; no rows yet in its last block"
        return f"{self.labelled:,} of {counted(self.rows, 'row')} from {stretch} have a label{last}{nothing}"


def label_coverage(loop: Loop, as_of: datetime, start: datetime, end: datetime) -> LabelCoverage:
    """What had arrived of the labels from `start` to `end`, from the loop's sources as they are now.

    Only the sources that are files here or can be fetched are read, and only the loop's tables are made: no record is
    looked for or written.

    Args:
        loop: The loop.
        as_of: Rows and labels that became known at it or later count as not there.
        start: Of event times, inclusive.
        end: Of event times, exclusive.

    Raises:
        UserError: The stretch is empty, or a source can't be read. HookError: A table's SQL or Python failed.
        Transient: A source changed meanwhile.
    """
    import numpy as np
    import pyarrow.compute as pc
    from treadle.data.built import as_microseconds, microseconds
    from treadle.data.engine import build_tables
    from treadle.data.sources import source_digests
    from treadle.data.tables import cut_table

    if start >= end:
        raise UserError(f"no time lies between {format_instant(start)} and {format_instant(end)}")
    with TemporaryDirectory() as folder:
        built = build_tables(loop, source_digests(loop), Path(folder))[loop.data.labelled]
    assert built.label is not None
    last_us = as_microseconds(max(start, end - loop.gate.block))
    counts = np.zeros(4, np.int64)
    for part in cut_table(built, as_of, start):
        times = microseconds(part.rows, built.event_time)
        inside = times < as_microseconds(end)
        known = ~np.asarray(pc.is_null(part.rows.column(built.label), nan_is_null=True))
        last = inside & (times >= last_us)
        counts += [inside.sum(), (inside & known).sum(), last.sum(), (last & known).sum()]
    rows, labelled, last_rows, last_labelled = (int(count) for count in counts)
    return LabelCoverage(start, end, rows, labelled, last_rows, last_labelled)
