"""The torch flavour: neural networks on tables, of the flavour's own kind or a `torch.nn.Module` that a hook makes.

    def net(inputs, width=64):                                   # hooks.py
        return MyModule(inputs.numbers, inputs.levels, inputs.outputs, width)

    train: {flavour: torch, hook: hooks:net, params: {width: 32, learning_rate: 0.001}}

Training needs torch. What it saves is `model.safetensors`, the weights, and `model.onnx`, the whole network with its
preparation of the rows. Predictions always come from the latter by ONNX Runtime, at the endpoint as in the gate: what
serves is what was judged, to the bit, and whoever predicts needs no torch and no code of the loop's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from treadle import spec
from treadle.errors import MissingPackage, UserError
from treadle.models.ablation import ablated, typical_values
from treadle.models.predictor import FitTask, Flavour, Predictor, read_manifest, write_manifest
from treadle.models.ray_session import on_cluster
from treadle.models.schema import InputSchema
from treadle.models.spread import fit_spread
from treadle.models.torch import params as torch_params

if TYPE_CHECKING:
    from treadle.models.predictor import Floats

ONNX_FILE, WEIGHTS_FILE = "model.onnx", "model.safetensors"


@dataclass(frozen=True, slots=True)
class TorchPredictor:
    """A trained network. `onnx` and `weights` are its files; `baseline` holds k typical values."""

    task: spec.Task
    schema: InputSchema
    classes: tuple[str, ...]
    trained_through: datetime
    rounds: int | None
    baseline: tuple[float | None, ...]
    onnx: bytes = field(repr=False)
    weights: bytes = field(repr=False)
    session: Any = field(repr=False, compare=False)
    flavour: str = "torch"

    def predict(self, x: Floats) -> Floats:
        """See Predictor. A row alone may differ from the same in a batch in the last digits of a float32."""
        import numpy as np

        if not len(x):
            return np.empty((0, len(self.classes)) if self.task == "multiclass" else 0)
        rows = np.ascontiguousarray(x, dtype=np.float64)
        result: Floats = self.session.run(None, {"rows": rows})[0]
        return result

    def contributions(self, x: Floats) -> Floats:
        """See Predictor, and `ablation.ablated`."""
        return ablated(self.predict, self.task, self.baseline, x)

    def save(self, folder: Path) -> None:
        """See Predictor."""
        (folder / ONNX_FILE).write_bytes(self.onnx)
        (folder / WEIGHTS_FILE).write_bytes(self.weights)
        write_manifest(folder, self, {"baseline": list(self.baseline)})


class TorchFlavour:
    """See Flavour."""

    name = "torch"

    def version(self) -> str:
        """See Flavour. Without torch's mark for the device that it was built for: that is in the key already."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"torch {version('torch').partition('+')[0]}, onnx {version('onnx')}"
        except PackageNotFoundError as error:
            raise MissingPackage(error.name or "torch", "train networks", "torch") from None

    def problems(self, train: spec.Train) -> list[str]:
        """See Flavour."""
        return torch_params.problems(train)

    def fit(self, task: FitTask) -> Predictor:
        """See Flavour. Several workers are Ray Train's where there is a cluster, else processes of this machine."""
        try:
            from treadle.models.torch import file as torch_file
            from treadle.models.torch.fit import fit_net
        except ImportError as error:
            raise MissingPackage(error.name or "torch", "train networks", "torch") from error
        if task.train.workers > 1 and on_cluster() and not _in_group():
            return self._fit_over_ray(task)
        whole, rounds = fit_net(task)
        onnx = torch_file.to_onnx(whole, len(task.schema.features))
        about = {"schema": task.schema.to_json(), "hook": task.train.hook}
        predictor = TorchPredictor(
            task=task.train.task,
            schema=task.schema,
            classes=task.classes,
            trained_through=task.trained_through,
            rounds=rounds,
            baseline=typical_values(task.schema, task.x),
            onnx=onnx,
            weights=torch_file.pack_weights(whole.state_dict(), about),
            session=_session(onnx),
        )
        some = task.x[:1000]
        torch_file.refuse_disagreement(whole, predictor.predict(some), some)
        return predictor

    def _fit_over_ray(self, task: FitTask) -> Predictor:
        with TemporaryDirectory(prefix="treadle-torch-") as name:
            for file, content in fit_spread(task).items():
                (Path(name) / file).write_bytes(content)
            return self.load(Path(name), "none")

    def load(self, folder: Path, trust: str) -> Predictor:
        """See Flavour."""
        manifest = read_manifest(folder)
        absent = [name for name in (ONNX_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
        if absent:
            raise UserError(f"{folder} lacks {' and '.join(absent)}: it holds half a model. Fetch it again.")
        onnx = (folder / ONNX_FILE).read_bytes()
        return TorchPredictor(
            task=manifest.task,
            schema=manifest.schema,
            classes=manifest.classes,
            trained_through=manifest.trained_through,
            rounds=manifest.rounds,
            baseline=tuple(manifest.extra["baseline"]),
            onnx=onnx,
            weights=(folder / WEIGHTS_FILE).read_bytes(),
            session=_session(onnx),
        )


def _in_group() -> bool:
    """Whether this process is one of several that train together already."""
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def _session(onnx: bytes) -> Any:
    """ONNX Runtime on the CPU with one thread: sums differ by thread count, and serving has a core a process."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackage("onnxruntime", "predict with networks", "serve") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common class of their own
        raise UserError(
            f"{ONNX_FILE} can't be loaded, so it is damaged or of a newer ONNX: {error}"
        ) from error


if TYPE_CHECKING:
    _flavour: Flavour = TorchFlavour()
