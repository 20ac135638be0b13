"""What a loop's Feast file imports: sources that are tables of the snapshot at hand.

>>> from feast import Entity, FeatureView, Field                  # doctest: +SKIP
>>> from treadle.features import snapshot_source                  # doctest: +SKIP
>>> weather = FeatureView(name="weather", source=snapshot_source("weather"), ...)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.errors import UserError

if TYPE_CHECKING:
    from feast import FileSource

__all__ = ["snapshot_source"]


@dataclass(frozen=True, slots=True)
class BoundTable:
    """A table that a Feast file can name: its file, and the column that says when a row became known."""

    path: Path
    known_at: str


_bound: ContextVar[Mapping[str, BoundTable] | None] = ContextVar("treadle_snapshot_tables", default=None)


@contextmanager
def bound_sources(tables: Mapping[str, BoundTable]) -> Iterator[None]:
    """Within it, `snapshot_source` knows these tables."""
    token = _bound.set(tables)
    try:
        yield
    finally:
        _bound.reset(token)


def snapshot_source(table: str) -> FileSource:
    """A Feast source that is a table of the loop's snapshot, as the run at hand knows it.

    Its timestamp is the table's `known_at`, so that a value joins to a row only if it was known by then.

    Args:
        table: The table's name under `data.tables` of the loop; one without a label.

    Raises:
        UserError: There is no such table, or no run of a loop is at work.
    """
    tables = _bound.get()
    if tables is None:
        raise UserError(
            f"snapshot_source({table!r}) has no snapshot to read: treadle loads a Feast file within a run."
            " Name the file under `features.file` of the loop and use `treadle run`."
        )
    if table not in tables:
        raise UserError(
            f"snapshot_source({table!r}): the loop has no table of this name that features can come from. "
            f"Known are: {', '.join(sorted(tables)) or 'none'}; the table with the label is not one of them."
        )
    from feast import FileSource

    bound = tables[table]
    return FileSource(name=table, path=str(bound.path), timestamp_field=bound.known_at)
