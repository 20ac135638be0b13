from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from feast_cases import FEATURES, HOUR, START, Case, many, report, visit
from treadle.data import feast_join
from treadle.data.feast_store import feature_plan
from treadle.errors import DataRefused, StoreError

MICRO = timedelta(microseconds=1)


def test_a_value_joins_from_the_microsecond_it_is_known_to_the_end_of_its_ttl(tmp_path: Path) -> None:
    known = START + 50 * HOUR
    rows = Case(tmp_path).rows(
        [
            visit("before", known - MICRO),
            visit("at", known),
            visit("last", known + 6 * HOUR),
            visit("old", known + 6 * HOUR + MICRO),
        ],
        [report(known, 7.5)],
    )
    temps = {name: row["weather__temp"] for name, row in rows.items()}
    assert temps == {"before": None, "at": 7.5, "last": 7.5, "old": None}


def test_a_correction_known_later_leaves_earlier_rows_as_they_were(tmp_path: Path) -> None:
    first, corrected = START + 10 * HOUR, START + 13 * HOUR
    rows = Case(tmp_path).rows(
        [visit("then", first + 2 * HOUR), visit("now", corrected + HOUR)],
        [report(first, 1.0), report(corrected, 99.0)],
    )
    assert rows["then"]["weather__temp"] == 1.0
    assert rows["now"]["weather__temp"] == 99.0


def test_no_row_is_lost_for_equal_keys_and_times_missing_keys_or_unknown_ones(tmp_path: Path) -> None:
    at = START + 5 * HOUR
    visits = [visit("twin", at), visit("twin", at), visit("nowhere", at, None), visit("new", at, "Cork")]
    case = Case(tmp_path)
    made = case.featurize(case.snapshot(visits, [report(at, 3.0)]))
    assert made.results["rows"] == 4
    table = feast_join_table(case, made)
    assert sorted(
        zip(table["entity"].to_pylist(), table["weather__temp"].to_pylist(), strict=True), key=str
    ) == [
        ("new", None),
        ("nowhere", None),
        ("twin", 3.0),
        ("twin", 3.0),
    ]


def feast_join_table(case: Case, made: object) -> pa.Table:
    from treadle.data.tables import read_partitions
    from treadle.records import Partition

    partitions = [Partition.model_validate(part) for part in made.results["partitions"]]  # type: ignore[attr-defined]
    return read_partitions(case.store, partitions)


def test_the_newest_value_counts_however_long_ago_when_a_view_has_no_ttl(tmp_path: Path) -> None:
    features = FEATURES.replace("ttl=timedelta(hours=6)", "ttl=timedelta(0)")
    rows = Case(tmp_path, features=features).rows(
        [visit("first", START + HOUR), visit("late", START + timedelta(days=70))],
        [report(START, 1.0), report(START + 2 * HOUR, 2.0)],
    )
    assert (rows["first"]["weather__temp"], rows["late"]["weather__temp"]) == (1.0, 2.0)


@pytest.mark.parametrize("ttl", ["0", "hours=3", "days=3"])
def test_every_row_equals_the_as_of_merge_in_chunks_and_at_once(tmp_path: Path, ttl: str) -> None:
    rng = random.Random(3)
    towns = ["Ayr", "Bath", "Cork"]
    visits = [visit(str(n), START + rng.random() * timedelta(days=9), rng.choice(towns)) for n in range(400)]
    times = [START + rng.random() * timedelta(days=9) for _ in range(900)]
    reports = [
        report(at, rng.choice([None, rng.random()]), rng.choice(towns), n) for n, at in enumerate(times)
    ]
    case = Case(tmp_path, features=FEATURES.replace("hours=6", ttl))
    snapshot = case.snapshot(visits, reports)
    plan = feature_plan(case.loop, case.store, snapshot)
    view = plan.views[0]
    table = feast_join.read_view(case.store, snapshot, view, snapshot.tables["weather"].partitions)
    rows = pa.Table.from_pylist([{"town": v["town"], "at": v["asked_at"]} for v in visits])
    answers = []
    for chunk_rows in (90, 10_000):
        folder = tmp_path / f"join-{chunk_rows}"
        folder.mkdir()
        answers.append(feast_join.join_views([(view, table)], rows, "at", folder, chunk_rows=chunk_rows))
    assert answers[0].equals(answers[1])
    for row, got in zip(visits, answers[0].to_pylist(), strict=True):
        fresh = [
            found
            for found in reports
            if found["town"] == row["town"]
            and found["known_at"] <= row["asked_at"]
            and (
                view.ttl_us == 0 or row["asked_at"] - found["known_at"] <= timedelta(microseconds=view.ttl_us)
            )
        ]
        newest = max(fresh, key=lambda found: found["known_at"], default=None)
        assert got["weather__wind_y"] == (newest["wind_y"] if newest else None)
        assert got["weather__temp"] == (newest["temp"] if newest else None)


def test_a_join_that_differs_from_the_as_of_merge_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits, reports = many(3)
    case = Case(tmp_path)
    whole = feast_join._write_stretches

    def wrong(view: object, table: pa.Table, *rest: object) -> None:
        whole(view, table.set_column(2, "temp", pa.array([0.0] * table.num_rows)), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(feast_join, "_write_stretches", wrong)
    with pytest.raises(StoreError, match="other values of weather__temp than an as-of merge"):
        case.featurize(case.snapshot(visits, reports))


def test_rows_known_at_the_same_time_with_different_values_are_refused(tmp_path: Path) -> None:
    case = Case(tmp_path)
    snapshot = case.snapshot([visit("a", START + HOUR)], [report(START, 1.0), report(START, 2.0)])
    with pytest.raises(DataRefused, match="can't tell which counts") as caught:
        case.featurize(snapshot)
    assert "town = Ayr" in str(caught.value)


def test_equal_rows_known_at_the_same_time_are_one(tmp_path: Path) -> None:
    rows = Case(tmp_path).rows([visit("a", START + HOUR)], [report(START, 1.0), report(START, 1.0)])
    assert rows["a"]["weather__temp"] == 1.0


def test_a_session_in_another_zone_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    spring = START.replace(month=3, day=10, hour=6, minute=30)
    visits, reports = (
        [visit("a", spring + HOUR), visit("b", spring + 6 * HOUR + MICRO)],
        [report(spring, 4.0)],
    )
    here = Case(tmp_path / "here").rows(visits, reports)
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        there = Case(tmp_path / "there").rows(visits, reports)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert here == there
    assert (here["a"]["weather__temp"], here["b"]["weather__temp"]) == (4.0, None)
