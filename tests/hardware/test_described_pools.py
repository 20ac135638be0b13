"""Pools that a loop describes itself: as good as those of pools.yaml, with the loop's own lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import treadle
from pool_cases import told
from treadle.check import check
from treadle.errors import SpecError
from treadle.hardware.policy import violations
from treadle.hardware.pools import known_pools
from treadle.jobs import pool_of
from wheel import FIRST, Wheel

OWN = (
    "pools:\n  train: {cpu: 1, max_jobs: 1, price: 2}\n  deploy: {name: chips, accelerator: gpu, count: 2}\n"
)


def described(wheel: Wheel, text: str = OWN) -> treadle.Loop:
    wheel.edit("orders.yaml", "monitor:", f"{text}monitor:")
    return treadle.Loop.load(wheel.path)


def faults(wheel: Wheel, text: str) -> list[str]:
    loop = described(wheel, text)
    with pytest.raises(SpecError) as told:
        known_pools(loop)
    found = [str(fault) for fault in told.value.faults]
    assert [f.line for f in check(wheel.path, only=["TR054"])] == [f.line for f in told.value.faults]
    return found


def test_it_has_the_name_of_its_stage_unless_it_says_another(wheel: Wheel) -> None:
    (wheel.path.parent / "pools.yaml").write_text("roomy: {memory_gib: 8}\n")
    loop = described(wheel)
    assert sorted(known_pools(loop)) == ["chips", "local", "roomy", "train"]
    trains, deploys, evaluates = (
        pool_of(loop, "train"),
        pool_of(loop, "deploy"),
        pool_of(loop, "evaluate", "train"),
    )
    assert trains is not None
    assert (trains.name, trains.max_jobs, trains.price) == ("train", 1, 2)
    assert deploys is not None
    assert (deploys.name, deploys.kind) == ("chips", "gpu")
    assert evaluates == trains
    changed = treadle.Loop.load(wheel.path, overrides=["pools.train.cpu=2", "pools.deploy=roomy"])
    assert known_pools(changed)["train"].cpu == 2
    assert changed.pool_names == {"train": "train", "deploy": "roomy"}


def test_a_loop_written_in_python_describes_pools_too(wheel: Wheel) -> None:
    content = treadle.Loop.load(wheel.path).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    loop = treadle.Loop.model_validate({**content, "pools": {"train": {"cpu": 3}}})
    pool = pool_of(loop, "train")
    assert pool is not None
    assert pool.cpu == 3
    with pytest.raises(SpecError, match=r"loop 'orders'.*pools.train.cpus: there is no such key"):
        known_pools(treadle.Loop.model_validate({**content, "pools": {"train": {"cpus": 3}}}))


def test_mistakes_have_the_loops_lines(wheel: Wheel) -> None:
    found = faults(
        wheel, "pools:\n  train:\n    cpu: 1\n    acelerator: gpu\n  deploy: {name: Big, cpu: 1}\n"
    )
    line = wheel.path.read_text().splitlines().index("    acelerator: gpu") + 1
    assert len(found) == 2
    assert f"orders.yaml:{line}: pools.train.acelerator: there is no such key here. Did you mean" in found[0]
    assert f"orders.yaml:{line + 1}: pools.deploy: 'Big' can't name a pool" in found[1]


def test_what_describes_and_names_no_pool_is_told_once(wheel: Wheel) -> None:
    wheel.edit(
        "orders.yaml",
        "monitor:",
        "pools:\n  deploy:\n  evaluate: 5\n  prepare: [roomy]\n  train: {1: 2}\nmonitor:",
    )
    found = [each for each in check(wheel.path) if each.field.startswith("pools")]
    fix = "Name a pool of pools.yaml, or describe one by its fields."
    assert [(each.code, each.field, each.evidence, each.fix) for each in found[:3]] == [
        ("TR001", "pools.deploy", "no value stands here.", fix),
        ("TR001", "pools.evaluate", "5 is no pool.", fix),
        ("TR001", "pools.prepare", "a list is no pool.", fix),
    ]
    assert [each.field for each in found[3:]] == ["pools.train.1"]


def test_a_description_that_says_nothing_is_refused(wheel: Wheel) -> None:
    (found,) = faults(wheel, "pools: {prepare: {}}\n")
    assert "pools.prepare: nothing is said of this pool. Name a pool of pools.yaml, or describe one" in found


def test_the_built_in_pool_is_described_nowhere(wheel: Wheel) -> None:
    (wheel.path.parent / "pools.yaml").write_text("roomy: {cpu: 4}\n")
    (found,) = faults(wheel, "pools: {evaluate: {name: local, cpu: 1}}\n")
    assert "'local': a pool of that name is there already, on this machine and without limits." in found
    assert "pools.yaml" not in found


def test_two_pools_of_one_name_are_refused(wheel: Wheel) -> None:
    (wheel.path.parent / "pools.yaml").write_text("train: {cpu: 4}\n")
    (found,) = faults(wheel, "pools: {train: {cpu: 1}}\n")
    assert "pools.yaml describes a pool of that name, too" in found
    (wheel.path.parent / "pools.yaml").unlink()
    wheel.edit("orders.yaml", "pools: {train: {cpu: 1}}\n", "")
    (found,) = faults(wheel, "pools: {train: {cpu: 1}, deploy: {name: train}}\n")
    assert "two pools of the name 'train'" in found


def test_a_pool_of_the_file_is_named_by_its_key_alone(wheel: Wheel) -> None:
    (wheel.path.parent / "pools.yaml").write_text("roomy:\n  name: other\n")
    with pytest.raises(SpecError, match=r"pools.yaml:2: roomy.name: a pool of this file is named by its key"):
        known_pools(wheel.path.parent)


def test_a_policy_names_the_loops_line(wheel: Wheel) -> None:
    (wheel.path.parent / "policy.yaml").write_text("accelerators: [cpu]\n")
    loop = described(wheel)
    line = next(n for n, text in enumerate(wheel.path.read_text().splitlines(), 1) if "chips" in text)
    (fault,) = violations(loop, "deploy", "production", pool_of(loop, "deploy"))  # type: ignore[arg-type]
    assert (Path(fault.file).name, fault.line, fault.field) == (
        "orders.yaml",
        line,
        "pools.deploy.accelerator",
    )


def test_a_stage_runs_there_and_makes_the_record_of_a_run_without_pools(wheel: Wheel) -> None:
    inside = wheel.run(FIRST, to="train")["train"]
    described(wheel, "pools: {train: {cpu: 1, price: 2}}\n")
    outside = Wheel(wheel.path, wheel.store.parent / "other").run(FIRST, to="train")["train"]
    assert (outside.id, outside.digest) == (inside.id, inside.digest)
    assert outside.notes["job"]["pool"] == "train"  # type: ignore[index,call-overload]
    assert {view["name"]: view["stages"] for view in told("pools", wheel.path)}["train"] == ["train"]
    assert told("pools", "check", "train", wheel.path)["pool"] == "train"
