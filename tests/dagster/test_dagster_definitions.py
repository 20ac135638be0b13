"""Loading: what a loop, a folder of loops and a component define, how it is changed, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pytest
import yaml
from dagster_cases import Deployed, failure
from small import LOOP, write_small_loop
from test_imports import HEAVY, loaded_by
from treadle.errors import SpecError
from treadle.loop import Loop
from treadle_dagster import (
    LoopComponent,
    StageData,
    TreadleResource,
    TreadleTranslator,
    folder_definitions,
    loop_assets,
    loop_conditions,
    loop_definitions,
)
from treadle_dagster.specs import loop_specs

ROOT = Path(__file__).parent.parent.parent
ORDER = [
    "snapshot",
    "features",
    "candidate",
    "verdict",
    "release",
    "champion",
    "drift_report",
    "retrain_decision",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_small_loop(tmp_path / "loops", days=1)


def specs_of(assets: list[dg.AssetsDefinition]) -> dict[str, dg.AssetSpec]:
    return {spec.key.path[-1]: spec for one in assets for spec in one.specs}


def test_a_loop_is_a_chain_of_assets_that_say_what_they_are(path: Path) -> None:
    specs = specs_of(loop_assets(path))
    assert list(specs) == ORDER
    for before, after in pairwise(ORDER):
        assert [dep.asset_key.path for dep in specs[after].deps] == [["orders", before]]
    for spec in specs.values():
        assert spec.group_name == "orders"
        assert list(spec.owners) == ["team:ops"]
        assert spec.tags["treadle/loop"] == "orders"
        assert "Will an order arrive late?" in (spec.description or "")
        assert spec.code_version
    assert specs["candidate"].kinds == {"xgboost", "mlflow"}
    assert specs["champion"].freshness_policy is not None


def test_an_edit_changes_the_code_version_of_the_stages_that_read_it_and_of_no_other(path: Path) -> None:
    before = {name: spec.code_version for name, spec in specs_of(loop_assets(path)).items()}
    path.write_text(path.read_text().replace("floor: {roc_auc: 0.55}", "floor: {roc_auc: 0.56}"))
    after = {name: spec.code_version for name, spec in specs_of(loop_assets(path)).items()}
    assert {name for name in before if before[name] != after[name]} == {"verdict"}
    sql = path.parent / "orders.sql"
    sql.write_text(sql.read_text().replace("items,", "items + 1 as items,"))
    edited = {name: spec.code_version for name, spec in specs_of(loop_assets(path)).items()}
    assert {name for name in after if after[name] != edited[name]} == {"snapshot"}


def test_a_translator_renames_and_what_depends_on_it_follows(path: Path) -> None:
    class Prefixed(TreadleTranslator):
        def get_asset_spec(self, data: StageData) -> dg.AssetSpec:
            spec = super().get_asset_spec(data)
            return spec.replace_attributes(
                key=spec.key.with_prefix("ml"), group_name="models", owners=["a@b.org"]
            )

    defs = loop_definitions(path, translator=Prefixed())
    graph = defs.resolve_asset_graph()
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {"ml"}
    assert graph.get(dg.AssetKey(["ml", "orders", "features"])).parent_keys == {
        dg.AssetKey(["ml", "orders", "snapshot"])
    }
    checks = {key.asset_key.path[0] for key in graph.asset_check_keys}
    assert checks == {"ml"}


def test_assets_of_others_feed_the_sources_and_build_on_the_champion(deployed: Deployed) -> None:
    made: list[str] = []

    @dg.asset
    def raw_orders() -> None:
        made.append("raw_orders")

    @dg.asset(deps=[dg.AssetKey(["orders", "snapshot"])])
    def report() -> None:
        made.append("report")

    assets = loop_assets(deployed.wheel.path, sources={"orders": raw_orders})
    result = dg.materialize(
        [raw_orders, *assets, report],
        instance=deployed.instance,
        resources={"treadle": deployed.resource},
        selection=[dg.AssetKey(name) for name in ("raw_orders", ["orders", "snapshot"], "report")],
        tags={"treadle/as_of": "2024-02-12"},
    )
    assert result.success
    assert made == ["raw_orders", "report"]
    with pytest.raises(SpecError, match="'nothing' is no source"):
        loop_assets(deployed.wheel.path, sources={"nothing": raw_orders})


def test_a_loop_without_monitor_or_schedule_has_no_such_assets_jobs_and_ticks(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("monitor", "retrain"))]
    path.write_text("\n".join(lines) + "\n")
    defs = loop_definitions(path)
    repository = defs.get_repository_def()
    assert list(specs_of(loop_assets(path))) == ORDER[:6]
    assert repository.schedule_defs == []
    assert [sensor.name for sensor in repository.sensor_defs] == ["orders_release_sensor"]
    assert {job.name for job in repository.get_all_jobs()} == {"__ASSET_JOB", "orders_loop", "orders_decide"}


def test_nothing_runs_by_itself_until_someone_says_so(path: Path) -> None:
    repository = loop_definitions(path).get_repository_def()
    assert {tick.default_status.value for tick in repository.schedule_defs} == {"STOPPED"}
    assert {look.default_status.value for look in repository.sensor_defs} == {"STOPPED"}


def test_a_broken_loop_says_where_and_why_and_the_others_load(path: Path) -> None:
    (path.parent / "late.yaml").write_text(LOOP.replace("name: orders", "name: late\ncadence: weekly"))
    (path.parent / "twin.yaml").write_text(LOOP)
    (path.parent / "gone.yaml").write_text(
        LOOP.replace("name: orders", "name: gone").replace("load.sql", "no.sql")
    )
    (path.parent / "pools.yaml").write_text("gpu: {}\n")
    defs = folder_definitions(path.parent)
    keys = {tuple(key.path) for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert {("late", "load_error"), ("twin", "load_error"), ("gone", "load_error")} <= keys
    assert ("orders", "champion") in keys
    assert {key[0] for key in keys} == {"orders", "late", "twin", "gone"}
    broken = {spec.key.path[0]: spec.description or "" for spec in defs.resolve_all_asset_specs()}
    assert "late.yaml:2: cadence" in broken["late"]
    assert "orders.yaml has a loop of the name 'orders' already" in broken["twin"]
    assert "gone.yaml" in broken["gone"]
    assert "no.sql" in broken["gone"]
    with pytest.raises(SpecError, match=r"gone\.yaml"):
        folder_definitions(path.parent, strict=True)


def test_loops_of_several_folders_are_one_location_and_names_may_not_meet(path: Path, tmp_path: Path) -> None:
    write_small_loop(tmp_path / "more", days=1)
    more = tmp_path / "more" / "orders.yaml"
    defs = folder_definitions(path.parent, more.parent)
    errors = [spec for spec in defs.resolve_all_asset_specs() if spec.key.path[-1] == "load_error"]
    assert "has a loop of the name 'orders' already" in (errors[0].description or "")
    more.write_text(more.read_text().replace("name: orders", "name: others"))
    found = {key.path[0] for key in folder_definitions(path.parent, more.parent).resolve_all_asset_keys()}
    assert found == {"orders", "others"}


def test_the_placeholder_of_a_broken_loop_fails_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "late.yaml").write_text("name: late\n")
    asset = folder_definitions(tmp_path).get_assets_def(["late", "load_error"])
    result = dg.materialize([asset], raise_on_error=False)
    assert not result.success
    assert "late.yaml" in failure(result)


def test_the_drop_in_location_loads_the_flights_and_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); import assets.definitions as d; d.defs().get_repository_def()"
    )
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(*sorted({{n.partition('.')[0] for n in sys.modules}}))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(found.stdout.split()) & (HEAVY - {"dagster"}) == set()
    assert "dagster" in found.stdout.split()


def test_the_core_does_not_know_dagster() -> None:
    assert "dagster" not in loaded_by("import treadle.runner, treadle.cli, treadle.check")


def test_the_flights_are_partitioned_by_month_until_their_history_ends() -> None:
    assets = loop_assets(ROOT / "loops" / "flights.yaml")
    windows = assets[0].partitions_def
    assert windows is not None
    assert windows.get_partition_keys()[-1] == "2013-12-01"
    assert assets[-1].partitions_def is None
    assert loop_assets(ROOT / "loops" / "flights.yaml", partitions=None)[0].partitions_def is None


def test_a_resource_may_come_from_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THE_STORE", raising=False)
    resource = TreadleResource(store=dg.EnvVar("THE_STORE"))
    with pytest.raises(dg.DagsterInvalidConfigError, match="THE_STORE"):
        dg.materialize(
            loop_assets(path),
            resources={"treadle": resource},
            selection=[dg.AssetKey(["orders", "snapshot"])],
        )


def test_missing_resource_is_a_load_error_that_names_it(path: Path) -> None:
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="treadle"):
        dg.Definitions.validate_loadable(dg.Definitions(assets=loop_assets(path)))


@pytest.mark.filterwarnings("ignore:Parameter `include_sources`")
def test_conditions_ask_when_a_tick_passes_and_when_a_report_drifted(path: Path) -> None:
    conditions = loop_conditions(Loop.load(path))
    assert set(conditions) == {*loop_specs(Loop.load(path))}
    defs = loop_definitions(path, conditions=conditions)
    instance = dg.DagsterInstance.ephemeral()
    start = datetime(2024, 3, 5, 12, tzinfo=UTC)
    first = dg.evaluate_automation_conditions(defs, instance, evaluation_time=start)
    asked = dg.evaluate_automation_conditions(
        defs, instance, cursor=first.cursor, evaluation_time=start.replace(hour=13)
    )
    assert asked.total_requested == 0
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(["orders", "drift_report"]),
            check_name="drift",
            passed=False,
            metadata={},
            severity=dg.AssetCheckSeverity.WARN,
        )
    )
    drifted = dg.evaluate_automation_conditions(
        defs, instance, cursor=asked.cursor, evaluation_time=start.replace(hour=14)
    )
    assert drifted.get_num_requested(dg.AssetKey(["orders", "snapshot"])) == 1
    assert drifted.get_num_requested(dg.AssetKey(["orders", "champion"])) == 1
    monday = dg.evaluate_automation_conditions(
        defs, instance, cursor=drifted.cursor, evaluation_time=datetime(2024, 3, 11, 0, 1, tzinfo=UTC)
    )
    assert monday.get_num_requested(dg.AssetKey(["orders", "snapshot"])) == 1


@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated")
def test_a_component_loads_a_loop_from_the_project_s_root(path: Path) -> None:
    text = yaml.safe_dump(
        {
            "loop": "loops/orders.yaml",
            "sources": {"orders": "raw/orders"},
            "partitions": None,
            "automation": True,
        }
    )
    component = LoopComponent.resolve_from_yaml(text)
    defs = component.build_defs(
        cast("dg.ComponentLoadContext", SimpleNamespace(project_root=path.parent.parent))
    )
    snapshot = defs.resolve_assets_def(["orders", "snapshot"]).specs_by_key[
        dg.AssetKey(["orders", "snapshot"])
    ]
    assert [dep.asset_key.path for dep in snapshot.deps] == [["raw", "orders"]]
    assert snapshot.automation_condition is not None


@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated")
@pytest.mark.parametrize("in_process", [True, False])
def test_a_component_s_own_jobs_run_in_one_process_where_asked_and_leave_the_project_its_executor(
    path: Path, in_process: bool
) -> None:
    component = LoopComponent.resolve_from_yaml(f"loop: loops/orders.yaml\nin_process: {in_process}\n")
    defs = component.build_defs(
        cast("dg.ComponentLoadContext", SimpleNamespace(project_root=path.parent.parent))
    )
    theirs = dg.multiprocess_executor.configured({"max_concurrent": 2}, name="theirs")
    project = dg.Definitions.merge(defs, dg.Definitions(executor=theirs))
    names = {job.name: job.executor_def.name for job in project.get_repository_def().get_all_jobs()}
    own = "in_process" if in_process else "theirs"
    assert names == {"orders_loop": own, "orders_decide": own, "__ASSET_JOB": "theirs"}
