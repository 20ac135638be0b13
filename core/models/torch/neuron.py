"""Networks on AWS's Neuron devices: compiled by torch_neuronx, and predicting from what it made.

    rows ──► Encoder ──► numbers, codes ──► pieces of 1, 16 or 128 rows ──► compiled net ──► head ──► predictions
             on the CPU, in float64         padded with zeros               on the device    on the CPU

A NeuronCore has no float64, so only the net is compiled. Encoder and head are those of the model's own file.
"""

# ruff: noqa: TID253  only a compilation and its server import this module
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from treadle import spec
from treadle.errors import UserError
from treadle.loop import Loop
from treadle.loop_code import load_hook
from treadle.models.ablation import ablated
from treadle.models.compiled import ARGUMENTS, BATCHES, TOLERANCE, missing_library
from treadle.models.predictor import Predictor
from treadle.models.schema import InputSchema
from treadle.models.torch.file import gap_between, load_into, unpack_weights
from treadle.models.torch.flavour import TorchPredictor
from treadle.models.torch.net import Encoder, NetInputs, Whole, make_net, vector_lengths
from treadle.models.torch.params import settings_of

if TYPE_CHECKING:
    from treadle.models.predictor import Floats

_VECTORS = "net.embeddings.{}.weight"
_STATISTICS = ("mean", "scale", "edges", "flagged")


class Core(nn.Module):  # type: ignore[misc]
    """What is compiled: a net with the codes beside the numbers, so that it takes one tensor and none is empty.

    A float32 holds codes up to 2**24, more than a category has levels.
    """

    def __init__(self, net: nn.Module, numbers: int) -> None:
        super().__init__()
        self.net, self.numbers = net, numbers

    def forward(self, rows: Tensor) -> Tensor:
        """(n, outputs) logits of (n, numbers + codes) float32."""
        return self.net(rows[:, : self.numbers], rows[:, self.numbers :].to(torch.int64))


class Pieces(nn.Module):  # type: ignore[misc]
    """Compiled nets, by the number of rows that each takes, in the place of the net that they were made of."""

    def __init__(self, nets: Mapping[int, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.sizes, self.nets = sorted(nets), dict(nets)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """(n, outputs) logits for any n from 1 on."""
        rows = torch.cat([numbers, codes.to(torch.float32)], 1)
        return torch.cat([self._piece(piece) for piece in rows.split(self.sizes[-1])])

    def _piece(self, rows: Tensor) -> Tensor:
        size = next(size for size in self.sizes if size >= len(rows))
        padded = nn.functional.pad(rows, (0, 0, 0, size - len(rows)))
        return self.nets[size](padded)[: len(rows)]


@dataclass(frozen=True, slots=True)
class CompiledPredictor:
    """See Predictor: what `judged` predicts, to within `TOLERANCE`, computed by `whole` on a device."""

    judged: TorchPredictor
    whole: Whole = field(repr=False, compare=False)

    @property
    def flavour(self) -> str:
        """See Predictor."""
        return self.judged.flavour

    @property
    def task(self) -> spec.Task:
        """See Predictor."""
        return self.judged.task

    @property
    def schema(self) -> InputSchema:
        """See Predictor."""
        return self.judged.schema

    @property
    def classes(self) -> tuple[str, ...]:
        """See Predictor."""
        return self.judged.classes

    @property
    def trained_through(self) -> datetime:
        """See Predictor."""
        return self.judged.trained_through

    @property
    def rounds(self) -> int | None:
        """See Predictor."""
        return self.judged.rounds

    def predict(self, x: Floats) -> Floats:
        """See Predictor. Rows together and alone may differ in the last digits of a float32."""
        if not len(x):
            return self.judged.predict(x)
        with torch.inference_mode():
            result: Floats = self.whole(torch.tensor(np.asarray(x, dtype=np.float64))).numpy()
        return result

    def contributions(self, x: Floats) -> Floats:
        """See Predictor, and `ablation.ablated`."""
        return ablated(self.predict, self.task, self.judged.baseline, x)

    def save(self, folder: Path) -> None:
        """See Predictor. Saves the model; what was compiled of it lies in the deployment's blobs."""
        self.judged.save(folder)


def load_nets(predictor: Predictor, files: Mapping[int, Path], device: str) -> CompiledPredictor:
    """A model that predicts from its compiled nets.

    Loading a file runs its TorchScript and gives its program to the device: who could write the store could choose it.

    Args:
        predictor: The model as it was judged.
        files: What `compile_net` saved, by the number of rows.
        device: What they were compiled for.

    Raises:
        UserError: torch_neuronx is not here, or it can't load a file.
    """
    assert isinstance(predictor, TorchPredictor)
    _library(device)  # registers the operator that the files consist of
    nets = {}
    for rows, file in files.items():
        try:
            nets[rows] = torch.jit.load(str(file))
        except Exception as error:  # the runtime's errors have no common class of their own
            raise UserError(
                f"the network that was compiled for {rows} rows on {device} can't be loaded here: {error}. Serve on the"
                " kind of machine and from the image that compiled it, on NeuronCores that nobody else holds."
            ) from error
    tensors, _ = unpack_weights(predictor.weights)
    encoder = _encoder(predictor.schema, tensors)
    return CompiledPredictor(predictor, Whole(predictor.task, encoder, Pieces(nets), tensors).eval())


def compile_net(
    predictor: TorchPredictor,
    loop: Loop,
    tuned: Mapping[str, Any],
    device: str,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[dict[int, Path], float]:
    """A model's net compiled for a device, once for each of `BATCHES`.

    Args:
        predictor: The model as it was judged.
        loop: The loop that trained it, with its files.
        tuned: The parameters that a search found, where there was one.
        device: inferentia or trainium.
        folder: Where to work, and to leave the files.
        say: Takes a line of progress.

    Returns:
        File by number of rows, and the greatest gap from the judged model's predictions.

    Raises:
        UserError: torch_neuronx is not here, or refuses the net; or the compiled net predicts otherwise.
    """
    library = _library(device)
    whole = rebuilt(predictor, loop, tuned)
    core = Core(whole.net, whole.encoder.width).eval()
    x = plausible_rows(whole.encoder, predictor.schema, 2 * max(BATCHES) + 1)
    judged, files, gap = predictor.predict(x), {}, 0.0
    for rows in BATCHES:
        say(f"deploy: compiling the network for {device}, {rows} at a time ...")
        files[rows] = folder / f"{rows}.pt"
        example = torch.zeros(rows, whole.encoder.width + len(whole.encoder.levels))
        try:
            made = library.trace(
                core, example, compiler_args=list(ARGUMENTS), compiler_workdir=str(folder / f"work-{rows}")
            )
            torch.jit.save(made, str(files[rows]))
        except Exception as error:  # the compiler's errors have no common class of their own
            raise UserError(
                f"the network can't be compiled for {device}: {error}. Use operations that its compiler has, or run"
                " with --pool deploy=none to serve on the CPU."
            ) from error
        # Each by itself, and with a last piece that has to be padded.
        some = slice(0, 2 * rows + 1 + rows // 2)
        found = load_nets(predictor, {rows: files[rows]}, device).predict(x[some])
        gap = max(gap, _accepted(gap_between(judged[some], found), rows, device))
    return files, gap


def _accepted(gap: float, rows: int, device: str) -> float:
    if not gap <= TOLERANCE:
        raise UserError(
            f"the network compiled for {device}, {rows} rows at a time, predicts otherwise than the one that was"
            f" judged, by up to {gap:.2g}; {TOLERANCE:g} is allowed. Nothing of it was kept. Its forward must treat"
            " each row by itself; where it does, run with --pool deploy=none to serve on the CPU."
        )
    return gap


def rebuilt(predictor: TorchPredictor, loop: Loop, tuned: Mapping[str, Any]) -> Whole:
    """The module that a model's ONNX was written from: by the loop's hook, or the flavour's own.

    Raises:
        UserError: The weights are not those of the module that the loop makes now.
    """
    tensors, _ = unpack_weights(predictor.weights)
    encoder = _encoder(predictor.schema, tensors)
    train = loop.train.model_copy(update={"params": {**loop.train.params, **tuned}, "tune": None})
    settings = settings_of(train, "cpu")
    hook = load_hook(loop, train.hook, "train.hook") if train.hook else None
    if hook:
        vectors = vector_lengths(encoder.levels, settings.embedding)
    else:
        # A model that began with another's weights has vectors of that one's lengths.
        vectors = tuple(tensors[_VECTORS.format(i)].shape[1] for i in range(len(encoder.levels)))
    outputs = len(predictor.classes) if predictor.task == "multiclass" else 1
    work = SimpleNamespace(train=train, hook=hook)
    net = make_net(work, NetInputs(encoder.width, encoder.levels, vectors, outputs), settings)
    whole = Whole(predictor.task, encoder, net, tensors)
    try:
        load_into(whole, tensors)
    except ValueError as error:
        made = f"train.hook: {train.hook}" if hook else "this version of treadle"
        raise UserError(f"{made} makes another network than the one that was trained: {error}.") from None
    whole.eval()
    return whole


def _encoder(schema: InputSchema, tensors: Mapping[str, Tensor]) -> Encoder:
    return Encoder(schema, {name: tensors[f"encoder.{name}"] for name in _STATISTICS})


def plausible_rows(encoder: Encoder, schema: InputSchema, count: int) -> Floats:
    """(count, k) encoded rows such as may be asked about, by chance but always the same.

    Numbers lie around the mean that the encoder knows, some of them far out; levels come alike; a tenth is missing.
    """
    random = np.random.default_rng(0)
    x = np.empty((count, len(schema.features)))
    mean, scale = iter(encoder.mean.tolist()), iter(encoder.scale.tolist())
    for column, feature in enumerate(schema.features):
        if feature.kind == "category":
            x[:, column] = random.integers(max(1, len(feature.categories)), size=count)
            continue
        middle, spread = next(mean), next(scale)
        whole = feature.kind == "boolean"
        x[:, column] = (
            random.integers(2, size=count) if whole else middle + spread * random.standard_t(2, count)
        )
    x[random.random(x.shape) < 0.1] = np.nan
    return x


def _library(device: str) -> Any:
    try:
        import torch_neuronx
    except ImportError as error:
        raise missing_library("torch-neuronx", device) from error
    return torch_neuronx
