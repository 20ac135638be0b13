"""The file of pools: what it may say, where it is found, and what is told about mistakes in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import treadle
from treadle.errors import SpecError, UserError
from treadle.hardware import local
from treadle.hardware.backends import get_backend
from treadle.hardware.devices import devices_seen, missing_devices
from treadle.hardware.pools import AirflowSlots, Pool, find_pools_file, known_pools, read_pools
from treadle.jobs import pool_of
from wheel import Wheel

ROOT = Path(treadle.__file__).parent.parent


def written(folder: Path, text: str) -> Path:
    path = folder / "pools.yaml"
    path.write_text(text)
    return path


def test_pools_have_the_name_under_which_they_stand(tmp_path: Path) -> None:
    pools = read_pools(
        written(
            tmp_path,
            "gpu: {accelerator: nvidia-l4, count: 2, max_jobs: 3, airflow: {pool: gpus, queue: heavy}}\nplain:\n",
        )
    )
    assert pools["gpu"].name == "gpu"
    assert pools["gpu"].kind == "gpu"
    assert pools["gpu"].resources().count == 2
    assert pools["gpu"].airflow == AirflowSlots(pool="gpus", queue="heavy", pool_slots=1)
    assert pools["plain"].model_dump() == Pool(name="plain").model_dump()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a:\n  memory_gb: 4\n", 2, "memory_gb: there is no such key here. Did you mean 'memory_gib'"),
        ("a:\n  count: many\n", 2, "a.count"),
        ("a: {}\nb:\n  accelerator: tpu\n", 3, "'tpu' is no accelerator"),
        (
            "a:\n  backend: kubernets\n",
            2,
            "Did you mean 'kubernetes'? A class of your own is written module:Class.",
        ),
        ("a:\n  backend: k8s\n", 2, "Did you mean 'kubernetes'?"),
        ("a:\n  backend: 'mine:'\n", 2, "there is no backend 'mine:'; known are: kubernetes, local, ray"),
        (
            "a:\n  hours: 20-06\n",
            2,
            "'20-06' is no stretch of a day. Write hours in UTC, such as \"20:00-06:00\"",
        ),
        ("a:\n  hours: 2000\n", 2, "2000 is no stretch of a day"),
        ("a:\n  max_seconds: long\n", 2, "'long' is no whole number"),
        ("a:\n  max_seconds: 0\n", 2, "Write 1 or more"),
        ("a:\n  roles: train\n", 2, "this is a section, not 'train'"),
        ("a: [1]\n", 1, "this is a section, not a list"),
        ("a:\n  accelerator: gpu\n", 1, "how many of gpu"),
        ("a:\n  count: 4\n", 1, "for cores write cpu"),
        ("A_b: {}\n", 1, "'A_b' can't name a pool"),
        ("none: {}\n", 1, "'none' means the calling process"),
        ("a: 4\n", 1, "a: "),
        ("a: {}\nb: {}\na: {}\n", 3, "stands twice in its section, also in line 1."),
        (
            "local: {cpu: 1}\n",
            1,
            "local is there already, on this machine and without limits. Give yours another",
        ),
        (
            "a:\n  env: {OK: x, 1BAD: x}\n",
            2,
            "a.env: '1BAD' can't name a variable. Write letters, digits and _",
        ),
        ("a:\n  max_jobs: true\n", 2, "true is no whole number"),
        ("a:\n  count: false\n", 2, "false is no whole number"),
        ("a:\n  cpu: true\n", 2, "true is no number"),
        ("a:\n  memory_gib: 8GB\n", 2, "'8GB' is no number. Write 8, without a unit."),
        ("a:\n  price: 2.5 USD\n", 2, "'2.5 USD' is no number. Write 2.5, without a unit."),
        ("a:\n  memory_gib: 500MB\n", 2, "'500MB' is no number. Write one without a unit"),
        ("a:\n  memory_gib: 1,000\n", 2, "'1,000' is no number. Write one, such as"),
        ("a:\n  accelerator: gpuu\n", 2, "Did you mean 'gpu'?"),
        ("- a\n", 1, "a file of pools is a mapping"),
        ("a: [\n", 1, "not YAML"),
        ("a:\n  airflow:\n    slots: 1\n", 3, "a.airflow.slots"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" in value else "",
)
def test_each_mistake_is_told_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SpecError) as told:
        read_pools(path)
    assert f"{path}:{line}:" in str(told.value)
    assert words in str(told.value)
    assert "Input should" not in str(told.value)
    assert "pattern" not in str(told.value)


def test_mistakes_come_by_line_each_with_a_fix_of_its_own(tmp_path: Path) -> None:
    text = (
        "none: {}\na:\n  hours: 1\n  accelerator: x\nb: {count: 1}\nc: {accelerator: gpu}\nA_b: {}\nd:\n"
        "  tags: 1\n  env: {1: x}\n  backend: k8s\n"
    )
    with pytest.raises(SpecError) as told:
        read_pools(written(tmp_path, text))
    found = told.value.faults
    assert [fault.line for fault in found] == [1, 3, 4, 5, 6, 7, 9, 10, 11]
    assert all(fault.fix and fault.problem.endswith(".") for fault in found)
    assert len({fault.fix for fault in found if fault.line < 9}) == 6


def test_the_nearest_file_counts_and_a_variable_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "project" / "loops"
    inner.mkdir(parents=True)
    assert find_pools_file(inner) is None
    assert list(known_pools(inner)) == ["local"]
    outer = written(tmp_path, "far: {}\n")
    assert find_pools_file(inner) == outer
    near = written(inner.parent, "near: {}\n")
    assert find_pools_file(inner) == near
    monkeypatch.setenv("TREADLE_POOLS", str(outer))
    assert list(known_pools(inner)) == ["local", "far"]
    monkeypatch.setenv("TREADLE_POOLS", str(tmp_path / "gone.yaml"))
    with pytest.raises(UserError, match=r"gone\.yaml, which is no file"):
        known_pools(inner)


def test_the_pool_of_a_stage_is_the_loops_unless_another_is_asked_for(wheel: Wheel) -> None:
    written(wheel.path.parent, "big: {cpu: 1}\n")
    wheel.edit("orders.yaml", "monitor:", "pools:\n  train: big\nmonitor:")
    loop = treadle.Loop.load(wheel.path)
    trains = pool_of(loop, "train")
    assert trains is not None
    assert (trains.name, trains.cpu) == ("big", 1)
    assert pool_of(loop, "evaluate") is None
    assert pool_of(loop, "train", "none") is None
    assert pool_of(loop, "evaluate", "local") == Pool(name="local")


def test_an_unknown_pool_is_told_with_its_line_and_the_nearest_name(wheel: Wheel) -> None:
    written(wheel.path.parent, "trainium-spot: {}\n")
    wheel.edit("orders.yaml", "monitor:", "pools:\n  train: traniumspot\nmonitor:")
    line = wheel.path.read_text().splitlines().index("  train: traniumspot") + 1
    loop = treadle.Loop.load(wheel.path)
    with pytest.raises(SpecError, match=rf"orders.yaml:{line}: pools.train.*Did you mean 'trainium-spot'"):
        pool_of(loop, "train")
    with pytest.raises(SpecError, match="--pool evaluate=huge: there is no pool 'huge'"):
        pool_of(loop, "evaluate", "huge")


def test_an_unknown_backend_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"no backend 'locla'.*Did you mean 'local'.*written module:Class"):
        get_backend("locla")
    with pytest.raises(UserError, match="can't be imported"):
        get_backend("no_such_module_anywhere:Backend")
    with pytest.raises(UserError, match="has no backend 'Nothing'"):
        get_backend("treadle.hardware.local:Nothing")


def test_a_backend_of_ones_own_is_named_by_its_class() -> None:
    assert get_backend("treadle.hardware.local:LocalBackend").name == "local"


def test_a_promised_accelerator_that_is_not_there_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = Pool(name="gpus", accelerator="nvidia-l4", count=2)
    assert missing_devices(Pool(name="plain"), dev=tmp_path) is None
    assert "promises 2 x nvidia-l4; this machine shows none" in (missing_devices(gpus, dev=tmp_path) or "")
    for name in ("nvidia0", "nvidia1", "nvidiactl", "neuron0"):
        (tmp_path / name).touch()
    assert missing_devices(gpus, dev=tmp_path) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "shows nvidia0" in (missing_devices(gpus, dev=tmp_path) or "")
    assert devices_seen("trainium", dev=tmp_path) == ["neuron0"]


@pytest.mark.parametrize(
    ("backend", "image", "words", "not_words"),
    [
        ("local", None, "the device's driver on this machine", "image"),
        ("ray", None, "the machines that run its jobs", "image"),
        ("kubernetes", "treadle:1", "its image, or the device plugin of the cluster", "driver"),
    ],
)
def test_what_to_do_about_a_missing_device_suits_the_place(
    tmp_path: Path, backend: str, image: str | None, words: str, not_words: str
) -> None:
    pool = Pool(name="gpus", backend=backend, image=image, accelerator="gpu", count=1)
    told = missing_devices(pool, dev=tmp_path) or ""
    assert words in told
    assert not_words not in told


def test_the_example_of_the_project_is_right() -> None:
    pools = read_pools(ROOT / "pools.yaml")
    assert {pool.backend for pool in pools.values()} <= {"local"}
    assert any(pool.airflow for pool in pools.values())


def test_the_pools_of_the_docs_are_right_and_every_field_has_its_row(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "pools.md").read_text()
    examples = re.findall(r"^```yml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert examples
    for example in examples:
        assert read_pools(written(tmp_path, example))
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (.+?) \|", page, re.MULTILINE))
    assert set(rows) == set(Pool.model_fields) - {"name"}
    for name, default in rows.items():
        value = Pool.model_fields[name].default
        none = name != "python" and (value is None or value == {})
        shown = "none" if none else "the caller's" if name == "python" else f"`{str(value).lower()}`"
        assert default == shown, name
    options = re.search(r"_OPTIONS = \{(.*)\}", Path(local.__file__).read_text())
    assert options is not None
    known = options[1].replace('"', "").split(", ")
    assert all(f"`{option}`" in page for option in known)
