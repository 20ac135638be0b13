"""Which parameters a loop may set for the torch flavour, and what they are when it does not.

With `train.hook` the module is the loop's own: what no trainer knows among `train.params` goes to the hook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from treadle import spec
from treadle.models.devices import precision_of
from treadle.models.xgboost.params import Number, OneOf, Shape
from treadle.words import sentence

LOSSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "binary": ("log_loss",),
        "multiclass": ("log_loss",),
        "regression": ("squared", "absolute", "huber"),
    }
)
OWNED: Mapping[str, str] = MappingProxyType(
    {
        "device": "the pool decides where training runs",
        "early_stopping": "it is train.early_stopping",
        "epochs": "it is train.rounds",
        "max_epochs": "it is train.rounds",
        "num_workers": "it is train.workers",
        "optimizer": "it is AdamW",
        "seed": "it is train.seed",
        "threads": "training takes one thread a worker; it is train.workers",
    }
)


def _widths(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(width) is int and width > 0 for width in value)


_SHARE_BELOW_1 = Shape(
    "a number at least 0 and below 1", lambda value: type(value) in (int, float) and 0 <= value < 1
)
_YES_OR_NO = Shape("true or false", lambda value: isinstance(value, bool))
_WHOLE = Number(1, whole=True)

# What the trainer takes, whoever made the module.
TRAINER: Mapping[str, Number | OneOf | Shape] = MappingProxyType(
    {
        "accumulate": _WHOLE,
        "batch_size": _WHOLE,
        "clip": Number(0, above=True),
        "compile": _YES_OR_NO,
        "deterministic": _YES_OR_NO,
        "learning_rate": Number(0, above=True),
        "loss": OneOf(tuple(dict.fromkeys(name for names in LOSSES.values() for name in names))),
        "precision": OneOf(("float32", "bfloat16")),
        "schedule": OneOf(("constant", "cosine", "one_cycle")),
        "warmup": _SHARE_BELOW_1,
        "weight_decay": Number(0),
    }
)
# What the network of the flavour's own takes.
NET: Mapping[str, Number | OneOf | Shape] = MappingProxyType(
    {
        "activation": OneOf(("relu", "gelu", "silu")),
        "bins": Number(0, 256, whole=True),
        "dropout": _SHARE_BELOW_1,
        "embedding": _WHOLE,
        "hidden": Shape("a list of whole numbers above 0", _widths),
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters of a training.

    Attributes:
        batch_size: Rows for each step of the optimizer, over all workers.
        accumulate: Over how many passes a worker spreads its part of a batch, to save memory.
        learning_rate: The highest of the schedule.
        weight_decay: AdamW's, on matrices only.
        schedule: `constant`, `cosine` down to 0, or `one_cycle` up from a 25th and down to a 10,000th.
        warmup: The share of all steps over which the rate rises.
        clip: The greatest norm of the gradient.
        loss: `log_loss`, or for regression `squared`, `absolute`, `huber`, of the standardized label.
        precision: Of the matrix products: `bfloat16` unless said otherwise on accelerators, `float32` on the CPU.
        compile: Whether `torch.compile` is used.
        deterministic: Whether operations that differ from run to run are refused.
        hidden: The widths of the network's layers.
        dropout: Within them.
        activation: After each.
        embedding: The greatest length of a category's vector.
        bins: Into how many quantiles of the training rows each number is spread beside its value; 0 for none.
        own: What a hook gets.
    """

    batch_size: int = 512
    accumulate: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    schedule: str = "one_cycle"
    warmup: float = 0.1
    clip: float = 1.0
    loss: str = "log_loss"
    precision: str = "float32"
    compile: bool = False
    deterministic: bool = True
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.2
    activation: str = "silu"
    embedding: int = 8
    bins: int = 0
    own: Mapping[str, Any] = field(default_factory=dict)


def settings_of(train: spec.Train, device: str) -> Settings:
    """The settings that a section without problems stands for, on a kind of device."""
    known = {**TRAINER, **({} if train.hook else NET)}
    given = {name: value for name, value in train.params.items() if name in known}
    own = {name: value for name, value in train.params.items() if name not in known}
    if "hidden" in given:
        given["hidden"] = tuple(given["hidden"])
    defaults: dict[str, Any] = {
        "loss": LOSSES[train.task][0],
        "precision": precision_of(train, device),
    }
    return Settings(**{**defaults, **given}, own=own)


def problems(train: spec.Train) -> list[str]:
    """What is wrong with a train section for torch, each as `field: problem`."""
    faults = [(name, _problem(name, value, train.hook is not None)) for name, value in train.params.items()]
    found = [f"params.{name}: {sentence(problem)}" for name, problem in faults if problem]
    loss = train.params.get("loss")
    if TRAINER["loss"].problem(loss) is None and loss not in LOSSES[train.task]:
        fitting = ", ".join(LOSSES[train.task])
        found.append(f"params.loss: {loss!r} is not for the task {train.task}; {fitting} is.")
    if train.seed < 0:
        found.append("seed: torch takes no negative seed here.")
    if train.trust != "none":
        found.append("trust: torch's models need none; remove it.")
    batch, parts = train.params.get("batch_size", Settings().batch_size), train.params.get("accumulate", 1)
    if type(batch) is int and type(parts) is int and 0 < batch < parts * train.workers:
        found.append(
            f"params.batch_size: {batch} rows can't be shared by {train.workers} workers in {parts} parts each."
        )
    return found


def _problem(name: str, value: Any, has_hook: bool) -> str | None:
    if name in OWNED and not has_hook:
        return f"is not for the loop to set: {OWNED[name]}"
    known = TRAINER if has_hook else {**TRAINER, **NET}
    if name in known:
        return known[name].problem(value)
    if has_hook:
        return None if name.isidentifier() else "is no name of an argument"
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(sorted(known))}"
    return f"torch has no such parameter{hint}"
