"""Operators on a real loop and store, each run by itself without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
    DownstreamTasksSkipped,
)
from airflow_cases import Notes, Ti, context, sent
from treadle.errors import Transient
from treadle_airflow import assets
from treadle_airflow.operators.acts import TreadlePredictOperator, TreadleRollbackOperator
from treadle_airflow.operators.stages import (
    TreadleDeployOperator,
    TreadleEvaluateOperator,
    TreadleGateOperator,
    TreadleMonitorOperator,
    TreadlePrepareOperator,
    TreadleReleaseOperator,
    TreadleRetrainOperator,
    TreadleStageOperator,
)
from wheel import FIRST, SECOND, THIRD, Wheel, lenient


@pytest.fixture(autouse=True)
def here(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own store, and the connection store without a database."""
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    monkeypatch.setenv("AIRFLOW_CONN_TREADLE_DEFAULT", '{"conn_type": "treadle"}')


def test_a_stage_returns_a_small_plain_summary_of_its_record(wheel: Wheel) -> None:
    told = TreadlePrepareOperator(task_id="x", loop=wheel.path).execute(context(conf={"as_of": FIRST}))
    assert told["id"] == wheel.run(FIRST, to="prepare")["prepare"].id
    assert (told["stage"], told["track"], told["reused"]) == ("prepare", "production", True)
    assert told["numbers"]["rows"] > 1000
    assert len(str(told)) < 4000


def test_a_stage_alone_says_what_has_to_run_first(wheel: Wheel) -> None:
    with pytest.raises(AirflowFailException, match="--from evaluate needs what prepare makes"):
        TreadleEvaluateOperator(task_id="x", loop=wheel.path).execute(context(conf={"as_of": "2024-02-20"}))


def test_a_logical_date_before_the_data_is_refused(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "name: orders\n", "name: orders\nhistory: {from: 2024-01-01, to: 2024-03-31}\n")
    early = context(logical_date=datetime(2023, 5, 1, tzinfo=UTC), run_type="backfill")
    with pytest.raises(AirflowFailException, match=r"AsOfError.*before the data, which begin 2024-01-01"):
        TreadlePrepareOperator(task_id="x", loop=wheel.path).execute(early)


def test_a_date_asked_for_beyond_the_history_is_refused_as_at_a_shell(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "name: orders\n", "name: orders\nhistory: {from: 2024-01-01, to: 2024-03-31}\n")
    with pytest.raises(AirflowFailException, match=r"AsOfError.*after the end of the loop's history"):
        TreadlePrepareOperator(task_id="x", loop=wheel.path).execute(context(conf={"as_of": "2024-05-01"}))


def test_a_loop_that_was_deleted_is_a_clear_error(wheel: Wheel) -> None:
    wheel.path.unlink()
    with pytest.raises(AirflowFailException, match=r"orders.yaml: the loop file does not exist"):
        TreadlePrepareOperator(task_id="x", loop=wheel.path).execute(context())


def test_a_missing_connection_is_a_clear_error(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    def gone(conn_id: str) -> Any:
        raise AirflowNotFoundException(conn_id)

    monkeypatch.setattr(Connection, "get", gone)
    operator = TreadlePrepareOperator(task_id="x", loop=wheel.path, treadle_conn_id="prod")
    with pytest.raises(AirflowFailException, match=r"no connection 'prod'.*airflow connections add prod"):
        operator.execute(context())
    assert TreadlePrepareOperator(task_id="x", loop=wheel.path).execute(context(conf={"as_of": FIRST}))


def test_settings_of_a_run_change_the_loop(wheel: Wheel) -> None:
    given = context(conf={"as_of": FIRST, "track": "trial", "set": ["data.holdout=21d"]})
    told = TreadlePrepareOperator(task_id="x", loop=wheel.path).execute(given)
    assert told["track"] == "trial"
    assert told["id"] != wheel.run(FIRST, to="prepare")["prepare"].id
    wrong = context(conf={"as_of": FIRST, "set": ["data.houldout=21d"]})
    with pytest.raises(AirflowFailException, match=r"data.houldout: there is no such key.*'holdout'"):
        TreadlePrepareOperator(task_id="x", loop=wheel.path).execute(wrong)


def manual(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "retrain:", "approval: manual\nretrain:")


def test_a_backfill_that_would_wait_for_people_is_refused_with_advice(wheel: Wheel) -> None:
    manual(wheel)
    given = {"run_type": "backfill", "logical_date": datetime(2024, 2, 12, tzinfo=UTC)}
    prepare = TreadlePrepareOperator(task_id="x", loop=wheel.path)
    with pytest.raises(AirflowFailException, match=r'"track": "replay", "set": .*approval=auto'):
        prepare.execute(context(**given))
    conf = {"track": "replay", "set": ["approval=auto"]}
    assert prepare.execute(context(conf=conf, **given))["as_of"] == "2024-02-12T00:00:00Z"


def earlier(state: str, run_type: str = "backfill") -> Ti:
    run = SimpleNamespace(run_id="the one before", run_type=SimpleNamespace(value=run_type))
    return Ti(earlier={state: run})


def test_a_backfill_goes_in_order(wheel: Wheel) -> None:
    given = {"run_type": "backfill", "logical_date": datetime(2024, 2, 12, tzinfo=UTC)}
    prepare = TreadlePrepareOperator(task_id="x", loop=wheel.path)
    with pytest.raises(AirflowRescheduleException):
        prepare.execute(context(ti=earlier("running"), **given))
    backwards = earlier("queued")
    backwards.first_reschedule = datetime.now(UTC) - timedelta(hours=1)
    with pytest.raises(AirflowFailException, match="runs backwards"):
        prepare.execute(context(ti=backwards, **given))
    assert prepare.execute(context(ti=earlier("queued", "scheduled"), **given))
    assert prepare.execute(context(**given))


def test_a_challenger_that_lost_enters_the_log_and_the_champion_stays(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "floor: {roc_auc: 0.55}", "floor: {roc_auc: 0.99}")
    wheel.run(SECOND, to="evaluate")
    conf = {"as_of": SECOND}
    judged = TreadleEvaluateOperator(task_id="x", loop=wheel.path).execute(context(conf=conf))
    assert judged["decision"] == "keep"
    followers = [SimpleNamespace(task_id="release.run")]
    gate = TreadleGateOperator(task_id="gate", loop=wheel.path, decision=judged["decision"])
    gate.get_direct_relatives = lambda upstream: []  # type: ignore[assignment, method-assign]
    given = context(conf=conf, task=gate)
    gate.execute(given)
    assert given["ti"].pushed["return_value"]["words"].startswith("champion kept: ")
    assert wheel.kinds() == ["propose", "promote", "reject"]
    assert followers


def test_the_gate_skips_what_follows(wheel: Wheel) -> None:
    from airflow.sdk import DAG

    wheel.edit("orders.yaml", "floor: {roc_auc: 0.55}", "floor: {roc_auc: 0.99}")
    wheel.run(SECOND, to="evaluate")
    with DAG("x"):
        gate = TreadleGateOperator(task_id="gate", loop=wheel.path, decision="keep")
        gate >> TreadleReleaseOperator(task_id="release", loop=wheel.path)
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        gate.execute(context(conf={"as_of": SECOND}, task=gate))
    assert skipped.value.tasks == ["release"]
    winner = TreadleGateOperator(task_id="gate", loop=wheel.path, decision="promote")
    assert winner.execute(context())["words"] == "goes on to its release: promote"


def test_a_challenger_that_waits_becomes_an_event_and_nothing_is_deployed(wheel: Wheel) -> None:
    manual(wheel)
    lenient(wheel)
    wheel.run(SECOND, to="evaluate")
    alias = assets.alias_of(assets.candidate("orders"))
    release = TreadleReleaseOperator(task_id="x", loop=wheel.path, outlets=[alias])
    given = context(conf={"as_of": SECOND}, user="ann")
    told = release.execute(given)
    assert told["outcome"] == "waits"
    (extra,) = sent(given, alias)
    assert (extra["as_of"], extra["track"]) == (f"{SECOND}T00:00:00Z", "production")
    assert extra["verdict"] == told["verdict"]
    assert wheel.kinds()[-2:] == ["propose", "hold"]
    deploy = TreadleDeployOperator(task_id="x", loop=wheel.path, released=told["outcome"])
    with pytest.raises(AirflowSkipException, match="waits"):
        deploy.execute(context(conf={"as_of": SECOND}))


def test_a_promotion_becomes_an_event_of_the_champion_on_production_only(wheel: Wheel) -> None:
    lenient(wheel)
    alias = assets.alias_of(assets.champion("orders"))
    for track, events in (("production", 1), ("replay", 0)):
        wheel.run(SECOND, track=track, to="release")
        deploy = TreadleDeployOperator(task_id="x", loop=wheel.path, outlets=[alias], released="promoted")
        given = context(conf={"as_of": SECOND, "track": track})
        deploy.execute(given)
        assert len(sent(given, alias)) == events, track


def test_a_deployment_that_stood_before_is_no_event_but_a_second_try_tells_of_it(wheel: Wheel) -> None:
    lenient(wheel)
    alias = assets.alias_of(assets.champion("orders"))
    wheel.run(SECOND)
    deploy = TreadleDeployOperator(task_id="x", loop=wheel.path, outlets=[alias], released="promoted")
    for number, events in ((1, 0), (2, 1)):
        given = context(conf={"as_of": SECOND}, ti=Ti(try_number=number))
        deploy.execute(given)
        assert len(sent(given, alias)) == events, number


def unreachable(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise Transient("MLflow at http://nowhere failed: ConnectionError. Run again once it answers.")

    monkeypatch.setattr("treadle.registry.mlflow.project_candidate", refuse)


def test_a_release_waits_for_mlflow_and_says_so(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    lenient(wheel)
    unreachable(wheel, monkeypatch)
    trained = TreadleStageOperator(task_id="x", loop=wheel.path, stage="train", inputs=prepared(wheel))
    told = trained.execute(context(conf={"as_of": SECOND}))
    assert any("tracking failed, training goes on" in words for words in told["warnings"])
    wheel.run(SECOND, to="evaluate")
    release = TreadleReleaseOperator(task_id="x", loop=wheel.path)
    with pytest.raises(AirflowRescheduleException):
        release.execute(context(conf={"as_of": SECOND}))
    assert wheel.kinds() == ["propose", "promote"], "nothing half promoted"
    late = Ti(first_reschedule=datetime.now(UTC) - timedelta(days=2))
    with pytest.raises(AirflowFailException, match="Waited since"):
        release.execute(context(conf={"as_of": SECOND}, ti=late))


def prepared(wheel: Wheel) -> dict[str, str]:
    return {stage: record.id for stage, record in wheel.run(SECOND, to="featurize").items()}


def test_nothing_is_monitored_before_a_model_serves(wheel: Wheel) -> None:
    monitor = TreadleMonitorOperator(task_id="x", loop=wheel.path)
    with pytest.raises(AirflowSkipException, match="no model serves on track trial as of 2024-02-19"):
        monitor.execute(context(conf={"as_of": "2024-02-19", "track": "trial"}))


def drifting(wheel: Wheel) -> None:
    from small import write_small_loop

    write_small_loop(wheel.path.parent, shift_from=42)
    wheel.edit("orders.yaml", "{schedule: weekly, on: [drift]}", "{on: [drift], strikes: 1, cooldown: 14d}")
    wheel.edit("orders.yaml", "monitor: {every: 7d}", "monitor: {every: 7d, drift: {share: 0.1}}")


def test_drift_asks_for_one_run_however_often_it_is_looked_at(wheel: Wheel) -> None:
    drifting(wheel)
    asset = assets.retrain("orders")
    alias = assets.alias_of(asset)
    retrain = TreadleRetrainOperator(task_id="x", loop=wheel.path, inlets=[asset], outlets=[alias])
    cooling = context(conf={"as_of": "2024-02-19"}, told={asset: []})
    assert "cooldown" in retrain.execute(cooling)["words"]
    assert sent(cooling, alias) == []
    due = context(conf={"as_of": "2024-02-26"}, told={asset: []})
    told = retrain.execute(due)
    (extra,) = sent(due, alias)
    assert (extra["as_of"], extra["trigger"]) == ("2024-02-26T00:00:00Z", "drift")
    assert extra["report"] in wheel.session(SECOND).store.list("records/orders/drift_report")[0]
    event = SimpleNamespace(extra=extra, timestamp=datetime(2024, 2, 26, tzinfo=UTC))
    for as_of in ("2024-02-26", "2024-03-04"):
        again = context(conf={"as_of": as_of}, told={asset: [event]})
        assert retrain.execute(again)["due"]
        assert sent(again, alias) == [], as_of
    assert told["event"] == "event of treadle://orders/retrain"


def test_a_tick_of_the_schedule_is_left_to_the_cron_of_the_dag(wheel: Wheel) -> None:
    asset = assets.retrain("orders")
    retrain = TreadleRetrainOperator(
        task_id="x", loop=wheel.path, inlets=[asset], outlets=[assets.alias_of(asset)]
    )
    given = context(conf={"as_of": "2024-02-19"}, told={asset: []})
    told = retrain.execute(given)
    assert (told["due"], told["trigger"]) == (True, "schedule")
    assert "schedule of the loop's own DAG" in told["event"]


def test_a_rollback_tried_again_goes_back_once(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.run(SECOND)
    wheel.run(THIRD)
    before = wheel.kinds()
    assert before.count("promote") == 3
    alias = assets.alias_of(assets.champion("orders"))
    operator = TreadleRollbackOperator(task_id="x", loop=wheel.path, reason="complaints", outlets=[alias])
    notes = Notes()
    for as_of in (THIRD, "2024-03-26"):
        given = context(conf={"as_of": as_of}, notes=notes, user="maria")
        told = operator.execute(given)
        assert len(sent(given, alias)) == 1
    assert wheel.kinds() == [*before, "rollback"]
    assert (told["who"], told["why"]) == ("maria", "complaints")


def test_predict_scores_a_file_with_the_champion_of_the_run_s_time(wheel: Wheel, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "order_id,placed_at,region,amount,items,hour\n"
        "a,2024-02-13T08:00:00Z,north,20.5,2,8\nb,2024-02-13T09:00:00Z,south,90.0,5,9\n"
    )
    target = tmp_path / "scores.parquet"
    operator = TreadlePredictOperator(task_id="x", loop=wheel.path, source=str(rows), target=str(target))
    told = operator.execute(context(conf={"as_of": "2024-02-20"}))
    assert told["rows"] == 2
    assert target.is_file()


def test_a_stage_that_there_is_not_is_said_when_the_dag_is_parsed(wheel: Wheel) -> None:
    with pytest.raises(ValueError, match="'serve' is no stage"):
        TreadleStageOperator(task_id="x", loop=wheel.path, stage="serve")
