"""Two drawings small enough for Dagster to show in place: it hides markdown of 1,000 characters or more.

They are SVG in a data URI, so about 700 characters of SVG: no text but the numbers that the eye needs.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from treadle.records import ColumnDrift, Comparison

LONGEST = 999
_GREEN, _RED, _GREY, _DARK = "#2a8", "#c33", "#888", "#222"


def interval(comparison: Comparison) -> str | None:
    """The difference of losses with its interval, 0 (solid) and the bound that its upper end must stay below (dashed).

    Returns:
        Markdown, or None where nothing was compared.
    """
    low, high, mean, bound = comparison.low, comparison.high, comparison.difference, comparison.bound
    if low is None or high is None or mean is None:
        return None
    limit = bound if bound is not None else 0.0
    first, last = min(low, 0.0, limit), max(high, 0.0, limit)
    pad = (last - first or 1.0) * 0.15
    first, last = first - pad, last + pad

    def x(value: float) -> int:
        return round((value - first) / (last - first) * 320)

    colour = _GREEN if high < limit else _RED
    body = (
        f'<path d="M{x(0)} 4v34" stroke="{_GREY}"/>'
        f'<path d="M{x(limit)} 4v34" stroke="{_GREY}" stroke-dasharray="3"/>'
        f'<path d="M{x(low)} 20H{x(high)}M{x(low)} 14v12M{x(high)} 14v12" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{x(mean)}" cy="20" r="4" fill="{colour}"/>'
        f'<text y="52" font-size="11" fill="{_GREY}">{mean:+.4g} [{low:+.4g}, {high:+.4g}], bound {limit:+.4g}</text>'
    )
    return _markdown("difference of losses", body, 56)


def strip(columns: Sequence[ColumnDrift]) -> str | None:
    """How far each column moved, as a share of its threshold (the line): the farthest first, red beyond it.

    Returns:
        Markdown with the names beside it, or None where no column was compared.
    """
    moved = farthest_first(columns)[:8]
    if not moved:
        return None
    most = max(2.0, min(4.0, _ratio(moved[0])))
    bars = {True: "", False: ""}
    for number, column in enumerate(moved):
        width = round(min(_ratio(column), most) / most * 300)
        bars[column.drifted] += f"M0 {6 + 10 * number}h{max(width, 1)}"
    body = "".join(
        f'<path d="{path}" stroke="{_RED if drifted else _GREEN}" stroke-width="7"/>'
        for drifted, path in bars.items()
        if path
    )
    height = 12 + 10 * (len(moved) - 1)
    body += f'<path d="M{round(300 / most)} 0v{height}" stroke="{_DARK}" stroke-dasharray="3"/>'
    picture = _markdown("drift by column", body, height)
    if picture is None:
        return None
    names = "Times the threshold: " + ", ".join(f"{column.name} {_ratio(column):.1f}" for column in moved)
    room = LONGEST - len(picture) - 2
    return f"{picture}\n\n{names if len(names) <= room else names[: max(room - 3, 0)] + '...'}"


def farthest_first(columns: Sequence[ColumnDrift]) -> list[ColumnDrift]:
    """Columns by how far they moved, as a share of their thresholds."""
    return sorted(columns, key=_ratio, reverse=True)


def _ratio(column: ColumnDrift) -> float:
    """Distance by threshold; a column of the calendar always moves, so it counts as still."""
    if column.calendar:
        return 0.0
    return column.distance / column.threshold if column.threshold else (99.0 if column.distance else 0.0)


def _markdown(title: str, body: str, height: int) -> str | None:
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="330" height="{height}">{body}</svg>'
    text = f"![{title}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
    return text if len(text) <= LONGEST else None
