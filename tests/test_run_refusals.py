"""What `treadle run` refuses before anything is done: a pool that can't do it, parameters that no flavour takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_cases import invoke, told
from wheel import SECOND, Wheel

POOLS = """\
roomy: {cpu: 1}
chips:
  backend: local
  accelerator: trainium
  count: 1
  options: {cores_per_device: 2}
gpus:
  accelerator: nvidia-l4
  count: 2
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without accelerators; the value is where they would be."""
    from treadle.hardware.devices import refuse_missing_devices

    monkeypatch.setitem(refuse_missing_devices.__kwdefaults__, "dev", tmp_path / "dev")
    (tmp_path / "dev").mkdir()
    return tmp_path / "dev"


@pytest.fixture
def pooled(wheel: Wheel) -> Wheel:
    (wheel.path.parent / "pools.yaml").write_text(POOLS)
    return wheel


def refused(wheel: Wheel, *args: str) -> str:
    """The words of a run that did nothing at all."""
    before = sorted(wheel.store.rglob("*"))
    done = invoke("run", wheel.path, "--store", wheel.store, "--as-of", SECOND, *args)
    assert done.exit_code == 2, done.output
    assert sorted(path for path in wheel.store.rglob("*") if "projections" not in str(path)) == [
        path for path in before if "projections" not in str(path)
    ]
    assert told(wheel, "jobs") == []
    (line,) = done.stderr.splitlines()
    assert not done.stdout
    return line


@pytest.mark.parametrize("by", ["option", "loop"])
def test_a_pool_whose_device_is_not_here_is_a_fault_of_the_pool_and_leaves_no_job(
    pooled: Wheel, bare: Path, by: str
) -> None:
    asked: tuple[str, ...] = ("--pool", "train=gpus")
    if by == "loop":
        pooled.edit("orders.yaml", "monitor:", "pools: {train: gpus}\nmonitor:")
        asked = ()
    words = refused(pooled, *asked)
    assert (
        f"{pooled.path.parent / 'pools.yaml'}:8: gpus.accelerator: the pool gpus promises 2 x nvidia-l4"
        in words
    )
    assert "this machine shows none" in words
    assert words.count("promises") == 1
    (bare / "nvidia0").touch()
    assert "this machine shows nvidia0" in refused(pooled, *asked)


def test_a_device_that_a_variable_hides_from_the_client_is_not_missing(
    pooled: Wheel, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.hardware.devices import refuse_missing_devices
    from treadle.jobs import pool_of

    for number in range(2):
        (bare / f"nvidia{number}").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pool = pool_of(pooled.session(SECOND).loop, "train", "gpus")
    assert pool is not None
    refuse_missing_devices(pool)
    refuse_missing_devices(pool.model_copy(update={"count": 9, "backend": "ray"}))


def test_a_submit_refuses_a_missing_device_before_it_claims_the_job(pooled: Wheel, bare: Path) -> None:
    from treadle import jobs
    from treadle.errors import SpecError

    session = pooled.session(SECOND)
    pool = jobs.pool_of(session.loop, "prepare", "gpus")
    assert pool is not None
    with pytest.raises(SpecError, match=r"pools.yaml:8: gpus.accelerator: the pool gpus promises"):
        jobs.submit(session, "prepare", pool, {})
    assert told(pooled, "jobs") == []


@pytest.mark.parametrize("stage", ["train", "deploy"])
def test_an_accelerator_that_the_flavour_can_not_use_is_blamed_on_who_named_it(
    pooled: Wheel, stage: str
) -> None:
    words = refused(pooled, "--pool", f"{stage}=chips")
    assert f"SpecError: --pool {stage}=chips: " in words
    assert "it computes neural networks only, and no trees" in words
    assert f"Name a pool of cpu or gpu for {stage} (gpus, local, roomy), or take the flavour torch." in words
    assert "orders.yaml" not in words
    pooled.edit("orders.yaml", "monitor:", f"pools:\n  {stage}: chips\nmonitor:")
    line = pooled.path.read_text().splitlines().index(f"  {stage}: chips") + 1
    assert f"orders.yaml:{line}: pools.{stage}: " in refused(pooled)
    assert f"--set: pools.{stage}: " in refused(pooled, "--set", f"pools.{stage}=chips")


def test_an_unknown_pool_is_blamed_on_who_named_it(pooled: Wheel) -> None:
    assert "--pool train=gpsu: there is no pool 'gpsu'" in refused(pooled, "--pool", "train=gpsu")
    assert "--set: pools.train: there is no pool 'gpsu'" in refused(pooled, "--set", "pools.train=gpsu")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (
            "train.params.hiden=[3]",
            "--set: train.params.hiden: torch has no such parameter; did you mean 'hidden'?",
        ),
        ("train.params.dropout=high", "--set: train.params.dropout: must be a number at least 0 and below 1"),
        ("train.params.batch_size=many", "--set: train.params.batch_size: must be a whole number"),
    ],
)
def test_parameters_that_torch_does_not_take_are_refused_before_the_snapshot(
    wheel: Wheel, params: str, words: str
) -> None:
    torch: Any = ("--set", "train.flavour=torch", "--set", "train.params={}")
    assert words in refused(wheel, *torch, "--set", params)


def test_another_flavour_over_the_files_params_is_told_what_to_give_too(wheel: Wheel) -> None:
    (line,) = [line for line in wheel.path.read_text().splitlines() if line.startswith("train:")]
    wheel.edit("orders.yaml", line, "train:\n  params:\n    max_depth: 3")
    given = ("--set", "train.flavour=torch")
    also = 'Give --set "train.params={}" too.'
    words = refused(wheel, *given)
    assert "train.params.max_depth: torch has no such parameter; known are: " in words
    assert also in words
    assert also in invoke("check", wheel.path, *given).output
    assert "max_depth" not in invoke("check", wheel.path, *given, "--set", "train.params={}").output
    assert also not in refused(wheel, *given, "--set", "train.params={}", "--set", "train.params.hiden=[3]")


def test_parameters_of_the_file_are_refused_before_the_snapshot_at_their_line(wheel: Wheel) -> None:
    (line,) = [line for line in wheel.path.read_text().splitlines() if line.startswith("train:")]
    wheel.edit("orders.yaml", line, "train:\n  params:\n    max_dept: 3")
    number = wheel.path.read_text().splitlines().index("    max_dept: 3") + 1
    assert f"orders.yaml:{number}: train.params.max_dept: " in refused(wheel)
    done = invoke("run", wheel.path, "--store", wheel.store, "--as-of", SECOND, "--to", "prepare")
    assert done.exit_code == 0, "this run does not train"


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ("image: treadle:1", "the pool odd names an image; the local backend runs none"),
        ("options: {devises: [0]}", "no option 'devises'"),
        ("python: /nowhere/python", "/nowhere/python is no program"),
        ("cpu: 4096", "asks for 4096 cores a job"),
    ],
)
@pytest.mark.parametrize("by", ["option", "loop"])
def test_what_a_pool_can_not_do_is_told_at_its_line_before_the_first_stage(
    wheel: Wheel, about: str, words: str, by: str
) -> None:
    (wheel.path.parent / "pools.yaml").write_text(f"roomy: {{cpu: 1}}\nodd: {{{about}}}\n")
    if by == "loop":
        wheel.edit("orders.yaml", "monitor:", "pools: {train: odd}\nmonitor:")
    told = refused(wheel, *(["--pool", "train=odd"] if by == "option" else []))
    assert f"{wheel.path.parent / 'pools.yaml'}:2: odd" in told
    assert words in told
