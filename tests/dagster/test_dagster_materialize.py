"""A loop's assets materialize for real, and come to the very records of `treadle run`."""

from __future__ import annotations

import os

import dagster as dg
import pytest
import treadle
from dagster_cases import Deployed, failure, shown, told
from treadle.runner import watch
from treadle_dagster import TreadleResource, inputs
from wheel import FIRST, SECOND, Wheel

NAMES = {
    "prepare": "snapshot",
    "featurize": "features",
    "train": "candidate",
    "evaluate": "verdict",
    "release": "release",
    "deploy": "champion",
    "monitor": "drift_report",
    "retrain": "retrain_decision",
}


def versions(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    return {
        event.materialization.asset_key.path[-1]: (event.materialization.tags or {})["dagster/data_version"]
        for event in result.get_asset_materialization_events()
    }


def test_a_loop_by_dagster_has_the_records_of_treadle_run(
    first_run: dg.ExecuteInProcessResult, turned: tuple[Wheel, treadle.Run]
) -> None:
    assert first_run.success
    wheel, run = turned
    looked = watch(treadle.Loop.load(wheel.path), as_of=FIRST, store=wheel.store)
    records = {NAMES[stage]: record for stage, record in {**run, **looked}.items()}
    assert {name: data["treadle/record"] for name, data in shown(first_run).items()} == {
        name: record.id for name, record in records.items()
    }
    assert versions(first_run) == {name: record.digest for name, record in records.items()}


def test_each_asset_tells_its_clock_its_track_and_that_it_was_made_now(
    first_run: dg.ExecuteInProcessResult,
) -> None:
    for data in shown(first_run).values():
        assert data["treadle/as_of"] == f"{FIRST}T00:00:00Z"
        assert data["treadle/track"] == "production"
        assert data["treadle/reused"] is False


def test_numbers_are_plotted_tables_are_tables_and_drawings_stay_in_place(
    first_run: dg.ExecuteInProcessResult,
) -> None:
    data = shown(first_run)
    assert 0.5 < data["verdict"]["roc_auc"] < 1
    assert data["verdict"]["log_loss_low"] < data["verdict"]["log_loss_difference"] < 0
    assert data["snapshot"]["dagster/row_count"] == 1680
    assert "late" in {column.name for column in data["snapshot"]["dagster/column_schema"].columns}
    assert "load__open_orders" in {c.name for c in data["features"]["dagster/column_schema"].columns}
    assert [r.data["metric"] for r in data["verdict"]["metrics"].records] != []
    assert {r.data["column"] for r in data["drift_report"]["columns"].records} >= {"amount", "region"}
    for name, key in (("verdict", "interval"), ("drift_report", "drift")):
        text = data[name][key]
        assert text.startswith("![")
        assert "data:image/svg+xml;base64," in text
        assert len(text) < 1000, "Dagster hides longer markdown behind a button"
    assert data["champion"]["treadle/entry"] == 2
    assert data["release"]["status"] == "promoted"


def test_every_rule_and_criterion_is_a_check_with_its_words(first_run: dg.ExecuteInProcessResult) -> None:
    checks = told(first_run)
    assert set(checks) == {
        "snapshot.column_values_to_not_be_null_region",
        "snapshot.column_values_to_be_between_amount",
        "snapshot.leakage",
        "features.leakage",
        "candidate.tracked",
        "verdict.challenger_won",
        "verdict.comparison",
        "verdict.anchor",
        "verdict.suspicious",
        "verdict.guard_roc_auc",
        "verdict.floor_roc_auc",
        "verdict.slices_region",
        "release.answered",
        "drift_report.drift",
        "drift_report.quality",
    }
    assert all(check.passed for check in checks.values())
    assert "at least 0.55" in (checks["verdict.floor_roc_auc"].description or "")
    assert "version 1 in MLflow" in (checks["candidate.tracked"].description or "")


def test_what_has_not_changed_is_not_done_again(deployed: Deployed) -> None:
    again = deployed.materialize(FIRST, *list(NAMES.values())[:6])
    assert again.success, failure(again)
    assert {name: data["treadle/reused"] for name, data in shown(again).items()} == dict.fromkeys(
        list(NAMES.values())[:6], True
    )


def test_a_kept_instance_knows_what_is_unsynced_only_where_something_changed(deployed: Deployed) -> None:
    chain = list(NAMES.values())[:6]
    with dg.DagsterInstance.local_temp() as kept:
        loop = Deployed(deployed.wheel, kept)
        assert loop.materialize(FIRST, *chain).success
        first = kept.get_latest_materialization_event(dg.AssetKey(["orders", "champion"]))
        again = loop.materialize(FIRST, *chain)
        latest = kept.get_latest_materialization_event(dg.AssetKey(["orders", "champion"]))
        assert first is not None
        assert latest is not None
        assert latest.run_id == again.run_id != first.run_id
        tags = [event.asset_materialization.tags for event in (first, latest) if event.asset_materialization]
        assert len({(tags_ or {})["dagster/data_version"] for tags_ in tags}) == 1


def test_a_run_s_later_steps_take_what_its_earlier_ones_made(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = deployed.wheel.path.parent / "orders.csv"
    taken = inputs.made_in_this_run

    def grow(context: dg.AssetExecutionContext, keys: dict[str, dg.AssetKey], stage: str) -> dict[str, str]:
        if stage == "featurize":
            orders.write_text(orders.read_text().replace("north", "south", 3))
        return taken(context, keys, stage)

    monkeypatch.setattr("treadle_dagster.step.made_in_this_run", grow)
    result = deployed.materialize(FIRST, *list(NAMES.values())[:4])
    assert result.success, failure(result)
    monkeypatch.undo()
    assert "store has none" in failure(deployed.materialize(FIRST, "verdict"))


def test_one_asset_alone_takes_what_is_there_and_says_what_is_missing(deployed: Deployed) -> None:
    alone = deployed.materialize(FIRST, "candidate")
    assert alone.success
    assert list(shown(alone)) == ["candidate"]
    missing = deployed.materialize(SECOND, "candidate")
    assert not missing.success
    assert "prepare" in failure(missing)


def test_a_challenger_that_loses_is_a_check_that_warns_and_the_champion_stays(deployed: Deployed) -> None:
    deployed.wheel.edit("orders.yaml", "  floor: {roc_auc: 0.55}", "  floor: {roc_auc: 0.999}")
    result = deployed.materialize(SECOND)
    assert result.success, failure(result)
    checks = told(result)
    for name in ("challenger_won", "floor_roc_auc"):
        assert not checks[f"verdict.{name}"].passed
        assert checks[f"verdict.{name}"].severity is dg.AssetCheckSeverity.WARN
    data = shown(result)
    assert data["verdict"]["decision"] == "keep"
    assert data["release"]["status"] == "kept out by the gate"
    assert data["champion"]["treadle/entry"] == 2
    assert data["champion"]["champion"] != data["candidate"]["model"]


def test_data_that_break_a_rule_stop_everything_after_them(deployed: Deployed) -> None:
    orders = deployed.wheel.path.parent / "orders.csv"
    lines = orders.read_text().splitlines()
    broken = lines[200].split(",")
    broken[3] = "-5"
    orders.write_text("\n".join([*lines[:200], ",".join(broken), *lines[201:]]) + "\n")
    result = deployed.materialize(SECOND)
    assert not result.success
    assert shown(result) == {}
    check = told(result)["snapshot.column_values_to_be_between_amount"]
    assert not check.passed
    assert check.severity is dg.AssetCheckSeverity.ERROR
    assert [row.data["row"] for row in check.metadata["failing_rows"].value.records] != []  # type: ignore[union-attr]
    assert told(result)["snapshot.column_values_to_not_be_null_region"].passed
    assert "1 of" in failure(result)
    assert deployed.wheel.kinds() == ["propose", "promote"]


def test_without_a_champion_there_is_nothing_to_watch_and_nothing_fails(fresh: Deployed) -> None:
    result = fresh.materialize(FIRST, "drift_report", "retrain_decision")
    assert result.success
    assert shown(result) == {}


def test_mlflow_away_lets_training_go_on_and_the_release_wait(
    fresh: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.options["tracking_uri"] = "http://127.0.0.1:9"
    result = fresh.materialize(FIRST)
    assert not result.success
    assert list(shown(result)) == ["snapshot", "features", "candidate", "verdict"]
    assert not told(result)["candidate.tracked"].passed
    assert "MLflow" in failure(result)
    assert fresh.wheel.kinds() == []
    fresh.options.clear()
    assert fresh.materialize(FIRST).success
    assert fresh.wheel.kinds() == ["propose", "promote"]


def test_an_as_of_outside_of_the_data_is_refused_in_words(deployed: Deployed) -> None:
    result = deployed.materialize("2199-01-01", "snapshot")
    assert not result.success
    assert "the future has no data" in failure(result)


def test_a_track_of_its_own_leaves_production_alone(deployed: Deployed) -> None:
    result = deployed.materialize(FIRST, track="replay")
    assert result.success, failure(result)
    assert deployed.wheel.kinds("replay") == ["propose", "promote"]
    assert shown(result)["champion"]["treadle/track"] == "replay"


def test_the_resource_s_tracking_address_is_gone_after_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with TreadleResource(tracking_uri="http://mlflow:5000").environment():
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "MLFLOW_TRACKING_URI" not in os.environ
