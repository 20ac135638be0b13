"""A candidate as an MLflow model: a folder that `mlflow.pyfunc.load_model` loads, with no pickle of ours.

    treadle/model/...        the flavour's files
    treadle/loop/spec.json   the part of the spec that made it
    treadle/loop/files/...   the loop's files, for a flavour of the loop's own

MLflow calls `_load_pyfunc` of this module, so whoever loads the model needs treadle installed.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import UserError
from treadle.records import Candidate
from treadle.store import Store, fetch_blob

if TYPE_CHECKING:
    from treadle.models import Predictor
    from treadle.models.predictor import Floats

_LIBRARIES = {"xgboost": ("xgboost",), "estimator": ("scikit-learn", "skops"), "torch": ("onnxruntime",)}
_FOLDER = "treadle"


class PyfuncModel:
    """What MLflow calls: tables in, the predictor's array out."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Floats:
        """Predictions for a pandas DataFrame or a mapping of columns; others than the model's are ignored.

        Returns:
            Binary: (n,) the probability of class 1. Multiclass: (n, classes). Regression: (n,).

        Raises:
            UserError: A column of the model is absent, or holds values that are not of its kind.
        """
        if not isinstance(model_input, Mapping) and not hasattr(model_input, "columns"):
            names = ", ".join(self.predictor.schema.names)
            raise UserError(f"the model takes a DataFrame, or columns by name, with {names}")
        columns = {name: model_input[name] for name in self.predictor.schema.names if name in model_input}
        return self.predictor.predict(self.predictor.schema.encode(columns))


def _load_pyfunc(path: str) -> PyfuncModel:
    """MLflow's entry: the model in the folder that `save_pyfunc` laid out."""
    from treadle.loop import Loop
    from treadle.loop_code import loop_imports
    from treadle.models import load_predictor
    from treadle.models.predictor import read_manifest

    folder = Path(path)
    sections = json.loads((folder / "loop/spec.json").read_text(encoding="utf-8"))
    trust = sections.get("train", {}).get("trust", "none")
    if ":" not in read_manifest(folder / "model").flavour and trust == "none":
        return PyfuncModel(load_predictor(folder / "model"))
    loop = Loop.restore(sections, folder / "loop/files", sources_of=Loop(name="loop", **sections))
    with loop_imports(loop):
        return PyfuncModel(load_predictor(folder / "model", trust=trust, loop=loop))


def save_pyfunc(store: Store, candidate: Candidate, folder: Path) -> None:
    """Writes a candidate as an MLflow model into a folder that does not exist yet.

    Raises:
        BlobLost: A file of the candidate is missing or altered.
    """
    import mlflow.pyfunc

    data = folder.with_name(folder.name + "-data") / _FOLDER
    for name, sha256 in candidate.blobs.items():
        if name.startswith(("model/", "loop/")):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fetch_blob(store, sha256), data / name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            folder,
            loader_module="treadle.registry.mlflow_model",
            data_path=str(data),
            signature=_signature(data / "model", candidate),
            pip_requirements=_requirements(candidate.flavour),
        )


def _signature(model: Path, candidate: Candidate) -> Any:
    """The columns by name, of any type: MLflow refuses whole numbers for doubles, and pandas' categories."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema, TensorSpec
    from treadle.models.predictor import read_manifest

    names = read_manifest(model).schema.names
    shape = (-1, len(candidate.classes)) if candidate.task == "multiclass" else (-1,)
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in names]),
        outputs=Schema([TensorSpec(np.dtype("float64"), shape)]),
    )


def _requirements(flavour: str) -> list[str]:
    """Exact versions of what predicting needs; MLflow would load the model in another process to find out."""
    found = []
    for name in ("treadle", "numpy", "pyarrow", *_LIBRARIES.get(flavour, ())):
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return found
