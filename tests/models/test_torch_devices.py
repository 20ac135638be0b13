"""What each flavour does with the device that the pool promised."""

from __future__ import annotations

import pytest
from torch_cases import net_task
from treadle import spec
from treadle.errors import SpecError, UserError
from treadle.models.devices import DEVICES, device_problem, precision_of, refuse_device
from treadle.models.torch.flavour import TorchFlavour
from treadle.testing.flavour import make_sample


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("gpu", r"the pool promises a GPU, and torch .* here (has no support for GPUs|sees none)"),
        (
            "trainium",
            r"the pool promises Trainium, and torch .* knows neither the device `neuron` nor torch_xla",
        ),
        ("inferentia", "inferentia is for predicting: training runs on pools of cpu, gpu or trainium"),
        ("tpu", "torch knows no accelerator 'tpu'"),
    ],
)
def test_a_device_that_is_promised_and_missing_is_an_error(device, words):
    if device == "gpu" and has_gpu():
        pytest.skip("this machine has the device: a GPU")
    with pytest.raises(UserError, match=words):
        TorchFlavour().fit(net_task(device=device))


def test_torch_xla_on_another_device_than_promised_is_an_error(monkeypatch):
    import sys
    from types import ModuleType

    from treadle.models.torch.device import open_device

    xla, runtime = ModuleType("torch_xla"), ModuleType("torch_xla.runtime")
    runtime.device_type = lambda: "CPU"
    xla.runtime = runtime
    monkeypatch.setitem(sys.modules, "torch_xla", xla)
    monkeypatch.setitem(sys.modules, "torch_xla.runtime", runtime)
    with pytest.raises(UserError, match="promises Trainium, and torch_xla here runs on CPU"):
        open_device("trainium")


@pytest.mark.parametrize(
    ("flavour", "device", "words"),
    [
        ("xgboost", "inferentia", "it computes neural networks only, and no trees. It trains on cpu or gpu."),
        ("xgboost", "trainium", "What can is torch."),
        (
            "estimator",
            "gpu",
            "scikit-learn computes on the CPU. It trains on cpu. What can is torch or xgboost.",
        ),
        ("torch", "inferentia", "it is made for predicting. It trains on cpu or gpu or trainium."),
    ],
)
def test_a_flavour_that_can_not_use_a_device_says_what_can(flavour, device, words):
    from treadle.loop import Loop

    problem = device_problem(flavour, device)
    assert problem is not None
    assert words in problem
    table = {
        "sql": "a.sql",
        "entity": "id",
        "event_time": "t",
        "known_at": "t",
        "label": "y",
        "label_known_at": "t",
    }
    loop = Loop(
        name="a",
        data={"sources": {"a": "a.csv"}, "tables": {"a": table}},
        train={"flavour": flavour, "hook": "hooks:a" if flavour == "estimator" else None},
    )
    with pytest.raises(SpecError, match=f"pools.train: the flavour {flavour} can't train on {device}"):
        refuse_device(loop, device)


def test_every_flavour_has_its_devices():
    from treadle.models import FLAVOURS

    assert set(DEVICES) == set(FLAVOURS)
    assert all(device_problem(flavour, "cpu") is None for flavour in FLAVOURS)
    assert device_problem("hooks:Mine", "trainium") is None


def test_accelerators_compute_in_bfloat16_unless_told_otherwise():
    torch, xgboost = spec.Train(flavour="torch"), spec.Train()
    assert [precision_of(torch, device) for device in ("cpu", "gpu", "trainium")] == [
        "float32",
        "bfloat16",
        "bfloat16",
    ]
    assert precision_of(xgboost, "gpu") == "float32"
    assert precision_of(spec.Train(flavour="torch", params={"precision": "float32"}), "gpu") == "float32"


@pytest.mark.filterwarnings("ignore:.*No visible GPU:UserWarning", "ignore:.*Device is changed:UserWarning")
def test_xgboost_does_not_go_on_without_its_gpu():
    from dataclasses import replace

    from treadle.models.xgboost.flavour import XGBoostFlavour

    if has_gpu():
        pytest.skip("this machine has the device: a GPU")
    work = replace(net_task(), train=spec.Train(rounds=2), device="gpu")
    with pytest.raises(UserError, match="the pool promises a GPU, and xgboost trains on cpu here"):
        XGBoostFlavour().fit(work)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_learns_the_same_as_the_cpu_but_for_rounding(compiled):
    import numpy as np

    if not has_gpu():
        pytest.skip("this machine lacks the device: a GPU")
    x = make_sample("binary").x
    wanted = TorchFlavour().fit(net_task(rounds=5, params={"dropout": 0})).predict(x)
    params = {"dropout": 0, "precision": "float32", "compile": compiled}
    found = TorchFlavour().fit(net_task(rounds=5, params=params, device="gpu")).predict(x)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    rough = TorchFlavour().fit(net_task(rounds=5, params={"dropout": 0}, device="gpu")).predict(x)
    np.testing.assert_allclose(rough, wanted, atol=0.1)
