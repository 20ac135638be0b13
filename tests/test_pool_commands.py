"""`treadle pools`: what there is, what is free, what it costs, and what a stage's request is."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import treadle
import yaml
from cost_cases import Place
from job_cases import moments, settled
from pool_cases import sleeping, told, treadle_
from treadle import jobs
from treadle.errors import Transient, UserError
from treadle.hardware.backend import Handle
from treadle.hardware.levels import LEVELS, level_of
from treadle.hardware.local import LocalBackend
from treadle.hardware.look import look_at
from treadle.hardware.pools import Pool
from treadle.session import open_session
from wheel import FIRST, Wheel

ROOT = Path(treadle.__file__).parent.parent


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    monkeypatch.delenv("TREADLE_STORE", raising=False)
    return tmp_path / "jobs"


class Far(LocalBackend):
    """A place behind a network that is down."""

    def find(self, name: str, pool: Pool) -> Handle | None:
        raise Transient("no route to the cluster at 10.9.9.9.")


class Keyless(LocalBackend):
    """A place that asks for credentials."""

    def find(self, name: str, pool: Pool) -> Handle | None:
        raise UserError("no credentials were found: set AWS_PROFILE.")


class Silent(LocalBackend):
    """A place that does not answer."""

    def find(self, name: str, pool: Pool) -> Handle | None:
        time.sleep(60)
        return None


class Broken(LocalBackend):
    """A backend with a bug."""

    def find(self, name: str, pool: Pool) -> Handle | None:
        raise KeyError("cluster")


def test_pools_are_listed_with_what_is_free_what_they_cost_and_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text(
        "roomy: {max_jobs: 2, price: 1.5, memory_gib: 8, hours: '20:00-06:00', tags: {team: ml}}\n"
        "chips: {accelerator: inferentia, count: 2, max_jobs: 1, options: {cores_per_device: 2}}\n"
        "odd: {spot: true}\n"
    )
    pool = Pool(name="roomy", max_jobs=2)
    handles = [sleeping(pool) for _ in range(3)]
    try:
        for _ in moments("two jobs never ran beside one that waits"):
            found = {view["name"]: view for view in told("pools", "--folder", tmp_path)}
            if (found["roomy"]["running"], found["roomy"]["waiting"]) == (2, 1):
                break
        assert found["roomy"]["free"] == 0
        assert found["roomy"]["usd_per_hour"] == 1.5
        assert found["roomy"]["hours"] == "20:00-06:00"
        assert found["roomy"]["level"] == "run on hardware"
        assert found["roomy"]["reachable"]
        assert found["roomy"]["why_not"] == ""
        assert found["local"]["running"] == 0
        assert found["local"]["usd_per_hour"] is None
        assert "neither price" in found["local"]["price"]
        assert (found["chips"]["free"], found["chips"]["devices_free"]) == (1, 2)
        assert "promises 2 x inferentia; this machine shows none" in found["chips"]["why_not"]
        assert not found["odd"]["reachable"]
        assert "asks for spot machines" in found["odd"]["why_not"]
        table = treadle_("pools", "--folder", tmp_path)
        assert "roomy: takes jobs at 20:00-06:00 UTC" in table.stdout
        assert "odd: the pool odd asks for spot machines" in table.stdout
    finally:
        for handle in handles:
            LocalBackend().cancel(handle, 0)
    for _ in moments("the jobs never ended"):
        if all(LocalBackend().status(handle).is_over for handle in handles):
            break
    (view,) = look_at([pool])
    assert (view.running, view.waiting, view.free) == (0, 0, 2)


def test_a_place_that_can_not_be_reached_hides_no_other() -> None:
    backends = {name: f"{__name__}:{name}" for name in ("Far", "Keyless", "Silent", "Broken")}
    pools = [Pool(name=name.lower(), backend=where) for name, where in backends.items()]
    started = time.monotonic()
    views = {view.name: view for view in look_at([*pools, Pool(name="here")], patience_s=1)}
    assert time.monotonic() - started < 30
    assert views["here"].reachable
    assert [name for name, view in views.items() if view.reachable] == ["here"]
    assert views["far"].why_not == "no route to the cluster at 10.9.9.9."
    assert "set AWS_PROFILE" in views["keyless"].why_not
    assert views["silent"].why_not == "no answer within 1 s"
    assert views["broken"].why_not == "KeyError: 'cluster'"
    assert views["far"].level == "a backend of your own: run its suite"


def test_a_loops_pools_are_listed_with_their_stages(wheel: Wheel) -> None:
    (wheel.path.parent / "pools.yaml").write_text("big: {cpu: 1}\n")
    wheel.edit("orders.yaml", "monitor:", "pools: {train: big, evaluate: big}\nmonitor:")
    found = {view["name"]: view for view in told("pools", wheel.path)}
    assert found["big"]["stages"] == ["train", "evaluate"]
    assert found["local"]["stages"] == []


def test_the_levels_of_the_docs_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "hardware.md").read_text()
    rows = re.findall(r"^\| ([a-z]+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    kinds = next(row for row in rows if row[0] == "backend")[1:]
    table = {
        (backend, kind): level
        for backend, *levels in rows
        if backend not in ("backend", "level")
        for kind, level in zip(kinds, levels, strict=True)
    }
    assert table == LEVELS
    assert set(table.values()) <= set(re.findall(r"^\| ([a-z -]+) \| [A-Z]", text, re.MULTILINE))
    assert level_of(Pool(name="x", accelerator="nvidia-l4", count=1)) == LEVELS["local", "gpu"]


def test_what_is_rendered_is_what_is_submitted(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, state: Path
) -> None:
    (wheel.path.parent / "pools.yaml").write_text("big: {cpu: 1, max_seconds: 600, tags: {team: ml}}\n")
    done = treadle_("pools", "render", wheel.path, "train", "--pool", "big", "--store", wheel.store)
    assert done.exit_code == 0, done.output
    rendered = yaml.safe_load(done.stdout)
    assert not state.exists(), "nothing is submitted"
    loop = treadle.Loop.load(wheel.path)
    pool = jobs.pool_of(loop, "train", "big")
    assert pool is not None
    session = wheel.session(FIRST)
    ref = jobs.submit(session, "train", pool, {"featurize": turned[1]["featurize"].id})
    asked = json.loads((state / "big" / ref.handle.name / "job.json").read_text())
    assert asked["labels"]["team"] == "ml"
    uri = rendered["command"][-1].replace("/KEY/", f"/{ref.job}/")
    assert {**rendered, "name": asked["name"], "command": [*rendered["command"][:-1], uri]} == asked
    settled(session, ref)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pools", "render", "{loop}", "trian"], "there is no stage 'trian'"),
        (["pools", "render", "{loop}", "train"], "train of orders has no pool"),
        (["pools", "render", "{loop}", "train", "--pool", "huge"], "there is no pool 'huge'"),
        (["pools", "render", "{loop}"], "write: treadle pools render LOOP STAGE"),
        (["pools", "check"], "write: treadle pools check NAME"),
        (["pools", "check", "huge"], "add the loop's file: treadle pools check huge LOOP"),
        (["pools", "a", "b"], "write: treadle pools"),
        (["pools", "--folder", "{loop}/gone"], "there is no such folder"),
        (["pools", "loops/pools.yaml"], "write: treadle pools --folder loops"),
        (["jobs", "follow"], "write: treadle jobs follow ID"),
        (["jobs", "follow", "nothing", "--store", "{store}"], "there is no job 'nothing'"),
        (["jobs", "cancel", "{loop}", "nothing"], "there is no job 'nothing'"),
        (["jobs", "follow", "a", "b", "c"], "with the loop's file: treadle jobs follow LOOP ID"),
        (["jobs", "a", "b", "c"], "write: treadle jobs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_meant_is_told(wheel: Wheel, arguments: list[str], words: str) -> None:
    places = {"loop": wheel.path, "store": wheel.store}
    done = treadle_(*(argument.format(**places) for argument in arguments))
    assert done.exit_code == 2
    assert words in done.output


def test_reached_is_what_can_be_seen_without_a_job(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "pools.yaml").write_text(
        f"gone: {{python: /nowhere/python}}\nfile: {{python: {tmp_path / 'file'}}}\n"
        f"huge: {{memory_gib: 90000}}\nfine: {{python: {sys.executable}, memory_gib: 0.5, cpu: 1}}\n"
    )
    found = {view["name"]: view for view in told("pools", "--folder", tmp_path)}
    for name in ("gone", "file"):
        assert not found[name]["reachable"]
        problem = (
            f"the pool {name}: {tmp_path / 'file' if name == 'file' else '/nowhere/python'} is no program"
        )
        assert found[name]["why_not"] == f"{problem} on this machine. Correct `python` of the pool."
    assert found["huge"]["reachable"], "jobs can start there"
    assert "memory_gib is 90000, and this machine has" in found["huge"]["why_not"]
    assert (found["fine"]["reachable"], found["fine"]["why_not"]) == (True, "")
    shown = treadle_("pools", "--folder", tmp_path).stdout
    assert "yes, but" in shown
    assert shown.count("no limit") == 3, "local, huge and fine; nothing is free where nothing can be reached"
    assert "1 core," in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instance_type,usd_per_hour,as_of\na,1,July\n", "prices.csv:2: as_of: 'July' is no day"),
        (None, "prices.csv, which is no file"),
    ],
    ids=["mistake", "gone"],
)
def test_a_catalogue_with_a_mistake_is_refused_and_no_price_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, words: str
) -> None:
    (tmp_path / "pools.yaml").write_text("big: {instance_type: g6.xlarge}\n")
    if text is not None:
        (tmp_path / "prices.csv").write_text(text)
    monkeypatch.setenv("TREADLE_CATALOGUE", str(tmp_path / "prices.csv"))
    done = treadle_("pools", "--folder", tmp_path)
    assert done.exit_code == 2
    assert words in done.output


def test_where_no_pools_are_described_that_is_said(tmp_path: Path) -> None:
    shown = treadle_("pools", "--folder", tmp_path)
    assert shown.exit_code == 0
    assert (
        f"There is no pools.yaml in {tmp_path} or above it, so there is only the pool local" in shown.stdout
    )
    (tmp_path / "pools.yaml").write_text("one: {}\n")
    assert "There is no pools.yaml" not in treadle_("pools", "--folder", tmp_path).stdout


def test_a_pool_says_the_same_whether_a_loop_or_its_folder_is_asked(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(wheel.path.parent, project / "loops", symlinks=True)
    path = project / "loops" / wheel.path.name
    (project / "pools.yaml").write_text("far: {backend: 'cost_cases:Place', max_jobs: 3}\n")
    loop = treadle.Loop.load(path)
    far = jobs.pool_of(loop, "train", "far")
    assert far is not None

    def free() -> list[Any]:
        asked = [(path,), ("--folder", project), ("--folder", project / "loops")]
        views = [next(view for view in told("pools", *words) if view["name"] == "far") for words in asked]
        return [(view["running"], view["waiting"], view["free"]) for view in views]

    assert free() == [(None, None, None)] * 3
    session = open_session(loop, as_of=FIRST, store=loop.folder / ".treadle", who="ann")
    Place.jobs = {}
    jobs.submit(session, "prepare", far, {})
    assert free() == [(1, 0, 2)] * 3
