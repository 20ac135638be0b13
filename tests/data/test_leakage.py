from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from planted import AS_OF, START, make_loop, parcels, recorded, run
from treadle.errors import DataRefused, SpecError


def _with(column: str, value: Any) -> list[dict[str, Any]]:
    rows, rng = parcels(3000), random.Random(3)
    for row in rows:
        row[column] = value(row, rng)
    return rows


LEAKS = {
    "the label with noise": lambda row, rng: row["late"] * 2 + rng.gauss(0, 0.5),
    "a scrambled code": lambda row, rng: rng.choice([3, 11, 42] if row["late"] else [5, 20, 30]),
    "a word": lambda row, rng: "returned" if row["late"] and rng.random() < 0.9 else "kept",
    "where it is missing": lambda row, rng: None if row["late"] else rng.random(),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS.keys())
def test_a_column_that_alone_tells_the_label_blocks(tmp_path: Path, leak: Any) -> None:
    with pytest.raises(DataRefused, match="data checks block") as error:
        run(make_loop(tmp_path, _with("leak", leak)), tmp_path)
    assert any(line.startswith("parcels.leak: leakage.") for line in error.value.findings)
    assert not any("parcels.weight" in line for line in error.value.findings)


def test_honest_columns_pass(tmp_path: Path) -> None:
    checks = recorded(run(make_loop(tmp_path, parcels(3000)), tmp_path)).checks
    assert {check.status for check in checks} == {"passed"}


def test_an_allowed_leak_passes_with_the_reason_on_record(tmp_path: Path) -> None:
    leakage = {"allow": {"leak": "sensor reads before dispatch"}}
    rows = _with("leak", LEAKS["the label with noise"])
    checks = recorded(run(make_loop(tmp_path, rows, leakage=leakage), tmp_path)).checks
    found = [check for check in checks if check.column == "leak"]
    assert [check.status for check in found] == ["warned"]
    assert "sensor reads before dispatch" in found[0].evidence


def test_allowing_a_column_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no table has a column 'lek'"):
        run(make_loop(tmp_path, parcels(), leakage={"allow": {"lek": "typo"}}), tmp_path)


def test_a_value_known_after_the_prediction_blocks_with_share_and_rows(tmp_path: Path) -> None:
    rows = parcels()
    for row in rows:
        row["scan"], row["scanned_at"] = 1.0, row["sent_at"] + timedelta(hours=3)
    loop = make_loop(tmp_path, rows, table={"known_at_of": {"scan": "scanned_at"}})
    with pytest.raises(DataRefused) as error:
        run(loop, tmp_path)
    assert "100.0%" in error.value.findings[0]
    shown = error.value.findings[0].partition("Rows: ")[2].rstrip(".").split(", ")
    assert set(shown) <= {f"{row['id']} at {row['sent_at']:%Y-%m-%d %H:%M}" for row in rows}


def test_a_table_whose_rows_were_made_after_the_prediction_blocks(tmp_path: Path) -> None:
    rows = [{**row, "known_at": row["sent_at"] + timedelta(hours=1)} for row in parcels()]
    with pytest.raises(DataRefused, match="known after sent_at"):
        run(make_loop(tmp_path, rows), tmp_path)


def test_a_column_without_known_at_blocks(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, parcels(), table={"known_at": None, "known_at_of": {"town": "sent_at"}})
    with pytest.raises(DataRefused) as error:
        run(loop, tmp_path)
    assert [line.split(":")[0] for line in error.value.findings] == ["parcels.known_at", "parcels.weight"]


def test_a_row_of_the_holdout_that_stands_in_training_too_is_warned_of(tmp_path: Path) -> None:
    rows = parcels()
    again = [
        {
            **row,
            "sent_at": AS_OF - timedelta(days=2),
            "known_at": AS_OF - timedelta(days=2),
            "came_at": AS_OF - timedelta(days=1),
        }
        for row in rows[:9]
    ]
    checks = recorded(run(make_loop(tmp_path, [*rows, *again]), tmp_path)).checks
    found = [check for check in checks if check.name == "leakage.shared_rows"]
    assert found[0].status == "warned"
    assert found[0].observed.startswith("9 of ")
    assert set(found[0].sample) == {f"p{number} at 2024-03-13 00:00" for number in range(9)}


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_leaks_of_other_tasks_are_found_too(tmp_path: Path, task: str) -> None:
    rows, rng = parcels(3000), random.Random(5)
    for row in rows:
        row["late"] = rng.choice(["air", "rail", "road"]) if task == "multiclass" else rng.gauss(0, 1)
        row["leak"] = {"air": 1, "rail": 2, "road": 3}.get(row["late"], row["late"])
    with pytest.raises(DataRefused) as error:
        run(make_loop(tmp_path, rows, task=task), tmp_path)
    assert [line.split(":")[0] for line in error.value.findings] == ["parcels.leak"]


def test_a_column_that_tells_one_class_of_several_is_said_and_stops_nothing(tmp_path: Path) -> None:
    rows, rng = parcels(3000), random.Random(5)
    for row in rows:
        row["late"] = rng.choice(["air", "rail", "road"])
        row["wings"] = int(row["late"] == "air")
    checks = recorded(run(make_loop(tmp_path, rows, task="multiclass"), tmp_path)).checks
    found = [check for check in checks if check.column == "wings"]
    assert [check.status for check in found] == ["warned"]


def test_few_rows_are_no_ground_to_stop_for(tmp_path: Path) -> None:
    rows = parcels(60)
    for row in rows:
        row["leak"] = row["late"]
    checks = recorded(run(make_loop(tmp_path, rows), tmp_path)).checks
    assert [check.status for check in checks if check.column == "leak"] == ["warned"]


def test_labels_known_before_the_question_are_refused(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, parcels(300))
    table = loop.data.tables[loop.data.labelled]
    (file,) = tmp_path.glob("**/*.sql")
    early = f"{table.event_time} - INTERVAL 1 DAY AS {table.label_known_at}"
    file.write_text(f"SELECT * REPLACE ({early}) FROM ({file.read_text()})")
    with pytest.raises(DataRefused, match="known before") as error:
        run(loop, tmp_path)
    assert " at 2024-" in error.value.findings[0].partition("Rows: ")[2]


def _driven_by_day(count: int, days: int) -> list[dict[str, Any]]:
    """Parcels whose chance to be late is drawn anew each day; `chance` is what could honestly be known of it."""
    rng = random.Random(8)
    chance = [rng.uniform(0.05, 0.6) for _ in range(days)]
    rows = parcels(count, days)
    for row in rows:
        row["chance"] = chance[(row["sent_at"] - START).days]
        row["late"] = rng.random() < row["chance"]
    return rows


@pytest.mark.parametrize(
    ("seen", "warned"),
    [
        ("avg(late::INT) OVER (PARTITION BY date_trunc('day', sent_at), town)", True),
        ("sum(1 - late::INT) OVER (PARTITION BY date_trunc('day', sent_at)) / 50", True),
        (
            "avg(late::INT) OVER (ORDER BY sent_at RANGE BETWEEN INTERVAL 3 DAYS PRECEDING"
            " AND INTERVAL 1 DAY PRECEDING)",
            False,
        ),
        ("chance", False),
    ],
)
def test_a_mean_of_the_days_own_labels_is_warned_of_and_what_was_known_is_not(
    tmp_path: Path, seen: str, warned: bool
) -> None:
    loop = make_loop(tmp_path, _driven_by_day(6000, 120), sql=f"SELECT *, {seen} AS seen FROM parcels")
    checks = recorded(run(loop, tmp_path, AS_OF + timedelta(days=60))).checks
    found = {check.column: check.status for check in checks if check.name == "leakage.lookahead"}
    assert found == ({"seen": "warned"} if warned else {})
