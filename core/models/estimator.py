"""The estimator flavour: any object with scikit-learn's methods, made by a hook of the loop.

    def model(C=1.0):                                            # hooks.py
        return make_pipeline(..., LogisticRegression(C=C))

    train: {flavour: estimator, hook: hooks:model, params: {C: 0.5}}

The hook is called with `train.params` and returns an unfitted estimator. It gets a pandas DataFrame whose
columns have the features' names: numbers and booleans as float64 with NaN for missing, categories as pandas
Categorical with the levels that training saw (missing and unseen are NaN). Labels are 0 and 1, positions in
the sorted classes, or values. Every `random_state` left at None becomes `train.seed`.

It is saved by skops, which loads without executing code; classes unknown to skops need `trust: pickle`.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle import spec
from treadle.errors import MissingPackage, TreadleError, UserError
from treadle.models import skops_file
from treadle.models.ablation import ablated, typical_values
from treadle.models.predictor import FitTask, Flavour, Predictor, read_manifest, write_manifest
from treadle.models.schema import InputSchema

if TYPE_CHECKING:
    import pandas as pd
    from treadle.models.predictor import Floats

SAFE_FILE, PICKLE_FILE = "model.skops", "model.pkl"


@dataclass(frozen=True, slots=True)
class EstimatorPredictor:
    """A fitted estimator. `baseline` holds k typical values; `file` and `raw` are how it is saved."""

    task: spec.Task
    schema: InputSchema
    classes: tuple[str, ...]
    trained_through: datetime
    baseline: tuple[float | None, ...]
    file: str
    raw: bytes = field(repr=False)
    estimator: Any = field(repr=False, compare=False)
    flavour: str = "estimator"
    rounds: int | None = None

    def predict(self, x: Floats) -> Floats:
        """See Predictor.

        Raises:
            UserError: The estimator refuses the rows, such as missing values without an imputer.
        """
        import numpy as np

        wide = (len(x), len(self.classes))
        if not len(x):
            return np.empty(wide if self.task == "multiclass" else 0)
        frame = to_frame(self.schema, x)
        try:
            with limited_threads(1):
                if self.task == "regression":
                    return np.asarray(self.estimator.predict(frame), dtype=np.float64).reshape(len(x))
                shares = np.asarray(self.estimator.predict_proba(frame), dtype=np.float64)
        except ValueError as error:
            raise UserError(f"the estimator can't predict these rows: {error}") from error
        full: Floats = np.zeros(wide)
        full[:, np.asarray(self.estimator.classes_, dtype=np.int64)] = shares
        return full if self.task == "multiclass" else full[:, 1]

    def contributions(self, x: Floats) -> Floats:
        """See Predictor, and `ablation.ablated`."""
        return ablated(self.predict, self.task, self.baseline, x)

    def save(self, folder: Path) -> None:
        """See Predictor."""
        (folder / self.file).write_bytes(self.raw)
        write_manifest(folder, self, {"baseline": list(self.baseline)})


class EstimatorFlavour:
    """See Flavour."""

    name = "estimator"

    def version(self) -> str:
        """See Flavour."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"scikit-learn {version('scikit-learn')}, skops {version('skops')}"
        except PackageNotFoundError as error:
            raise MissingPackage(error.name or "scikit-learn", "train estimators", "stages") from None

    def problems(self, train: spec.Train) -> list[str]:
        """See Flavour. The parameters are the hook's arguments, which only calling it can check."""
        found = []
        if not train.hook:
            found.append("hook: the flavour estimator needs one, module:function, that returns an estimator.")
        if train.early_stopping:
            found.append(
                "early_stopping: the flavour estimator has none; set the estimator's own in the hook."
            )
        found += [
            f"{name}: the flavour estimator fits in one go; give it to the hook as a parameter."
            for name in ("rounds", "checkpoint_every")
            if getattr(train, name) != spec.Train.model_fields[name].default
        ]
        if train.workers > 1:
            found.append("workers: the flavour estimator fits in one process; leave it out.")
        if train.init_from:
            found.append("init_from: the flavour estimator starts from nothing; torch takes weights.")
        found += [
            f"params.{name}: is no name of an argument." for name in train.params if not name.isidentifier()
        ]
        return found

    def fit(self, task: FitTask) -> Predictor:
        """See Flavour."""
        import numpy as np

        estimator = _make(task)
        if task.train.trust == "none":
            _saved(estimator, "none")  # refuse what can't be saved before the long work
        _seed(estimator, task.train.seed)
        labels = task.y if task.train.task == "regression" else task.y.astype(np.int64)
        try:
            with limited_threads(task.train.threads):
                estimator.fit(to_frame(task.schema, task.x), labels)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"the estimator of {task.train.hook} can't learn from these rows: {error}"
            ) from error
        skops_file.forget_threads(estimator)
        file, raw = _saved(estimator, task.train.trust)
        return EstimatorPredictor(
            task=task.train.task,
            schema=task.schema,
            classes=task.classes,
            trained_through=task.trained_through,
            baseline=typical_values(task.schema, task.x),
            file=file,
            raw=raw,
            estimator=estimator,
        )

    def load(self, folder: Path, trust: str) -> Predictor:
        """See Flavour."""
        manifest = read_manifest(folder)
        file = next((name for name in (SAFE_FILE, PICKLE_FILE) if (folder / name).is_file()), None)
        if file is None:
            raise UserError(f"{folder} has neither {SAFE_FILE} nor {PICKLE_FILE}: it holds half a model")
        if file == PICKLE_FILE and trust != "pickle":
            raise UserError(
                f"{folder / file} is a pickle, and loading it executes code from it. If you trust whoever "
                "can write to the store, say `trust: pickle` in the loop's train section."
            )
        raw = (folder / file).read_bytes()
        return EstimatorPredictor(
            task=manifest.task,
            schema=manifest.schema,
            classes=manifest.classes,
            trained_through=manifest.trained_through,
            baseline=tuple(manifest.extra["baseline"]),
            file=file,
            raw=raw,
            estimator=skops_file.load(raw) if file == SAFE_FILE else pickle.loads(raw),
        )


def to_frame(schema: InputSchema, x: Floats) -> pd.DataFrame:
    """Encoded rows (n, k) as a DataFrame with the features' names and, for categories, their levels."""
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    for position, feature in enumerate(schema.features):
        values: Any = x[:, position]
        if feature.kind == "category":
            codes = np.where(np.isnan(values), -1, values).astype(np.int64)
            values = pd.Categorical.from_codes(codes, categories=pd.Index(feature.categories, dtype=object))
        columns[feature.name] = values
    return pd.DataFrame(columns)


@contextmanager
def limited_threads(openmp: int) -> Iterator[None]:
    """Within it OpenMP has so many threads, and BLAS one: its sums differ by thread count."""
    with _thread_pools().limit(limits={"openmp": openmp, "blas": 1}):
        yield


@functools.cache
def _thread_pools() -> Any:
    """The loaded libraries' pools: looking for them takes longer than predicting a row."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import sklearn.utils.extmath  # noqa: F401  loads OpenMP and both copies of BLAS
        from threadpoolctl import ThreadpoolController
    except ImportError as error:
        raise MissingPackage("scikit-learn", "train or load estimators", "stages") from error
    return ThreadpoolController()


def _make(task: FitTask) -> Any:
    """What the hook returns, if it has the methods that the task needs."""
    hook: Callable[..., Any] | None = task.hook
    if hook is None:
        raise UserError(
            "train.hook: the flavour estimator needs one, module:function, that returns an estimator"
        )
    estimator = hook(**task.train.params)
    needed = ("fit", "predict") if task.train.task == "regression" else ("fit", "predict_proba")
    absent = [name for name in needed if not hasattr(estimator, name)]
    if absent:
        more = " Wrap it in CalibratedClassifierCV." if "predict_proba" in absent else ""
        raise UserError(
            f"train.hook: {task.train.hook} returned {type(estimator).__name__}, which has no "
            f"{' and no '.join(absent)}; the task {task.train.task} needs it.{more}"
        )
    return estimator


def _seed(estimator: Any, seed: int) -> None:
    """Gives the seed to every `random_state` that is None."""
    if not hasattr(estimator, "get_params"):
        return
    states = {
        name: seed
        for name, value in estimator.get_params(deep=True).items()
        if name.rpartition("__")[2] == "random_state" and value is None
    }
    if states:
        estimator.set_params(**states)


def _saved(estimator: Any, trust: str) -> tuple[str, bytes]:
    """The file's name and bytes: skops' format where it is enough, a pickle where the loop says so."""
    try:
        raw = skops_file.dump(estimator)
        others = skops_file.untrusted(raw)
    except TreadleError:
        raise
    except Exception as error:
        raw, others = b"", [f"{type(estimator).__name__} ({error})"]
    if not others:
        return SAFE_FILE, raw
    if trust == "pickle":
        return PICKLE_FILE, pickle.dumps(estimator, protocol=5)
    raise UserError(
        f"the estimator holds {', '.join(others)}, which can't be saved so that loading executes no code. "
        "Use scikit-learn's own classes, or say `trust: pickle` in the train section if you trust whoever "
        "can write to the store."
    )


if TYPE_CHECKING:
    _flavour: Flavour = EstimatorFlavour()
