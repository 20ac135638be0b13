"""A stage that Dagster sends to Kubernetes, as the cluster on loopback plays it; Airflow has a test of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import treadle
from dagster_cases import Deployed, failure, shown
from kubernetes_api.server import Api, api_server
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


def test_dagster_s_stage_in_a_cluster_makes_the_same_records_and_shows_its_lines(
    turned: tuple[Wheel, treadle.Run], api: Api, tmp_path: Path
) -> None:
    copied = copy_of(turned[0], tmp_path / "copy")
    copied.edit("orders.yaml", "retrain:", "pools: {train: cluster}\nretrain:")
    pool = f"cluster: {{backend: kubernetes, image: 'treadle:test', python: {sys.executable}, "
    # What runs the cluster's containers has this machine's disk.
    pool += f"options: {{volumes: {{'{tmp_path}': orders}}}}}}\n"
    (copied.path.parent / "pools.yaml").write_text(pool)
    fresh = Wheel(copied.path, tmp_path / "fresh")
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
