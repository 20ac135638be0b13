"""The files of a torch model: weights in safetensors, the whole network as ONNX, checkpoints. No pickle anywhere."""

# ruff: noqa: TID253  only a fit imports this module
from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from treadle.errors import UserError
from treadle.identity import canonical
from treadle.models.torch.net import Whole

if TYPE_CHECKING:
    from treadle.models.predictor import Floats

_CHECKPOINT = b"treadle torch checkpoint 1\n"
_ABOUT = "treadle"
# Float32 arithmetic in another order, and bfloat16 weights never: predictions in float64 must agree this closely.
_CLOSE = 1e-5


def pack_weights(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Tensors in safetensors' format, with plain JSON in its header."""
    from safetensors.torch import save

    # One key only: the library writes several in any order.
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save(held, {_ABOUT: canonical(dict(about))}))


def unpack_weights(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `pack_weights` packed; nothing about tensors that others wrote.

    Raises:
        ValueError: It is no safetensors, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, json.loads(header.get("__metadata__", {}).get(_ABOUT, "{}"))


def pack_checkpoint(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """A checkpoint: a first line that says what it is, then tensors with JSON in their header."""
    return _CHECKPOINT + pack_weights(tensors, state)


def unpack_checkpoint(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `pack_checkpoint` packed.

    Raises:
        UserError: Another treadle wrote it.
    """
    try:
        if not data.startswith(_CHECKPOINT):
            raise ValueError("it begins otherwise")
        tensors, state = unpack_weights(data.removeprefix(_CHECKPOINT))
    except ValueError:
        raise UserError(
            "a checkpoint of this training was written by another treadle; remove it from the store"
        ) from None
    return state, tensors


def to_onnx(whole: Whole, columns: int) -> bytes:
    """The network as ONNX: `rows` (n, columns) float64 in, `predictions` out, for any n.

    Raises:
        UserError: ONNX has no word for something in the module.
    """
    buffer, rows = io.BytesIO(), torch.zeros(3, columns, dtype=torch.float64)
    with warnings.catch_warnings():
        # The exporter by tracing: the newer one needs onnxscript and writes this machine's paths into the file.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            torch.onnx.export(
                whole.cpu().eval(),
                (rows,),
                buffer,
                dynamo=False,
                input_names=["rows"],
                output_names=["predictions"],
                dynamic_axes={"rows": {0: "n"}, "predictions": {0: "n"}},
            )
        except Exception as error:
            raise UserError(
                f"the network can't be written as ONNX, by which it is served: {error}. Use operations that ONNX has."
            ) from error
    return buffer.getvalue()


def refuse_disagreement(whole: Whole, predictions: Floats, x: Floats) -> None:
    """Nothing, where ONNX predicts for (n, k) rows what the module does: tracing loses branches on values.

    Raises:
        UserError: It predicts otherwise.
    """
    with torch.no_grad():
        own = whole.cpu().eval()(torch.from_numpy(x)).numpy()
    gap = gap_between(own, predictions)
    if not gap <= _CLOSE:
        raise UserError(
            f"the network written as ONNX predicts otherwise than the module, by up to {gap:.2g}: "
            "its forward must not branch on the values or the number of its rows."
        )


def gap_between(wanted: Floats, found: Floats) -> float:
    """The greatest difference, as a share of the greatest value wanted, or of 1 where that is more; may be NaN."""
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    return float(np.abs(wanted - found).max(initial=0)) / scale


def load_into(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts weights into a net.

    Raises:
        ValueError: Names or shapes differ; names the first three.
    """
    own = net.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is not in this network" for name in tensors if name not in own]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} where this network has {tuple(own[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{'; '.join(wrong[:3])}{more}")
    net.load_state_dict(dict(tensors))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a file.

    Raises:
        ValueError: It can't be read, or is no safetensors.
    """
    try:
        return unpack_weights(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path.name} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is no safetensors file, or a damaged one: {error}") from None
