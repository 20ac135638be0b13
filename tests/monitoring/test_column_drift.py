"""Drift against thresholds that come from the reference's own blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from monitoring_data import DAY_US, DAYS, Flights, days, flights
from treadle.monitoring.drift import (
    Window,
    attribution_drift,
    column_drift,
    encode_window,
    prediction_drift,
    share_drifted,
)
from treadle.monitoring.profile import Reference, build_reference
from treadle.monitoring.resample import distance, redraws
from treadle.records import ColumnDrift

Mask = np.ndarray[Any, Any]


def of_flights(reference: Mask, window: Mask, data: Flights) -> tuple[ColumnDrift, ...]:
    x, times = data.x[reference], data.times_us[reference]
    made = Reference.load(build_reference(data.schema, x, times, x[:, 0], None))
    return column_drift(made, Window(data.x[window], data.times_us[window]), alpha=0.01)


def made_reference(**changes: Any) -> Reference:
    x, times = days(**changes)
    return Reference.load(build_reference(DAYS, x, times, x[:, 0], None))


@pytest.mark.flights
@pytest.mark.parametrize("month", [1, 4, 7, 12])
def test_even_days_against_odd_days_of_a_month_flag_at_most_a_tenth(month: int) -> None:
    data = flights()
    inside, odd = data.month == month, data.day % 2 == 1
    for left, right in ((inside & odd, inside & ~odd), (inside & ~odd, inside & odd)):
        columns = of_flights(left, right, data)
        assert sum(column.drifted for column in columns) <= len(columns) / 10


@pytest.mark.flights
def test_january_against_july_flags_the_weather_and_not_the_origin() -> None:
    data = flights()
    columns = {c.name: c for c in of_flights(data.month == 1, data.month == 7, data)}
    assert columns["temp"].drifted
    assert columns["dewp"].drifted
    assert not columns["origin"].drifted
    assert columns["temp"].mean > columns["temp"].reference_mean + 20  # type: ignore[operator]


@pytest.mark.flights
def test_weeks_among_weeks_like_them_are_quiet_and_another_reference_has_other_thresholds() -> None:
    data = flights()
    week = (data.day - data.day.min()) // 7
    shares = []
    for number in range(1, 51, 7):
        columns = of_flights(week % 2 == 0, week == number, data) if number % 2 else ()
        shares.append(share_drifted(columns))
    assert np.mean(shares) <= 0.05
    assert max(shares) < 0.3
    january = of_flights(data.month == 1, week == 10, data)
    summer = of_flights(np.isin(data.month, (6, 7, 8)), week == 10, data)
    different = [a.threshold != b.threshold for a, b in zip(january, summer, strict=True)]
    assert np.mean(different) > 0.5


def test_noise_by_day_raises_the_threshold() -> None:
    calm, wild = made_reference(spread=0.0), made_reference(spread=1.0)
    x, times = days(7, first=60, seed=5)
    thresholds = [column_drift(r, Window(x, times), alpha=0.01)[0].threshold for r in (calm, wild)]
    assert thresholds[1] > 2 * thresholds[0]


def test_false_alarms_stay_near_alpha_under_noise_by_day() -> None:
    flags = []
    reference = made_reference(count=90)
    for seed in range(40):
        x, times = days(7, first=90, seed=100 + seed)
        flags += [column.drifted for column in column_drift(reference, Window(x, times), alpha=0.05)[:3]]
    assert np.mean(flags) <= 0.12


@pytest.mark.parametrize(
    ("what", "column"), [("shift", 0), ("swap", 1), ("missing", 0), ("stuck", 2), ("unit", 0)]
)
def test_planted_changes_are_found_where_they_are(what: str, column: int) -> None:
    reference = made_reference(count=90)
    x, times = days(7, first=90, seed=3)
    if what == "shift":
        x[:, 0] += 1.5
    elif what == "swap":
        x[:, 1] = 3 - x[:, 1]
    elif what == "missing":
        x[::4, 0] = np.nan
    elif what == "stuck":
        x[:, 2] = 1
    else:
        x[:, 0] *= 100
    found = column_drift(reference, Window(x, times), alpha=0.01)
    assert [position for position, c in enumerate(found) if c.drifted] == [column]


def test_the_month_is_reported_and_does_not_count_until_it_goes_missing() -> None:
    reference = made_reference(count=90)
    x, times = days(7, first=90, seed=3)
    month = column_drift(reference, Window(x, times), alpha=0.01)[3]
    assert month.calendar
    assert month.distance > month.threshold
    assert not month.drifted
    x[:, 3] = np.nan
    columns = column_drift(reference, Window(x, times), alpha=0.01)
    assert columns[3].drifted
    assert share_drifted(columns) == 0.25


def test_new_categories_are_named_and_count_as_drift() -> None:
    import pyarrow as pa

    reference = made_reference(count=90)
    x, times = days(7, first=90, seed=3)
    names = np.array(["east", "north", "south", "west"])[x[:, 1].astype(int)].astype(object)
    names[::5], names[1::50] = "overseas", None
    table = pa.table(
        {
            "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "amount": x[:, 0],
            "region": pa.array(names, pa.string()),
            "express": x[:, 2].astype(bool),
            "month": x[:, 3],
        }
    )
    region = column_drift(reference, encode_window(DAYS, table), alpha=0.01)[1]
    assert region.new_categories == ("overseas",)
    assert region.drifted
    assert region.missing == pytest.approx(sum(name is None for name in names) / len(names), abs=1e-6)


def test_one_odd_row_in_a_constant_column_is_no_drift() -> None:
    x, times = days(60)
    x[:, 2] = 1.0
    reference = Reference.load(build_reference(DAYS, x, times, x[:, 0], None))
    window, moments = days(7, first=60, seed=2, a_day=500)
    window[:, 2] = 1.0
    window[0, 2] = 0.0
    assert not column_drift(reference, Window(window, moments), alpha=0.01)[2].drifted


def test_a_window_of_few_rows_gets_wider_thresholds() -> None:
    reference = made_reference(count=90, a_day=500)
    x, times = days(7, first=90, seed=3, a_day=500)
    thin = slice(None, None, 25)
    wide = column_drift(reference, Window(x[thin], times[thin]), alpha=0.01)
    full = column_drift(reference, Window(x, times), alpha=0.01)
    assert wide[1].threshold > full[1].threshold
    assert not any(column.drifted for column in wide)


def test_a_reference_of_a_few_blocks_calls_nothing_drifted() -> None:
    reference = made_reference(count=4)
    x, times = days(2, first=10, seed=3)
    assert not any(c.drifted for c in column_drift(reference, Window(x + 9, times), alpha=0.01))


def test_prediction_drift_compares_with_the_training_predictions() -> None:
    reference = made_reference(count=90)
    x, times = days(7, first=90, seed=3)
    assert not prediction_drift(reference, x[:, 0], times, alpha=0.01).drifted
    assert prediction_drift(reference, x[:, 0] + 2, times, alpha=0.01).drifted


def test_attribution_drift_is_the_total_variation_of_shares_and_names_the_movers() -> None:
    x, times = days(60)
    rng = np.random.default_rng(0)
    contributions = rng.normal(size=x.shape) * [4, 3, 2, 1]
    made = build_reference(DAYS, x, times, x[:, 0], contributions, contribution_times_us=times)
    reference = Reference.load(made)
    now = times[:560] + 60 * DAY_US
    same = attribution_drift(reference, DAYS, contributions[:560], now, alpha=0.01)
    moved = attribution_drift(reference, DAYS, contributions[:560] * [1, 1, 1, 4], now, alpha=0.01)
    assert same is not None
    assert moved is not None
    assert same.distance < same.floor < 0.05
    changed_hands = np.abs(_shares([4, 3, 2, 1]) - _shares([4, 3, 2, 4])).sum() / 2
    assert moved.distance == pytest.approx(changed_hands, abs=0.03)
    assert moved.movers[0].startswith("month 0.1")


def _shares(sizes: list[int]) -> np.ndarray[Any, Any]:
    return np.array(sizes) / sum(sizes)


def test_attribution_without_contributions_is_none() -> None:
    assert attribution_drift(made_reference(), DAYS, np.ones((9, 4)), np.arange(9), alpha=0.01) is None


def test_distance_is_zero_for_equals_one_for_strangers_and_bounded_by_empty_bins() -> None:
    left = np.array([0.5, 0.5, 0.0])
    assert distance(left, left) == 0
    assert distance(left, np.array([0.0, 0.0, 1.0])) == pytest.approx(1)
    assert distance(left, np.array([0.5, 0.499, 0.001])) < 0.03


def test_redraws_are_runs_of_neighbours_that_draw_each_block_equally_often() -> None:
    windows, references = redraws(80, 7, resamples=4000, seed=1)
    assert set(windows.sum(axis=1)) == {7}
    assert set(references.sum(axis=1)) == {80}
    assert windows.sum(axis=0).std() / windows.sum(axis=0).mean() < 0.15
    neighbours = (windows * np.roll(windows, 1, axis=1)).sum(axis=1)
    assert neighbours.min() == 6
    assert np.array_equal(windows, redraws(80, 7, resamples=4000, seed=1)[0])
