from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from planted import AS_OF, make_loop, parcels, recorded, run
from treadle.data.quality import check_rules
from treadle.errors import DataRefused, SpecError
from treadle.store import LocalStore

# Great Expectations 1.24 imports modules that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_.*' is deprecated:DeprecationWarning")

NOT_NULL = {"type": "expect_column_values_to_not_be_null", "column": "weight"}
BETWEEN = {"type": "expect_column_values_to_be_between", "column": "weight", "min_value": 0, "max_value": 100}


def test_a_failing_rule_blocks_with_the_rows_that_fail(tmp_path: Path) -> None:
    rows = parcels()
    for row in rows[400:440]:
        row["weight"] = None
    with pytest.raises(DataRefused) as error:
        run(make_loop(tmp_path, rows, checks=[NOT_NULL, BETWEEN]), tmp_path)
    (line,) = error.value.findings
    assert "expect_column_values_to_not_be_null failed: 2024-02: 40 of" in line
    failing = {f"{row['id']} at {row['sent_at']:%Y-%m-%d %H:%M}" for row in rows[400:440]}
    assert set(line.partition("Rows: ")[2].rstrip(".").split(", ")) <= failing


def test_a_rule_that_warns_lets_pass_and_keeps_twenty_rows(tmp_path: Path) -> None:
    rows = parcels()
    for row in rows[400:440]:
        row["weight"] = None
    outcome = run(make_loop(tmp_path, rows, checks=[{**NOT_NULL, "severity": "warn"}]), tmp_path)
    (check,) = [check for check in recorded(outcome).checks if check.name == NOT_NULL["type"]]
    assert check.status == "warned"
    assert len(check.sample) == len(set(check.sample)) == 20
    again = run(make_loop(tmp_path, rows, checks=[{**NOT_NULL, "severity": "warn"}]), tmp_path)
    assert (again.results, again.digest) == (outcome.results, outcome.digest)


def test_a_rule_that_could_not_run_is_told_from_one_that_failed(tmp_path: Path) -> None:
    with pytest.raises(DataRefused) as error:
        run(make_loop(tmp_path, parcels(), checks=[{**NOT_NULL, "column": "wait"}]), tmp_path)
    assert "could not run" in error.value.findings[0]


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ({"column": "weight"}, "needs a `type`"),
        (
            {**NOT_NULL, "type": "expect_column_values_to_not_be_nul"},
            "Did you mean 'expect_column_values_to_not_be_null'",
        ),
        ({**NOT_NULL, "mostlee": 0.9}, "Did you mean 'mostly'"),
        ({"type": NOT_NULL["type"]}, "column: field required"),
        ({**NOT_NULL, "table": "parcel"}, "Did you mean 'parcels'"),
        ({**NOT_NULL, "severity": "fatal"}, "severity is 'fatal'"),
    ],
)
def test_a_rule_that_is_none_is_a_fault_before_anything_runs(
    tmp_path: Path, check: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words) as error:
        check_rules(make_loop(tmp_path, None, checks=[NOT_NULL, check]))
    assert error.value.faults[0].field == "data.checks.1"


def test_only_partitions_whose_columns_changed_are_asked_again(tmp_path: Path) -> None:
    loop, store = make_loop(tmp_path, parcels(), checks=[NOT_NULL, BETWEEN]), LocalStore(tmp_path / "store")
    run(loop, tmp_path, store=store)
    folder = tmp_path / "store" / "memo" / "check"
    assert len(list(folder.iterdir())) == 6
    run(loop, tmp_path, AS_OF + timedelta(days=1), store)
    assert len(list(folder.iterdir())) == 8
    rows = parcels()
    for row in rows:
        row["late"] = not row["late"]
    run(make_loop(tmp_path / "relabelled", rows, checks=[NOT_NULL, BETWEEN]), tmp_path, AS_OF, store)
    assert len(list(folder.iterdir())) == 8
    assert {json.loads(file.read_text())["status"] for file in folder.iterdir()} == {"passed"}
