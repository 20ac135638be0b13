"""The seam between treadle and whatever learns: a Flavour fits and loads, a Predictor predicts and saves.

    Train, rows ──► Flavour.fit ──► Predictor ──► save ──► predictor.json + the flavour's own file
                    Flavour.load ◄──────────────────────── the same folder

A new flavour is one class with these methods; `treadle.testing.flavour.FlavourSuite` tests it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from treadle import spec
from treadle.clock import format_instant, parse_instant
from treadle.errors import UserError
from treadle.identity import canonical
from treadle.models.schema import InputSchema

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from treadle.models.loop_parcel import LoopParcel

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

FORMAT = 1
MANIFEST = "predictor.json"


class Predictor(Protocol):
    """A trained model, whatever its flavour. Rows are encoded by its `schema`."""

    @property
    def flavour(self) -> str:
        """The name of the flavour that loads it."""
        ...

    @property
    def task(self) -> spec.Task:
        """What it predicts."""
        ...

    @property
    def schema(self) -> InputSchema:
        """What it takes in."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, sorted; for binary `("0", "1")`; empty for regression."""
        ...

    @property
    def trained_through(self) -> datetime:
        """Exclusive: no row at or after it took part in training."""
        ...

    @property
    def rounds(self) -> int | None:
        """How many rounds it holds, where the flavour knows such."""
        ...

    def predict(self, x: Floats) -> Floats:
        """Predictions for (n, k) encoded rows.

        Returns:
            Binary: (n,) the probability of class 1. Multiclass: (n, classes). Regression: (n,).
        """
        ...

    def contributions(self, x: Floats) -> Floats:
        """(n, k): how much each feature moved the prediction; for multiclass, sizes summed over classes."""
        ...

    def save(self, folder: Path) -> None:
        """Writes `predictor.json` and the flavour's own file into a folder; equal models give equal bytes."""
        ...


class Checkpoints(Protocol):
    """Where a fit keeps what it has so far, so that a killed one goes on."""

    def latest(self) -> tuple[int, bytes] | None:
        """The rounds done and the flavour's bytes, of the newest intact checkpoint; None without any."""
        ...

    def save(self, rounds: int, data: bytes) -> None:
        """Keeps a checkpoint."""
        ...


@dataclass(slots=True)
class MemoryCheckpoints:
    """Checkpoints that end with the process: for tests and experiments."""

    kept: dict[int, bytes] = field(default_factory=dict)

    def latest(self) -> tuple[int, bytes] | None:
        """See Checkpoints."""
        return max(self.kept.items()) if self.kept else None

    def save(self, rounds: int, data: bytes) -> None:
        """See Checkpoints."""
        self.kept[rounds] = data


Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class FitTask:
    """What a flavour learns from.

    Attributes:
        train: The loop's section.
        schema: What the matrix's columns are.
        x: (n, k) encoded rows in order of time by partition, NaN for missing.
        y: (n,) labels: 0 and 1 for binary, positions in `classes` for multiclass, values for regression.
        times_us: (n,) event times in microseconds since 1970, UTC.
        x_valid: (m, k) the newest rows, kept out of fitting; None without early stopping.
        y_valid: (m,) their labels.
        classes: The labels' names; empty for regression.
        trained_through: What the predictor shall say about itself.
        checkpoints: Where to keep what there is so far.
        report: Takes a round (from 0) and its metrics, once for each round in order, restored ones too.
        hook: What `train.hook` names, for flavours that take one.
        code: The hook's loop with its files, for a fit that takes the hook to other processes.
        device: What kind of accelerator the stage has: cpu, gpu, trainium or inferentia.
        init: The file with the weights to start from, for `train.init_from`.
    """

    train: spec.Train
    schema: InputSchema
    x: Floats
    y: Floats
    times_us: Ints
    x_valid: Floats | None
    y_valid: Floats | None
    classes: tuple[str, ...]
    trained_through: datetime
    checkpoints: Checkpoints
    report: Report
    hook: Callable[..., Any] | None = None
    code: LoopParcel | None = None
    device: str = "cpu"
    init: Path | None = None


class Flavour(Protocol):
    """A way to learn. Making one, `problems` and `version` import nothing heavy: keys and checks do so."""

    name: str

    def version(self) -> str:
        """The learning library's version, from its metadata, without importing it.

        Raises:
            MissingPackage: It is not installed.
        """
        ...

    def problems(self, train: spec.Train) -> list[str]:
        """What is wrong with a train section, each as `field: problem`, the field within `train`."""
        ...

    def fit(self, task: FitTask) -> Predictor:
        """A predictor that the same task gives again to the bit, interrupted or not, with any thread count.

        Raises:
            UserError: The library refuses the parameters or the rows.
        """
        ...

    def load(self, folder: Path, trust: str) -> Predictor:
        """The predictor that was saved, without executing code from the folder unless `trust` is `pickle`.

        Raises:
            UserError: The folder holds what can't be loaded so.
        """
        ...


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `predictor.json` says; `extra` is the flavour's own."""

    flavour: str
    task: spec.Task
    schema: InputSchema
    classes: tuple[str, ...]
    trained_through: datetime
    rounds: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(folder: Path, predictor: Predictor, extra: Mapping[str, Any] | None = None) -> None:
    """Writes `predictor.json`: what every predictor says of itself, and plain JSON that its flavour adds."""
    content = {
        "format": FORMAT,
        "flavour": predictor.flavour,
        "task": predictor.task,
        "schema": predictor.schema.to_json(),
        "classes": list(predictor.classes),
        "trained_through": format_instant(predictor.trained_through),
        "rounds": predictor.rounds,
        "extra": dict(extra or {}),
    }
    (folder / MANIFEST).write_text(canonical(content) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """What `write_manifest` wrote.

    Raises:
        UserError: There is none, it is damaged, or a newer treadle wrote it.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
    except FileNotFoundError:
        raise UserError(f"{folder} holds no model of treadle: there is no {MANIFEST} in it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: it is no JSON object with a `format`. Fetch it again.") from None
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}; this treadle reads {FORMAT}. "
            "Load it with the version that wrote it, or a newer one."
        )
    try:
        return Manifest(
            flavour=content["flavour"],
            task=content["task"],
            schema=InputSchema.from_json(content["schema"]),
            classes=tuple(content["classes"]),
            trained_through=parse_instant(content["trained_through"]),
            rounds=content["rounds"],
            extra=content["extra"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error!r}. Fetch it again.") from None
