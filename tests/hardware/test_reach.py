"""A store that a pool's machines can't reach is refused before anything is submitted, and by `treadle check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import treadle
from small import write_small_loop
from treadle import jobs
from treadle.check import Finding, check
from treadle.errors import MissingPackage, UserError
from treadle.hardware.kubernetes.backend import KubernetesBackend
from treadle.hardware.local import LocalBackend
from treadle.hardware.look import look_at
from treadle.hardware.pools import Pool
from treadle.hardware.ray.backend import RayBackend
from treadle.hardware.reach import refuse_store_out_of_reach
from treadle.hardware.sagemaker.backend import SageMakerBackend
from treadle.jobs.command import render
from treadle.jobs.planning import plan_job
from treadle.session import open_session
from wheel import FIRST

CLUSTER: dict[str, Any] = {"name": "cluster", "backend": "kubernetes", "image": "treadle:1"}
AWS: dict[str, Any] = {
    "name": "aws",
    "backend": "sagemaker",
    "image": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/treadle:1",
    "roles": {"default": "arn:aws:iam::123456789012:role/treadle"},
    "region": "eu-central-1",
    "options": {"bucket": "s3://artifacts/treadle"},
}


@pytest.fixture
def loop(tmp_path: Path) -> treadle.Loop:
    return treadle.Loop.load(write_small_loop(tmp_path / "loop", days=1))


@pytest.mark.parametrize("about", [CLUSTER, AWS], ids=["kubernetes", "sagemaker"])
def test_a_store_in_a_folder_is_refused_before_anything_is_submitted(
    loop: treadle.Loop, tmp_path: Path, about: dict[str, Any]
) -> None:
    pool, store = Pool.model_validate(about), tmp_path / "store"
    session = open_session(loop, as_of=FIRST, store=store, who="ann")
    words = rf"{store} is a folder of this machine, .* pool {pool.name} have disks of their own.*s3://"
    # Nothing but the request would be refused by a place: there is none here.
    with pytest.raises(UserError, match=words):
        jobs.submit(session, "prepare", pool, {})
    with pytest.raises(UserError, match=words):
        render(loop, "prepare", pool, track="production", store=str(store))
    assert session.store.list(f"jobs/{loop.name}") == []
    assert session.store.list(f"costs/{loop.name}") == []


def test_a_folder_counts_where_the_pool_mounts_it_or_one_above_it() -> None:
    backend = KubernetesBackend()
    mounted = Pool.model_validate({**CLUSTER, "options": {"volumes": {"/mnt/team": "files"}}})
    for store in ("/mnt/team", "/mnt/team/stores/a", "file:///mnt/team/a", "s3://bucket/a"):
        refuse_store_out_of_reach(backend, mounted, store)
    for store in ("/mnt/teams", "/mnt", "/var/stores/a"):
        with pytest.raises(UserError, match=r"options: \{volumes: "):
            refuse_store_out_of_reach(backend, mounted, store)
    with pytest.raises(UserError) as told:
        refuse_store_out_of_reach(SageMakerBackend(), Pool.model_validate(AWS), "/mnt/team")
    assert "volumes" not in str(told.value), "SageMaker mounts nothing"


def test_a_place_that_may_share_a_disk_takes_a_folder(tmp_path: Path) -> None:
    far = Pool(name="far", backend="ray", options={"address": "http://head:8265"})
    refuse_store_out_of_reach(RayBackend(tmp_path), far, str(tmp_path))
    refuse_store_out_of_reach(LocalBackend(tmp_path), Pool(name="local"), str(tmp_path))


def found(path: Path, store: str | None) -> list[Finding]:
    return [each for each in check(path, only=["TR058"], store=store) if each.field.startswith("pools.")]


def test_treadle_check_says_so_where_the_store_is_known(
    loop: treadle.Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TREADLE_STORE", raising=False)
    path = loop.folder / "orders.yaml"
    (loop.folder / "pools.yaml").write_text("cluster: {backend: kubernetes, image: treadle:1}\n")
    path.write_text(f"{path.read_text()}pools: {{train: cluster}}\n")
    (error,) = found(path, "/var/store")
    assert (error.code, error.severity, error.field) == ("TR058", "error", "pools.train")
    assert "/var/store is a folder of this machine" in error.evidence
    assert error.line == len(path.read_text().splitlines())
    assert found(path, "s3://bucket/store") == []
    monkeypatch.setenv("TREADLE_STORE", "/var/other")
    (error,) = found(path, None)
    assert "/var/other" in error.evidence
    monkeypatch.delenv("TREADLE_STORE")
    (unknown,) = found(path, None)
    assert (unknown.code, unknown.severity) == ("TR003", "info")
    assert "--store" in unknown.fix


@pytest.mark.parametrize("stage", ["train", "prepare"])
def test_a_job_costs_what_the_machine_costs_that_its_backend_chooses(
    loop: treadle.Loop, s3_environment: str, stage: str
) -> None:
    pool = Pool.model_validate(
        {**AWS, "accelerator": "nvidia-l4", "count": 1, "memory_gib": 12, "max_seconds": 3600}
    )
    session = open_session(loop, as_of=FIRST, store=f"s3://treadle/chosen-{stage}", who="ann")
    plan = plan_job(session, stage, pool)
    request = render(loop, stage, pool, track="production", store=session.store.uri)["request"]
    asked = request.get("ResourceConfig") or request["ProcessingResources"]["ClusterConfig"]
    assert plan.instance_type == asked["InstanceType"] == "ml.g6.xlarge"
    assert (plan.usd_per_hour, plan.usd) == (0.8048, 0.8048)
    assert plan.price.startswith("about 0.8048 USD an hour for g6.xlarge")
    larger = plan_job(session, stage, pool.model_copy(update={"cpu": 6}))
    assert (larger.instance_type, larger.usd) == ("ml.g6.2xlarge", 0.9776)
    named = plan_job(session, stage, pool.model_copy(update={"price": 3.0}))
    assert named.usd == 3.0


def test_a_chosen_machine_without_cards_has_its_price_too(loop: treadle.Loop, s3_environment: str) -> None:
    session = open_session(loop, as_of=FIRST, store="s3://treadle/plain", who="ann")
    plan = plan_job(session, "prepare", Pool.model_validate({**AWS, "cpu": 4}))
    assert (plan.instance_type, plan.usd_per_hour) == ("ml.m5.xlarge", 0.192)
    assert "SageMaker's own is higher" in plan.price


def test_a_chosen_machine_without_a_price_is_named_as_such(loop: treadle.Loop, s3_environment: str) -> None:
    pool = Pool.model_validate({**AWS, "accelerator": "trainium2", "count": 16})
    session = open_session(
        loop.model_copy(update={"train": loop.train.model_copy(update={"flavour": "torch"})}),
        as_of=FIRST,
        store="s3://treadle/unpriced",
        who="ann",
    )
    plan = plan_job(session, "train", pool)
    assert plan.usd_per_hour is None
    assert "knows ml.trn2.48xlarge without a price" in plan.price


@pytest.mark.parametrize(
    ("about", "package"), [(CLUSTER, "kubernetes"), (AWS, "boto3")], ids=["kubernetes", "sagemaker"]
)
def test_a_fault_of_ones_own_is_told_before_a_missing_package_and_neither_leaves_a_job(
    loop: treadle.Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: dict[str, Any], package: str
) -> None:
    pool = Pool.model_validate(about)
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    session = open_session(loop, as_of=FIRST, store=tmp_path / "store", who="ann")
    with pytest.raises(UserError, match="is a folder of this machine"):
        jobs.submit(session, "prepare", pool, {})
    wrong = pool.model_copy(update={"options": {**pool.options, "bukcet": "x"}})
    monkeypatch.setattr("treadle.jobs.planning.refuse_store_out_of_reach", lambda *given: None)
    with pytest.raises(UserError, match="bukcet"):
        jobs.submit(session, "prepare", wrong, {})
    with pytest.raises(MissingPackage, match=rf'{package} is needed to run jobs on .*pip install "treadle\['):
        jobs.submit(session, "prepare", pool, {})
    assert session.store.list(f"jobs/{loop.name}") == []
    (view,) = look_at([pool])
    assert f"{package} is needed" in view.why_not


def test_a_run_whose_later_stage_can_not_reach_the_store_does_not_begin(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    (loop.folder / "pools.yaml").write_text("cluster: {backend: kubernetes, image: treadle:1}\n")
    store = tmp_path / "store"
    with pytest.raises(UserError, match="is a folder of this machine"):
        treadle.run(loop, as_of=FIRST, store=store, pools={"train": "cluster"})
    assert not list(store.glob("records/**/*.json")), "nothing was prepared for nothing"
