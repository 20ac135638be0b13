"""`treadle job --selftest`: what works is proven, and what does not is told, step by step."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from treadle.cli import app
from treadle.errors import UserError
from treadle.jobs import selftest
from treadle.jobs.selftest import Proof, prove
from treadle.models.checkpoints import StoreCheckpoints
from treadle.store import LocalStore
from typer.testing import CliRunner

STEPS = ["device", "matmul", "training", "checkpoint", "resume"]


def told(proof: Proof, name: str) -> str:
    (step,) = [step for step in proof.steps if step.name == name]
    return step.told


def test_the_cpu_proves_itself_and_goes_on_after_a_cut_to_the_bit() -> None:
    done = CliRunner().invoke(app, ["job", "--selftest", "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    proof = json.loads(done.stdout)
    assert proof["ok"]
    assert proof["device"] == "cpu"
    assert [step["name"] for step in proof["steps"]] == STEPS
    assert all(step["ok"] for step in proof["steps"])
    assert proof["steps"][-1]["told"] == "the same predictions to the bit"
    assert sum(step["seconds"] for step in proof["steps"]) < 60


@pytest.mark.parametrize("kind", ["gpu", "trainium", "inferentia"])
def test_a_device_that_is_not_there_fails_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if kind != "gpu" and any(Path("/dev").glob("neuron*")):
        pytest.skip("this machine has Neuron devices")
    done = CliRunner().invoke(app, ["job", "--selftest", "--device", kind])
    assert done.exit_code == 1
    assert f"this machine shows no {kind} to this process" in done.output
    assert "matmul" not in done.output


def test_a_device_file_without_a_library_for_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "devices_seen", lambda kind: ["nvidia0"])
    monkeypatch.setitem(sys.modules, "torch", None)
    proof = prove("gpu")
    assert not proof.ok
    assert [step.name for step in proof.steps] == ["device", "matmul"]
    assert "torch" in told(proof, "matmul")


def test_sums_that_are_wrong_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    class Broken(np.ndarray):  # type: ignore[type-arg]
        def __matmul__(self, other):  # type: ignore[no-untyped-def]
            found = np.asarray(self) @ np.asarray(other)
            if found.dtype == np.float32:
                found[3, 5] += 1
            return found

    class Generator:
        def __init__(self, seed: int) -> None:
            self.own = np.random.Generator(np.random.PCG64(seed))

        def integers(self, *given: object):  # type: ignore[no-untyped-def]
            return self.own.integers(*given).view(Broken)  # type: ignore[call-overload]

    monkeypatch.setattr("numpy.random.default_rng", Generator)
    proof = prove("cpu")
    assert told(proof, "matmul") == "RuntimeError: 1 of 65536 sums are not those of whole numbers"


def test_a_checkpoint_that_is_lost_or_belongs_to_another_training_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Asked for by the whole training, by the cut one, after the cut, and by the resumed one.
    asked = iter(range(8))
    latest = StoreCheckpoints.latest

    def lost(self: StoreCheckpoints) -> tuple[int, bytes] | None:
        return None if next(asked) == 3 else latest(self)

    monkeypatch.setattr(StoreCheckpoints, "latest", lost)
    assert told(prove("cpu"), "resume") == "RuntimeError: it began anew: it did not find its checkpoint again"

    def of_another(self: StoreCheckpoints) -> tuple[int, bytes] | None:
        found = latest(self)
        return found if found is None else (found[0], found[1].replace(b"3", b"4", 40))

    monkeypatch.setattr(StoreCheckpoints, "latest", of_another)
    proof = prove("cpu")
    assert [step.name for step in proof.steps if not step.ok] == ["resume"]


def test_a_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: LocalStore, path: str, *given: object, **options: object) -> bool:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(LocalStore, "_write", full)
    proof = prove("cpu")
    assert not proof.ok
    assert "No space left on device" in proof.steps[-1].told


def test_questions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"no device 'tpu'; known are: cpu, gpu"):
        prove("tpu")
    for given, words in (
        (["job"], "which job"),
        (["job", "x/jobs/a/b/1.job.json", "--selftest"], "give one of them"),
    ):
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 64
        assert words in done.output
