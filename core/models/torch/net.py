"""The network: from encoded rows to predictions, all in one module, so that one file serves it.

    rows (n, k) float64 ──► Encoder ──► numbers, codes ──► net ──► logits ──► head ──► predictions

Only `net` is trained, and only it runs on an accelerator. What the encoder and the head hold was learned on the
training rows. Predicting imports nothing of this: it needs no torch.
"""

# ruff: noqa: TID253  only a fit imports this module
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from treadle import spec
from treadle.errors import UserError
from treadle.models.schema import InputSchema
from treadle.models.torch.params import Settings

if TYPE_CHECKING:
    from treadle.models.predictor import Floats

# Beyond so many standard deviations a number says no more than that it is far out.
_FARTHEST = 10.0
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


@dataclass(frozen=True, slots=True)
class NetInputs:
    """What a network takes in and gives out: its `forward(numbers, codes)` returns (n, outputs) logits.

    Attributes:
        numbers: The width of `numbers`, (n, numbers) float32: standardized values with 0 for missing; for each feature
            with missing values in training, a column that is 1 where one is missing; then the bins.
        levels: For each column of `codes`, (n, len(levels)) int64, how many codes there are; 0 is missing or unseen.
        vectors: How long a vector each category should get, where the network learns some.
        outputs: 1 for binary (log-odds) and regression (of the standardized label), else one for each class.
    """

    numbers: int
    levels: tuple[int, ...]
    vectors: tuple[int, ...]
    outputs: int


def vector_lengths(levels: tuple[int, ...], longest: int) -> tuple[int, ...]:
    """How long a vector each category should get, of `levels` codes each."""
    return tuple(min(longest, (n + 3) // 2) for n in levels)


class Encoder(nn.Module):  # type: ignore[misc]
    """Standardizes numbers and makes codes of categories, in float64: a time in seconds needs its digits."""

    def __init__(self, schema: InputSchema, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.levels = tuple(len(f.categories) + 1 for f in schema.features if f.kind == "category")
        categories = [i for i, feature in enumerate(schema.features) if feature.kind == "category"]
        numbers = [i for i, feature in enumerate(schema.features) if feature.kind != "category"]
        self.register_buffer(
            "category_columns", torch.tensor(categories, dtype=torch.int64), persistent=False
        )
        self.register_buffer("number_columns", torch.tensor(numbers, dtype=torch.int64), persistent=False)
        for name in ("mean", "scale", "edges", "flagged"):
            self.register_buffer(name, tensors[name])
        # Numbers, as tracing would take a tensor's length for something that changes.
        self.flags, self.bins = len(tensors["flagged"]), max(0, int(tensors["edges"].shape[1]) - 1)
        self.width = len(numbers) * (1 + self.bins) + self.flags

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`numbers` and `codes` of (n, k) float64 rows."""
        codes = x.index_select(1, self.category_columns)
        codes = torch.where(torch.isnan(codes), torch.full_like(codes, -1.0), codes).to(torch.int64) + 1
        values = x.index_select(1, self.number_columns)
        absent = torch.isnan(values)
        plain = torch.where(absent, torch.zeros_like(values), (values - self.mean) / self.scale)
        parts = [plain.clamp(-_FARTHEST, _FARTHEST)]
        if self.flags:
            parts.append(absent.index_select(1, self.flagged).to(torch.float64))
        if self.bins:
            low, high = self.edges[:, :-1], self.edges[:, 1:]
            filled = (values.unsqueeze(2) - low) / (high - low).clamp(min=1e-9)
            filled = torch.where(absent.unsqueeze(2), torch.zeros_like(filled), filled.clamp(0.0, 1.0))
            parts.append(filled.flatten(1))
        return torch.cat(parts, 1).to(torch.float32), codes


def learn_encoder(schema: InputSchema, x: Floats, bins: int) -> Encoder:
    """The encoder whose statistics are those of some rows (n, k); a feature without any known value counts as 0."""
    columns = [i for i, feature in enumerate(schema.features) if feature.kind != "category"]
    mean, scale = np.zeros(len(columns)), np.ones(len(columns))
    edges = np.zeros((len(columns), bins + 1 if bins and columns else 0))
    flagged = []
    for place, column in enumerate(columns):
        values = x[:, column]
        known = values[~np.isnan(values)]
        if len(known) < len(values):
            flagged.append(place)
        if len(known):
            mean[place], spread = known.mean(), known.std()
            scale[place] = spread if spread > 1e-9 * max(1.0, abs(mean[place])) else 1.0
            if edges.shape[1]:
                edges[place] = np.quantile(known, np.linspace(0, 1, bins + 1))
    tensors = {name: torch.from_numpy(value) for name, value in _named(mean, scale, edges, flagged)}
    return Encoder(schema, tensors)


def _named(mean: Floats, scale: Floats, edges: Floats, flagged: list[int]) -> list[tuple[str, Any]]:
    return [
        ("mean", mean),
        ("scale", scale),
        ("edges", edges),
        ("flagged", np.array(flagged, dtype=np.int64)),
    ]


class TabularNet(nn.Module):  # type: ignore[misc]
    """Vectors of the categories beside the numbers, then layers with normalization, activation and dropout."""

    def __init__(self, inputs: NetInputs, settings: Settings) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(
            nn.Embedding(*sizes) for sizes in zip(inputs.levels, inputs.vectors, strict=True)
        )
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)
            # Where training rows lack none, what is missing or unseen later must not get chance weights.
            nn.init.zeros_(embedding.weight[0])
        width = inputs.numbers + sum(embedding.embedding_dim for embedding in self.embeddings)
        layers: list[Any] = []
        for size in settings.hidden:
            layers += [nn.Linear(width, size), nn.LayerNorm(size), _ACTIVATIONS[settings.activation]()]
            layers.append(nn.Dropout(settings.dropout))
            width = size
        self.layers = nn.Sequential(*layers, nn.Linear(width, inputs.outputs))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """(n, outputs) logits."""
        vectors = [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
        return self.layers(torch.cat([numbers, *vectors], 1))


class Whole(nn.Module):  # type: ignore[misc]
    """Encoder, net and head: (n, k) encoded rows in, predictions out, both float64."""

    def __init__(self, task: spec.Task, encoder: Encoder, net: nn.Module, head: dict[str, Tensor]) -> None:
        super().__init__()
        self.task, self.encoder, self.net = task, encoder, net
        self.register_buffer("shift", head["shift"])
        self.register_buffer("stretch", head["stretch"])

    def forward(self, x: Tensor) -> Tensor:
        """See Predictor.predict for the shapes."""
        logits = self.net(*self.encoder(x)).to(torch.float64)
        if self.task == "multiclass":
            return torch.softmax(logits, 1)
        if self.task == "binary":
            return torch.sigmoid(logits.squeeze(1))
        return logits.squeeze(1) * self.stretch + self.shift


def learn_head(task: spec.Task, y: Floats) -> dict[str, Tensor]:
    """What makes a label of a regression's output: its mean and standard deviation in training."""
    spread = float(y.std()) if task == "regression" else 1.0
    mean = float(y.mean()) if task == "regression" else 0.0
    return {
        "shift": torch.tensor(mean, dtype=torch.float64),
        "stretch": torch.tensor(spread or 1.0, dtype=torch.float64),
    }


def make_net(task: Any, inputs: NetInputs, settings: Settings) -> nn.Module:
    """The loop's own module where it has a hook, else the flavour's; its weights by the seed.

    Raises:
        UserError: The hook returned no module, or one that gives other shapes.
    """
    torch.manual_seed(task.train.seed)
    if task.hook is None:
        return TabularNet(inputs, settings)
    net = task.hook(inputs, **settings.own)
    named = f"train.hook: {task.train.hook}"
    if not isinstance(net, nn.Module):
        raise UserError(
            f"{named} returned a {type(net).__name__}; the flavour torch needs a torch.nn.Module."
        )
    net = net.to(torch.float32)
    numbers, codes = torch.zeros(4, inputs.numbers), torch.zeros(4, len(inputs.levels), dtype=torch.int64)
    with torch.no_grad():
        given = net.eval()(numbers, codes)
    shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
    if shape != (4, inputs.outputs):
        raise UserError(
            f"{named} returned a module that gives {shape} for 4 rows; (4, {inputs.outputs}) logits are needed: "
            f"forward(numbers (n, {inputs.numbers}), codes (n, {len(inputs.levels)}))."
        )
    return net
