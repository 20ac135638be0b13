"""DAGs of loops: their shape, what of the loop they show, and what becomes of a loop that can't be used."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.models import DagModel
from airflow.sdk import DAG, Asset, AssetAny, AssetOrTimeSchedule, CronTriggerTimetable, task
from airflow.utils.session import create_session
from desk import stored
from home import DROP_IN, Home, parsed
from small import write_small_loop
from sqlalchemy import select
from treadle import Loop
from treadle.errors import SpecError, UserError
from treadle.loop_code import code_of
from treadle.walk import NEEDS as CORE_NEEDS
from treadle_airflow import LoopDag, MonitorDag, load_loops, loop_task_group
from treadle_airflow.files import _hashes
from treadle_airflow.groups import NEEDS
from treadle_airflow.operators.stages import CIRCLE, TreadleTrainOperator
from wheel import Wheel


def test_the_graph_of_a_loop_reads_like_its_life(wheel: Wheel) -> None:
    dag = LoopDag(wheel.path)
    assert dag.dag_id == "orders"
    assert list(dag.task_group.children) == list(CIRCLE)
    order = [task.task_id for task in dag.topological_sort()]
    assert order == [*(f"{stage}.run" for stage in CIRCLE[:4]), "evaluate.gate", "release.run", "deploy.run"]
    assert [dag.get_task(a).downstream_task_ids for a in order] == [{b} for b in order[1:]] + [set()]


def test_a_dag_says_what_the_loop_says(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "owner: ops\n", "owner: ops\ntags: {team: fulfilment}\nretry: {attempts: 5}\n")
    dag = LoopDag(wheel.path)
    assert dag.tags == {"treadle", "retrain", "team:fulfilment"}
    assert (dag.default_args["owner"], dag.default_args["retries"]) == ("ops", 4)
    assert dag.max_active_runs == 1
    assert dag.description == "Will an order arrive late?"
    for words in (
        "Will an order arrive late?",
        "non-inferiority",
        "roc_auc at least 0.55",
        "weekly; on drift",
    ):
        assert words in (dag.doc_md or "")


def test_a_loop_runs_on_its_cron_or_on_any_one_of_its_assets(wheel: Wheel) -> None:
    table = Asset("s3://lake/orders")
    schedule = LoopDag(wheel.path, assets=[table]).schedule
    assert isinstance(schedule, AssetOrTimeSchedule)
    assert isinstance(schedule.timetable, CronTriggerTimetable)
    assert schedule.timetable.expression == "0 0 * * 1"
    assert isinstance(schedule.asset_condition, AssetAny)
    assert {asset.uri for asset in schedule.asset_condition.objects} == {
        "s3://lake/orders",
        "treadle://orders/retrain",
    }


@pytest.mark.parametrize(
    ("retrain", "expected"),
    [
        ("{schedule: monthly}", "0 0 1 * *"),
        ("{schedule: '0 6 * * 1'}", "0 6 * * 1"),
        ("{on: [drift]}", None),
    ],
)
def test_schedules_without_assets_or_without_cron(wheel: Wheel, retrain: str, expected: str | None) -> None:
    wheel.edit("orders.yaml", "{schedule: weekly, on: [drift]}", retrain)
    schedule = LoopDag(wheel.path).schedule
    assert getattr(schedule, "expression", None) == expected
    assert isinstance(schedule, AssetAny) == (expected is None)


def test_the_user_s_own_schedule_wins(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "{schedule: weekly, on: [drift]}", "{schedule: weekly}")
    assert LoopDag(wheel.path, schedule=None).schedule is None
    assert MonitorDag(wheel.path, schedule="0 7 * * *").schedule == "0 7 * * *"


def test_the_monitor_of_a_loop(wheel: Wheel) -> None:
    dag = MonitorDag(wheel.path)
    assert dag.dag_id == "orders__monitor"
    assert [task.task_id for task in dag.topological_sort()] == ["monitor", "retrain"]
    assert dag.schedule.expression == "0 0 * * 1"  # type: ignore[union-attr]
    wheel.edit("orders.yaml", "monitor: {every: 7d}\n", "")
    with pytest.raises(UserError, match="no `monitor` section"):
        MonitorDag(wheel.path)
    assert list(load_loops(wheel.path.parent)) == ["orders"]


def test_the_form_of_a_run_takes_what_the_command_line_takes(wheel: Wheel) -> None:
    params = LoopDag(wheel.path, params={"mine": 7}).params
    assert params["mine"] == 7
    assert [params[name] for name in ("as_of", "track", "set", "pools")] == [None, "production", [], []]
    params["set"] = ["train.rounds=50", 'gate.guard={"roc_auc": -0.02}']
    with pytest.raises(ValueError, match="Invalid input for param set"):
        params["set"] = ["rounds"]


def test_a_pool_names_airflow_s_own_pool_and_queue(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "gate:\n", "pools: {train: big, evaluate: small}\ngate:\n")
    pools = "big:\n  airflow: {pool: gpus, pool_slots: 2, queue: heavy}\nsmall: {cpu: 1}\n"
    (wheel.path.parent / "pools.yaml").write_text(pools)
    dag = LoopDag(wheel.path)
    placed = {name: (t.pool, t.pool_slots, t.queue) for name, t in dag.task_dict.items()}
    assert placed["train.run"] == ("gpus", 2, "heavy")
    assert placed["evaluate.run"] == placed["prepare.run"] == ("default_pool", 1, "default")


def test_a_group_stands_between_the_user_s_own_tasks(wheel: Wheel) -> None:
    class Mine(TreadleTrainOperator):
        """Trains, and more."""

    with DAG("mine") as dag:

        @task
        def extract() -> None: ...

        @task(trigger_rule="none_failed")
        def tell() -> None: ...

        extract() >> loop_task_group(wheel.path, operators={"train": Mine}) >> tell()
    assert isinstance(dag.get_task("orders.train.run"), Mine)
    assert dag.get_task("orders.prepare.run").upstream_task_ids == {"extract"}
    assert dag.get_task("tell").upstream_task_ids == {"orders.deploy.run"}
    inputs = dag.get_task("orders.train.run").inputs  # type: ignore[attr-defined]
    assert inputs == {"featurize": "{{ ti.xcom_pull(task_ids='orders.featurize.run')['id'] }}"}


def test_stages_hand_on_what_the_core_needs() -> None:
    assert {stage: set(names) for stage, names in NEEDS.items()} == {
        stage: set(names) for stage, names in CORE_NEEDS.items()
    }


def digest(wheel: Wheel) -> str:
    return LoopDag(wheel.path).get_task("train.run").spec_digest  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("orders.yaml", "rounds: 30", "rounds: 31"),
        ("orders.sql", "select order_id", "select  order_id"),
        ("order_features.py", "hours=12", "hours=13"),
    ],
)
def test_any_edit_of_a_loop_changes_what_airflow_stores_of_the_dag(
    wheel: Wheel, file: str, before: str, after: str
) -> None:
    stored = serialized(LoopDag(wheel.path))
    assert serialized(LoopDag(wheel.path)) == stored
    wheel.edit(file, before, after)
    assert serialized(LoopDag(wheel.path)) != stored


def serialized(dag: Any) -> Any:
    from airflow.serialization.serialized_objects import DagSerialization

    return DagSerialization.to_dict(dag)


def test_a_version_rests_on_the_files_that_the_core_follows(tmp_path: Path) -> None:
    loop = Loop.load(write_small_loop(tmp_path))
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    features = tmp_path / "order_features.py"
    features.write_text(
        f"import helper, json\nfrom parts import (\n    one,\n    two as zwei,\n)\n{features.read_text()}"
    )
    for name, text in {
        "helper.py": "def f():\n    from parts.deep import inner\n",
        "parts/__init__.py": "from . import one\n",
        "parts/one.py": "from .two import x\nfrom .deep.inner import y\n",
        "parts/two.py": "x = 1\n",
        "parts/deep/__init__.py": "",
        "parts/deep/inner.py": "y = 1\nfrom ..two import x\n",
        "unused.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    names = ["order_features.py", "orders.sql"]
    assert _hashes(loop, names) == code_of(loop, names)


def test_what_airflow_stores_holds_no_address_and_no_place(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_STORE", "s3://key:secret@bucket/treadle")
    stored = serialized(LoopDag(wheel.path))
    stored["dag"].pop("fileloc")
    assert "secret" not in str(stored)
    assert str(wheel.path.parent) not in str(stored["dag"]["tasks"])


@pytest.fixture
def folder(wheel: Wheel, tmp_path: Path) -> Path:
    """A DAGs folder with the drop-in file and three loops, of which two can't be used."""
    dags = tmp_path / "dags"
    shutil.copytree(wheel.path.parent, dags / "loops")
    shutil.copy(DROP_IN, dags)
    good = (dags / "loops" / "orders.yaml").read_text()
    (dags / "loops" / "broken.yaml").write_text(good.replace("holdout: 14d", "holdout: fortnight"))
    (dags / "loops" / "lacking.yaml").write_text(
        good.replace("name: orders", "name: lacking").replace("sql: orders.sql", "sql: gone.sql")
    )
    (dags / "loops" / "pools.yaml").write_text("small: {cpu: 1}\n")
    return dags


def test_a_broken_loop_is_an_import_error_of_its_own_with_file_and_line(folder: Path) -> None:
    told = parsed(folder / "treadle_loops.py", folder)
    broken, lacking = str(folder / "loops" / "broken.yaml"), str(folder / "loops" / "lacking.yaml")
    assert set(told.import_errors) == {broken, lacking}
    assert f"{broken}:12: data.holdout: 'fortnight' is not a duration" in told.import_errors[broken]
    assert f"{lacking}:9: data.tables.orders.sql: the file gone.sql" in told.import_errors[lacking]
    assert {dag.dag_id for dag in told.serialized_dags} == {"orders", "orders__monitor"}


def test_airflow_s_own_commands_store_the_other_loops_and_say_what_they_left_out(
    home: Home, wheel: Wheel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = wheel.path.read_text().replace("holdout: 14d", "holdout: fortnight")
    (wheel.path.parent / "a_broken.yaml").write_text(text)
    home.drop_in(wheel.path.parent)
    # As in `airflow dags reserialize`, which has no DAG processor, and stops at a DAG that can't be stored.
    monkeypatch.delitem(sys.modules, "airflow.dag_processing.processor", raising=False)
    stored(home)
    with create_session() as session:
        assert set(session.scalars(select(DagModel.dag_id))) == {"orders", "orders__monitor"}
    assert "a_broken.yaml:12: data.holdout: 'fortnight' is not a duration" in caplog.text


def test_two_loops_of_one_name_are_told_apart(folder: Path) -> None:
    (folder / "loops" / "broken.yaml").write_text((folder / "loops" / "orders.yaml").read_text())
    told = parsed(folder / "treadle_loops.py", folder)
    assert "name 'orders' is taken by" in told.import_errors[str(folder / "loops" / "orders.yaml")]
    assert {dag.dag_id for dag in told.serialized_dags} == {"orders", "orders__monitor"}


def test_a_task_s_process_builds_its_own_loop_only_and_says_when_it_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "orders__monitor")
    assert list(load_loops(folder / "loops")) == ["orders", "orders__monitor"]
    (folder / "loops" / "orders.yaml").unlink()
    with pytest.raises(UserError, match=r"no loop in .* is named 'orders'.*deleted, renamed or broken"):
        load_loops(folder / "loops")


def test_a_dag_of_someone_else_in_a_task_s_process_is_none_of_ours(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "orders")
    assert list(load_loops(folder / "loops")) == ["orders", "orders__monitor"]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone does not exist: make it, or set TREADLE_LOOPS"):
        load_loops(tmp_path / "gone")


def test_a_loop_file_that_can_t_be_used_fails_where_the_user_s_dag_names_it(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "holdout: 14d", "holdout: fortnight")
    with pytest.raises(SpecError, match=r"orders.yaml:12: data.holdout"):
        LoopDag(wheel.path)


def test_a_loop_written_in_python_needs_no_file(wheel: Wheel) -> None:
    loop = Loop.load(wheel.path)
    assert LoopDag(loop).task_ids == LoopDag(wheel.path).task_ids
