"""The device that a training uses: what the pool promised, or an error. Nothing falls back to the CPU."""

# ruff: noqa: TID253  only a fit imports this module
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from treadle.errors import UserError
from treadle.models.torch.params import Settings


@dataclass(frozen=True, slots=True)
class Device:
    """Where a net runs.

    Attributes:
        kind: cpu, gpu or trainium.
        name: What `Tensor.to` takes.
        sync: Ends a step: what was recorded so far is run, where a device records before it runs.
        collective: The backend of torch.distributed between several of them; None where there is none.
        seed: Seeds what is random on it, such as dropout.
    """

    kind: str
    name: Any
    sync: Callable[[], None]
    collective: str | None
    seed: Callable[[int], Any] = torch.manual_seed

    def autocast(self, precision: str) -> Any:
        """A context within which matrix products have a precision."""
        kind = torch.device(self.name).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def open_device(kind: str, *, rank: int = 0) -> Device:
    """The device of a kind, for one of several processes on this machine.

    Raises:
        UserError: It is not there, or no training runs on it.
    """
    if kind == "cpu":
        return Device("cpu", "cpu", _nothing, "gloo")
    if kind == "gpu":
        return _gpu(rank)
    if kind == "trainium":
        return _neuron() or open_xla("NEURON")
    if kind == "inferentia":
        raise UserError(
            "inferentia is for predicting: training runs on pools of cpu, gpu or trainium. Change pools.train."
        )
    raise UserError(f"torch knows no accelerator {kind!r}; known are: cpu, gpu, trainium.")


def _nothing() -> None:
    return None


def _gpu(rank: int) -> Device:
    if not torch.cuda.is_available():
        built = "has no support for GPUs" if not torch.backends.cuda.is_built() else "sees none"
        raise UserError(
            f"the pool promises a GPU, and torch {torch.__version__} here {built}. Correct the pool's image or python:"
            " it needs a torch built for CUDA and the driver."
        )
    count, index = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", rank))
    if index >= count:
        raise UserError(
            f"train.workers: worker {index + 1} finds no GPU, as torch sees {count} here. "
            "Ask for fewer workers, or for a pool with more."
        )
    torch.cuda.set_device(index)
    return Device("gpu", f"cuda:{index}", _nothing, "nccl")


def _neuron() -> Device | None:
    """The native device of trn2 and newer, where the image's torch brings it along."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None or found.type != "neuron":
        return None
    return Device("trainium", "neuron", _nothing, None)


def open_xla(wanted: str) -> Device:
    """The device of torch_xla (trn1, trn2), if it is of the wanted type: NEURON, or CPU to try it out."""
    try:
        import torch_xla
        import torch_xla.runtime
    except ImportError:
        raise UserError(
            f"the pool promises Trainium, and torch {torch.__version__} here knows neither the device `neuron` nor "
            "torch_xla. Both come with AWS's images and package index, not from PyPI: name such an image in the pool."
        ) from None
    type_ = torch_xla.runtime.device_type()
    if type_ != wanted:
        raise UserError(f"the pool promises Trainium, and torch_xla here runs on {type_}. Correct the image.")
    # Dropout on the device draws from a generator of XLA's own, which torch.manual_seed leaves alone.
    return Device("trainium", torch_xla.device(), torch_xla.sync, None, torch_xla.manual_seed)


@contextmanager
def reproducible(settings: Settings, device: Device) -> Iterator[None]:
    """Within it torch gives the same bits again: one thread, and no operation that differs from run to run.

    What a process had set before, its random state too, is there again afterwards.
    """
    # cuBLAS reads it when it starts; without it the strict mode below refuses matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cuda = [device.name] if device.kind == "gpu" else []
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(settings.deterministic)
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)
