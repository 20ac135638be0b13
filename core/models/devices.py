"""Which flavour learns on which kind of device, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from treadle import spec
from treadle.errors import SpecError
from treadle.loop import Loop

DEVICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "estimator": ("cpu",),
        "torch": ("cpu", "gpu", "trainium"),
        "xgboost": ("cpu", "gpu"),
    }
)
_WHY: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("estimator", "gpu"): "scikit-learn computes on the CPU",
        ("estimator", "trainium"): "scikit-learn computes on the CPU",
        ("estimator", "inferentia"): "scikit-learn computes on the CPU",
        ("torch", "inferentia"): "it is made for predicting",
        ("xgboost", "trainium"): "it computes neural networks only, and no trees",
        ("xgboost", "inferentia"): "it computes neural networks only, and no trees",
    }
)


def device_problem(flavour: str, device: str) -> str | None:
    """Why a flavour can't learn on a kind of device, and what can; None where it can, or is a loop's own.

    Args:
        flavour: As in `train.flavour`.
        device: cpu, gpu, trainium or inferentia.
    """
    fitting = DEVICES.get(flavour)
    if fitting is None or device in fitting:
        return None
    others = [name for name, devices in DEVICES.items() if device in devices]
    instead = f" What can is {' or '.join(others)}." if others else ""
    return (
        f"the flavour {flavour} can't train on {device}: {_WHY[flavour, device]}. It trains on "
        f"{' or '.join(fitting)}.{instead}"
    )


def refuse_device(loop: Loop, device: str) -> None:
    """Nothing, where the loop's flavour can learn on a kind of device.

    Raises:
        SpecError: It can't.
    """
    problem = device_problem(loop.train.flavour, device)
    if problem:
        raise SpecError(
            [loop.fault("pools.train", problem, "Name another pool for train, or another flavour.")]
        )


def precision_of(train: spec.Train, device: str) -> str:
    """In which precision a section's matrix products are computed on a kind of device: part of a candidate's key."""
    if train.flavour != "torch":
        return "float32"
    return str(train.params.get("precision", "float32" if device == "cpu" else "bfloat16"))
