"""Bad luck at the place: a full disk, a damaged checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import treadle
from job_cases import interpreter, moments, settled
from treadle import jobs
from treadle.errors import StoreError
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.store import blob_path
from wheel import FIRST, Wheel, copy_of


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
