"""What the commands show and do, from `treadle status` to `treadle predict`, in words and as JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import treadle
from cli_cases import invoke, told
from wheel import FIRST, SECOND, Wheel, lenient


@pytest.fixture
def waiting(wheel: Wheel) -> Wheel:
    """A wheel with a challenger that waits for a person."""
    lenient(wheel)
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    wheel.run(SECOND)
    return wheel


def test_history_lists_entries_and_tells_the_champion_of_a_day(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run]
) -> None:
    entries = told(wheel, "history")
    assert [entry["kind"] for entry in entries] == ["propose", "promote"]
    assert entries[1]["previous"] == entries[0]["hash"]
    champion = told(wheel, "history", "--at", "2024-02-20")["champion"]
    assert champion["candidate"] == turned[1].candidate.digest
    assert told(wheel, "history", "--at", "2024-02-01")["champion"] is None
    shown = invoke("history", wheel.path, "--store", wheel.store)
    assert "promote" in shown.stdout
    assert champion["candidate"][:12] in shown.stdout
    at = invoke("history", wheel.path, "--store", wheel.store, "--at", "2024-02-20")
    assert f"--verdict {champion['verdict'][:12]}" in at.stdout


def test_a_verdict_is_shown_with_all_its_criteria(wheel: Wheel, turned: tuple[Wheel, treadle.Run]) -> None:
    lenient(wheel)
    wheel.edit(
        "orders.yaml", "  margin: 0.5", "  slice_min_rows: 100\n  floor: {roc_auc: 0.55}\n  margin: 0.5"
    )
    wheel.edit(
        "orders.yaml",
        "{type: expect_column_values_to_not_be_null, column: region}",
        "{type: expect_column_values_to_be_between, column: amount, max_value: 100, severity: warn}",
    )
    run = wheel.run(SECOND)
    verdict, champion = run.verdict, turned[1].candidate
    record = told(wheel, "history", "--verdict", "last")
    assert record == verdict.model_dump(mode="json")
    for which in (verdict.id, verdict.id[:6], run.candidate.digest[:12]):
        assert told(wheel, "history", "--verdict", which)["id"] == verdict.id
    first = told(wheel, "history", "--verdict", champion.digest[:12])
    assert first["id"] == turned[1].verdict.id
    shown = invoke("history", wheel.path, "--store", wheel.store, "--verdict", "last").stdout
    words = " ".join(shown.split())
    assert f"model {champion.digest[:12]}: xgboost on" in words
    assert all(id_ in shown for id_ in (verdict.id, run.candidate.id, champion.id))
    row = next(line for line in shown.splitlines() if f"log_loss ({verdict.mode})" in line)
    seen = verdict.comparison
    for value in (
        f"{seen.challenger:.4g}",
        f"{seen.champion:.4g}",
        f"{seen.low:+.3g} to {seen.high:+.3g}",
    ):
        assert value in row
    assert "below 0 " in row
    for name in ("roc_auc (guard)", "roc_auc (floor)", "region=north", "90 % interval"):
        assert name in shown
    assert f"{verdict.holdout.rows} rows in 14 blocks" in words
    assert f"{SECOND} {wheel.kinds()[-1]} by ann" in words
    assert "orders.amount: expect_column_values_to_be_between warned" in words


def test_a_verdict_of_a_first_model_names_its_baseline(wheel: Wheel) -> None:
    shown = invoke("history", wheel.path, "--store", wheel.store, "--verdict", "last").stdout
    assert "none: this is a first model" in shown
    assert "(baseline)" in shown


def test_status_in_words_and_json(waiting: Wheel, turned: tuple[Wheel, treadle.Run]) -> None:
    found = told(waiting, "status")
    assert found["champion"]["candidate"] == turned[1].candidate.digest
    assert found["pending"]["waits_for"] == "the loop's approval is manual"
    shown = invoke("status", waiting.path, "--store", waiting.store).stdout
    assert "the loop's approval is manual" in shown
    for answer in found["pending"]["commands"]:
        assert answer in " ".join(shown.split())


def test_approval_through_the_command_line(waiting: Wheel) -> None:
    act = ("--reason", "slices are fine", "--as-of", SECOND)
    trainer = told(waiting, "approve", *act, "--by", "ann", code=1)
    assert trainer["error"]["type"] == "NeedsPerson"
    entries = told(waiting, "approve", *act, "--by", "bea")
    assert [entry["kind"] for entry in entries] == ["approve", "promote"]
    assert told(waiting, "status")["champion"]["approved_by"] == "bea"


def test_rejection_and_rollback_through_the_command_line(waiting: Wheel) -> None:
    result = invoke(
        "reject",
        waiting.path,
        "--store",
        waiting.store,
        "--reason",
        "a holiday",
        "--by",
        "bea",
        "--as-of",
        SECOND,
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("reject of ")
    assert "by bea: a holiday" in result.stdout
    assert told(waiting, "status")["pending"] is None


def test_rollback_through_the_command_line(wheel: Wheel, turned: tuple[Wheel, treadle.Run]) -> None:
    lenient(wheel)
    wheel.run(SECOND)
    (entry,) = told(wheel, "rollback", "--reason", "complaints", "--by", "bea", "--as-of", SECOND)
    assert entry["kind"] == "rollback"
    assert entry["candidate"] == turned[1].candidate.digest


def test_explain_cache_names_the_part_that_was_edited(wheel: Wheel) -> None:
    wheel.edit("orders.sql", "items,", "items, amount / items as price,")
    wheel.run(FIRST, to="train")
    explained = {item["stage"]: item for item in told(wheel, "explain-cache")}
    assert [change["part"] for change in explained["prepare"]["changed"]] == ["files.orders.sql"]
    assert "snapshot" in {change["part"] for change in explained["featurize"]["changed"]}
    assert explained["deploy"]["before"] is None
    shown = invoke("explain-cache", wheel.path, "--store", wheel.store).stdout
    assert "files.orders.sql" in shown


def test_check_finds_faults_and_passes_a_sound_loop(wheel: Wheel) -> None:
    assert not [item for item in told(wheel, "check") if item["severity"] == "error"]
    wheel.edit("order_features.py", "region = Entity", "1 / 0\nregion = Entity")
    wheel.edit("orders.yaml", "floor: {roc_auc: 0.55}", "floor: {auc: 0.55}")
    found = [item for item in told(wheel, "check", code=1) if item["severity"] == "error"]
    assert len(found) >= 2
    assert any("ZeroDivisionError" in json.dumps(item) for item in found)
    assert any(item["line"] and "auc" in item["evidence"] for item in found), found


def test_materialize_feeds_the_champions_views(wheel: Wheel) -> None:
    written = told(wheel, "materialize", "--as-of", FIRST)
    assert list(written.values()) == [4]


def test_monitor_reports_and_decides(wheel: Wheel) -> None:
    found = told(wheel, "monitor", "--as-of", "2024-02-19")
    assert found["retrain"]["due"] is True
    assert found["monitor"]["rows"] > 200


def scores(path: Path) -> list[float]:
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return [float(row["prediction"]) for row in csv.DictReader(file)]
    import pyarrow.parquet as pq

    return [float(value) for value in pq.read_table(path)["prediction"].to_pylist()]


def test_predictions_by_features_and_by_entity_agree_with_the_model_in_both_formats(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    import pyarrow.csv
    import pyarrow.parquet as pq
    from treadle.data.tables import read_partitions
    from treadle.models import load_candidate

    store = wheel.session(FIRST).store
    rows = read_partitions(store, turned[1].features.partitions).slice(1500, 150)  # type: ignore[attr-defined]
    predictor = load_candidate(store, turned[1].candidate)  # type: ignore[arg-type]
    expected = predictor.predict(predictor.schema.encode(rows))
    assert expected.std() > 0.01
    features = rows.select(["entity", "event_time", *predictor.schema.names])
    named = rows.select(["entity", "event_time"]).rename_columns(["order_id", "placed_at"])
    for name, table in (("features", features), ("named", named)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        pyarrow.csv.write_csv(table, tmp_path / f"{name}.csv")
        for suffix in ("parquet", "csv"):
            source, target = tmp_path / f"{name}.{suffix}", tmp_path / f"{name}-scores.{suffix}"
            done = told(wheel, "predict", "--input", source, "--output", target, "--as-of", FIRST)
            assert done["rows"] == 150
            assert np.allclose(scores(target), expected, rtol=0, atol=1e-12)


def test_predicting_an_unknown_entity_writes_nothing(wheel: Wheel, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("order_id,placed_at\nnobody,2024-02-10T00:00:00Z\n")
    target.write_text("of yesterday\n")
    error = told(wheel, "predict", "--input", source, "--output", target, "--as-of", FIRST, code=2)["error"]
    assert "'nobody'" in error["message"]
    assert target.read_text() == "of yesterday\n"
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.csv"]
