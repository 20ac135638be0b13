"""SIGKILL at any instant, then again: the same records, nothing promoted twice, no litter that harms."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import treadle
from processes import Death, call_together, command, one_json, running_command, turn
from treadle import acts
from treadle.commit import lost_blobs
from treadle.records import KINDS
from treadle.registry.log import ReleaseLog
from treadle.registry.mlflow import _mlflow, champion_alias
from wheel import FIRST, SECOND, Wheel, copy_of, ids, lenient, new_wheel

# In the order in which a run comes to them.
DEATHS = [
    Death("within", "leases/snapshot"),
    Death("after", "leases/snapshot"),
    Death("after", "memo/check"),
    Death("after", "memo/partition"),
    Death("within", "blobs/"),
    Death("before", "records/orders/snapshot"),
    Death("within", "records/orders/snapshot"),
    Death("after", "records/orders/snapshot"),
    Death("after", "memo/featurize"),
    Death("before", "records/orders/features"),
    Death("after", "records/orders/features"),
    Death("before", "00000010.json"),
    Death("after", "00000010.json"),
    Death("within", "00000020.json"),
    Death("before", "records/orders/candidate"),
    Death("after", "records/orders/candidate"),
    Death("after", "leases/mlflow-orders"),
    Death("before", "projections/orders/production/candidate"),
    Death("after", "projections/orders/production/candidate"),
    Death("before", "records/orders/verdict"),
    Death("after", "records/orders/verdict"),
    Death("before", "logs/orders/production/00000003"),
    Death("within", "logs/orders/production/00000003"),
    Death("after", "logs/orders/production/00000003"),
    Death("within", "logs/orders/production/00000004"),
    Death("after", "logs/orders/production/00000004"),
    Death("before", "records/orders/release"),
    Death("after", "records/orders/release"),
    Death("within", "records/orders/deployment"),
    Death("after", "records/orders/deployment"),
    Death("after", "leases/mlflow-orders-alias"),
    Death("before", "projections/orders/production/champion-4"),
    Death("after", "projections/orders/production/champion-4"),
]
BRIEF = [
    Death("after", "memo/partition"),
    Death("before", "records/orders/features"),
    Death("after", "00000010.json"),
    Death("before", "projections/orders/production/candidate"),
    Death("after", "logs/orders/production/00000003"),
    Death("after", "logs/orders/production/00000004"),
    Death("before", "projections/orders/production/champion-4"),
]


@pytest.fixture(scope="module")
def undisturbed(
    turned: tuple[Wheel, treadle.Run], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, str]]:
    """The ids of a second turn, which promotes, that nobody killed."""
    wheel = copy_of(turned[0], tmp_path_factory.mktemp("undisturbed"))
    lenient(wheel)
    found = ids(wheel.run(SECOND))
    assert wheel.kinds()[-1] == "promote"
    return found


def assert_whole(wheel: Wheel, as_of: str, log: list[str]) -> None:
    """The log is as it would have been, every record is intact, MLflow has one version for each candidate."""
    session = wheel.session(as_of)
    assert wheel.kinds() == log
    for path in sorted((wheel.store / "records").rglob("*.json")):
        record = KINDS[path.parent.name].from_json(path.read_bytes())
        assert not lost_blobs(session.store, record)
        assert "." not in record.id, "a rebuild came to other results"
    candidates = len(list((wheel.store / "records" / "orders" / "candidate").glob("*.json")))
    with _mlflow(session.loop, session.store) as client:
        versions = client.search_model_versions("name = 'orders'")
        experiment = client.get_experiment_by_name("orders").experiment_id
        runs = client.search_runs([experiment])
    assert len(versions) == len(runs) == candidates
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert champion_alias(session.loop, session.store, "production") == str(candidates)


@pytest.mark.slow
def test_run_killed_again_and_again_ends_in_the_same_records(
    wheel: Wheel, undisturbed: dict[str, tuple[str, str]]
) -> None:
    lenient(wheel)
    for death in BRIEF:
        assert turn(wheel, SECOND, death=death) is None, f"{death} was never come to"
    ended = turn(wheel, SECOND)
    assert ended is not None
    assert ended["ids"] == undisturbed
    assert_whole(wheel, SECOND, ["propose", "promote", "propose", "promote"])


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_killed_once_and_run_again_ends_in_the_same_records(
    wheel: Wheel, undisturbed: dict[str, tuple[str, str]], death: Death
) -> None:
    lenient(wheel)
    assert turn(wheel, SECOND, death=death) is None
    ended = turn(wheel, SECOND)
    assert ended is not None
    assert ended["ids"] == undisturbed
    assert_whole(wheel, SECOND, ["propose", "promote", "propose", "promote"])


def test_training_goes_on_from_its_checkpoint(wheel: Wheel, undisturbed: dict[str, tuple[str, str]]) -> None:
    wheel.edit("orders.yaml", "max_depth: 3,", "max_depth: 3, subsample: 0.8,")
    whole = copy_of(wheel, wheel.path.parent.parent / "whole").run(SECOND, to="train").candidate
    assert turn(wheel, SECOND, to="train", death=Death("after", "00000020.json")) is None
    again = wheel.run(SECOND, to="train").candidate
    assert (again.id, again.digest, again.blobs) == (whole.id, whole.digest, whole.blobs)  # type: ignore[attr-defined]
    assert again.notes["resumed_from"] == 20  # type: ignore[attr-defined]
    assert again.notes["rounds_trained"] == 10  # type: ignore[attr-defined]


@pytest.mark.slow
def test_kill_between_proposal_and_hold_still_holds(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    lenient(wheel)
    death = Death("after", "logs/orders/production/00000003")
    assert turn(wheel, SECOND, death=death) is None
    assert wheel.kinds()[2:] == ["propose"]
    assert turn(wheel, SECOND) is not None
    assert wheel.kinds()[2:] == ["propose", "hold"]


def approve(wheel: Wheel, as_of: str) -> int:
    return len(acts.approve(wheel.session(as_of, who="bea"), "looked at it"))


def rollback(wheel: Wheel, as_of: str) -> str:
    return acts.rollback(wheel.session(as_of, who="bea"), "complaints").kind


def test_approval_killed_before_its_promotion_is_finished_by_approving_again(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    wheel.run(SECOND)
    death = Death("before", "logs/orders/production/00000006")
    assert call_together((approve, wheel, SECOND), death=death) == [("killed", None)]
    assert wheel.kinds()[2:] == ["propose", "hold", "approve"]
    assert call_together((approve, wheel, SECOND)) == [("done", 2)]
    assert wheel.kinds()[2:] == ["propose", "hold", "approve", "promote"]
    wheel.run(SECOND)
    assert_whole(wheel, SECOND, ["propose", "promote", "propose", "hold", "approve", "promote"])


def test_rollback_killed_before_its_projections_is_caught_up_by_the_next_run(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.run(SECOND)
    death = Death("after", "logs/orders/production/00000005")
    assert call_together((rollback, wheel, SECOND), death=death) == [("killed", None)]
    session = wheel.session(SECOND)
    assert champion_alias(session.loop, session.store, "production") == "2"
    wheel.run(SECOND)
    assert wheel.kinds()[2:] == ["propose", "promote", "rollback"]
    assert champion_alias(session.loop, session.store, "production") == "1"


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never came"
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.slow
def test_console_command_killed_in_training_is_finished_by_the_next(
    wheel: Wheel, undisturbed: dict[str, tuple[str, str]]
) -> None:
    lenient(wheel)
    args = ("run", wheel.path, "--as-of", SECOND, "--store", wheel.store, "--by", "ann", "--json")
    with running_command(*args) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("train: round 10"))
    assert process.returncode == -signal.SIGKILL
    ended = command(*args)
    assert ended.returncode == 0, ended.stderr
    found = {stage: (record["id"], record["digest"]) for stage, record in one_json(ended.stdout).items()}
    assert found == undisturbed


@pytest.mark.slow
def test_kill_while_mlflows_database_is_made_leaves_nothing_half_made(
    turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    wheel = new_wheel(tmp_path)
    args = ("run", wheel.path, "--as-of", FIRST, "--store", wheel.store, "--by", "ann", "--json")
    with running_command(*args) as process:
        wait_for(lambda: any(wheel.store.glob(".new-*mlflow.db")), process)
        time.sleep(0.5)
    ended = command(*args)
    assert ended.returncode == 0, ended.stderr
    found = {stage: (record["id"], record["digest"]) for stage, record in one_json(ended.stdout).items()}
    assert found == ids(turned[1])
    assert_whole(wheel, FIRST, ["propose", "promote"])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_kill_at_a_time_of_no_ones_choosing(
    wheel: Wheel, undisturbed: dict[str, tuple[str, str]], number: int
) -> None:
    lenient(wheel)
    for attempt in range(3):
        args = ("run", wheel.path, "--as-of", SECOND, "--store", wheel.store, "--by", "ann")
        with running_command(*args) as process:
            assert process.stderr is not None
            process.stderr.readline()
            time.sleep(0.1 + 0.35 * number + 0.12 * attempt)
    ended = turn(wheel, SECOND)
    assert ended is not None
    assert ended["ids"] == undisturbed
    assert_whole(wheel, SECOND, ["propose", "promote", "propose", "promote"])


def test_torn_record_of_another_system_is_told_and_not_trusted(wheel: Wheel) -> None:
    (path,) = (wheel.store / "records" / "orders" / "candidate").glob("*.json")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(treadle.TreadleError, match="no candidate record that this version can read"):
        wheel.run(FIRST)
    assert wheel.kinds() == ["propose", "promote"]
    path.unlink()
    wheel.run(FIRST)
    assert wheel.kinds() == ["propose", "promote"]


def test_unfinished_files_of_killed_writers_are_never_read(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run]
) -> None:
    for folder in [path for path in wheel.store.rglob("*") if path.is_dir()]:
        (folder / ".new-0123456789abcdef").write_bytes(b"half of somethi")
    assert ids(wheel.run(FIRST)) == ids(turned[1])
    assert len(ReleaseLog(wheel.session(FIRST).store, "orders").entries()) == 2
