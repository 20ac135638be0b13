"""One training over several processes: kept rows, the same model for the same number, no process left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from torch_cases import Interrupted, StopAfter, net_task, own_task, saved
from treadle.errors import TreadleError, UserError
from treadle.models.predictor import MemoryCheckpoints
from treadle.models.torch.flavour import TorchFlavour
from treadle.testing.flavour import make_sample

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each process imports torch

HOOK = """\
from torch import nn
class Sum(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.last = nn.Linear(inputs.numbers, inputs.outputs)
    def forward(self, numbers, codes):
        return self.last(numbers)
def net(inputs):
    return Sum(inputs)
"""


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_two_workers_learn_the_same_each_time_and_nearly_what_one_does(tmp_path):
    before = children()
    params = {"batch_size": 90, "hidden": [8], "dropout": 0}
    one = TorchFlavour().fit(net_task(rounds=3, params=params))
    two = TorchFlavour().fit(net_task(rounds=3, params=params, workers=2))
    again = TorchFlavour().fit(net_task(rounds=3, params=params, workers=2))
    assert saved(two, tmp_path / "two") == saved(again, tmp_path / "again")
    x = make_sample("binary").x
    np.testing.assert_allclose(two.predict(x), one.predict(x), atol=1e-4)
    assert children() == before


def test_two_workers_go_on_from_a_checkpoint_to_the_same_bytes_with_a_hook(tmp_path):
    (tmp_path / "hooks.py").write_text(HOOK)
    settings = {
        "rounds": 3,
        "checkpoint_every": 1,
        "workers": 2,
        "valid": True,
        "early_stopping": {"rounds": 2},
    }
    kept, told = MemoryCheckpoints(), []
    with pytest.raises(Interrupted):
        TorchFlavour().fit(own_task(tmp_path, checkpoints=StopAfter(kept, 1), **settings))
    resumed = TorchFlavour().fit(
        own_task(tmp_path, checkpoints=kept, report=lambda *seen: told.append(seen), **settings)
    )
    whole = TorchFlavour().fit(own_task(tmp_path, **settings))
    assert saved(resumed, tmp_path / "resumed") == saved(whole, tmp_path / "whole")
    assert [number for number, _ in told] == [0, 1, 2]


def test_a_worker_that_fails_is_told_with_its_last_words(tmp_path):
    text = (
        HOOK
        + "import sys\nif 'treadle.models.torch.workers' in ' '.join(sys.orig_argv): raise OSError('no such luck')\n"
    )
    (tmp_path / "hooks.py").write_text(text)
    with pytest.raises(
        TreadleError, match=r"worker 2 of the training ended with exit code 1:[^$]*no such luck"
    ):
        TorchFlavour().fit(own_task(tmp_path, workers=2))


def test_a_hook_without_its_loop_stays_in_one_process(tmp_path, monkeypatch):
    (tmp_path / "hooks.py").write_text(HOOK)
    task = replace(own_task(tmp_path, workers=2), code=None)
    for is_on_cluster in (False, True):
        monkeypatch.setattr("treadle.models.torch.flavour.on_cluster", lambda is_on=is_on_cluster: is_on)
        with pytest.raises(
            UserError, match=r"2 workers need the files of the hook hooks:net, .* leave workers out"
        ):
            TorchFlavour().fit(task)


LONG = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from torch_cases import net_task, saved
from treadle.models.checkpoints import StoreCheckpoints
from treadle.models.torch.flavour import TorchFlavour
from treadle.store import LocalStore

checkpoints = StoreCheckpoints(LocalStore(Path(sys.argv[2])), "record")
def report(number, metrics):
    print(number, flush=True)
predictor = TorchFlavour().fit(net_task(
    rounds=40, checkpoint_every=2, checkpoints=checkpoints, report=report, workers=int(sys.argv[4]),
    params={"dropout": 0.2, "batch_size": 20},
))
saved(predictor, Path(sys.argv[3]))
"""


def start_long(tmp_path: Path, name: str, workers: int) -> subprocess.Popen[str]:
    arguments = [
        str(Path(__file__).parent),
        str(tmp_path / f"store-{name}"),
        str(tmp_path / name),
        str(workers),
    ]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LONG, *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_killed_again_and_again_ends_in_the_same_bytes(tmp_path, workers):
    whole = start_long(tmp_path, "whole", workers)
    killed = 0
    while True:
        process = start_long(tmp_path, "killed", workers)
        fresh = 0
        for line in process.stdout:
            assert re.fullmatch(r"\d+\n", line)
            fresh = int(line)
            if killed < 2 and fresh >= 12 * (killed + 1):
                own = psutil.Process(process.pid).children(recursive=True)
                os.kill(process.pid, signal.SIGKILL)
                gone, alive = psutil.wait_procs(own, timeout=20)
                assert not alive
                assert len(gone) == workers - 1
                killed += 1
                break
        process.stdout.close()
        if process.wait() == 0:
            break
        time.sleep(0.1)
    assert killed == 2
    whole.communicate()
    wanted = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "killed").iterdir()} == wanted
