"""`treadle pools` and `treadle jobs`: what there is, what is free, what runs; from any process."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import treadle
import yaml
from click.testing import Result
from treadle import jobs
from treadle.cli import app
from treadle.errors import StoreError, Transient, TreadleError, UserError
from treadle.hardware.backend import Handle, JobSpec
from treadle.hardware.levels import LEVELS, level_of
from treadle.hardware.local import LocalBackend
from treadle.hardware.look import look_at
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.jobs.file import treadle_version
from treadle.jobs.probe import check_pool
from treadle.records import Record
from treadle.store import blob_path
from typer.testing import CliRunner
from wheel import FIRST, Wheel, copy_of

ROOT = Path(treadle.__file__).parent.parent
LONG = (
    ("rounds: 30", "rounds: 1200"),
    ("max_depth: 3, learning_rate: 0.3", "max_depth: 2, learning_rate: 0.01"),
)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    monkeypatch.delenv("TREADLE_STORE", raising=False)
    return tmp_path / "jobs"


def treadle_(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments: object) -> Any:
    done = treadle_(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def moments(complaint: str) -> Iterator[None]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        yield
        time.sleep(0.05)
    raise AssertionError(complaint)


def interpreter(folder: Path, script: str) -> str:
    path = folder / f"python-{uuid4().hex[:6]}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def sleeping(pool: Pool) -> Handle:
    return LocalBackend().submit(JobSpec(f"sleep-{uuid4().hex[:8]}", ("sleep", "60")), pool)


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


class Unreachable(LocalBackend):
    """A place whose network goes down at the submit."""

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        raise Transient("no route.")


class Refused(LocalBackend):
    """A place that takes no job from here."""

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        raise UserError("the role may not make jobs.")


# What there is.


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


# A check by a small job.


def test_a_pool_that_gives_what_it_promises_passes_its_check(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text("one: {cpu: 1, memory_gib: 1, max_seconds: 300}\n")
    found = told("pools", "check", "one", "--folder", tmp_path)
    assert found["ok"]
    assert found["problems"] == []
    assert found["here"]["cores"] == 1, "the job has the one core that the pool gives it"
    assert found["here"]["treadle"] == treadle_version()
    assert found["level"] == "run on hardware"


@pytest.mark.slow
def test_a_pool_proves_itself_by_a_training(tmp_path: Path) -> None:
    checked = check_pool(Pool(name="one"), selftest=True)
    assert checked.problems == ()
    assert checked.selftest is not None
    assert checked.selftest["ok"]


@pytest.mark.parametrize(
    ("pool", "policy", "words"),
    [
        (
            "{instance_type: g6.xlarge}",
            "instance_types: [g5.*]",
            "'g6.xlarge' is not among the instance_types",
        ),
        ("{price: 9, max_seconds: 7200}", "dearest_job: 2", "above dearest_job, 2 USD by"),
        ("{}", "required_tags: [team]", "Write tags: {team: ...} in the pool: this job has no loop."),
        ("{hours: '00:00-00:01'}", "", "takes jobs at 00:00-00:01 UTC"),
    ],
    ids=["instance type", "dearest job", "tags", "hours"],
)
def test_a_check_is_refused_where_any_other_job_would_be(
    tmp_path: Path, state: Path, pool: str, policy: str, words: str
) -> None:
    if datetime.now(UTC).strftime("%H:%M") == "00:00":
        pool = pool.replace("00:00-00:01", "12:00-12:01")
        words = words.replace("00:00-00:01", "12:00-12:01")
    (tmp_path / "pools.yaml").write_text(f"one: {pool}\n")
    (tmp_path / "policy.yaml").write_text(f"{policy}\n")
    done = treadle_("pools", "check", "one", "--folder", tmp_path)
    assert done.exit_code in (1, 2)
    assert words in done.output
    assert not policy or f"{tmp_path / 'policy.yaml'}:1" in done.output
    assert not state.exists(), "nothing is submitted"


def test_a_pool_that_promises_a_device_that_its_job_does_not_see_fails_its_check(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text(
        "chips: {accelerator: trainium, count: 1, options: {cores_per_device: 2}}\n"
    )
    done = treadle_("pools", "check", "chips", "--folder", tmp_path)
    assert done.exit_code == 1
    assert "the pool promises 1 x trainium" in " ".join(done.stdout.split())
    assert "sees none" in " ".join(done.stdout.split())
    assert "the device's driver on this machine" in " ".join(done.stdout.split())
    assert "image" not in done.stdout, "a pool of this machine runs none"
    assert "rendered and schema-checked" in done.stdout


SAYS_ANOTHER = (
    "from treadle.jobs import probe; probe.treadle_version = lambda: '99.1'; print(probe.told(probe.here()))"
)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('exec {python} -S -I "$@"', "has no treadle; here is {version}: install that version there"),
        ('exec {python} -P -c "{another}"', "treadle 99.1 is there and {version} here: records would differ"),
        ('echo \'treadle-devices {{"treadle": "0.0.1"}}\'', "treadle 0.0.1 is there and {version} here"),
        ("echo 'No such option: --devices' >&2; exit 2", "older than {version}, which is here"),
        ("echo hello", "ended well and told nothing"),
        ("echo killed; kill -9 $$", "the job lost: killed by SIGKILL"),
        ("sleep 60", "did not end within 2 s and was cancelled"),
    ],
    ids=["none", "newer", "other words", "older", "no treadle at all", "killed", "never ends"],
)
def test_what_is_wrong_at_the_place_is_told_with_both_versions(
    tmp_path: Path, script: str, words: str
) -> None:
    places = {"python": sys.executable, "another": SAYS_ANOTHER, "version": treadle_version()}
    pool = Pool(name="odd", python=interpreter(tmp_path, script.format(**places)))
    checked = check_pool(pool, patience_s=2 if script == "sleep 60" else 60)
    assert len(checked.problems) == 1, checked.problems
    assert words.format(**places) in checked.problems[0]
    for _ in moments("the job still runs"):
        (view,) = look_at([pool])
        if (view.running, view.waiting) == (0, 0):
            break


@pytest.mark.parametrize(("kind", "retryable"), [("Unreachable", True), ("Refused", False)])
def test_a_check_of_a_place_that_takes_no_job_says_whether_a_retry_helps(kind: str, retryable: bool) -> None:
    with pytest.raises(TreadleError) as error:
        check_pool(Pool(name="far", backend=f"{__name__}:{kind}"))
    assert error.value.retryable == retryable


def test_an_unknown_pool_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text("trainium-spot:\n")
    done = treadle_("pools", "check", "traniumspot", "--folder", tmp_path)
    assert done.exit_code == 2
    assert "Did you mean 'trainium-spot'?" in done.output


# The request itself.


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
        (["pools", "a", "b"], "write: treadle pools"),
        (["jobs", "follow"], "write: treadle jobs follow ID"),
        (["jobs", "follow", "nothing", "--store", "{store}"], "there is no job 'nothing'"),
        (["jobs", "a", "b", "c"], "write: treadle jobs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_meant_is_told(wheel: Wheel, arguments: list[str], words: str) -> None:
    places = {"loop": wheel.path, "store": wheel.store}
    done = treadle_(*(argument.format(**places) for argument in arguments))
    assert done.exit_code == 2
    assert words in done.output


def test_jobs_without_a_loop_are_those_of_the_store_that_lies_here(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = treadle_("jobs")
    assert done.exit_code == 2
    assert "which store?" in done.output
    (tmp_path / ".treadle").symlink_to(wheel.store)
    assert treadle_("jobs").stdout.strip() == "no jobs"


# Jobs whose client is gone.


def settled(session: Any, ref: JobRef) -> Record:
    for _ in moments(f"{ref} came to nothing"):
        found = jobs.settle(session, ref)
        if isinstance(found, Record):
            return found
        ref = found
    raise AssertionError


SUBMIT = """
import sys
import treadle
from treadle import jobs
from treadle.hardware.pools import Pool
from treadle.session import open_session
session = open_session(treadle.Loop.load(sys.argv[1]), as_of=sys.argv[2], store=sys.argv[3], who="ann")
print(jobs.submit(session, "train", Pool(name="local"), {"featurize": sys.argv[4]}).to_json())
"""


@pytest.fixture(scope="module")
def long(turned: tuple[Wheel, treadle.Run], tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """A loop whose training takes some seconds, and its features in the store."""
    wheel = copy_of(turned[0], tmp_path_factory.mktemp("long"))
    for before, after in LONG:
        wheel.edit("orders.yaml", before, after)
    return wheel


def test_a_job_whose_client_is_gone_is_listed_cancelled_and_followed(
    turned: tuple[Wheel, treadle.Run], long: Wheel, tmp_path: Path
) -> None:
    wheel = copy_of(long, tmp_path / "copy")
    features = turned[1]["featurize"].id
    command = [sys.executable, "-c", SUBMIT, str(wheel.path), FIRST, str(wheel.store), features]
    client = subprocess.run(command, capture_output=True, text=True, check=True)
    ref = JobRef.from_json(client.stdout)
    place = ("--store", wheel.store)
    (listed,) = told("jobs", wheel.path, *place)
    assert listed["state"] in ("queued", "running")
    assert (listed["stage"], listed["pool"], listed["attempt"]) == ("train", "local", 1)
    for _ in moments("the job never trained"):
        if any("train: round" in line for line in jobs.logs(ref)[0]):
            break
    (listed,) = told("jobs", *place)
    assert (listed["state"], listed["name"], listed["who"]) == ("running", ref.handle.name, "ann")
    assert listed["since"] > ""
    assert listed["node"]
    cancelled = treadle_("jobs", "cancel", listed["id"][:6], "--grace", "0", *place)
    assert cancelled.exit_code == 0, cancelled.output
    assert "train on the pool local: cancelled" in cancelled.stdout
    (listed,) = told("jobs", *place)
    assert listed["state"] == "stopped"
    again = treadle_("jobs", "cancel", listed["id"], *place)
    assert again.exit_code == 0
    assert "it is over: stopped" in again.stdout
    followed = treadle_("jobs", "follow", listed["id"], *place)
    assert followed.exit_code == 1
    assert "train: xgboost on 1000 rows" in followed.stdout
    assert "train on the pool local: stopped" in followed.output


def test_jobs_that_ended_say_how(turned: tuple[Wheel, treadle.Run], wheel: Wheel) -> None:
    session, place = wheel.session(FIRST), ("--store", wheel.store)
    inputs = {"featurize": turned[1]["featurize"].id}
    settled(session, jobs.submit(session, "train", Pool(name="local"), inputs))
    chips = Pool(name="chips", accelerator="gpu", count=1)
    with pytest.raises(UserError):
        jobs.run_on_pool(session, "train", chips, inputs)
    found = {job["pool"]: job for job in told("jobs", wheel.path, *place)}
    assert {pool: job["state"] for pool, job in found.items()} == {"local": "succeeded", "chips": "failed"}
    assert "promises 1 x gpu" in found["chips"]["reason"]
    assert treadle_("jobs", "follow", found["local"]["id"], *place).exit_code == 0
    assert "chips" in treadle_("jobs", wheel.path, *place).stdout
    done = treadle_("jobs", "follow", "", *place)
    assert done.exit_code == 2
    ends = [json.loads(path.read_text())["state"] for path in LocalBackend().root.glob("*/*/exit.json")]
    assert sorted(ends) == ["failed", "succeeded"]
    for folder in LocalBackend().root.glob("local/treadle-*"):
        (folder / "began").unlink()
    (left,) = [job for job in told("jobs", wheel.path, *place) if job["pool"] == "local"]
    assert left["state"] == "succeeded", "a result counts whatever the backend forgot"


# Bad luck at the place.


@pytest.mark.slow
def test_a_job_whose_disk_is_full_says_so_and_the_next_finishes(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, tmp_path: Path
) -> None:
    wheel.edit("orders.yaml", "rounds: 30", "rounds: 60")
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))"
    script = (
        f'exec {sys.executable} -c "{limit}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])" "$@"'
    )
    small = Pool(name="small", python=interpreter(tmp_path, script))
    session, inputs = wheel.session(FIRST), {"featurize": turned[1]["featurize"].id}
    with pytest.raises(StoreError, match=r"File too large.*make room|can't be written"):
        jobs.run_on_pool(session, "train", small, inputs)
    apart = copy_of(wheel, tmp_path / "apart")
    record = jobs.run_on_pool(session, "train", Pool(name="local"), inputs)
    whole = apart.run(FIRST, to="train")["train"]
    assert (record.id, record.digest) == (whole.id, whole.digest)


DIES = """
import os, sys
from treadle.jobs.execute import execute
from treadle.models.checkpoints import StoreCheckpoints
save = StoreCheckpoints.save
def dying(self, rounds, data):
    save(self, rounds, data)
    if rounds >= 30:
        os.kill(os.getpid(), 9)
StoreCheckpoints.save = dying
sys.exit(execute(sys.argv[-1], print))
"""


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, tmp_path: Path
) -> None:
    wheel.edit("orders.yaml", "rounds: 30", "rounds: 60")
    apart = copy_of(wheel, tmp_path / "apart")
    session, inputs = wheel.session(FIRST), {"featurize": turned[1]["featurize"].id}
    (tmp_path / "dies.py").write_text(DIES)
    dies = interpreter(tmp_path, f'exec {sys.executable} -P {tmp_path}/dies.py "$@"')
    ref = jobs.submit(session, "train", Pool(name="local", python=dies), inputs)
    for _ in moments("it never ended"):
        if jobs.poll(ref).is_over:
            break
    before, newest = sorted((wheel.store / "checkpoints").glob("*/*.json"))
    blob = wheel.store / blob_path(json.loads(newest.read_text())["sha256"])
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-7] + b"damaged")
    following = jobs.settle(session, ref, pool=Pool(name="local"))
    assert isinstance(following, JobRef)
    record = settled(session, following)
    assert (int(before.stem), int(newest.stem)) == (20, 30)
    assert record.notes["resumed_from"] == 20
    whole = apart.run(FIRST, to="train")["train"]
    assert (record.id, record.digest, record.blobs) == (whole.id, whole.digest, whole.blobs)
    assert [attempt["state"] for attempt in record.notes["attempts"]] == ["lost"]
