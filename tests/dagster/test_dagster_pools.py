"""A stage on a hardware pool, from a Dagster run: its lines, its metadata, its end, and the run's limits."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import treadle
from dagster_cases import Deployed, failure, shown, told
from treadle.jobs import poll
from treadle_dagster import loop_assets, pipes
from treadle_dagster.pipes import JobLogReader
from wheel import FIRST, SECOND, Wheel

pytestmark = pytest.mark.filterwarnings(
    "ignore:AssetExecutionContext.(run_id|get_tag) is deprecated"  # dagster's own Pipes
)


@pytest.fixture
def pooled(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    """The loop with training on the pool `local`: a process of its own on this machine."""
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    deployed.wheel.edit("orders.yaml", "retrain:", "pools: {train: local}\nretrain:")
    return deployed


def lines_of(deployed: Deployed, result: dg.ExecuteInProcessResult) -> list[str]:
    """What the run's log shows."""
    return [entry.user_message for entry in deployed.instance.all_logs(result.run_id)]


def test_a_stage_on_a_pool_makes_the_same_record_and_streams_its_lines(
    pooled: Deployed, turned: tuple[Wheel, treadle.Run]
) -> None:
    result = pooled.materialize(FIRST, "candidate")
    assert result.success, failure(result)
    data = shown(result)["candidate"]
    assert data["treadle/record"] == turned[1]["train"].id
    assert data["job_seconds"] > 0
    assert data["job_device"] == "cpu"
    assert data["job_node"]
    lines = lines_of(pooled, result)
    assert any("is on the pool local" in line for line in lines)
    assert any("train: nothing changed" in line for line in lines)
    assert not any("__dagster_pipes_version" in line for line in lines)
    assert not any("did not receive" in line for line in lines)


def test_a_run_that_ends_early_takes_its_job_with_it(
    pooled: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled.wheel.edit(
        "orders.yaml", "rounds: 30, checkpoint_every: 10", "rounds: 200000, checkpoint_every: 10"
    )
    submitted: list[Any] = []
    submit = pipes.submit

    def remember(*args: Any) -> Any:
        submitted.append(submit(*args))
        return submitted[-1]

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if submitted and poll(submitted[-1]).state == "running":
            raise KeyboardInterrupt

    monkeypatch.setattr(pipes, "submit", remember)
    monkeypatch.setattr(pipes, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    assert not pooled.materialize(FIRST, "candidate").success
    assert poll(submitted[0]).is_over
    assert pooled.wheel.kinds() == ["propose", "promote"]


def test_what_the_job_refuses_is_said_by_the_run_in_the_same_words(pooled: Deployed) -> None:
    pooled.wheel.edit("orders.yaml", "params: {max_depth: 3,", "params: {max_depht: 3,")
    result = pooled.materialize(FIRST, "candidate")
    assert not result.success
    assert "max_depht" in failure(result)


def test_a_broken_rule_on_a_pool_is_a_check_with_its_rows_as_in_this_process(pooled: Deployed) -> None:
    pooled.wheel.edit("orders.yaml", "pools: {train: local}", "pools: {prepare: local}")
    orders = pooled.wheel.path.parent / "orders.csv"
    lines = orders.read_text().splitlines()
    cells = lines[200].split(",")
    cells[3] = "-5"
    orders.write_text("\n".join([*lines[:200], ",".join(cells), *lines[201:]]) + "\n")
    result = pooled.materialize(SECOND, "snapshot")
    assert not result.success
    check = told(result)["snapshot.column_values_to_be_between_amount"]
    assert not check.passed
    assert [row.data["row"] for row in check.metadata["failing_rows"].value.records] != []  # type: ignore[union-attr]


def test_the_champion_is_deployed_on_its_pool_after_a_release_and_here_without_one(pooled: Deployed) -> None:
    pooled.wheel.edit("orders.yaml", "pools: {train: local}", "pools: {deploy: local}")
    result = pooled.materialize(FIRST, "release", "champion")
    assert result.success, failure(result)
    data = shown(result)["champion"]
    assert data["job_node"]
    assert data["treadle/entry"] == 2
    alone = pooled.materialize(FIRST, "champion")
    assert alone.success, failure(alone)
    assert "job_node" not in shown(alone)["champion"]
    assert shown(alone)["champion"]["treadle/record"] == data["treadle/record"]


def test_an_unknown_pool_is_an_error_with_its_line(deployed: Deployed) -> None:
    deployed.wheel.edit("orders.yaml", "retrain:", "pools: {train: gpus}\nretrain:")
    result = deployed.materialize(FIRST, "candidate")
    assert not result.success
    assert "orders.yaml:" in failure(result)
    assert "gpus" in failure(result)


def test_a_pool_limits_how_many_stages_run_at_once(pooled: Deployed) -> None:
    pools = {asset.op.name: asset.op.pool for asset in loop_assets(pooled.wheel.path)}
    assert pools.pop("orders__train") == "local"
    assert set(pools.values()) == {None}


@pytest.mark.parametrize("line", ["plain", '{"a": 1}', '{"__dagster_pipes_version": cut off', ""])
def test_lines_that_are_no_messages_stay_lines(line: str) -> None:
    handled: list[Any] = []
    reader = JobLogReader()
    handler: Any = SimpleNamespace(handle_message=handled.append)
    with reader.read_messages(handler) as params:
        assert params == {"stdio": "stderr"}
        assert not reader.take(line)
        assert reader.take('{"__dagster_pipes_version": "0.1", "method": "log", "params": {}}')
    assert len(handled) == 1
