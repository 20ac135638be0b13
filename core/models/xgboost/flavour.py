"""The xgboost flavour: gradient-boosted trees, with categories and missing values taken natively.

Training goes in stretches of `checkpoint_every` rounds, interrupted or not. Each starts from the bytes of the
booster before and a seed of its own: xgboost's random state is in no file, so a run that just went on would
end in another model than one that was killed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle import spec
from treadle.errors import MissingPackage, UserError
from treadle.models.predictor import FitTask, Flavour, Predictor, read_manifest, write_manifest
from treadle.models.schema import InputSchema
from treadle.models.xgboost import params as xgboost_params

if TYPE_CHECKING:
    from treadle.models.predictor import Floats

MODEL_FILE = "model.ubj"
_CHECKPOINT = b"treadle xgboost checkpoint 1\n"
_LOSS_NAMES = {"logloss": "log_loss", "mlogloss": "log_loss"}
History = dict[str, list[float]]


def import_xgboost() -> Any:
    """The xgboost module, its waiting threads asleep: busy waiting is 20 times slower on a loaded machine."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import xgboost
    except ImportError as error:
        raise MissingPackage("xgboost", "train or load xgboost models", "stages") from error
    return xgboost


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class XGBoostPredictor:
    """A booster with what treadle knows of it; `raw` is the model in xgboost's own format."""

    task: spec.Task
    schema: InputSchema
    classes: tuple[str, ...]
    trained_through: datetime
    raw: bytes = field(repr=False)
    booster: Any = field(repr=False, compare=False)
    flavour: str = "xgboost"

    @property
    def rounds(self) -> int | None:
        """See Predictor."""
        return int(self.booster.num_boosted_rounds())

    def predict(self, x: Floats) -> Floats:
        """See Predictor. A row gets the same bits alone and in a batch."""
        import numpy as np

        if not len(x):
            return np.empty((0, len(self.classes)) if self.task == "multiclass" else 0)
        if len(x) == 1:
            from treadle.models.xgboost.dense import predict_dense

            single = predict_dense(self.booster, x)
            if single is not None:
                return single
        result: Floats = self.booster.inplace_predict(x).astype(np.float64)
        return result

    def contributions(self, x: Floats) -> Floats:
        """See Predictor. Exact Shapley values of the trees, in units of the margin (log-odds for binary).

        Raises:
            DataRefused: Numbers that are infinite, or would be in 32 bits.
        """
        import numpy as np
        from treadle.models.rows import refuse_infinite

        if not len(x):
            return np.empty((0, len(self.schema.features)))
        refuse_infinite(self.schema, x, lambda few: [f"row {row + 1}" for row in few])
        xgboost = import_xgboost()
        matrix = _matrix(xgboost, self.schema, x, None, threads=0)
        # A booster of its own with every core: rows are independent, and serving keeps to its one thread.
        wide = xgboost.Booster({"nthread": _cores()}, model_file=bytearray(self.raw))
        shares = wide.predict(matrix, pred_contribs=True).astype(np.float64)
        result: Floats = np.abs(shares).sum(axis=1) if self.task == "multiclass" else shares
        return result[:, :-1]

    def save(self, folder: Path) -> None:
        """See Predictor."""
        (folder / MODEL_FILE).write_bytes(self.raw)
        write_manifest(folder, self)


class XGBoostFlavour:
    """See Flavour."""

    name = "xgboost"

    def version(self) -> str:
        """See Flavour."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("xgboost")
        except PackageNotFoundError:
            raise MissingPackage("xgboost", "train xgboost models", "stages") from None

    def problems(self, train: spec.Train) -> list[str]:
        """See Flavour."""
        return xgboost_params.problems(train)

    def fit(self, task: FitTask) -> Predictor:
        """See Flavour."""
        xgboost = import_xgboost()
        try:
            raw = _fit_spread(task) if task.train.workers > 1 else _Fit(xgboost, task).run()
        except (xgboost.core.XGBoostError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"xgboost can't train with these parameters and rows: {reason}") from error
        train = task.train
        return _predictor(raw, train.task, task.schema, task.classes, task.trained_through, train.threads)

    def load(self, folder: Path, trust: str) -> Predictor:
        """See Flavour. xgboost's own format holds no code."""
        xgboost = import_xgboost()
        manifest = read_manifest(folder)
        path = folder / MODEL_FILE
        try:
            raw = path.read_bytes()
            schema, classes = manifest.schema, manifest.classes
            return _predictor(raw, manifest.task, schema, classes, manifest.trained_through, threads=1)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: the folder holds half a model. Fetch it again.") from None
        except xgboost.core.XGBoostError as error:
            raise UserError(f"{path} is no model that this xgboost reads. Fetch it again.") from error


class _Fit:
    """One fit: its matrices, its parameters, and what it has so far."""

    def __init__(self, xgboost: Any, task: FitTask) -> None:
        self.xgboost, self.task, train = xgboost, task, task.train
        self.params = {
            "objective": xgboost_params.OBJECTIVES[train.task][0],
            **xgboost_params.by_position(train.params, task.schema.names),
            "tree_method": "hist",
            "device": "cuda" if task.device == "gpu" else "cpu",
            "nthread": train.threads,
            "verbosity": 0,
        }
        if train.task == "multiclass":
            self.params["num_class"] = len(task.classes)
        matrix = _matrix(xgboost, task.schema, task.x, task.y, train.threads)
        self.evals = [(matrix, "train")]
        if task.x_valid is not None:
            newest = _matrix(xgboost, task.schema, task.x_valid, task.y_valid, train.threads)
            self.evals.append((newest, "valid"))
        self.history: History = {}
        self.raw: bytes | None = None
        self.rounds = 0

    def run(self) -> bytes:
        """The model's bytes, cut to its best round where early stopping chose one."""
        self._restore()
        while self.rounds < self.task.train.rounds and not self._has_stopped():
            self._stretch()
            self.task.checkpoints.save(self.rounds, _pack(self.history, self.raw or b""))
        booster = self.xgboost.Booster(model_file=bytearray(self.raw or b""))
        if self.task.train.early_stopping:
            booster = booster[: self._best() + 1]
        return bytes(booster.save_raw("ubj"))

    def _restore(self) -> None:
        found = self.task.checkpoints.latest()
        if found is None:
            return
        self.rounds = found[0]
        self.history, self.raw = _unpack(found[1])
        for number in range(self.rounds):
            self.task.report(number, {name: values[number] for name, values in self.history.items()})

    def _stretch(self) -> None:
        """Trains up to `checkpoint_every` rounds from the bytes of the last stretch."""
        count = min(self.task.train.checkpoint_every, self.task.train.rounds - self.rounds)
        booster = self.xgboost.train(
            {**self.params, "seed": self.task.train.seed + self.rounds},
            self.evals[0][0],
            count,
            evals=self.evals,
            verbose_eval=False,
            xgb_model=bytearray(self.raw) if self.raw else None,
            callbacks=[self._watcher()],
        )
        _refuse_another_device(booster, self.params["device"])
        self.raw = bytes(booster.save_raw("ubj"))
        self.rounds = int(booster.num_boosted_rounds())

    def _watcher(self) -> Any:
        fit = self

        class Watcher(self.xgboost.callback.TrainingCallback):  # type: ignore[name-defined, misc]
            def after_iteration(self, model: Any, epoch: int, evals_log: Mapping[str, Any]) -> bool:
                # xgboost counts epochs from 0 in each stretch.
                return fit._seen(fit.rounds + epoch, evals_log)

        return Watcher()

    def _seen(self, number: int, log: Mapping[str, Mapping[str, list[float]]]) -> bool:
        """Takes down a round's losses; whether to stop."""
        losses = {}
        for part, metrics in log.items():
            for name, values in metrics.items():
                # The sum behind a loss differs by thread count in its last digits.
                value = float(f"{values[-1]:.10g}")
                if not math.isfinite(value):
                    raise ValueError(
                        f"the {part} loss became {value} in round {number}: lower the learning rate"
                    )
                losses[f"{part}_{_LOSS_NAMES.get(name, name.replace('-', '_'))}"] = value
        for name, value in losses.items():
            self.history.setdefault(name, []).append(value)
        self.task.report(number, losses)
        return self._has_stopped()

    def _valid(self) -> list[float]:
        return next((values for name, values in self.history.items() if name.startswith("valid_")), [])

    def _best(self) -> int:
        """The first round with the lowest loss on the newest rows."""
        losses = self._valid()
        return losses.index(min(losses))

    def _has_stopped(self) -> bool:
        stopping = self.task.train.early_stopping
        losses = self._valid()
        return bool(stopping and losses and len(losses) - 1 - self._best() >= stopping.rounds)


def _fit_spread(task: FitTask) -> bytes:
    from treadle.models.spread import fit_spread

    return fit_spread(task)[MODEL_FILE]


def _refuse_another_device(booster: Any, wanted: str) -> None:
    """Raises where xgboost went on on the CPU, as it does with no more than a warning when it finds no GPU."""
    used = json.loads(booster.save_config())["learner"]["generic_param"]["device"]
    if not used.startswith(wanted):
        raise UserError(
            f"the pool promises a GPU, and xgboost trains on {used} here. Correct the pool's image or python: it needs "
            "an xgboost built for CUDA and the driver."
        )


def _matrix(xgboost: Any, schema: InputSchema, x: Floats, y: Floats | None, threads: int) -> Any:
    kinds = ["c" if feature.kind == "category" else "q" for feature in schema.features]
    # xgboost refuses names with these signs; then they stay in predictor.json alone.
    legal = not any(sign in name for name in schema.names for sign in "[]<")
    return xgboost.DMatrix(
        x,
        label=y,
        feature_names=list(schema.names) if legal else None,
        feature_types=kinds,
        enable_categorical=True,
        nthread=threads or None,
    )


def _predictor(
    raw: bytes,
    task: spec.Task,
    schema: InputSchema,
    classes: tuple[str, ...],
    trained_through: datetime,
    threads: int,
) -> XGBoostPredictor:
    booster = import_xgboost().Booster({"nthread": threads}, model_file=bytearray(raw))
    return XGBoostPredictor(task, schema, classes, trained_through, raw, booster)


def _pack(history: History, raw: bytes) -> bytes:
    """A checkpoint: a first line that says what it is, a line of JSON, the booster."""
    return _CHECKPOINT + json.dumps(history).encode() + b"\n" + raw


def _unpack(data: bytes) -> tuple[History, bytes]:
    if not data.startswith(_CHECKPOINT):
        raise UserError(
            "a checkpoint of this training was written by another treadle; remove it from the store"
        )
    line, _, raw = data.removeprefix(_CHECKPOINT).partition(b"\n")
    return json.loads(line), raw


if TYPE_CHECKING:
    _flavour: Flavour = XGBoostFlavour()
