"""From a pool of Inferentia to the endpoint, by a stand-in for AWS's compiler: see tests/neuron/torch_neuronx.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import treadle
from neuron_machine import VERSIONS, NeuronMachine, neuron_machine
from treadle import jobs
from treadle.commit import all_records, get_record
from treadle.errors import SpecError, UserError
from treadle.hardware.devices import refuse_missing_devices
from treadle.jobs.client import pool_of
from treadle.models import load_candidate
from treadle.models.compiled import find_compiled
from treadle.records import Candidate, Deployment
from treadle.runner import run_session
from treadle.serving.server import serve_in_thread
from treadle.stages import deploy
from treadle.steps import key_context
from treadle.store import LocalStore, blob_path
from wheel import FIRST, SECOND, Wheel, copy_of, lenient, new_wheel

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
TORCH = "train: {flavour: torch, rounds: 12, params: {hidden: [16], batch_size: 128}}"
ROW = {"region": "north", "amount": 31.5, "items": 3, "hour": 14, "load__open_orders": 55.0}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """A loop whose network was trained on this CPU, and is the champion; it was deployed nowhere."""
    wheel = new_wheel(tmp_path_factory.mktemp("torch"))
    text = wheel.path.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("train:")]
    wheel.edit("orders.yaml", line, TORCH)
    lenient(wheel)
    wheel.run(FIRST, to="release")
    assert wheel.kinds()[-1] == "promote"
    return wheel


@pytest.fixture
def torch_wheel(released: Wheel, tmp_path: Path) -> Wheel:
    return copy_of(released, tmp_path)


@pytest.fixture
def machine(tmp_path: Path) -> NeuronMachine:
    return neuron_machine(tmp_path / "machine")


@pytest.fixture(autouse=True)
def devices_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs beside the devices, too; only the library that uses them is not here."""
    monkeypatch.setitem(refuse_missing_devices.__kwdefaults__, "dev", tmp_path / "machine" / "dev")


def with_pool(wheel: Wheel, machine: NeuronMachine, kind: str = "inferentia") -> Wheel:
    (wheel.path.parent / "pools.yaml").write_text(machine.pools(kind))
    return wheel


def champion_of(wheel: Wheel) -> Candidate:
    session = wheel.session(FIRST)
    entry = session.log.champion()
    assert entry is not None
    return get_record(session.store, Candidate, "orders", entry.details["candidate_id"])


def deployments(wheel: Wheel) -> list[Deployment]:
    return list(all_records(LocalStore(wheel.store), Deployment, "orders"))


def rows_of(count: int) -> list[dict[str, Any]]:
    """Rows with gaps, and with regions that no training saw."""
    regions = ["north", "south", "nowhere", None]
    return [
        {**ROW, "region": regions[i % 4], "amount": None if i % 7 == 3 else 5.0 + i, "hour": i % 24}
        for i in range(count)
    ]


def judged(wheel: Wheel, rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """What ONNX Runtime predicts for rows."""
    predictor = load_candidate(LocalStore(wheel.store), champion_of(wheel))
    codes = {
        feature.name: {level: code for code, level in enumerate(feature.categories)}
        for feature in predictor.schema.features
    }
    x = [
        [
            np.nan
            if row[f.name] is None
            else codes[f.name].get(row[f.name], np.nan)
            if f.kind == "category"
            else row[f.name]
            for f in predictor.schema.features
        ]
        for row in rows
    ]
    return predictor.predict(np.array(x, dtype=float))


@contextmanager
def serving(wheel: Wheel, machine: NeuronMachine, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`treadle serve` on a machine, and its address."""
    command = [
        str(machine.python),
        "-m",
        "treadle",
        "serve",
        str(wheel.path),
        "--store",
        str(wheel.store),
        "--port",
        "0",
    ]
    with subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            line = server.stderr.readline()
            assert line.startswith("serving orders on "), line + server.stderr.read()
            yield line.split()[-1], server
        finally:
            server.terminate()
            server.stderr.read()


def served(url: str, rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    answer = httpx.post(f"{url}/invocations", json={"dataframe_records": rows}, timeout=30)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["predictions"])


def until_it_serves(url: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while httpx.get(f"{url}/ping").status_code != 200:
        assert time.monotonic() < end, httpx.get(url).text
        time.sleep(0.1)
    found: dict[str, Any] = httpx.get(url).json()
    return found


def test_a_network_is_compiled_by_deploys_job_and_served_as_it_was_judged(
    torch_wheel: Wheel, machine: NeuronMachine
) -> None:
    wheel = with_pool(torch_wheel, machine)
    run = wheel.run(FIRST, pools={"deploy": "chips"})
    record = run["deploy"]
    assert isinstance(record, Deployment)
    assert record.compiled is not None
    assert (record.compiled.device, record.compiled.batches) == ("inferentia", (1, 16, 128))
    assert record.compiled.versions.items() >= VERSIONS.items()
    assert 0 <= record.compiled.gap < 1e-5
    assert sorted(record.blobs) == ["compiled/1.pt", "compiled/128.pt", "compiled/16.pt"]
    assert record.notes["job"]["pool"] == "chips"
    again = wheel.run(FIRST, pools={"deploy": "chips"})
    assert again.reused["deploy"]
    assert again["deploy"] == record
    plain = wheel.run(FIRST)["deploy"]
    assert plain.id != record.id
    with serving(wheel, machine, "--device", "inferentia") as (url, _):
        about = until_it_serves(url)
        assert [one["device"] for one in about["serving"]] == ["inferentia"]
        for count in (1, 20, 300):
            rows = rows_of(count)
            np.testing.assert_allclose(served(url, rows), judged(wheel, rows), atol=1e-5)


def test_without_such_a_pool_a_deployment_is_what_it_was(torch_wheel: Wheel) -> None:
    wheel = torch_wheel
    here = wheel.run(FIRST)["deploy"]
    there = copy_of(torch_wheel, wheel.path.parents[1] / "there").run(FIRST, pools={"deploy": "local"})[
        "deploy"
    ]
    assert isinstance(here, Deployment)
    assert (here.id, here.digest) == (there.id, there.digest)
    assert (here.compiled, here.blobs) == (None, {})
    assert here.key == {
        "stage": "deploy",
        "version": 1,
        "spec": here.key["spec"],
        "candidate": here.candidate,
    }
    session = wheel.session(FIRST)
    for device in ("cpu", "gpu"):
        assert deploy.key(replace(key_context(session), device=device), session.log.champion()) == here.key
    assert "compiled" not in deploy.key(replace(key_context(session), device="inferentia"), None)


@pytest.mark.slow
def test_a_compilation_that_is_killed_leaves_nothing_half(
    torch_wheel: Wheel, machine: NeuronMachine, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    slow = neuron_machine(tmp_path / "slow", STAND_IN_WAITS=str(marker))
    wheel = with_pool(torch_wheel, slow)
    session = wheel.session(FIRST)
    run = wheel.run(FIRST, to="release")
    pool = pool_of(session.loop, "deploy", "chips")
    assert pool is not None
    ref = jobs.submit(session, "deploy", pool, {"release": run["release"].id})
    end = time.monotonic() + 90
    while not marker.exists() or not marker.read_text():
        assert time.monotonic() < end, jobs.logs(ref)
        time.sleep(0.05)
    os.kill(int(marker.read_text()), signal.SIGKILL)
    while not jobs.poll(ref).is_over:
        time.sleep(0.05)
    assert deployments(wheel) == []
    (wheel.path.parent / "pools.yaml").write_text(machine.pools())
    record = wheel.run(FIRST, pools={"deploy": "chips"})["deploy"]
    assert deployments(wheel) == [record]
    assert len(record.blobs) == 3


def test_a_machine_without_the_device_is_refused_by_job_and_server(
    torch_wheel: Wheel, tmp_path: Path
) -> None:
    machine = neuron_machine(tmp_path / "bare", devices=0)
    wheel = with_pool(torch_wheel, machine)
    with pytest.raises(UserError, match="the pool chips promises 1 x inferentia; this machine shows none"):
        wheel.run(FIRST, pools={"deploy": "chips"})
    assert deployments(wheel) == []
    done = subprocess.run(
        [
            str(machine.python),
            "-m",
            "treadle",
            "serve",
            str(wheel.path),
            "--store",
            str(wheel.store),
            "--device",
            "inferentia",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "this machine shows no Neuron device" in done.stderr


def test_trees_are_refused_before_anything_starts(wheel: Wheel, machine: NeuronMachine) -> None:
    with_pool(wheel, machine)
    said: list[str] = []
    with pytest.raises(
        SpecError,
        match=r"--pool deploy=chips: models of the flavour xgboost can't be compiled for inferentia",
    ):
        wheel.run(SECOND, pools={"deploy": "chips"}, say=said.append)
    assert said == []
    assert wheel.run(SECOND, to="featurize", pools={"deploy": "chips"}), "deploy is not part of this run"


def test_a_champion_of_another_flavour_is_refused_before_its_job(
    wheel: Wheel, machine: NeuronMachine
) -> None:
    with_pool(wheel, machine)
    loop = treadle.Loop.load(wheel.path, overrides=("train.flavour=torch", "train.params={}"))
    session = replace(wheel.session(FIRST), loop=loop)
    pool = pool_of(loop, "deploy", "chips")
    assert pool is not None
    with pytest.raises(
        UserError, match=r"the champion, model \w{12}, stays as it is: models of the flavour xgboost"
    ):
        jobs.submit(session, "deploy", pool, {})


@pytest.mark.slow
def test_what_is_not_compiled_is_refused_with_the_command_that_compiles_it(
    torch_wheel: Wheel, machine: NeuronMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = with_pool(torch_wheel, machine)
    wheel.run(FIRST)
    machine.be_here(monkeypatch)
    loop, store = treadle.Loop.load(wheel.path), LocalStore(wheel.store)
    with (
        pytest.raises(UserError, match="is not compiled for inferentia") as told,
        serve_in_thread(loop, store, device="inferentia"),
    ):
        pass
    command = (
        str(told.value).partition("`")[2].partition("`")[0].replace("deploy=NAME", "deploy=chips").split()
    )
    assert command[:3] == ["treadle", "run", "orders.yaml"]
    done = subprocess.run(
        [str(machine.python), "-m", *command, "--store", str(wheel.store), "--by", "ann", "--json"],
        cwd=wheel.path.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deploy"]["compiled"]["device"] == "inferentia"
    with serve_in_thread(loop, store, device="inferentia") as server:
        np.testing.assert_allclose(served(server.url, rows_of(3)), judged(wheel, rows_of(3)), atol=1e-5)
    with (
        pytest.raises(UserError, match="is not compiled for trainium"),
        serve_in_thread(loop, store, device="trainium"),
    ):
        pass


def compile_here(wheel: Wheel, as_of: str) -> Deployment:
    """The deployment that deploy's job would make, made in this process."""
    run = wheel.run(as_of, to="release")
    session = wheel.session(as_of)
    session.device = "inferentia"
    inputs = {stage: record.id for stage, record in run.items()}
    record = run_session(session, start="deploy", to="deploy", inputs=inputs)["deploy"]
    assert isinstance(record, Deployment)
    return record


def test_a_running_server_keeps_its_model_until_the_next_champion_is_compiled(
    torch_wheel: Wheel, machine: NeuronMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = torch_wheel
    machine.be_here(monkeypatch)
    first = compile_here(wheel, FIRST)
    loop, store = treadle.Loop.load(wheel.path), LocalStore(wheel.store)
    with serve_in_thread(loop, store, device="inferentia") as server:
        assert server.router.serving[0].candidate == first.candidate
        wheel.run(SECOND, to="release")
        assert wheel.kinds().count("promote") == 2
        end = time.monotonic() + 30
        while "is not compiled for inferentia" not in server.router.trouble:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert httpx.get(f"{server.url}/ping").status_code == 200
        assert "--from deploy --pool deploy=NAME" in httpx.get(server.url).json()["trouble"]
        assert server.router.serving[0].candidate == first.candidate
        second = compile_here(wheel, SECOND)
        assert second.candidate != first.candidate
        end = time.monotonic() + 60
        while server.router.serving[0].candidate != second.candidate:
            assert time.monotonic() < end, server.router.trouble
            time.sleep(0.05)
        assert server.router.trouble == ""
    monkeypatch.undo()
    with (
        pytest.raises(UserError, match="this machine shows no Neuron device"),
        serve_in_thread(loop, store, device="inferentia"),
    ):
        pass


@pytest.mark.slow
def test_a_lost_blob_is_compiled_again_and_an_altered_one_is_not_served(
    torch_wheel: Wheel, machine: NeuronMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.be_here(monkeypatch)
    record = compile_here(torch_wheel, FIRST)
    store = LocalStore(torch_wheel.store)
    path = torch_wheel.store / blob_path(record.blobs["compiled/16.pt"])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    loop = treadle.Loop.load(torch_wheel.path)
    with (
        pytest.raises(treadle.TreadleError, match=r"serves nothing: .*BlobLost"),
        serve_in_thread(loop, store, device="inferentia", wait_s=5),
    ):
        pass
    again = compile_here(torch_wheel, FIRST)
    found = find_compiled(store, champion_of(torch_wheel), "inferentia")
    assert found == again
    with serve_in_thread(loop, store, device="inferentia") as server:
        assert len(served(server.url, rows_of(20))) == 20
