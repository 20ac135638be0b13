"""`treadle jobs`: what runs, from any process, also when whoever submitted it is gone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import treadle
from cost_cases import DOLLAR, Place
from job_cases import moments, over, settled
from pool_cases import told, treadle_
from small import write_small_loop
from treadle import jobs
from treadle.errors import UserError
from treadle.hardware.devices import refuse_missing_devices
from treadle.hardware.local import LocalBackend
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.session import open_session
from wheel import FIRST, Wheel, copy_of

LONG = (
    ("rounds: 30", "rounds: 1200"),
    ("max_depth: 3, learning_rate: 0.3", "max_depth: 2, learning_rate: 0.01"),
)


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREADLE_STORE", raising=False)


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


def test_jobs_without_a_loop_are_those_of_the_store_that_lies_here(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = treadle_("jobs")
    assert done.exit_code == 2
    assert "which store?" in done.output
    (tmp_path / ".treadle").symlink_to(wheel.store)
    assert treadle_("jobs").stdout.strip() == "no jobs"


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
    again = treadle_("jobs", "cancel", wheel.path, listed["id"], *place)
    assert again.exit_code == 0
    assert "it is over: stopped" in again.stdout
    followed = treadle_("jobs", "follow", wheel.path, listed["id"], *place)
    assert followed.exit_code == 1
    assert "train: xgboost on 1000 rows" in followed.stdout
    assert "train on the pool local: stopped" in followed.output


def test_jobs_that_ended_say_how(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device is here, as far as the client sees, and not there.
    (tmp_path / "nvidia0").touch()
    monkeypatch.setitem(refuse_missing_devices.__kwdefaults__, "dev", tmp_path)
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


def interrupted(*arguments: object, after: str) -> tuple[int, str]:
    """The exit code of a command that is interrupted once it has said something, and what it said."""
    command = [sys.executable, "-m", "treadle", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if after in line:
                process.send_signal(signal.SIGINT)
                break
        return process.wait(60), "".join([*said, *process.stdout])


def test_ctrl_c_ends_the_following_and_not_the_job(
    turned: tuple[Wheel, treadle.Run], long: Wheel, tmp_path: Path
) -> None:
    wheel = copy_of(long, tmp_path / "copy")
    session, place = wheel.session(FIRST), ("--store", wheel.store)
    ref = jobs.submit(session, "train", Pool(name="local"), {"featurize": turned[1]["featurize"].id})
    try:
        code, words = interrupted("jobs", "follow", ref.job[:12], *place, after="train: ")
        assert code == 3
        assert not jobs.poll(ref).is_over
        assert "train on the pool local is no longer followed, and goes on." in words
        assert f"treadle jobs cancel {ref.job[:12]} --store {wheel.store}" in words
        assert "what was committed" not in words
    finally:
        jobs.cancel(ref, 0)
        over(ref)


def test_the_track_is_shown_where_a_job_is_on_another(loop_on: dict[str, Path]) -> None:
    assert "track" not in treadle_("jobs", loop_on["path"], "--store", loop_on["store"]).stdout
    loop = treadle.Loop.load(loop_on["path"])
    trial = open_session(loop, as_of=FIRST, store=loop_on["store"], track="trial", who="ann")
    Place.jobs = {}
    jobs.submit(trial, "prepare", DOLLAR, {})
    shown = treadle_("jobs", loop_on["path"], "--store", loop_on["store"]).stdout
    assert "track" in shown
    assert "trial" in shown
    assert "production" in shown


@pytest.fixture
def loop_on(tmp_path: Path) -> dict[str, Path]:
    """A small loop with a job on production."""
    path, store = write_small_loop(tmp_path / "loop", days=1), tmp_path / "store"
    Place.jobs = {}
    jobs.submit(
        open_session(treadle.Loop.load(path), as_of=FIRST, store=store, who="ann"), "prepare", DOLLAR, {}
    )
    return {"path": path, "store": store}
