"""torch over several workers of Ray Train: the bytes of processes beside each other, or said why not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import treadle
from job_cases import features_at, said, settled
from ray_cases import end, on_ray, processes, watcher_of
from torch_cases import net_task, own_task, saved
from treadle import jobs
from treadle.errors import HookError, Transient, UserError
from treadle.models.predictor import MemoryCheckpoints, Predictor
from treadle.models.ray_session import on_cluster, ray_workers
from treadle.models.torch.flavour import TorchFlavour
from treadle.preemption import Preempted
from wheel import SECOND, Wheel, copy_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]
PARAMS = {"batch_size": 90, "hidden": [8], "dropout": 0.2}
STOPPING = {"valid": True, "early_stopping": {"rounds": 3}, "rounds": 4, "checkpoint_every": 1, "workers": 2}
LAYERS = """\
from torch import nn
class Sum(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.last = nn.Linear(inputs.numbers, inputs.outputs)
    def forward(self, numbers, codes):
        return self.last(numbers)
"""
TRAIN = (
    "{flavour: xgboost, rounds: 30, checkpoint_every: 10, params: {max_depth: 3, learning_rate: 0.3}}",
    "{flavour: torch, hook: net:net, workers: 2, rounds: 600, checkpoint_every: 50}",
)
HOOK = "from layers import Sum\ndef net(inputs):\n    return Sum(inputs)\n"


def test_a_pool_of_ray_that_is_lost_once_trains_the_candidate_of_this_machine(
    turned: tuple[Wheel, treadle.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_JOBS", str(tmp_path / "jobs"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wheel = copy_of(turned[0], tmp_path / "one")
    wheel.edit("orders.yaml", *TRAIN)
    for name, text in (("net.py", HOOK), ("layers.py", LAYERS)):
        (wheel.path.parent / name).write_text(text)
    pool = on_ray(wheel)
    inputs = features_at(wheel, SECOND)
    apart = copy_of(wheel, tmp_path / "two")
    session = wheel.session(SECOND)
    try:
        ref = jobs.submit(session, "train", pool, inputs)
        said(ref, "train: round 100,", 600)
        os.kill(watcher_of(ref.handle)[0], signal.SIGKILL)
        record = settled(session, ref, 600)
        assert record.notes["resumed_from"] >= 50
        assert [lost["state"] for lost in record.notes["attempts"]] == ["lost"]
        here = apart.run(SECOND, to="train")["train"]
        assert (record.id, record.digest, record.blobs) == (here.id, here.digest, here.blobs)
    finally:
        end(tmp_path / "jobs")
    assert not processes(str(tmp_path / "jobs"))


def test_several_workers_on_trainium_are_refused_before_a_cluster_is_asked(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="on trainium the flavour torch trains in one process"):
        TorchFlavour().fit(net_task(workers=2, device="trainium"))


def test_a_job_and_an_address_are_clusters_and_that_of_a_dashboard_is_none(monkeypatch):
    assert not on_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert not on_cluster()
    monkeypatch.setenv("TREADLE_RAY_WORKER", '{"CPU": 1}')
    assert on_cluster()
    monkeypatch.delenv("TREADLE_RAY_WORKER")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert on_cluster()


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """One cluster for all of them, whatever dashboard RAY_ADDRESS names; nothing of it stays."""
    before = family()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
        with ray_workers(2, 1, "test"):
            assert on_cluster()
            yield
        assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"
    assert family() <= before


def family() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def beside(monkeypatch: pytest.MonkeyPatch, **options) -> Predictor:
    """The same fit over processes of this machine."""
    with monkeypatch.context() as patch:
        patch.setattr("treadle.models.torch.flavour.on_cluster", lambda: False)
        return TorchFlavour().fit(net_task(**options))


class Ends(MemoryCheckpoints):
    """Checkpoints after whose first the process is asked to end."""

    def save(self, rounds: int, data: bytes) -> None:
        super().save(rounds, data)
        workers = [process for process in family() if "RayTrainWorker" in " ".join(process.cmdline())]
        assert len(workers) == 2
        # Ray's own port takes nothing without its token; torch's would.
        ports = [port for worker in workers for port in worker.net_connections("tcp")]
        listening = [port.laddr.ip for port in ports if port.status == psutil.CONN_LISTEN]
        assert sorted(listening) == ["127.0.0.1"] * 3 + ["::"] * 2
        raise Preempted


class Notes(MemoryCheckpoints):
    """Checkpoints that know which were saved since."""

    def __init__(self, kept: dict[int, bytes]) -> None:
        super().__init__(dict(kept))
        self.saved: list[int] = []

    def save(self, rounds: int, data: bytes) -> None:
        super().save(rounds, data)
        self.saved.append(rounds)


@pytest.mark.usefixtures("session")
def test_a_fit_that_was_cut_short_goes_on_to_the_bytes_of_processes_beside_each_other(tmp_path, monkeypatch):
    told: list[tuple[int, dict[str, float]]] = []
    kept = Ends()
    with pytest.raises(Preempted):
        TorchFlavour().fit(net_task(params=PARAMS, checkpoints=kept, **STOPPING))
    assert list(kept.kept) == [1]
    notes = Notes(kept.kept)
    resumed = TorchFlavour().fit(
        net_task(
            params=PARAMS,
            checkpoints=notes,
            report=lambda number, losses: told.append((number, dict(losses))),
            **STOPPING,
        )
    )
    assert [number for number, _ in told] == [0, 1, 2, 3]
    assert notes.saved == [2, 3, 4]
    whole = TorchFlavour().fit(net_task(params=PARAMS, **STOPPING))
    apart = beside(monkeypatch, params=PARAMS, **STOPPING)
    wanted = saved(whole, tmp_path / "whole")
    assert saved(resumed, tmp_path / "resumed") == wanted
    assert saved(apart, tmp_path / "apart") == wanted


@pytest.mark.usefixtures("session")
def test_a_hook_that_fails_on_a_worker_is_told_with_its_own_lines(tmp_path):
    (tmp_path / "layers.py").write_text(
        LAYERS.replace("return self.last(numbers)", "return self.lost(numbers)")
    )
    (tmp_path / "hooks.py").write_text(HOOK)
    with pytest.raises(HookError, match=f'File "{tmp_path}/layers.py", line 7, in forward') as caught:
        TorchFlavour().fit(own_task(tmp_path, workers=2))
    assert "has no attribute 'lost'" in str(caught.value)
    assert "treadle-parcel-" not in str(caught.value)


@pytest.mark.usefixtures("session")
def test_a_worker_without_the_device_that_its_pool_promises_fails(monkeypatch):
    with pytest.raises(UserError, match="each of 2 workers needs 1 GPU, and the Ray cluster has 0"):
        TorchFlavour().fit(net_task(workers=2, device="gpu"))
    # As on a node that tells Ray of GPUs which its torch can't use.
    monkeypatch.setenv("TREADLE_RAY_WORKER", '{"CPU": 1}')
    with pytest.raises(UserError, match=r"the pool promises a GPU, and torch \S+ here"):
        TorchFlavour().fit(net_task(workers=2, device="gpu"))


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("own", [False, True], ids=["given", "own"])
def test_a_worker_that_is_killed_costs_one_attempt_and_no_checkpoint(tmp_path, own):
    class Kills(MemoryCheckpoints):
        def save(self, rounds: int, data: bytes) -> None:
            super().save(rounds, data)
            for process in family():
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()
                    return

    kept = Kills()
    settings = {"workers": 2, "rounds": 2000, "checkpoint_every": 50, "checkpoints": kept}
    for name, text in (("hooks.py", HOOK), ("layers.py", LAYERS)):
        (tmp_path / name).write_text(text)
    with pytest.raises(Transient, match="workers of the training were lost"):
        TorchFlavour().fit(own_task(tmp_path, **settings) if own else net_task(**settings))
    assert kept.latest() is not None
