"""A stage that Airflow or Dagster sends to Kubernetes, as the cluster on loopback plays it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import treadle
from airflow_face import turn_by_airflow
from dagster_cases import Deployed, failure, shown
from kubernetes_api.server import Api, api_server
from treadle.commit import all_records
from treadle.records import Candidate, Verdict
from treadle.store import open_store
from wheel import FIRST, Wheel, copy_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:AssetExecutionContext.(run_id|get_tag) is deprecated"
    ),  # dagster's Pipes
]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with api_server() as made:
        monkeypatch.setenv("KUBECONFIG", str(made.write_config(tmp_path / "kubeconfig")))
        yield made


def sent_to_the_cluster(wheel: Wheel, folder: Path) -> Wheel:
    """A copy of a loop whose training goes to the cluster, with an empty store."""
    copied = copy_of(wheel, folder / "copy")
    copied.edit("orders.yaml", "retrain:", "pools: {train: cluster}\nretrain:")
    pool = f"cluster: {{backend: kubernetes, image: 'treadle:test', python: {sys.executable}, "
    # What runs the cluster's containers has this machine's disk.
    pool += f"options: {{volumes: {{'{folder}': orders}}}}}}\n"
    (copied.path.parent / "pools.yaml").write_text(pool)
    return Wheel(copied.path, folder / "fresh")


def test_airflow_s_stage_in_a_cluster_makes_the_same_records_and_shows_its_lines(
    turned: tuple[Wheel, treadle.Run], api: Api, tmp_path: Path
) -> None:
    fresh = sent_to_the_cluster(turned[0], tmp_path)
    said = turn_by_airflow(fresh, [FIRST], "production")
    store = open_store(str(fresh.store))
    (candidate,) = all_records(store, Candidate, "orders")
    (verdict,) = all_records(store, Verdict, "orders")
    assert (candidate.id, verdict.id) == (turned[1]["train"].id, turned[1]["evaluate"].id)
    assert candidate.digest == turned[1]["train"].digest
    assert candidate.notes["job"]["pool"] == "cluster"
    assert "is on the pool cluster" in said or "train on the pool cluster" in said
    assert "deferr" in said.lower()  # no worker's slot is held while it runs


def test_dagster_s_stage_in_a_cluster_makes_the_same_records_and_shows_its_lines(
    turned: tuple[Wheel, treadle.Run], api: Api, tmp_path: Path
) -> None:
    fresh = sent_to_the_cluster(turned[0], tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        result = Deployed(fresh, instance).materialize(FIRST)
        assert result.success, failure(result)
        made = {name: data.get("treadle/record") for name, data in shown(result).items()}
        lines = [entry.user_message for entry in instance.all_logs(result.run_id)]
        node = shown(result)["candidate"]["job_node"]
    assert made["candidate"] == turned[1]["train"].id
    assert made["verdict"] == turned[1]["evaluate"].id
    assert node
    assert any("is on the pool cluster" in line for line in lines)
    assert any("train: round " in line for line in lines)
    assert not any("__dagster_pipes_version" in line for line in lines)
