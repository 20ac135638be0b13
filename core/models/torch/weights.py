"""Starting from weights that exist, by `train.init_from`, to fine-tune them."""

# ruff: noqa: TID253  only a fit imports this module
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from treadle.models.schema import InputSchema
from treadle.models.torch.file import load_into, read_weights
from treadle.models.torch.net import Encoder, Whole
from treadle.models.weights import BadWeights

_ENCODER, _NET, _EMBEDDING = "encoder.", "net.", "embeddings.{}.weight"
Assemble = Callable[..., Whole]


def start_from(
    path: Path, schema: InputSchema, encoder: Encoder, head: dict[str, Tensor], assemble: Assemble
) -> Whole:
    """A network with the weights of a file.

    Of a model that treadle saved, the encoder's and head's statistics count too, so that the first step starts from the
    same predictions; levels that it never saw start as its missing value. Other files hold the net's weights alone.

    Args:
        path: A safetensors file.
        schema: What the new model takes in.
        encoder: What the new rows say; taken for weights that come without one.
        head: Likewise.
        assemble: Makes the network of an encoder, a head and, for the flavour's own net, the lengths of its vectors.

    Raises:
        BadWeights: The file is none, or of another network.
    """
    try:
        tensors, about = read_weights(path)
    except ValueError as error:
        raise BadWeights(str(error)) from None
    try:
        if "schema" not in about:
            whole = assemble(encoder, head)
            load_into(whole.net, tensors)
            return whole
        _refuse_other_features(about["schema"], schema)
        statistics, net = Encoder(schema, _under(_ENCODER, tensors)), _under(_NET, tensors)
        learned = {"shift": tensors["shift"], "stretch": tensors["stretch"]}
        if about["hook"]:
            whole = assemble(statistics, learned)
        else:
            net = _relevelled(net, about["schema"], schema)
            vectors = [net[_EMBEDDING.format(number)].shape[1] for number in range(len(statistics.levels))]
            whole = assemble(statistics, learned, tuple(vectors))
        load_into(whole.net, net)
    except (ValueError, KeyError, RuntimeError) as error:
        raise BadWeights(f"{path.name} does not fit this network: {error}") from None
    return whole


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _refuse_other_features(old: list[dict[str, Any]], schema: InputSchema) -> None:
    before = [(feature["name"], feature["kind"]) for feature in old]
    now = [(feature.name, feature.kind) for feature in schema.features]
    if before != now:
        told = [", ".join(f"{name} ({kind})" for name, kind in names) for names in (before, now)]
        raise ValueError(f"it was trained on the features {told[0]}; here they are {told[1]}")


def _relevelled(
    tensors: dict[str, Tensor], features: list[dict[str, Any]], schema: InputSchema
) -> dict[str, Tensor]:
    """The weights with each embedding's rows in the order of the new levels."""
    before = [feature["categories"] for feature in features if feature["kind"] == "category"]
    now = [feature.categories for feature in schema.features if feature.kind == "category"]
    moved = {}
    for number, (old, new) in enumerate(zip(before, now, strict=True)):
        position = {level: code for code, level in enumerate(old, 1)}
        rows = torch.tensor([0, *(position.get(level, 0) for level in new)])
        name = _EMBEDDING.format(number)
        moved[name] = tensors[name][rows]
    return tensors | moved
