"""The point-in-time join in its plainest form, as a reference for the one that Feast does."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def asof_positions(
    keys: Sequence[Sequence[Any]],
    times_us: Sequence[int],
    view_keys: Sequence[Sequence[Any]],
    view_times_us: Sequence[int],
    ttl_us: int,
) -> list[int | None]:
    """For each row the position of the newest view row with its keys, known by its time and not past the TTL.

    Both limits count as inside: a value known at the very microsecond of a row's time, and one that is
    exactly `ttl_us` old, are taken. Rows with a missing key get None.

    Args:
        keys: One sequence a key column, each of n rows.
        times_us: n times, in microseconds since 1970.
        view_keys: The same key columns of the view, each of m rows.
        view_times_us: m times.
        ttl_us: Greatest age in microseconds; 0 for any age.
    """
    wanted = {key for key in zip(*keys, strict=True) if None not in key}
    history: dict[tuple[Any, ...], list[tuple[int, int]]] = {key: [] for key in wanted}
    for position, key in enumerate(zip(*view_keys, strict=True)):
        if key in history:
            history[key].append((view_times_us[position], position))
    for entries in history.values():
        entries.sort()
    found: list[int | None] = []
    for key, time in zip(zip(*keys, strict=True), times_us, strict=True):
        entries = history.get(key, [])
        place = bisect_right(entries, time, key=lambda entry: entry[0])
        newest = entries[place - 1] if place else None
        fresh = newest is not None and (not ttl_us or newest[0] + ttl_us >= time)
        found.append(newest[1] if newest is not None and fresh else None)
    return found


def differing_rows(left: pa.ChunkedArray[Any], right: pa.ChunkedArray[Any]) -> list[int]:
    """The positions where two columns differ; null equals null, and NaN equals NaN."""
    rows = []
    for position, (one, other) in enumerate(zip(left.to_pylist(), right.to_pylist(), strict=True)):
        both_nan = one != one and other != other
        if one != other and not both_nan:
            rows.append(position)
    return rows
