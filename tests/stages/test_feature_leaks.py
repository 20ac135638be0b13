"""A leak that comes in through a feature view: values that were made from the outcome, whatever known_at says."""

from __future__ import annotations

import random
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from feast_cases import FEATURES, HOUR, START, Case, report, visit
from treadle.data.findings import warnings_of
from treadle.errors import DataRefused, SpecError
from treadle.spec import Leakage

Rows = list[dict[str, Any]]


def rows_of(days: int = 60, seed: int = 4) -> tuple[Rows, Rows]:
    """24 visits a day by as many guests, half of whom went, and a report an hour before each, of the guest's own."""
    rng = random.Random(seed)
    visits, reports = [], []
    for number in range(24 * days):
        at = START + number * HOUR + HOUR / 2
        visits.append(visit(f"v{number}", at, f"guest-{number}") | {"went": rng.random() < 0.5})
        reports.append(report(at - HOUR, rng.gauss(0, 1), f"guest-{number}", rng.randrange(9)))
    return visits, reports


def leaky(how: str) -> tuple[Rows, Rows]:
    visits, reports = rows_of()
    rng = random.Random(5)
    for seen, told in zip(visits, reports, strict=True):
        if how == "the label with noise":
            told["temp"] = float(seen["went"]) + rng.gauss(0, 0.4)
        elif how == "a word":
            told["sky"] = "bright" if seen["went"] else "grey"
        elif how == "where it is missing":
            told["wind_y"] = rng.randrange(9) if seen["went"] else None
    return visits, reports


@pytest.mark.parametrize(
    ("how", "column", "check"),
    [
        ("the label with noise", "temp", "leakage.alone"),
        ("a word", "sky", "leakage.alone"),
        ("where it is missing", "wind_y", "leakage.missing"),
    ],
)
def test_a_view_that_tells_the_label_is_stopped_by_view_and_column(
    tmp_path: Path, how: str, column: str, check: str
) -> None:
    case = Case(tmp_path)
    with pytest.raises(DataRefused, match="block the features of") as error:
        case.featurize(case.snapshot(*leaky(how)))
    line = next(line for line in error.value.findings if check in line)
    assert line.startswith(f"weather__{column}: {check} failed: AUC ")
    assert "on 1,440 rows (limit 0.85)" in line
    assert f"{column!r} of the view 'weather' (table 'weather') alone tells the label" in line
    assert f"allow 'weather__{column}' by name with a reason under data.leakage.allow" in line
    assert {result["column"] for result in error.value.results if result["status"] == "failed"} == {
        f"weather__{column}"
    }


def test_honest_views_pass_and_the_record_says_how_strong_their_columns_are(tmp_path: Path) -> None:
    case = Case(tmp_path)
    (check,) = case.record(case.snapshot(*rows_of())).checks
    assert (check.table, check.name, check.status) == ("weather", "leakage.alone", "passed")
    assert check.observed.startswith("strongest alone: weather__")
    assert not any("warning" in line for line in case.said)


def allowing(case: Case, **allow: str) -> None:
    data = case.loop.data.model_copy(update={"leakage": Leakage(allow=allow)})
    case.loop = case.loop.model_copy(update={"data": data})
    case.loop._folder = case.folder / "loop"


def test_an_allowed_column_passes_with_a_warning_that_stays_on_record(tmp_path: Path) -> None:
    case = Case(tmp_path)
    snapshot = case.snapshot(*leaky("a word"))
    with pytest.raises(DataRefused):
        case.featurize(snapshot)
    allowing(case, weather__sky="told at the door")
    record = case.record(snapshot)
    # What was joined before the refusal is not joined again.
    assert record.notes["rows_joined"] == 0
    (warning,) = warnings_of(record.checks)
    assert "weather__sky: leakage.alone warned" in warning
    assert warning.endswith("Allowed by the loop: told at the door")
    assert f"featurize: warning, {warning}" in case.said


def test_allowing_what_neither_a_table_nor_a_view_has_is_a_fault(tmp_path: Path) -> None:
    case = Case(tmp_path)
    allowing(case, weather__skies="typo")
    with pytest.raises(SpecError, match="no table and no view has a column 'weather__skies'") as error:
        case.featurize(case.snapshot(*rows_of(5)))
    assert error.value.faults[0].field == "data.leakage.allow.weather__skies"
    allowing(case, town="a table's own")
    assert case.record(case.snapshot(*rows_of(5))).checks


def test_few_rows_or_no_labels_are_no_ground_to_stop_for(tmp_path: Path) -> None:
    case = Case(tmp_path)
    visits, reports = leaky("a word")
    checks = case.record(case.snapshot(visits[:60], reports[:60])).checks
    assert [check.status for check in checks if check.column == "weather__sky"] == ["warned"]
    unlabelled = [{**row, "went": None, "seen_at": None} for row in visits]
    assert case.record(case.snapshot(unlabelled, reports)).checks == ()


def test_the_checks_are_the_same_however_the_partitions_came_about(tmp_path: Path) -> None:
    visits, reports = rows_of()
    one, other = Case(tmp_path / "one"), Case(tmp_path / "other")
    one.record(one.snapshot(visits[:1000], reports))
    grown, fresh = one.record(one.snapshot(visits, reports)), other.record(other.snapshot(visits, reports))
    assert grown.notes["rows_joined"] < fresh.notes["rows_joined"]
    assert (grown.checks, grown.digest) == (fresh.checks, fresh.digest)


def day_means(visits: Rows, delay: timedelta) -> Rows:
    """For each town and day the share of visits that went, counting from the day's start plus a delay."""
    days: dict[tuple[str, Any], list[bool]] = {}
    for row in visits:
        days.setdefault((row["town"], row["asked_at"].replace(hour=0, minute=0)), []).append(row["went"])
    return [report(day + delay, sum(went) / len(went), town) for (town, day), went in days.items()]


@pytest.mark.parametrize("delay", [timedelta(0), timedelta(days=1)], ids=["same day", "day before"])
def test_a_mean_of_the_days_own_labels_is_warned_of_and_one_of_the_day_before_is_not(
    tmp_path: Path, delay: timedelta
) -> None:
    rng = random.Random(6)
    visits = []
    for day in range(120):
        for number in range(40):
            town = rng.choice(("Ayr", "Bath"))
            at = START + timedelta(days=day, minutes=30 + 30 * number)
            visits.append(visit(f"v{day}-{number}", at, town) | {"went": rng.random() < 0.1 + 0.007 * day})
    case = Case(tmp_path, features=FEATURES.replace("hours=6", "hours=24"))
    checks = case.record(case.snapshot(visits, day_means(visits, delay))).checks
    found = [(check.column, check.status) for check in checks if check.name == "leakage.lookahead"]
    assert found == ([] if delay else [("weather__temp", "warned")])
