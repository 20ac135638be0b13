"""Which flavour learns on which kind of device, in which precision, and what can be compiled for one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from treadle import spec
from treadle.errors import SpecError, UserError
from treadle.loop import Loop

DEVICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "estimator": ("cpu",),
        "torch": ("cpu", "gpu", "trainium"),
        "xgboost": ("cpu", "gpu"),
    }
)
# Devices that take a network only as their own compiler made it, and the one flavour that makes networks.
COMPILED_FOR = ("inferentia", "trainium")
_NETWORKS = "torch"
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


def compile_problem(flavour: str, device: str) -> str | None:
    """Why deploy can't compile a flavour's models for a kind of device, and what can.

    Args:
        flavour: As in `train.flavour`.
        device: cpu, gpu, trainium or inferentia.

    Returns:
        None where it can, or where deploy compiles nothing.
    """
    if device not in COMPILED_FOR or flavour == _NETWORKS:
        return None
    why = _WHY.get((flavour, device), "nobody knows whether a flavour of a loop's own makes networks")
    return (
        f"models of the flavour {flavour} can't be compiled for {device}: {why}. What can is {_NETWORKS}; "
        "on a pool of cpu or gpu, or none, deploy compiles nothing."
    )


def stage_problem(stage: str, flavour: str, device: str) -> str | None:
    """Why a stage can't do with a flavour what a kind of device is for; None where it can."""
    if stage == "train":
        return device_problem(flavour, device)
    return compile_problem(flavour, device) if stage == "deploy" else None


def stage_fix(stage: str, flavour: str, device: str, pools: Mapping[str, str]) -> str:
    """What to do about a `stage_problem`: the pools that would do, and the flavours that could there.

    Args:
        stage: train or deploy.
        flavour: As in `train.flavour`.
        device: The kind that does not fit.
        pools: The kind of device by pool, of all pools that there are.
    """
    kinds = DEVICES.get(flavour, ("cpu", "gpu")) if stage == "train" else ("cpu", "gpu")
    fitting = [name for name, kind in sorted(pools.items()) if kind in kinds]
    here = f" ({', '.join(fitting)})" if fitting else ""
    able = (
        [name for name, devices in DEVICES.items() if device in devices] if stage == "train" else [_NETWORKS]
    )
    instead = f", or take the flavour {' or '.join(able)}" if able else f"; no flavour trains on {device}"
    return f"Name a pool of {' or '.join(kinds)} for {stage}{here}{instead}."


def refuse_device(loop: Loop, device: str, stage: str = "train", *, pool: str = "") -> None:
    """Nothing, where the loop's flavour can learn on a kind of device, or be compiled for it.

    Args:
        loop: The loop.
        device: cpu, gpu, trainium or inferentia.
        stage: A stage's name.
        pool: The pool that promises the device, where it is known: what named it is blamed.

    Raises:
        SpecError: It can't.
    """
    problem = stage_problem(stage, loop.train.flavour, device)
    if problem:
        fix = stage_fix(stage, loop.train.flavour, device, kinds_by_pool(loop))
        told = (problem, fix)
        raise SpecError(
            [loop.pool_fault(stage, pool, *told) if pool else loop.fault(f"pools.{stage}", *told)]
        )


def kinds_by_pool(loop: Loop) -> dict[str, str]:
    """The kind of device of each pool that a loop may name; none of them where one is described wrongly."""
    from treadle.hardware.pools import known_pools

    try:
        return {name: pool.kind for name, pool in known_pools(loop).items()}
    except UserError:
        return {}


def precision_of(train: spec.Train, device: str) -> str:
    """In which precision a section's matrix products are computed on a kind of device: part of a candidate's key."""
    if train.flavour != "torch":
        return "float32"
    return str(train.params.get("precision", "float32" if device == "cpu" else "bfloat16"))
