"""Trials side by side by Ray Tune: the same as one by one, resumed after a kill, and nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from treadle.errors import HookError, MissingPackage, Transient, UserError
from treadle.models.ray_session import ray_workers
from treadle.store import fetch_blob
from wheel import FIRST, Wheel, copy_of

SPACE = {
    "max_depth": {"low": 2, "high": 5, "int": True},
    "learning_rate": {"low": 0.01, "high": 0.5, "log": True},
    "base_score": [0.3, 0.5, 7.0],  # 7.0 is refused when it trains
}


pytestmark = pytest.mark.timeout(900)  # starting Ray takes its time where other tests run beside it

FLAVOUR = """
from shares import LIMIT
from dataclasses import replace
from sklearn.dummy import DummyClassifier
from treadle.models.estimator import EstimatorFlavour


def model(share):
    return DummyClassifier(strategy="constant", constant=int(share > LIMIT))


class Constant(EstimatorFlavour):
    def problems(self, train):
        return []

    def version(self):
        return "1"

    def fit(self, task):
        return super().fit(replace(task, hook=model))
"""


def tuned(wheel: Wheel, trials: int = 5, **train: Any) -> Wheel:
    content = yaml.safe_load(wheel.path.read_text())
    content["train"] = {"rounds": 8, "workers": 2, "tune": {"trials": trials, "space": SPACE}, **train}
    wheel.path.write_text(yaml.safe_dump(content, sort_keys=False))
    return wheel


def trials_of(wheel: Wheel, candidate: Any) -> list[dict[str, Any]]:
    store = wheel.session(FIRST).store
    return json.loads(fetch_blob(store, candidate.blobs["trials.json"]).read_bytes())


def one_by_one(search: Any, judge: Any, loop: Any) -> None:
    from treadle.models import get_flavour
    from treadle.models.tuning.search import search_here

    search_here(search, judge, get_flavour(loop.train.flavour, loop))


def processes_of(folder: str) -> list[str]:
    """What runs of Ray sessions whose files lie in a folder."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    return [line for line in listed.splitlines() if f"{folder}/treadle-workers-" in line]


@pytest.fixture
def short_folder() -> Iterator[str]:
    """A temporary folder with a short name: the paths of Ray's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """One Ray session for the tests of this module; each search would start its own."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            with ray_workers(2, 1, "test"):
                tempfile.tempdir = before
                assert processes_of(folder)
                yield
        finally:
            tempfile.tempdir = before
        assert processes_of(folder) == []


@pytest.mark.slow
def test_trials_by_ray_tune_are_those_of_one_process(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: None
) -> None:
    other, lines = copy_of(tuned(wheel), tmp_path / "other"), []
    by_ray = wheel.run(FIRST, to="train", say=lines.append).train
    monkeypatch.setattr("treadle.models.tuning.ray.search_by_ray", one_by_one)
    alone = other.run(FIRST, to="train").train
    assert trials_of(wheel, by_ray) == trials_of(other, alone)
    assert (by_ray.id, by_ray.digest, by_ray.notes["search"]) == (
        alone.id,
        alone.digest,
        alone.notes["search"],
    )
    assert any(
        trial["loss"] is None and "base_score" in trial["problem"] for trial in trials_of(wheel, by_ray)
    )
    assert sum(line.startswith("train: trial ") for line in lines) == 5


@pytest.mark.slow
def test_a_loop_s_own_hook_runs_in_the_workers_and_its_failure_comes_back(
    wheel: Wheel, session: None
) -> None:
    (wheel.path.parent / "shares.py").write_text("LIMIT = 0.5\n")
    flavour = wheel.path.parent / "flavours.py"
    flavour.write_text(FLAVOUR)
    content = yaml.safe_load(wheel.path.read_text())
    tune = {"trials": 4, "space": {"share": {"low": 0.0, "high": 1.0}}}
    content["train"] = {"flavour": "flavours:Constant", "workers": 2, "tune": tune}
    wheel.path.write_text(yaml.safe_dump(content))
    candidate = wheel.run(FIRST, to="train").train
    losses = {trial["params"]["share"] > 0.5: trial["loss"] for trial in trials_of(wheel, candidate)}
    assert candidate.notes["search"]["best_loss"] == min(losses.values())
    flavour.write_text(FLAVOUR.replace("strategy=", "no_such="))
    with pytest.raises(HookError, match="no_such") as failed:
        wheel.run(FIRST, to="train")
    assert str(wheel.path.parent) in str(failed.value)


@pytest.mark.slow
def test_a_killed_search_leaves_nothing_and_goes_on(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_folder: str, session: None
) -> None:
    cut = copy_of(tuned(wheel, 6), tmp_path / "cut")
    command = [sys.executable, "-m", "treadle", "run", str(cut.path), "--as-of", FIRST, "--to", "train"]
    client = subprocess.Popen(
        [*command, "--store", str(cut.store)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": short_folder},
    )
    try:
        assert client.stderr is not None
        for line in client.stderr:
            if line.strip().startswith("train: trial ") or "trial 1 of" in line:
                break
        assert processes_of(short_folder)
    finally:
        os.kill(client.pid, signal.SIGKILL)
        client.communicate()
    end = time.monotonic() + 60
    while processes_of(short_folder) and time.monotonic() < end:
        time.sleep(0.5)
    assert processes_of(short_folder) == []
    kept = list((cut.store / "checkpoints").rglob("trial-*.json"))
    assert 1 <= len(kept) < 6
    lines: list[str] = []
    resumed = cut.run(FIRST, to="train", say=lines.append).train
    assert sum(line.startswith("train: trial ") for line in lines) == 6 - len(kept)
    monkeypatch.setattr("treadle.models.tuning.ray.search_by_ray", one_by_one)
    whole = wheel.run(FIRST, to="train").train
    assert (resumed.id, resumed.digest, resumed.blobs) == (whole.id, whole.digest, whole.blobs)


def test_without_ray_the_extra_is_named(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle.models.ray_session.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r'ray is needed to search .*: pip install "treadle\[ray\]"'):
        tuned(wheel).run(FIRST, to="train")


@pytest.mark.slow
def test_a_worker_that_is_lost_is_told_and_what_is_done_stays(wheel: Wheel, session: None) -> None:
    (wheel.path.parent / "shares.py").write_text("LIMIT = 0.5\n")
    dying = "        import os\n        os._exit(1) if task.train.params['share'] > 0.5 else None\n        return super"
    (wheel.path.parent / "flavours.py").write_text(FLAVOUR.replace("        return super", dying))
    content = yaml.safe_load(wheel.path.read_text())
    tune = {"trials": 8, "space": {"share": {"low": 0.0, "high": 1.0}}}
    content |= {
        "train": {"flavour": "flavours:Constant", "workers": 2, "tune": tune},
        "retry": {"attempts": 1},
    }
    wheel.path.write_text(yaml.safe_dump(content))
    with pytest.raises(Transient, match="a worker of the search was lost"):
        wheel.run(FIRST, to="train")


@pytest.mark.slow
def test_a_cluster_without_the_accelerator_is_refused(session: None) -> None:
    with (
        pytest.raises(UserError, match="each of 2 workers needs 1 neuron_cores, and the Ray cluster has 0"),
        ray_workers(2, 1, "test", device="trainium"),
    ):
        pass
