"""The profile of training data: counts by block, in bytes that are the same for the same data."""

from __future__ import annotations

import io
import zipfile
from datetime import timedelta

import numpy as np
import pytest
from monitoring_data import DAYS, days
from treadle.models.schema import Feature, InputSchema
from treadle.monitoring import profile
from treadle.monitoring.profile import Reference, build_reference


def reference(**changes: object) -> Reference:
    x, times = days(**changes)  # type: ignore[arg-type]
    return Reference.load(build_reference(DAYS, x, times, x[:, 0], None))


def test_same_data_give_the_same_bytes_in_any_order_and_at_any_time() -> None:
    x, times = days(20)
    order = np.random.default_rng(1).permutation(len(x))
    made = build_reference(DAYS, x, times, x[:, 0], x[:50], contribution_times_us=times[:50])
    again = build_reference(DAYS, x.copy(), times, x[:, 0], x[:50], contribution_times_us=times[:50])
    assert made == again
    shuffled = Reference.load(build_reference(DAYS, x[order], times[order], x[order, 0], None))
    for left, right in zip(shuffled.counts, Reference.load(made).counts, strict=True):
        assert np.array_equal(left, right)
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_each_row_is_counted_once_in_its_own_block() -> None:
    x, times = days(10, a_day=30)
    x[::7, 0] = np.nan
    found = Reference.load(build_reference(DAYS, x, times, x[:, 2], None))
    assert list(found.blocks) == list(range(10))
    assert list(found.rows) == [30] * 10
    for counts in (*found.counts, found.prediction_counts):
        assert list(counts.sum(axis=1)) == [30] * 10
    assert found.missing[0] == pytest.approx(np.isnan(x[:, 0]).mean())
    assert found.means[0] == pytest.approx(np.nanmean(x[:, 0]))
    assert (found.lows[0], found.highs[0]) == (np.nanmin(x[:, 0]), np.nanmax(x[:, 0]))


def test_values_outside_the_range_have_bins_of_their_own() -> None:
    bins = reference().columns[0]
    edges = bins.edges
    assert edges is not None
    low, high = edges[0], edges[-1]
    placed = bins.place(np.array([low - 1, low, high, high + 1, np.nan]))
    assert list(placed) == [0, 1, bins.size - 3, bins.size - 2, bins.size - 1]


def test_a_constant_column_tells_what_is_below_at_and_above() -> None:
    schema = InputSchema((Feature("fee", "number"),))
    x = np.full((50, 1), 5.0)
    bins = Reference.load(build_reference(schema, x, np.arange(50), x[:, 0], None)).columns[0]
    assert list(bins.place(np.array([4.0, 5.0, 6.0, np.nan]))) == [0, 1, 2, 3]


def test_unseen_levels_are_told_from_missing_ones() -> None:
    bins = reference().columns[1]
    placed = bins.place(np.array([0.0, np.nan, np.nan]), np.array([False, True, False]))
    assert list(placed) == [0, bins.size - 2, bins.size - 1]


def test_rare_levels_share_a_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MOST_LEVELS", 2)
    bins = reference().columns[1]
    assert bins.size == 5
    assert list(bins.place(np.array([0.0, 1.0, 2.0, 3.0]))) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("month", True), ("day of year", True), ("day of month", True), ("sine of the year", True),
        ("running number", True), ("local month", True), ("day of week", False), ("weekend", False),
        ("index of the day", False), ("amount", False), ("constant", False),
    ],
)  # fmt: skip
def test_columns_that_run_with_the_calendar_are_known(name: str, expected: bool) -> None:
    day = np.repeat(np.arange(120), 40)
    row = np.arange(len(day))
    evening = np.tile(np.arange(40) >= 36, 120)
    rng = np.random.default_rng(0)
    column = {
        "month": day // 30,
        "day of year": day,
        "day of month": day % 30,
        "sine of the year": np.sin(2 * np.pi * day / 365),
        "running number": row,
        "local month": (day - evening) // 30,
        "day of week": day % 7,
        "weekend": day % 7 > 4,
        "index of the day": rng.normal(size=120)[day],
        "amount": rng.normal(size=len(day)),
        "constant": np.ones(len(day)),
    }[name]
    x = column.astype(float)[:, None]
    schema = InputSchema((Feature("c", "number"),))
    made = build_reference(schema, x, day * 86_400_000_000, x[:, 0], None)
    assert bool(Reference.load(made).calendar[0]) is expected


def test_a_month_written_as_a_category_runs_with_the_calendar_too() -> None:
    day = np.repeat(np.arange(120), 40)
    x = np.column_stack([day // 30, day % 7, np.tile(np.arange(4), 1200)]).astype(float)
    levels = tuple("abcdefg")
    schema = InputSchema(tuple(Feature(n, "category", levels) for n in ("month", "weekday", "region")))
    found = Reference.load(build_reference(schema, x, day * 86_400_000_000, x[:, 0], None))
    assert list(found.calendar) == [True, False, False]


def test_several_classes_count_by_the_likeliest() -> None:
    x, times = days(10)
    probabilities = np.eye(3)[np.arange(len(x)) % 3]
    found = Reference.load(build_reference(DAYS, x, times, probabilities, None))
    assert list(found.prediction_counts.sum(axis=0)) == [*np.bincount(np.arange(len(x)) % 3), 0, 0, 0]


def test_blocks_may_be_shorter_than_a_day() -> None:
    x, times = days(2)
    found = Reference.load(build_reference(DAYS, x, times * 100, x[:, 0], None, timedelta(hours=1)))
    assert found.block_us == 3_600_000_000


@pytest.mark.parametrize("rows", [0, 3])
def test_shapes_that_do_not_fit_are_refused(rows: int) -> None:
    x, times = days(1, a_day=5)
    with pytest.raises(ValueError, match="rows"):
        build_reference(DAYS, x[:rows], times[:0] if rows else times[:rows], x[:rows, 0], None)
