"""xgboost over several workers of Ray Train, on a cluster of this process's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_xgboost import work
from treadle.errors import Transient, UserError
from treadle.models.predictor import MemoryCheckpoints
from treadle.models.ray_session import ray_workers
from treadle.models.xgboost.flavour import XGBoostFlavour, XGBoostPredictor
from treadle.preemption import Preempted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]
SAMPLED = {"max_depth": 4, "subsample": 0.7, "colsample_bytree": 0.7, "eta": 0.2}


def test_a_process_that_is_killed_leaves_no_cluster_behind(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_xgboost import work\n"
        "from treadle.models.predictor import MemoryCheckpoints\n"
        "from treadle.models.xgboost.flavour import XGBoostFlavour\n"
        "class Says(MemoryCheckpoints):\n"
        "    def save(self, rounds, data): print(rounds, flush=True)\n"
        "XGBoostFlavour().fit(work(rounds=10**6, workers=2, threads=1, checkpoint_every=100, checkpoints=Says()))\n"
    )
    said = tmp_path / "said.txt"
    with open(said, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    assert process.stdout.readline() == "100\n", said.read_text()[-3000:]
    family = descendants(process.pid)
    assert any(name.startswith("ray::") for name in family.values()), family
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 150  # Ray's agents look for their parent now and then
    while time.monotonic() < end and (left := [pid for pid in family if alive(pid, family[pid])]):
        time.sleep(0.2)
    assert not left, {pid: family[pid] for pid in left}


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """One cluster for all of them: it takes ten seconds and more to start."""
    with ray_workers(2, 1, "test"):
        yield


def fit(**options) -> tuple[XGBoostPredictor, list[tuple[int, dict[str, float]]]]:
    told: list[tuple[int, dict[str, float]]] = []
    options = {"workers": 2, "rounds": 12, "checkpoint_every": 5, "threads": 1, "params": SAMPLED, **options}
    task = work(report=lambda number, losses: told.append((number, dict(losses))), **options)
    predictor = XGBoostFlavour().fit(task)
    assert isinstance(predictor, XGBoostPredictor)
    return predictor, told


class Ends(MemoryCheckpoints):
    """Checkpoints after whose first the process is asked to end."""

    def save(self, rounds: int, data: bytes) -> None:
        super().save(rounds, data)
        raise Preempted


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    "options",
    [
        {"task": "multiclass", "valid": True, "early_stopping": {"rounds": 50}},
        {"task": "regression", "params": {"booster": "dart", "rate_drop": 0.3, "max_depth": 3}},
    ],
    ids=["stopping early", "dart"],
)
def test_a_fit_that_was_cut_short_goes_on_to_the_same_bytes(options) -> None:
    whole, told = fit(**options)
    assert [number for number, _ in told] == list(range(12))
    checkpoints = Ends()
    with pytest.raises(Preempted):
        fit(checkpoints=checkpoints, **options)
    assert list(checkpoints.kept) == [5]
    resumed, again = fit(checkpoints=MemoryCheckpoints(dict(checkpoints.kept)), **options)
    assert resumed.raw == whole.raw
    assert again == told


@pytest.mark.usefixtures("session")
def test_two_workers_learn_as_well_as_one() -> None:
    _, apart = fit(rounds=20)
    _, alone = fit(rounds=20, workers=1)
    assert apart[-1][1]["train_log_loss"] == pytest.approx(alone[-1][1]["train_log_loss"], abs=0.03)


@pytest.mark.usefixtures("session")
def test_what_xgboost_refuses_is_said_as_in_one_process() -> None:
    with pytest.raises(UserError, match="can't train with these parameters"):
        fit(params={"monotone_constraints": {"nobody": 1}})


@pytest.mark.usefixtures("session")
def test_a_worker_that_is_killed_costs_one_attempt_and_no_checkpoint() -> None:
    class Kills(MemoryCheckpoints):
        def save(self, rounds: int, data: bytes) -> None:
            super().save(rounds, data)
            for process in Path("/proc").glob("[0-9]*"):
                if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    return

    options = {"rounds": 4000, "checkpoint_every": 500}
    checkpoints = Kills()
    with pytest.raises(Transient, match="workers of the training were lost"):
        fit(checkpoints=checkpoints, **options)
    begun = max(checkpoints.kept)
    predictor, told = fit(
        checkpoints=MemoryCheckpoints(dict(checkpoints.kept)), rounds=begun + 500, checkpoint_every=500
    )
    assert predictor.rounds == begun + 500
    assert [number for number, _ in told] == list(range(begun + 500))


def descendants(pid: int) -> dict[int, str]:
    told = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in told.splitlines()]
    found, new = {}, {pid}
    while new:
        children = {int(row[0]): row[2] for row in rows if int(row[1]) in new}
        found |= children
        new = set(children)
    return found


def alive(pid: int, name: str) -> bool:
    try:
        told = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return False
    return bool(told) and told.split()[0] == name.split()[0]
