"""What a job measures of itself while it runs, on real processes; and what that says in words."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import treadle
from treadle import jobs
from treadle.hardware import gauges
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.jobs.advice import SHORT_S, words_of
from treadle.jobs.file import read_job, read_result
from treadle.jobs.measure import DeviceUse, Meter, Use
from treadle.jobs.trained import earlier_uses
from wheel import FIRST, Wheel, ids

POOL = Pool(name="big")


def measured(body: str, kind: str = "cpu", **environment: str) -> Use:
    """What a process of its own measured of itself while it ran some lines."""
    program = (
        f"import os, subprocess, sys, time\nfrom treadle.jobs.measure import Meter\n"
        f"meter = Meter({kind!r})\nwith meter:\n"
        + "".join(f"    {line}\n" for line in body.strip().splitlines())
        + "print(meter.use().model_dump_json())"
    )
    environment = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return Use.model_validate_json(done.stdout)


BURN = "until = time.process_time() + {seconds}\nwhile time.process_time() < until: pass"


def test_a_process_that_computes_is_told_from_one_that_sleeps() -> None:
    busy, idle = measured(BURN.format(seconds=0.5)), measured("time.sleep(1.2)")
    assert 0.45 <= busy.cpu_seconds < 1.2
    assert busy.cpu_share == pytest.approx(busy.cpu_seconds / busy.seconds / busy.cores, abs=0.01)
    assert idle.cpu_seconds < 0.4
    assert idle.seconds >= 1.2
    assert 1 <= idle.cores <= (os.cpu_count() or 1)


def test_children_count_while_they_live_and_after() -> None:
    burn = BURN.format(seconds=0.4)
    child = f"[sys.executable, '-c', {f'import time{chr(10)}{burn}'!r}]"
    assert 0.4 <= measured(f"subprocess.run({child})").cpu_seconds < 1.6
    waits = f"[sys.executable, '-c', {f'import time{chr(10)}{burn}{chr(10)}time.sleep(30)'!r}]"
    lives = f"""
        child = subprocess.Popen({waits}, stdout=subprocess.DEVNULL)
        while meter.use().cpu_seconds < 0.4: time.sleep(0.1)
        assert child.poll() is None
        child.kill()
    """
    assert measured(textwrap.dedent(lives)).cpu_seconds < 1.6


def test_the_most_memory_is_seen_also_after_it_is_given_back_and_in_a_child() -> None:
    small = measured("pass").peak_memory_gib
    own = measured("held = bytearray(300 << 20)\ndel held").peak_memory_gib
    assert own - small == pytest.approx(300 / 1024, abs=0.05)
    child = "subprocess.run([sys.executable, '-c', 'import time; held = bytes([7]) * (300 << 20); time.sleep(1.5)'])"
    assert measured(child).peak_memory_gib - small == pytest.approx(300 / 1024, abs=0.06)


PLACES = """
def module(name, text):
    names = {{"__name__": name, "time": time, "waiting_for_data": waiting_for_data}}
    exec(text, names)
    return names
from treadle.waiting import waiting_for_data
data = module("treadle.data.slow", "def read(): time.sleep(0.9)")
mine = module("hooks", '''
def fit(batches):
    time.sleep(0.9)
    with waiting_for_data():
        time.sleep(0.5)
    batches()
''')
loader = module("torch.utils.data.dataloader", "def batches(): time.sleep(0.4)")
stage = module("treadle.stages.train", "def train(read, fit, batches): read(); fit(batches); time.sleep(0.3)")
stage["train"](data["read"], mine["fit"], loader["batches"])
""".replace("{{", "{").replace("}}", "}")


def test_time_is_divided_into_reading_fitting_and_waiting_for_rows() -> None:
    program = "\n".join(PLACES.strip().splitlines())
    use = measured(f"exec({program!r}, globals())")
    assert 0.4 < use.reading * use.seconds < 1.6
    assert 1.2 < use.fitting * use.seconds < 3
    assert 0.4 < use.waiting * use.seconds < 1.6


def test_what_measuring_costs_is_itself_measured() -> None:
    use = measured("time.sleep(1.5)")  # benchmarks/overhead.py judges how little it is
    assert 0 < use.overhead_seconds < use.seconds / 2


def test_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    report = {
        "neuron_runtime_data": [
            {
                "pid": 1,
                "report": {
                    "neuroncore_counters": {
                        "neuroncores_in_use": {
                            "0": {"neuroncore_utilization": 80.0},
                            "1": {"neuroncore_utilization": 20.0},
                        }
                    },
                    "memory_used": {"neuron_runtime_used_bytes": {"host": 5, "neuron_device": 3 * 2**30}},
                },
            }
        ]
    }
    monitor = tmp_path / "neuron-monitor"
    monitor.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho '{json.dumps(report)}'\nexec sleep 60\n")
    monitor.chmod(0o755)
    use = measured("time.sleep(1.6)", "trainium", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert use.devices == (DeviceUse(name="2 NeuronCores", share=0.5, peak_memory_gib=3.0),)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    before = threading.active_count()
    with Meter():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


NVML = r"""
#include <string.h>
int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(unsigned long)(i + 1); return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strcpy(s, "NVIDIA L4"); return 0; }
int nvmlDeviceGetUUID(void *h, char *s, unsigned n) { strcpy(s, h == (void *)1 ? "GPU-aa" : "GPU-bb"); return 0; }
int nvmlDeviceGetUtilizationRates(void *h, unsigned *u) { u[0] = h == (void *)1 ? 90 : 10; u[1] = 5; return 0; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) {
    if (h == (void *)2) return 3;
    m[0] = 24ull << 30; m[1] = 18ull << 30; m[2] = 6ull << 30; return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_gpus_are_read_by_nvml_and_only_those_that_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gauges.open_gauge("gpu") is None or Path("/dev/nvidia0").exists()
    monkeypatch.setattr(gauges, "_NVML", str(library))
    first = gauges.Reading("NVIDIA L4", 0.9, 6.0, 24.0)
    second = gauges.Reading("NVIDIA L4", 0.1, None, None)
    for visible, found in (
        (None, [first, second]),
        ("1", [second]),
        ("1,0", [second, first]),
        ("GPU-bb", [second]),
        ("", []),
        ("7", []),
    ):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        gauge = gauges.open_gauge("gpu")
        assert gauge is not None
        assert gauge.read() == found
        gauge.close()


# What it says in words.


def use_of(**changes: Any) -> Use:
    plain = {
        "seconds": 300.0,
        "cpu_seconds": 270.0,
        "cores": 1.0,
        "cpu_share": 0.9,
        "peak_memory_gib": 3.0,
        "reading": 0.1,
        "fitting": 0.85,
    }
    return Use.model_validate({**plain, **changes})


GPU = Pool(name="gpu", accelerator="nvidia-l4", count=1)


@pytest.mark.parametrize(
    ("use", "pool", "words"),
    [
        (use_of(), POOL, []),
        (use_of(reading=0.62, fitting=0.3), POOL, ["data-bound: 62% of 300 s went into reading"]),
        (
            use_of(waiting=0.5),
            POOL,
            ["data-bound: 10% of 300 s went into reading and encoding data and 50% into"],
        ),
        (use_of(blocked=0.5), POOL, ["waiting for a disk"]),
        (use_of(reading=0.62, seconds=SHORT_S - 1), POOL, []),
        (
            use_of(cpu_share=0.11, cpu_seconds=270.0, cores=8.0),
            Pool(name="big", cpu=8),
            ["0.9 of 8 cores were used on average; cpu: 2 would do in the pool big"],
        ),
        (use_of(cpu_share=0.45), Pool(name="big", cpu=2), []),
        (
            use_of(peak_memory_gib=3),
            Pool(name="big", memory_gib=32),
            ["3.0 of 32 GiB of memory.*memory_gib: 5"],
        ),
        (use_of(peak_memory_gib=3), Pool(name="big", memory_gib=8), []),
        (
            use_of(devices=[{"name": "NVIDIA L4", "share": 0.12}], fitting=0.8, waiting=0.2),
            GPU,
            ["for 25% of the fit the device waited", "NVIDIA L4 worked 12% of the time"],
        ),
        (use_of(devices=[{"name": "NVIDIA L4", "share": None}]), GPU, []),
        (use_of(devices=[{"name": "NVIDIA L4", "share": 0.95}]), GPU, []),
    ],
    ids=[
        *("well used", "reading", "waiting", "disk", "too short", "cores", "cores well used", "memory"),
        *("memory well used", "device", "device tells nothing", "device well used"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_else(use: Use, pool: Pool, words: list[str]) -> None:
    found = words_of(use, pool, trains=True)
    assert len(found) == len(words), found
    for said, wanted in zip(found, words, strict=True):
        assert re.search(wanted, said), said


def falling(rounds: int, rate: float = 0.9) -> list[float]:
    return [0.2 + 0.5 * rate**number for number in range(rounds)]


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ({"train_log_loss": falling(40, 0.97)}, None),
        ({"train_log_loss": falling(400)}, "not falling any more: the second half of 400 rounds"),
        ({"train_log_loss": [0.693] * 30}, "loss not falling: train_log_loss was 0.693 in the first of 30"),
        ({"train_log_loss": [0.6, *[0.7] * 30]}, "loss not falling"),
        ({"train_rmse": [3.0, math.nan, 2.0]}, "train_rmse is no number from round 2 on"),
        ({"train_log_loss": [0.693] * 5}, None),
        ({"accuracy": [0.5] * 40}, None),
        ({}, None),
    ],
    ids=["falls", "levels off", "flat", "rises", "no number", "few rounds", "no loss", "no history"],
)
def test_the_course_of_the_loss_is_judged(history: dict[str, list[float]], words: str | None) -> None:
    found = words_of(use_of(), POOL, trains=True, history=history)
    assert ([words in said for said in found] == [True]) if words else (found == [])


@pytest.mark.parametrize(
    ("workers", "seconds", "words"),
    [
        (4, 30.0, None),
        (4, 90.0, "4 were 1.1 times as fast as 1 worker (before, 100 s), at 4 times the price"),
        (2, 120.0, "2 were slower (0.8 times) than 1 worker"),
        (1, 500.0, None),
    ],
    ids=["pays", "hardly faster", "slower", "one"],
)
def test_more_workers_that_do_not_pay_are_told(workers: int, seconds: float, words: str | None) -> None:
    alone = use_of(work=1e6, seconds=100.0)
    use = use_of(work=1e6, seconds=seconds, workers=workers)
    found = words_of(use, POOL, trains=True, earlier=[("before", alone), ("other", use_of())])
    assert ([words in said for said in found] == [True]) if words else (found == [])
    less = words_of(use.model_copy(update={"work": 5e6}), POOL, trains=True, earlier=[("before", alone)])
    assert less == [], "five times the work in that time pays"


# As part of a job.


def test_a_job_says_in_its_record_and_its_result_what_it_used(
    turned: tuple[Wheel, treadle.Run], wheel: Wheel
) -> None:
    run = {"featurize": turned[1]["featurize"].id}
    for path in (wheel.store / "records" / "orders" / "candidate").glob("*.json"):
        path.unlink()
    session = wheel.session(FIRST)
    ref = jobs.submit(session, "train", Pool(name="roomy", memory_gib=16), run)
    record = jobs.settle(session, ref)
    while isinstance(record, JobRef):
        time.sleep(0.05)
        record = jobs.settle(session, record)
    told = record.notes["job"]
    assert ids({"train": record}) == {"train": ids(turned[1])["train"]}, "what is measured is in no id"
    assert told["use"]["memory_gib"] == 16
    assert told["use"]["fitting"] > 0
    assert told["use"]["work"] == 1000 * 30
    assert told["words"] == []
    result = read_result(session.store, "orders", ref.job, 1)
    assert result is not None
    assert result.use is not None
    assert result.use.model_dump(mode="json") == told["use"]
    assert result.ended_at is not None
    file = read_job(session.store, "orders", ref.job, 1)
    assert file is not None
    other = file.model_copy(update={"key": "0" * 64})
    assert list(earlier_uses(session.store, other, "xgboost")) == [(file.name, result.use)]
    assert list(earlier_uses(session.store, other, "torch")) == []
    assert list(earlier_uses(session.store, file, "xgboost")) == []
