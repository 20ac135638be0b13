"""Schedules, sensors, answers and partitions: what makes a loop run by itself, and in which order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import dagster as dg
import pytest
from dagster_cases import Deployed, failure, shown, told
from small import write_small_loop
from treadle.registry.log import ReleaseLog
from treadle.session import Session
from treadle_dagster import loop_definitions
from treadle_dagster.clock import cadence_of, cron_of_every, is_tick, partition_of, partitions_of
from wheel import FIRST, SECOND, lenient

HISTORY = "name: orders\nhistory: {from: 2024-01-01, to: 2024-03-31}\n"


def definitions(deployed: Deployed) -> dg.Definitions:
    return loop_definitions(deployed.wheel.path, resource=deployed.resource)


def sensor_tick(deployed: Deployed, name: str) -> Any:
    repository = definitions(deployed).get_repository_def()
    context = dg.build_sensor_context(
        instance=deployed.instance, repository_def=repository, resources={"treadle": deployed.resource}
    )
    return repository.get_sensor_def(name).evaluate_tick(context)


def schedule_tick(deployed: Deployed, name: str, moment: str) -> Any:
    context = dg.build_schedule_context(
        instance=deployed.instance, scheduled_execution_time=datetime.fromisoformat(moment)
    )
    return definitions(deployed).get_repository_def().get_schedule_def(name).evaluate_tick(context)


def ask(session: Session, as_of: str, subject: str = "drift:2024-02-20") -> None:
    session.log.append(
        "retrain",
        subject=subject,
        why="two windows in a row drifted",
        as_of=datetime.fromisoformat(as_of).replace(tzinfo=UTC),
        details={"trigger": "drift"},
    )


def test_the_schedules_pass_their_own_tick_as_the_clock(deployed: Deployed) -> None:
    trained = schedule_tick(deployed, "orders_loop_schedule", "2024-03-04T00:00:00+00:00").run_requests[0]
    assert trained.tags["treadle/as_of"] == "2024-03-04T00:00:00Z"
    assert trained.tags["treadle/trigger"] == "schedule"
    looked = schedule_tick(deployed, "orders_watch_schedule", "2024-03-04T00:00:00+00:00").run_requests[0]
    assert looked.tags["treadle/as_of"] == "2024-03-04T00:00:00Z"


def test_a_schedule_skips_what_lies_after_the_loop_s_history(deployed: Deployed) -> None:
    deployed.wheel.edit("orders.yaml", "name: orders\n", HISTORY)
    for name in ("orders_loop_schedule", "orders_watch_schedule"):
        tick = schedule_tick(deployed, name, "2024-04-08T00:00:00+00:00")
        assert not tick.run_requests
        assert "ended 2024-03-31" in tick.skip_message


@pytest.mark.parametrize(
    ("every", "cron"),
    [
        ("7d", "0 0 * * 1"),
        ("14d", "0 0 * * 1"),
        ("1d", "0 0 * * *"),
        ("3d", "0 0 * * *"),
        ("6h", "0 * * * *"),
    ],
)
def test_every_so_often_ticks_that_far_apart(every: str, cron: str) -> None:
    from cronsim import CronSim
    from treadle.clock import parse_duration

    length = parse_duration(every)
    assert cron_of_every(length) == cron
    ticks = CronSim(cron, datetime(2024, 1, 1, tzinfo=UTC))
    kept = [moment for moment in (next(ticks) for _ in range(200)) if is_tick(moment, length)]
    assert {later - earlier for earlier, later in pairwise(kept)} == {length}


def test_a_retrain_in_the_log_asks_for_one_run_until_it_is_judged(deployed: Deployed) -> None:
    session = deployed.wheel.session(SECOND)
    assert "nothing" in sensor_tick(deployed, "orders_retrain_sensor").skip_message
    ask(session, SECOND)
    request = sensor_tick(deployed, "orders_retrain_sensor").run_requests[0]
    again = sensor_tick(deployed, "orders_retrain_sensor").run_requests[0]
    assert request.run_key == again.run_key, "Dagster starts one run for a key"
    assert request.tags["treadle/as_of"] == f"{SECOND}T00:00:00Z"
    assert request.tags["treadle/trigger"] == "drift"
    assert deployed.materialize(request.tags["treadle/as_of"]).success
    assert not sensor_tick(deployed, "orders_retrain_sensor").run_requests


def test_drift_asks_once_within_the_cooldown(deployed: Deployed) -> None:
    wheel = deployed.wheel
    write_small_loop(wheel.path.parent, shift_from=42)
    wheel.edit("orders.yaml", "{schedule: weekly, on: [drift]}", "{on: [drift], strikes: 1, cooldown: 14d}")
    wheel.edit("orders.yaml", "monitor: {every: 7d}", "monitor: {every: 7d, drift: {share: 0.1}}")
    early = deployed.materialize("2024-02-19", "drift_report", "retrain_decision")
    assert early.success, failure(early)
    assert not told(early)["drift_report.drift"].passed
    assert "cooldown" in shown(early)["retrain_decision"]["why"]
    assert not sensor_tick(deployed, "orders_retrain_sensor").run_requests
    late = deployed.materialize("2024-02-26", "drift_report", "retrain_decision")
    assert shown(late)["retrain_decision"]["due"] is True
    keys = {sensor_tick(deployed, "orders_retrain_sensor").run_requests[0].run_key for _ in range(3)}
    deployed.materialize("2024-02-26", "drift_report", "retrain_decision")
    keys |= {sensor_tick(deployed, "orders_retrain_sensor").run_requests[0].run_key}
    assert len(keys) == 1


def decide(deployed: Deployed, **config: str) -> dg.ExecuteInProcessResult:
    job = definitions(deployed).get_job_def("orders_decide")
    return job.execute_in_process(
        run_config={"ops": {"orders__decide": {"config": config}}},
        instance=deployed.instance,
        resources={"treadle": deployed.resource},
        raise_on_error=False,
    )


def pending(deployed: Deployed) -> dg.ExecuteInProcessResult:
    deployed.wheel.edit("orders.yaml", "retrain:", "approval: manual\nretrain:")
    lenient(deployed.wheel)
    result = deployed.materialize(SECOND)
    assert result.success, failure(result)
    return result


def test_a_challenger_that_waits_is_seen_approved_in_one_action_and_serves(deployed: Deployed) -> None:
    result = pending(deployed)
    assert shown(result)["release"]["status"] == "pending"
    check = told(result)["release.answered"]
    assert not check.passed
    assert check.severity is dg.AssetCheckSeverity.WARN
    assert "orders_decide" in (check.description or "")
    model = shown(result)["candidate"]["model"]

    same = decide(deployed, answer="approve", by="ann", reason="looks fine")
    assert not same.success
    assert "someone else approves it" in failure(same)
    other = decide(deployed, answer="approve", by="bo", reason="looks fine", model="0000")
    assert "does not wait" in failure(other)
    assert deployed.wheel.kinds()[-1] == "hold"

    done = decide(deployed, answer="approve", by="bo", reason="looks fine", model=model)
    assert done.success, failure(done)
    assert deployed.wheel.kinds()[-2:] == ["approve", "promote"]
    champion = shown(done)["champion"]
    assert champion["champion"] == model
    assert champion["approved_by"] == "bo"
    assert "entry" in sensor_tick(deployed, "orders_release_sensor").skip_message


def test_an_answer_without_name_or_reason_is_refused_before_it_starts(deployed: Deployed) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"required config entries \['by', 'reason'\]"):
        decide(deployed, answer="approve")
    empty = decide(deployed, answer="reject", by="", reason="")
    assert not empty.success


def test_a_rejection_keeps_the_champion(deployed: Deployed) -> None:
    pending(deployed)
    done = decide(deployed, answer="reject", by="bo", reason="a holiday week")
    assert done.success, failure(done)
    assert deployed.wheel.kinds()[-1] == "reject"
    assert not decide(deployed, answer="reject", by="bo", reason="again").success


def test_what_treadle_approve_did_is_followed_once(deployed: Deployed) -> None:
    from treadle import acts

    assert deployed.materialize(FIRST).success
    assert not sensor_tick(deployed, "orders_release_sensor").run_requests
    pending(deployed)
    acts.approve(deployed.wheel.session(SECOND, who="bo"), "looked at the slices")
    request = sensor_tick(deployed, "orders_release_sensor").run_requests[0]
    assert request.asset_selection == [dg.AssetKey(["orders", "champion"])]
    followed = deployed.materialize(request.tags["treadle/as_of"], "champion")
    assert followed.success, failure(followed)
    assert shown(followed)["champion"]["approved_by"] == "bo"
    assert not sensor_tick(deployed, "orders_release_sensor").run_requests


def test_partitions_are_the_loop_s_cadence_over_its_history_and_end_at_its_clock(deployed: Deployed) -> None:
    deployed.wheel.edit("orders.yaml", "name: orders\n", HISTORY)
    windows = partitions_of(deployed.loop)
    assert windows is not None
    keys = windows.get_partition_keys()
    assert (keys[0], keys[-1]) == ("2024-01-01", "2024-03-18")
    assert partition_of(windows, datetime(2024, 2, 12, tzinfo=UTC)) == "2024-02-05"
    assert cadence_of(deployed.loop) == timedelta(days=7)
    result = deployed.materialize(None, *("snapshot", "features", "candidate"), partition="2024-02-05")
    assert result.success, failure(result)
    data = shown(result)
    assert data["snapshot"]["treadle/as_of"] == "2024-02-12T00:00:00Z"
    event = result.get_asset_materialization_events()[0]
    assert event.materialization.partition == "2024-02-05"


def test_a_loop_in_production_has_an_open_partition_that_stands_for_today(deployed: Deployed) -> None:
    deployed.wheel.edit("orders.yaml", "name: orders\n", "name: orders\nhistory: {from: 2024-01-01}\n")
    windows = partitions_of(deployed.loop)
    assert windows is not None
    newest = windows.get_partition_keys()[-1]
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert windows.time_window_for_partition_key(newest).end > today
    result = deployed.materialize(None, "snapshot", partition=newest)
    assert result.success, failure(result)
    assert shown(result)["snapshot"]["treadle/as_of"].startswith(f"{today:%Y-%m-%d}")


def test_any_year_works_as_the_history_says_and_all_steps_of_a_run_share_a_clock(deployed: Deployed) -> None:
    deployed.wheel.edit("orders.yaml", "name: orders\n", "name: orders\nhistory: {to: 2024-02-12}\n")
    result = deployed.materialize()
    assert result.success, failure(result)
    clocks = {data["treadle/as_of"] for data in shown(result).values()}
    assert clocks == {"2024-02-12T00:00:00Z"}


def test_a_partition_before_the_data_is_refused_and_nothing_is_released(fresh: Deployed) -> None:
    fresh.wheel.edit("orders.yaml", "name: orders\n", "name: orders\nhistory: {from: 2023-06-05}\n")
    result = fresh.materialize(None, partition="2023-06-12")
    assert not result.success
    assert shown(result) == {}
    assert "before" in failure(result)
    with pytest.raises(dg.DagsterUnknownPartitionError, match="2022-01-03"):
        fresh.materialize(None, partition="2022-01-03")


def test_a_look_needs_no_partition_in_a_loop_that_has_some(deployed: Deployed) -> None:
    deployed.wheel.edit("orders.yaml", "name: orders\n", HISTORY)
    asked = schedule_tick(deployed, "orders_watch_schedule", "2024-02-12T00:00:00+00:00").run_requests[0]
    assert asked.partition_key is None
    result = (
        definitions(deployed)
        .resolve_job_def("orders_loop")
        .execute_in_process(
            asset_selection=asked.asset_selection,
            tags=asked.tags,
            instance=deployed.instance,
        )
    )
    assert list(shown(result)) == ["drift_report", "retrain_decision"]
    assert shown(result)["drift_report"]["treadle/as_of"] == "2024-02-12T00:00:00Z"


def test_a_later_partition_waits_until_the_earlier_one_is_judged(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle_dagster import order

    deployed.wheel.edit("orders.yaml", "name: orders\n", HISTORY)
    earlier = deployed.instance.create_run_for_job(
        definitions(deployed).resolve_job_def("orders_loop"),
        tags={"dagster/partition": "2024-02-05"},
        status=dg.DagsterRunStatus.STARTED,
    )
    waited: list[str] = []

    def finish(*_: Any) -> None:
        waited.append("waited")
        deployed.instance.report_run_failed(earlier)

    monkeypatch.setattr(order, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr("time.sleep", finish)
    names = ("snapshot", "features", "candidate", "verdict")
    result = deployed.materialize(None, *names, partition="2024-02-26")
    assert result.success, failure(result)
    assert waited
    other = deployed.materialize(None, *names, partition="2024-02-26", track="elsewhere")
    assert other.success


def test_months_by_a_job_come_in_order_each_judged_against_the_one_before(deployed: Deployed) -> None:
    lenient(deployed.wheel)
    deployed.wheel.edit("orders.yaml", "name: orders\n", HISTORY)
    job = definitions(deployed).resolve_job_def("orders_loop")
    champions = []
    for partition in ("2024-02-05", "2024-02-26", "2024-03-18"):
        result = job.execute_in_process(
            partition_key=partition,
            tags={"treadle/track": "replay"},
            instance=deployed.instance,
            resources={"treadle": deployed.resource},
        )
        champions.append(shown(result)["champion"]["champion"])
    log = ReleaseLog(deployed.wheel.session(FIRST).store, "orders", "replay").entries()
    promoted = [entry for entry in log if entry.kind == "promote"]
    assert [entry.champion for entry in promoted] == [None, *(entry.candidate for entry in promoted[:-1])]
    assert champions == [(entry.candidate or "")[:12] for entry in promoted]
    assert job.tags["treadle/loop"] == "orders"
