"""Whether a column has seen the very outcomes that it is to tell: a mean of the day, stamped at the day's start.

Such a leak may tell a single row only as well as a good feature does. But what is honest can't know the chance
in the outcomes: among rows that share a value, the mean label differs from what the value says by as much as
the labels scatter, or by more where something else moves them together. A mean of these same labels is hit too
well. So the column is asked how far the mean label of each value's rows lies from the line between its two
neighbouring values, in units of what the labels' own scatter would make it. Over a year of flights and 26 honest
columns this was 0.97 or more in each half month, and 0.00 for means of the day or the hour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treadle.data.telling import let_pass
from treadle.loop import Loop
from treadle.records import CheckResult

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 40_000
LIMIT = 0.3
MIN_GROUPS = 30
_RARE = (
    4.75  # standard deviations; of 60,000 simulated columns whose labels were drawn by them, none fell below
)
_LEAST_SPREAD = 3.0  # a value that says little about its rows' mean label can't be a mean of them


def looking_ahead(
    loop: Loop,
    table: str,
    rows: pa.Table,
    targets: Sequence[Any],
    columns: Sequence[str],
    origin: Mapping[str, str],
) -> Iterator[CheckResult]:
    """A warning for each column of numbers whose values hit their rows' mean label better than chance allows.

    Args:
        loop: Its `data.leakage.allow` has reasons to let a column pass.
        table: Where the columns come from, for the record.
        rows: All labelled rows of a stretch of time; a sample of them would hide the means.
        targets: (n,) float64 each, the labels, as `telling.targets_of` gives them.
        columns: Which to ask.
        origin: How a column is called in words, where its name does not say enough.
    """
    import pyarrow as pa

    for column in columns:
        kind = rows.column(column).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            continue
        values = rows.column(column).cast(pa.float64(), safe=False).to_numpy()
        found = [found for target in targets if (found := scatter(values, target)) is not None]
        least = min(found, default=(1.0, 0), key=lambda each: each[0] - limit_of(each[1]))
        if least[0] >= limit_of(least[1]):
            continue
        result = CheckResult(
            name="leakage.lookahead",
            table=table,
            column=column,
            status="warned",
            blocking=False,
            observed=f"mean labels lie {least[0]:.2f} times as far from it as chance would put them"
            f" (limit {limit_of(least[1]):.2f}), on {rows.num_rows:,} rows of {least[1]:,} values",
            evidence=f"The mean label of the rows that share a value of {origin.get(column, repr(column))} follows"
            " it more exactly than what was known before can: is it made of these very labels, such as a mean of"
            " the day that counts from the day's start? Have known_at say when the value was known.",
        )
        yield let_pass(loop, result)


def limit_of(groups: int) -> float:
    """Below which share of chance's scatter a column is suspect, with so many values; 0 for too few."""
    if groups < MIN_GROUPS:
        return 0.0
    # A mean of squares of which two fifths count, as neighbours share rows and are small (Wilson and Hilferty).
    spread = 2 / (9 * 0.4 * groups)
    return float(min(LIMIT, (1 - spread - _RARE * spread**0.5) ** 3))


def scatter(values: Any, target: Any) -> tuple[float, int] | None:
    """How far mean labels lie from what the neighbouring values say, as a share of what chance makes of it.

    Args:
        values: (n,) float64, the column; NaN for missing.
        target: (n,) float64, the labels.

    Returns:
        About 1 or more for what was known before, about 0 for means of these labels; and of how many values this
        is. None where too few of them stand for several rows each, or they say nothing.
    """
    import numpy as np

    known = np.isfinite(values)
    levels, group, sizes = np.unique(values[known], return_inverse=True, return_counts=True)
    several = sizes >= 2
    if several.sum() < MIN_GROUPS + 2:
        return None
    means = np.bincount(group, target[known]) / sizes
    squares = np.bincount(group, (target[known] - means[group]) ** 2)
    levels, sizes, means = levels[several], sizes[several], means[several]
    noise = squares[several] / (sizes - 1) / sizes  # of each mean, without bias
    middle = float(np.average(means, weights=sizes))
    if (sizes * (means - middle) ** 2).sum() < _LEAST_SPREAD * (sizes * noise).sum():
        return None
    share = (levels[2:] - levels[1:-1]) / (levels[2:] - levels[:-2])  # the lower neighbour's weight
    off = means[1:-1] - share * means[:-2] - (1 - share) * means[2:]
    chance = noise[1:-1] + share**2 * noise[:-2] + (1 - share) ** 2 * noise[2:]
    weights = 1 / (1 / sizes[1:-1] + share**2 / sizes[:-2] + (1 - share) ** 2 / sizes[2:])
    expected = float((weights * chance).sum())
    return (float((weights * off**2).sum()) / expected, len(off)) if expected else None
