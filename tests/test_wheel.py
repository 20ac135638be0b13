"""The whole wheel on a small loop: reuse, judging, acts, edits, tracks, losses of blobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import treadle
from treadle import acts
from treadle.commit import lost_blobs
from treadle.errors import AsOfError, NeedsPerson, StaleChampion, Transient, UserError
from treadle.runner import deploy_champion
from treadle.status import status
from treadle.store import blob_path
from wheel import FIRST, SECOND, THIRD, Wheel, copy_of, ids, lenient, new_wheel


def test_first_run_makes_a_champion_and_a_second_makes_nothing(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel
) -> None:
    first, again = turned[1], wheel.run(FIRST)
    assert first.verdict.decision == "promote"  # type: ignore[attr-defined]
    assert ids(again) == ids(first)
    assert all(again.reused.values())
    assert wheel.kinds() == ["propose", "promote"]


def test_fresh_store_and_folder_give_the_same_ids(turned: tuple[Wheel, treadle.Run], tmp_path: Path) -> None:
    assert ids(new_wheel(tmp_path / "elsewhere").run(FIRST)) == ids(turned[1])


def test_track_shares_records_and_has_a_log_of_its_own(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel
) -> None:
    replay = wheel.run(FIRST, track="replay")
    assert ids(replay) == ids(turned[1])
    assert replay.reused["train"]
    assert wheel.kinds("replay") == ["propose", "promote"]
    assert len(wheel.kinds()) == 2


def test_every_verdict_enters_the_log_once(wheel: Wheel) -> None:
    second = wheel.run(SECOND)
    entries = wheel.kinds()
    assert second.verdict.champion is not None  # type: ignore[attr-defined]
    assert len(entries) > 2
    wheel.run(SECOND)
    assert wheel.kinds() == entries


@pytest.mark.parametrize(
    ("as_of", "words"),
    [("2999-01-01", "after now"), ("yesterday", "not a date"), ("2023-12-01", "no rows|empty|before")],
)
def test_impossible_as_of_is_refused_in_words(wheel: Wheel, as_of: str, words: str) -> None:
    with pytest.raises((AsOfError, treadle.TreadleError), match=words):
        wheel.run(as_of)
    assert wheel.kinds() == ["propose", "promote"]


def test_from_a_stage_whose_inputs_are_missing_says_where_to_begin(wheel: Wheel) -> None:
    with pytest.raises(UserError, match="Run with --from prepare"):
        wheel.run(SECOND, start="train")


def test_override_on_production_waits_for_a_person_and_on_a_track_does_not(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.run(SECOND, overrides=("gate.margin=0.6",))
    assert wheel.kinds()[-2:] == ["propose", "hold"]
    assert status(wheel.session(SECOND))["pending"]["waits_for"].startswith(
        "the run changed the loop by --set"
    )
    wheel.run(SECOND, overrides=("gate.margin=0.6",), track="replay")
    assert wheel.kinds("replay")[-1] == "promote"


def test_rollback_returns_and_holds_the_recipe_until_a_person_approves(wheel: Wheel) -> None:
    lenient(wheel)
    first = wheel.session(FIRST).log.champion()
    wheel.run(SECOND)
    assert wheel.kinds()[-1] == "promote"
    acts.rollback(wheel.session(SECOND, who="bea"), "complaints")
    assert wheel.session(SECOND).log.champion().candidate == first.candidate  # type: ignore[union-attr]
    third = wheel.run(THIRD)
    assert wheel.kinds()[-2:] == ["propose", "hold"]
    assert wheel.session(THIRD).log.champion().candidate == first.candidate  # type: ignore[union-attr]
    acts.approve(wheel.session(THIRD, who="bea"), "looked at it")
    assert wheel.session(THIRD).log.champion().candidate == third.candidate.digest  # type: ignore[union-attr]


def test_rerun_after_a_rollback_does_not_promote_again(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.run(SECOND)
    acts.rollback(wheel.session(SECOND, who="bea"), "complaints")
    before = wheel.kinds()
    wheel.run(SECOND)
    assert wheel.kinds() == before


def test_rollback_with_nothing_before_is_refused(wheel: Wheel) -> None:
    with pytest.raises(UserError, match="nothing to go back to"):
        acts.rollback(wheel.session(FIRST), "why not")
    with pytest.raises(UserError, match="no champion"):
        acts.rollback(wheel.session(FIRST, track="empty"), "why not")


def test_manual_approval_asks_somebody_else(tmp_path: Path, turned: tuple[Wheel, treadle.Run]) -> None:
    wheel = copy_of(turned[0], tmp_path)
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    wheel.run(FIRST, track="careful")
    assert wheel.session(FIRST, track="careful").log.champion() is None
    with pytest.raises(NeedsPerson, match="someone else"):
        acts.approve(wheel.session(FIRST, track="careful"), "mine is good")
    with pytest.raises(UserError, match="reason"):
        acts.approve(wheel.session(FIRST, track="careful", who="bea"), " ")
    approval, promotion = acts.approve(wheel.session(FIRST, track="careful", who="bea"), "slices are fine")
    assert (approval.who, promotion.details["approved_by"]) == ("bea", "bea")
    with pytest.raises(UserError, match="nothing waits"):
        acts.approve(wheel.session(FIRST, track="careful", who="bea"), "again")


def test_rejected_recipe_is_held_next_time(tmp_path: Path, turned: tuple[Wheel, treadle.Run]) -> None:
    wheel = copy_of(turned[0], tmp_path)
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    wheel.run(FIRST, track="careful")
    acts.reject(wheel.session(FIRST, track="careful", who="bea"), "a holiday week")
    wheel.edit("orders.yaml", "approval: manual\n", "")
    wheel.run(SECOND, track="careful")
    assert wheel.kinds("careful")[-2:] == ["propose", "hold"]
    assert wheel.session(SECOND, track="careful").log.champion() is None


def test_promotion_against_a_champion_that_changed_is_stale(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.run(THIRD)
    promoted = wheel.session(THIRD).log.champion()
    with pytest.raises(StaleChampion, match="serves"):
        wheel.run(SECOND)
    assert wheel.session(THIRD).log.champion() == promoted


def test_edited_features_are_judged_against_the_champion_by_its_own_files(wheel: Wheel) -> None:
    wheel.edit("orders.sql", "items,", "items, amount / items as price,")
    second = wheel.run(SECOND)
    assert second.verdict.mode == "superiority"  # type: ignore[attr-defined]
    assert second.verdict.comparison.champion is not None  # type: ignore[attr-defined]
    assert "price" in [column.name for column in second.features.columns]  # type: ignore[attr-defined]


def test_changed_label_definition_holds(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "label: late,", "label: tardy,")
    wheel.edit("orders.sql", "late, delivered_at", "late as tardy, delivered_at")
    assert wheel.run(SECOND).verdict.decision == "hold"  # type: ignore[attr-defined]


@pytest.mark.parametrize("harm", ["remove", "alter"])
def test_lost_blob_is_made_again_and_ids_stay(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, harm: str
) -> None:
    for kind in ("snapshot", "features", "candidate"):
        record = next(r for r in turned[1].values() if r.kind == kind)
        sha256 = next(sha for name, sha in sorted(record.blobs.items()) if not name.startswith("loop/"))
        path = wheel.store / blob_path(sha256)
        path.unlink() if harm == "remove" else path.write_bytes(b"altered")
    again = wheel.run(FIRST)
    assert ids(again) == ids(turned[1])
    assert not any(lost_blobs(wheel.session(FIRST).store, record) for record in again.values())


def test_unreachable_tracking_lets_training_go_on_and_release_wait(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.edit(
        "orders.yaml", "monitor:", "tracking: {uri: 'http://127.0.0.1:9'}\nretry: {attempts: 1}\nmonitor:"
    )
    with pytest.raises(Transient, match=r"127\.0\.0\.1:9"):
        wheel.run(SECOND)
    assert wheel.kinds() == ["propose", "promote"]
    assert wheel.run(SECOND, to="evaluate").verdict.decision == "promote"  # type: ignore[attr-defined]
    wheel.edit("orders.yaml", "tracking: {uri: 'http://127.0.0.1:9'}\n", "")
    wheel.run(SECOND)
    assert wheel.kinds()[-2:] == ["propose", "promote"]


def test_monitors_and_triggers_follow_the_champion(wheel: Wheel) -> None:
    result = treadle.watch(treadle.Loop.load(wheel.path), as_of="2024-02-19", store=wheel.store)
    assert result.drift_report.rows > 200  # type: ignore[attr-defined]
    assert result.retrain_decision.trigger == "schedule"  # type: ignore[attr-defined]
    assert wheel.kinds()[-1] == "retrain"
    treadle.watch(treadle.Loop.load(wheel.path), as_of="2024-02-19", store=wheel.store)
    assert wheel.kinds().count("retrain") == 1


def test_status_names_who_serves_and_what_stands_behind(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel
) -> None:
    found = status(wheel.session(FIRST))
    assert found["champion"]["candidate"] == turned[1].candidate.digest
    assert found["champion"]["verdict"] == turned[1].verdict.id
    assert found["untracked"] == []
    json.dumps(found)


def test_rebuilt_projections_agree_with_the_log(wheel: Wheel) -> None:
    from treadle.registry.mlflow import champion_alias, set_champion_alias

    session = wheel.session(FIRST)
    assert champion_alias(session.loop, session.store, "production") == "1"
    lenient(wheel)
    wheel.run(SECOND)
    set_champion_alias(session.loop, session.store, "production", "1")  # someone's hand
    wheel.run(SECOND, start="deploy")
    assert champion_alias(session.loop, session.store, "production") == "2"
    deploy_champion(wheel.session(SECOND))


def test_tracking_holds_the_loss_of_every_round(turned: tuple[Wheel, treadle.Run], wheel: Wheel) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{wheel.store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("orders")
    (run,) = client.search_runs([experiment.experiment_id])  # type: ignore[union-attr]
    assert run.data.tags["treadle.record_id"] == turned[1].candidate.id
    assert len(client.get_metric_history(run.info.run_id, "train_log_loss")) == 30
    assert run.data.params["params.max_depth"] == "3"


def test_monitor_with_retrain_runs_what_is_due(wheel: Wheel) -> None:
    from treadle.cli import app
    from typer.testing import CliRunner

    told = CliRunner().invoke(
        app,
        ["monitor", str(wheel.path), "--store", str(wheel.store), "--as-of", SECOND, "--retrain", "--json"],
    )
    found = json.loads(told.stdout)
    assert found["retrain"]["due"]
    assert found["evaluate"]["as_of"] == found["retrain"]["run_as_of"]
    assert told.exit_code == (found["evaluate"]["decision"] == "keep")
    assert wheel.kinds()[2] == "retrain"
