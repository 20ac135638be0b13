"""Stages on Kubernetes, end to end on the cluster on loopback: the records of a run in process, whatever befalls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import treadle
from job_cases import features_at, interpreter, over, pool_from, said, settled
from kubernetes_api.server import Api, api_server
from processes import one_json
from treadle import jobs
from treadle.cli import app
from treadle.errors import JobFailed, UserError
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.jobs.file import treadle_version
from treadle.records import Record
from typer.testing import CliRunner
from wheel import FIRST, SECOND, Wheel, copy_of, ids

POOLS = """
cluster:
  backend: kubernetes
  image: treadle:test
  python: {python}
  roles: {{default: treadle-jobs}}
  max_seconds: 600
  options:
    secrets: {{MLFLOW_TRACKING_TOKEN: mlflow/token}}
    grace_s: {grace_s}
    volumes: {{'{folder}': orders}}  # what runs the cluster's containers has this machine's disk
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with api_server() as made:
        made.cluster.secrets["mlflow"] = {"token": "hunter2hunter2"}
        monkeypatch.setenv("KUBECONFIG", str(made.write_config(tmp_path / "kubeconfig")))
        yield made


def on_cluster(wheel: Wheel, python: str = sys.executable, grace_s: int = 60) -> Pool:
    text = POOLS.format(python=python, grace_s=grace_s, folder=wheel.path.parents[1])
    return pool_from(wheel, text, "cluster")


@pytest.mark.parametrize(
    ("befalls", "state"),
    [("evict", "preempted"), ("reboot", "lost"), ("remove_node", "preempted")],
    ids=["drained", "rebooted", "deleted"],
)
def test_a_training_whose_node_is_taken_away_ends_in_the_same_bytes(
    undisturbed: tuple[Wheel, Record], api: Api, tmp_path: Path, befalls: str, state: str
) -> None:
    wheel, whole = copy_of(undisturbed[0], tmp_path / "copy"), undisturbed[1]
    session = wheel.session(SECOND)
    inputs = features_at(wheel, SECOND)
    ref = jobs.submit(session, "train", on_cluster(wheel), inputs)
    said(ref, "train: round 120,")
    getattr(api.cluster, befalls)(ref.handle.name)
    record = settled(session, ref)
    assert (record.id, record.digest, record.blobs) == (whole.id, whole.digest, whole.blobs)
    assert record.notes["resumed_from"] >= 100
    (lost,) = record.notes["attempts"]
    assert (lost["number"], lost["state"]) == (1, state)
    assert lost["reason"]
    assert lost["seconds"] > 0
    assert record.notes["job"]["backend"] == "kubernetes"
    assert record.notes["job"]["name"] != ref.handle.name


def test_stages_make_the_records_of_a_run_in_process(
    turned: tuple[Wheel, treadle.Run], api: Api, tmp_path: Path
) -> None:
    wheel = copy_of(turned[0], tmp_path)
    on_cluster(wheel)
    fresh = Wheel(wheel.path, tmp_path / "fresh")
    lines: list[str] = []
    pools = dict.fromkeys(("prepare", "train", "evaluate"), "cluster")
    run = fresh.run(FIRST, pools=pools, say=lines.append)
    assert ids(run) == ids(turned[1])
    assert any(line.startswith("train: xgboost on") for line in lines)
    made = [api.cluster.objects[key] for key in api.cluster.created if key[0] == "Job"]
    assert [job["metadata"]["labels"]["treadle/stage"] for job in made] == ["prepare", "train", "evaluate"]
    assert {job["spec"]["template"]["spec"]["serviceAccountName"] for job in made} == {"treadle-jobs"}
    assert "hunter2" not in str(made)
    assert "hunter2" not in "".join(lines)


def test_a_client_that_comes_back_goes_on_with_the_running_job(
    undisturbed: tuple[Wheel, Record], api: Api, tmp_path: Path
) -> None:
    wheel = copy_of(undisturbed[0], tmp_path / "copy")
    pool = on_cluster(wheel)
    inputs = features_at(wheel, SECOND)
    first = jobs.submit(wheel.session(SECOND), "train", pool, inputs)
    said(first, "train: round 20,")
    session = wheel.session(SECOND)
    again = jobs.submit(session, "train", pool, inputs)
    assert again.handle == first.handle
    assert JobRef.from_json(again.to_json()) == again
    jobs.cancel(again, 60)
    assert over(again).state == "stopped"
    with pytest.raises(JobFailed, match=r"was cancelled(.|\n)*asked to end"):
        jobs.settle(session, again)
    assert len([key for key in api.cluster.created if key[0] == "Job"]) == 1


def test_a_pool_in_a_cluster_is_compared_with_one_here(
    wheel: Wheel, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    on_cluster(wheel)
    pools = wheel.path.parent / "pools.yaml"
    pools.write_text(f"{pools.read_text()}  price: 0.5\nhere: {{price: 0.5}}\n")
    asked = ["tune-pool", str(wheel.path), "--pools", "here,cluster", "--rounds", "5", "--as-of", FIRST]
    asked += ["--store", str(tmp_path / "own"), "--json"]
    out_of_reach = CliRunner().invoke(app, [*asked, "--scratch", "/var/tmp/treadle-not-mounted"])
    assert out_of_reach.exit_code == 2
    assert "/var/tmp/treadle-not-mounted is a folder of this machine" in out_of_reach.output
    assert not api.cluster.created
    done = CliRunner().invoke(app, [*asked, "--scratch", str(tmp_path / "scratch")])
    assert done.exit_code == 0, done.output
    here, there = one_json(done.stdout)["trials"]
    assert (here["error"], there["error"]) == (None, None)
    assert here["gain"] == there["gain"] > 0, "one model, wherever it was trained"
    assert there["usd"] == pytest.approx(0.5 * there["seconds"] / 3600, rel=0.01)
    assert 0 < there["work_seconds"] < there["seconds"] + 1, "a pod's times are whole seconds"
    assert [key[0] for key in api.cluster.created].count("Job") == 1
    assert sorted(each.name for each in (tmp_path / "own").iterdir()) == ["costs", "probe"]


def test_an_image_without_treadle_is_told_with_what_to_do(wheel: Wheel, api: Api, tmp_path: Path) -> None:
    script = 'echo "python: No module named treadle" >&2; exit 1'
    pool = on_cluster(wheel, interpreter(tmp_path, script))
    session = wheel.session(FIRST)
    inputs = features_at(wheel, FIRST)
    with pytest.raises(JobFailed, match=r"There is no treadle.*image"):
        settled(session, jobs.submit(session, "train", pool, inputs))


def test_an_image_with_another_treadle_is_refused_with_both_versions(
    wheel: Wheel, api: Api, tmp_path: Path
) -> None:
    program = "import sys, treadle.jobs.execute as e; e.treadle_version = lambda: '9.9'; sys.argv[:] = sys.argv[3:]; "
    program += "from treadle.cli import main; main()"
    pool = on_cluster(wheel, interpreter(tmp_path, f'exec {sys.executable} -c "{program}" "$@"'))
    session = wheel.session(FIRST)
    inputs = features_at(wheel, FIRST)
    with pytest.raises(UserError, match=rf"treadle {treadle_version()}, .* has 9\.9"):
        settled(session, jobs.submit(session, "train", pool, inputs))
