"""A stand-in for AWS's torch_neuronx: it runs on the CPU what it is given, and refuses what the real one does.

By AWS's pages «PyTorch NeuronX Tracing API for Inference», «Data Types» (NeuronCore v2) and «Neuron Compiler CLI
Reference Guide» of Neuron SDK 2.28 to 2.33: shapes and types are fixed, there is no float64, nothing may depend on data
for its shape, options are keywords, matrix products become bfloat16 unless --auto-cast says otherwise, and a file loads
only where the library was imported before. It proves nothing of the compiler, its numerics, or a device.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

__version__ = "2.9.0"
_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool)
_OF_ANY_SHAPE = ("aten::nonzero", "aten::masked_select", "aten::unique")
_OPTIONS = {"--auto-cast": ("none", "matmult", "all")}

_library = torch.library.Library("neuron", "DEF")
_library.define("forward(Tensor result) -> Tensor")
_library.impl("forward", lambda result: result.clone(), "CPU")


class _Model(nn.Module):
    """What `trace` returns, once it is scripted: with fixed shape and type."""

    def __init__(self, traced: nn.Module, shape: list[int]) -> None:
        super().__init__()
        self.traced, self.shape = traced, shape

    def forward(self, rows: Tensor) -> Tensor:
        if list(rows.shape) != self.shape:
            raise RuntimeError(f"compiled for the shape {self.shape}, called with another")
        if rows.dtype != torch.float32:
            raise RuntimeError("compiled for float32, called with another type")
        return torch.ops.neuron.forward(self.traced(rows))


def trace(
    func: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *_: object,
    compiler_workdir: str | None = None,
    compiler_args: str | Sequence[str] | None = None,
) -> torch.jit.ScriptModule:
    if _:
        raise TypeError("options are keywords")
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if any(one.dtype not in _TYPES for one in inputs):
        raise RuntimeError("the compiler encountered a data type that is not supported")
    cast = _options(compiler_args).get("--auto-cast", "matmult")
    if compiler_workdir is not None:
        Path(compiler_workdir).mkdir(parents=True, exist_ok=True)
    _wait_to_be_killed()
    module = deepcopy(func).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if cast != "none":
            for weight in module.parameters():
                weight.data = weight.data.bfloat16().float()
        traced = torch.jit.trace(module, inputs)
        _refuse_what_no_core_has(traced)
        return torch.jit.script(_Model(traced, list(inputs[0].shape)))


def _options(given: str | Sequence[str] | None) -> dict[str, str]:
    words = given.split() if isinstance(given, str) else list(given or ())
    found = dict(zip(words[::2], words[1::2], strict=True))
    for name, value in found.items():
        if value not in _OPTIONS.get(name, ()):
            raise RuntimeError(f"neuronx-cc: error: argument {name}: {value}")
    return found


def _refuse_what_no_core_has(traced: torch.jit.ScriptModule) -> None:
    for node in traced.inlined_graph.nodes():
        if node.kind() in _OF_ANY_SHAPE:
            raise RuntimeError(f"{node.kind()} gives a shape that depends on the data")
        for output in node.outputs():
            kind = output.type()
            if kind.kind() == "TensorType" and kind.scalarType() == "Double":
                raise RuntimeError(
                    f"{node.kind()}: the compiler encountered a data type that is not supported"
                )


def _wait_to_be_killed() -> None:
    marker = os.environ.get("STAND_IN_WAITS")
    if marker:
        Path(marker).write_text(str(os.getpid()))
        time.sleep(120)
